//! Which topics there are, where their partitions lie in the file, and how far each has been written.

use std::collections::HashMap;

use panopticon_core::{
    ids::LogId,
    log::{LogError, TopicInfo},
    time::Time,
    topic::{Cut, Topic},
};
use rusqlite::{Connection, params};
use tokio::sync::watch;

use crate::fault::Fault;

/// Bits of a record's rowid that hold its offset; the partition's number is above them.
const OFFSET_BITS: u32 = 40;

/// A partition's number in the file. All records lie in one table, ordered by (slot, offset).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(u32);

impl Slot {
    /// The number as the file has it.
    pub(crate) fn number(self) -> i64 {
        i64::from(self.0)
    }

    /// The rowid of the record at `offset`. Offsets beyond the last possible one share its rowid.
    pub(crate) fn position(self, offset: u64) -> i64 {
        let last = (1_u64 << OFFSET_BITS) - 1;
        (i64::from(self.0) << OFFSET_BITS) | offset.min(last).cast_signed()
    }

    /// The partition of the record with this rowid.
    pub(crate) fn of(position: i64) -> Self {
        Self(u32::try_from(position >> OFFSET_BITS).unwrap_or(u32::MAX))
    }

    /// The offset of the record with this rowid.
    pub(crate) fn offset(position: i64) -> u64 {
        position.cast_unsigned() & ((1 << OFFSET_BITS) - 1)
    }
}

struct Entry {
    info: TopicInfo,
    slots: Vec<Slot>,
}

/// The topics of the file; fixed once it is open.
pub(crate) struct Catalog {
    topics: HashMap<Topic, Entry>,
    /// One past the last committed offset, by slot number.
    ends: Vec<watch::Sender<u64>>,
}

impl Catalog {
    /// Creates the topics that the file lacks, and reads what it has.
    pub(crate) fn open(conn: &Connection, configured: u32, now: Time) -> Result<Self, Fault> {
        for topic in Topic::ALL {
            let partitions = match topic.cut() {
                Cut::Single => 1,
                Cut::AsConfigured => configured.max(1),
            };
            create(conn, topic, partitions, now)?;
        }
        let mut topics: HashMap<Topic, Entry> = HashMap::new();
        let mut ends: Vec<watch::Sender<u64>> = Vec::new();
        let mut query =
            conn.prepare("SELECT topic, log_id, slot, next FROM log_partitions ORDER BY topic, partition")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let Some(topic) = Topic::parse(&row.get::<_, String>(0)?) else { continue };
            let log_id = LogId(row.get::<_, i64>(1)?.cast_unsigned());
            let slot = Slot(row.get(2)?);
            let entry = topics
                .entry(topic)
                .or_insert_with(|| Entry { info: TopicInfo { partitions: 0, log_id }, slots: Vec::new() });
            entry.info.partitions += 1;
            entry.slots.push(slot);
            ends.resize_with(ends.len().max(slot.0 as usize + 1), || watch::Sender::new(0));
            ends[slot.0 as usize].send_replace(row.get::<_, i64>(3)?.cast_unsigned());
        }
        let has = topics.get(&Topic::TracesRaw).map_or(0, |entry| entry.info.partitions);
        if has != configured {
            tracing::warn!(
                has,
                configured,
                "`embedded.partitions` is fixed when the data directory is made; what it has counts"
            );
        }
        Ok(Self { topics, ends })
    }

    /// A topic's partitions and identity.
    pub(crate) fn info(&self, topic: Topic) -> Result<TopicInfo, LogError> {
        self.topics.get(&topic).map(|entry| entry.info).ok_or(LogError::NoTopic(topic))
    }

    /// Where all partitions of a topic lie, in order.
    pub(crate) fn slots(&self, topic: Topic) -> Result<&[Slot], LogError> {
        self.topics.get(&topic).map(|entry| entry.slots.as_slice()).ok_or(LogError::NoTopic(topic))
    }

    /// Where one partition lies.
    pub(crate) fn slot(&self, topic: Topic, partition: u32) -> Result<Slot, LogError> {
        let slots = self.slots(topic)?;
        slots.get(partition as usize).copied().ok_or_else(|| {
            LogError::Broken(format!("`{topic}` has {} partitions, there is no {partition}", slots.len()))
        })
    }

    /// Follows the end of a partition.
    pub(crate) fn end(&self, slot: Slot) -> watch::Receiver<u64> {
        self.ends[slot.0 as usize].subscribe()
    }

    /// Tells readers that a partition has been written and committed up to `next`.
    pub(crate) fn publish(&self, slot: Slot, next: u64) {
        self.ends[slot.0 as usize].send_replace(next);
    }
}

fn create(conn: &Connection, topic: Topic, partitions: u32, now: Time) -> Result<(), Fault> {
    let exists: bool = conn.query_row(
        "SELECT EXISTS (SELECT 1 FROM log_partitions WHERE topic = ?1)",
        [topic.name()],
        |row| row.get(0),
    )?;
    if exists {
        return Ok(());
    }
    let log_id = LogId::random().0.cast_signed();
    for partition in 0..partitions {
        conn.execute(
            "INSERT INTO log_partitions (topic, partition, log_id, low, next, created_at)
             VALUES (?1, ?2, ?3, 0, 0, ?4)",
            params![topic.name(), partition, log_id, now.micros()],
        )?;
    }
    Ok(())
}
