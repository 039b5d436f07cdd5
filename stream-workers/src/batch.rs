//! Records gathered into the batches that the store inserts.

use panopticon_core::{
    log::{Output, Stored},
    stage::dead_letter,
    store::{Row, Rows},
    time::Time,
    topic::Topic,
    trace::{TakenBytes, WireError},
};
use prost::Message;
use tokio::time::Instant;

/// A topic that the trace store keeps, and the stage that brings it there.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// The stage's name.
    pub stage: &'static str,
    /// What it reads.
    pub topic: Topic,
}

/// The topics that the trace store keeps.
pub const TABLES: [Table; 5] = [
    Table { stage: "store", topic: Topic::Traces },
    Table { stage: "store-detections", topic: Topic::Detections },
    Table { stage: "store-guard-actions", topic: Topic::GuardActions },
    Table { stage: "store-webhook-deliveries", topic: Topic::WebhookDeliveries },
    Table { stage: "store-audit", topic: Topic::Audit },
];

/// A range of records and the rows in them.
pub struct Batch {
    table: Table,
    /// First offset.
    pub from: u64,
    /// One past the last offset.
    pub to: u64,
    /// The rows.
    pub rows: Rows,
    /// How many records rows were taken from.
    pub records: usize,
    /// What could not be decoded.
    pub dead: Vec<Output>,
    /// About how many bytes.
    pub bytes: usize,
    /// When its first record came, and its latest.
    pub came: Option<(Instant, Instant)>,
}

impl Batch {
    /// An empty batch that begins at `from`.
    pub fn new(table: Table, from: u64) -> Self {
        let rows = match table.topic {
            Topic::Detections => Rows::Detections(Vec::new()),
            Topic::GuardActions => Rows::GuardActions(Vec::new()),
            Topic::WebhookDeliveries => Rows::Deliveries(Vec::new()),
            Topic::Audit => Rows::Audit(Vec::new()),
            _ => Rows::Traces(Vec::new()),
        };
        Self { table, from, to: from, rows, records: 0, dead: Vec::new(), bytes: 0, came: None }
    }

    /// Whether no record has been added.
    pub const fn is_empty(&self) -> bool {
        self.from == self.to
    }

    /// Notes that more may have come since, while none was taken.
    pub const fn goes_on(&mut self, now: Instant) {
        if let Some((_, latest)) = &mut self.came {
            *latest = now;
        }
    }

    /// Adds records; what cannot be decoded becomes a dead letter.
    pub fn push(&mut self, partition: u32, records: Vec<Stored>, now: Time) {
        let arrived = Instant::now();
        for stored in records {
            if stored.offset < self.to {
                continue;
            }
            self.came = Some((self.came.map_or(arrived, |(first, _)| first), arrived));
            self.to = stored.offset + 1;
            // A tombstone of a compacted topic tells nothing that a row does not.
            if !stored.record.is_for(self.table.stage) || stored.record.payload.is_none() {
                continue;
            }
            self.bytes += stored.record.size();
            match self.decode(&stored) {
                Ok(()) => self.records += 1,
                Err(error) => {
                    let (stage, topic) = (self.table.stage, self.table.topic);
                    self.dead.push(dead_letter(stage, topic, partition, &stored, &error.to_string(), now));
                }
            }
        }
    }

    fn decode(&mut self, stored: &Stored) -> Result<(), WireError> {
        let offset = stored.offset;
        let bytes = stored.record.bytes();
        match &mut self.rows {
            Rows::Traces(rows) => {
                let envelope =
                    stored.record.payload.as_ref().map_or(Ok(Vec::new()), TakenBytes::of_envelope)?;
                rows.extend((0..).zip(envelope).map(|(index, value)| Row { offset, index, value }));
            }
            Rows::Detections(rows) => rows.push(row(offset, bytes)?),
            Rows::GuardActions(rows) => rows.push(row(offset, bytes)?),
            Rows::Deliveries(rows) => rows.push(row(offset, bytes)?),
            Rows::Audit(rows) => rows.push(row(offset, bytes)?),
        }
        Ok(())
    }
}

fn row<M: Message + Default>(offset: u64, bytes: &[u8]) -> Result<Row<M>, WireError> {
    Ok(Row { offset, index: 0, value: M::decode(bytes)? })
}
