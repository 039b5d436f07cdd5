//! A record that no stage can take, in every topic that stages read.

use std::time::Duration;

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

/// The dead letters that it must end as.
pub fn expected() -> impl Iterator<Item = String> {
    READERS.iter().flat_map(|(topic, stages)| stages.iter().map(move |stage| format!("{topic} by {stage}")))
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
