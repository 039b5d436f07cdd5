//! A record that no stage can take, in every topic that stages read.

use std::{collections::BTreeSet, time::Duration};

use crate::{bed::Bed, topics};

/// No message of any topic.
pub const PAYLOAD: &[u8] = b"\xff\xff\xff poison";

/// Topics, and the stages that read them.
const READERS: [(&str, &[&str]); 7] = [
    ("traces.raw", &["dedupe"]),
    ("traces", &["store", "rate-limit", "detector"]),
    ("denials", &["detector-sources"]),
    ("rollups", &["detector-apps"]),
    ("detections", &["guard-actions", "store-detections"]),
    ("guard-actions", &["webhook-dispatcher", "store-guard-actions"]),
    ("audit", &["store-audit"]),
];

const TRIES: u32 = 20;

/// What a dead letter is told by: its record and the stage that met it.
pub fn name(topic: &str, (partition, offset): (i64, i64), stage: &str) -> String {
    format!("{topic} {partition}/{offset} by {stage}")
}

/// The dead letters that it must end as. A topic may have it twice: where the broker did not answer in time, it was
/// sent again. Blocks.
pub fn expected(brokers: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for (topic, stages) in READERS {
        let mut records = topics::read(brokers, topic)?;
        records.retain(|record| record.payload == PAYLOAD);
        for stage in stages {
            if records.is_empty() {
                // No letter is called that: the poison is missed.
                names.insert(format!("{topic} by {stage}"));
            }
            let places = records.iter().map(|record| (record.partition.into(), record.offset));
            names.extend(places.map(|place| name(topic, place, stage)));
        }
    }
    Ok(names)
}

/// Puts one into every topic, between faults or in the middle of one.
pub async fn pour(bed: &Bed) {
    *bed.poisoned.lock() = true;
    for (topic, _) in READERS {
        for attempt in 1.. {
            let brokers = bed.brokers.clone();
            let done = tokio::task::spawn_blocking(move || topics::append(&brokers, topic, PAYLOAD)).await;
            match done {
                Ok(Ok(())) => break,
                Ok(Err(error)) if attempt >= TRIES => return bed.incident(format!("poison: {error:#}")),
                _ => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }
}
