//! Every promised trace exactly once, as it was sent; none that was refused.

use std::collections::HashMap;

use panopticon_proto::log::Envelope;
use prost::Message as _;
use serde::Deserialize;
use uuid::Uuid;

use super::Finding;
use crate::{
    bed::Bed,
    call::App,
    ledger::{Entry, Key},
    topics,
};

#[derive(Debug, Deserialize)]
struct Row {
    client_id: String,
    event_id: Uuid,
    user_sub: String,
    tool: String,
    status: String,
    log_partition: u32,
    log_offset: u64,
    log_index: u32,
}

impl Row {
    fn place(&self) -> String {
        format!("{}/{}/{}", self.log_partition, self.log_offset, self.log_index)
    }

    fn is_as_sent(&self, entry: &Entry) -> bool {
        let call = &entry.call;
        (self.user_sub.as_str(), self.tool.as_str(), self.status.as_str())
            == (call.user.as_str(), call.tool, call.status.word())
    }
}

pub(super) async fn check(bed: &Bed) -> anyhow::Result<Vec<Finding>> {
    let rows: Vec<Row> = bed
        .sql
        .rows(
            "SELECT client_id, event_id, user_sub, tool, toString(status) AS status, log_partition, \
             log_offset, log_index FROM traces",
        )
        .await?;
    let (entries, invalid) = (bed.ledger.entries(), bed.ledger.invalid());
    let mut found: HashMap<Key, Vec<&Row>> = HashMap::new();
    let (mut strangers, mut refused) = (Vec::new(), Vec::new());
    for row in &rows {
        let key = App::of(&row.client_id).map(|app| (app, row.event_id));
        match key.filter(|key| entries.contains_key(key)) {
            _ if invalid.contains(&row.event_id) => refused.push(format!("{row:?}")),
            Some(key) => found.entry(key).or_default().push(row),
            None => strangers.push(format!("{row:?}")),
        }
    }
    let roads = Roads::read(bed).await?;
    let (mut missing, mut twice, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    for (key, entry) in &entries {
        let rows = found.get(key).map_or(&[][..], Vec::as_slice);
        let places: Vec<String> = rows.iter().map(|row| row.place()).collect();
        let road = || roads.of(key);
        if rows.is_empty() && entry.is_promised() {
            missing.push(format!("{} of {}; {}", key.1, describe(entry), road()));
        }
        if rows.len() > 1 {
            twice.push(format!("{} of {}; rows at {places:?}; {}", key.1, describe(entry), road()));
        }
        if rows.iter().any(|row| !row.is_as_sent(entry)) {
            changed.push(format!("{} of {}: {rows:?}", key.1, describe(entry)));
        }
    }
    let again = roads.kept_again();
    let promised = bed.ledger.counts().promised;
    Ok(vec![
        Finding::new("every trace answered 202 or 200 is in `traces`", promised, missing),
        Finding::new("no trace is in `traces` twice", entries.len(), twice),
        Finding::new("no trace is in the topic `traces` twice", roads.kept.len(), again),
        Finding::new("no invalid trace is in `traces`", invalid.len(), refused),
        Finding::new("no trace is in `traces` that nobody sent", rows.len(), strangers),
        Finding::new("every trace in `traces` is as it was sent", rows.len(), changed),
    ])
}

fn describe(entry: &Entry) -> String {
    format!(
        "{} user {} started {} (accepted {}, duplicate {}, unconfirmed {})",
        entry.call.app.id(),
        entry.call.user,
        entry.call.started_at,
        entry.accepted,
        entry.duplicate,
        entry.unconfirmed
    )
}

/// Where each trace is in the topics: partition/offset/index.
struct Roads {
    raw: HashMap<(String, Uuid), Vec<String>>,
    kept: HashMap<(String, Uuid), Vec<String>>,
}

impl Roads {
    async fn read(bed: &Bed) -> anyhow::Result<Self> {
        let brokers = bed.brokers.clone();
        tokio::task::spawn_blocking(move || {
            Ok(Self { raw: places(&brokers, "traces.raw")?, kept: places(&brokers, "traces")? })
        })
        .await?
    }

    fn of(&self, key: &Key) -> String {
        let key = (key.0.id().to_owned(), key.1);
        format!(
            "traces.raw {:?}, traces {:?}",
            self.raw.get(&key).cloned().unwrap_or_default(),
            self.kept.get(&key).cloned().unwrap_or_default()
        )
    }

    fn kept_again(&self) -> Vec<String> {
        let again = self.kept.iter().filter(|(_, places)| places.len() > 1);
        again
            .map(|(key, places)| format!("{} of {}: {places:?}; raw {:?}", key.1, key.0, self.raw.get(key)))
            .collect()
    }
}

fn places(brokers: &str, topic: &str) -> anyhow::Result<HashMap<(String, Uuid), Vec<String>>> {
    let mut places: HashMap<_, Vec<String>> = HashMap::new();
    for record in topics::read(brokers, topic)? {
        // A poison record is no envelope.
        let Ok(envelope) = Envelope::decode(&record.payload[..]) else { continue };
        for (index, trace) in envelope.taken.into_iter().enumerate() {
            let Ok(id) = Uuid::parse_str(&trace.event_id) else { continue };
            let place = format!("{}/{}/{index}", record.partition, record.offset);
            places.entry((trace.client_id, id)).or_default().push(place);
        }
    }
    Ok(places)
}
