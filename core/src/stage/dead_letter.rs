//! Records that a stage cannot take go to `dead-letters`, with everything that is needed to replay them.

use panopticon_proto::log::DeadLetter;
use prost::Message as _;
use tracing::warn;
use uuid::Uuid;

use crate::{
    log::{Output, Record, Stored},
    time::Time,
    topic::Topic,
};

/// A dead letter is one of a stage and a place, however often it is met: UUIDv5 in this namespace.
const NAMESPACE: Uuid = Uuid::from_u128(0x7a3c_5b0e_4f0e_5c9b_9d0e_7b1f_0d8a_11c4);

/// The record for `dead-letters` that tells what `stage` could not take and why. Counted.
pub fn dead_letter(
    stage: &str,
    topic: Topic,
    partition: u32,
    stored: &Stored,
    error: &str,
    now: Time,
) -> Output {
    build(stage, topic, partition, stored, None, error, now)
}

/// The same for one row inside a record: `payload` is the row in an envelope of its own.
pub fn dead_letter_row(
    stage: &str,
    topic: Topic,
    partition: u32,
    stored: &Stored,
    (index, payload): (u32, bytes::Bytes),
    error: &str,
    now: Time,
) -> Output {
    build(stage, topic, partition, stored, Some((index, payload)), error, now)
}

fn build(
    stage: &str,
    topic: Topic,
    partition: u32,
    stored: &Stored,
    row: Option<(u32, bytes::Bytes)>,
    error: &str,
    now: Time,
) -> Output {
    warn!(stage, %topic, partition, offset = stored.offset, error, "a record cannot be taken and goes to dead-letters");
    metrics::counter!("panopticon_dead_letters_total", "stage" => stage.to_owned(), "topic" => topic.name())
        .increment(1);
    let index = row.as_ref().map(|(index, _)| index.to_string()).unwrap_or_default();
    let name =
        format!("{stage}/{topic}-{partition}@{}/{index}/{}", stored.offset, stored.appended_at.micros());
    let letter = DeadLetter {
        dead_letter_id: Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string(),
        topic: topic.name().to_owned(),
        partition,
        offset: stored.offset,
        stage: stage.to_owned(),
        error: error.to_owned(),
        key: stored.record.key.clone(),
        payload: row
            .map_or_else(|| stored.record.payload.clone().unwrap_or_default(), |(_, payload)| payload),
        at: now.micros(),
        first_offset: stored.record.replay.as_ref().map(|replay| replay.first_offset),
    };
    Output { topic: Topic::DeadLetters, partition: 0, record: Record::message(letter.encode_to_vec()) }
}
