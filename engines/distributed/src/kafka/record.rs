//! Records on their way to and from the wire.

use bytes::Bytes;
use panopticon_core::{
    log::{LogError, Record, Replay, Stored},
    time::Time,
};
use rdkafka::{
    Message, Timestamp,
    message::{BorrowedMessage, Header, Headers, OwnedHeaders},
    producer::BaseRecord,
    util::IntoOpaque,
};

/// The header that says which stage a replayed record is for.
const FOR_STAGE: &str = "panopticon-stage";
/// The header that says where a replayed record lay at first.
const FIRST_OFFSET: &str = "panopticon-first-offset";

/// The driver counts partitions in signed numbers.
pub(super) fn partition_number(partition: u32) -> i32 {
    i32::try_from(partition).unwrap_or(i32::MAX)
}

/// Offsets of records are never negative; what is (an ack may lack it) is no offset.
pub(super) fn offset_number(offset: i64) -> Option<u64> {
    u64::try_from(offset).ok()
}

/// An offset as the driver counts it.
pub(super) fn raw_offset(offset: u64) -> i64 {
    i64::try_from(offset).unwrap_or(i64::MAX)
}

/// Refuses a record that the brokers would refuse.
pub(super) fn check_size(record: &Record, limit: usize) -> Result<(), LogError> {
    match record.size() {
        bytes if bytes > limit => Err(LogError::TooLarge { bytes, limit }),
        _ => Ok(()),
    }
}

/// The record for the driver.
pub(super) fn outgoing<'a, O: IntoOpaque>(
    topic: &'a str,
    partition: u32,
    record: &'a Record,
    opaque: O,
) -> BaseRecord<'a, [u8], [u8], O> {
    let mut out = BaseRecord::with_opaque_to(topic, opaque).partition(partition_number(partition));
    if !record.key.is_empty() {
        out = out.key(&record.key[..]);
    }
    if let Some(payload) = &record.payload {
        out = out.payload(&payload[..]);
    }
    if let Some(Replay { stage, first_offset }) = &record.replay {
        let headers = OwnedHeaders::new_with_capacity(2)
            .insert(Header { key: FOR_STAGE, value: Some(stage.as_bytes()) })
            .insert(Header { key: FIRST_OFFSET, value: Some(&first_offset.to_string()) });
        out = out.headers(headers);
    }
    out
}

/// The record that the driver brought.
pub(super) fn incoming(message: &BorrowedMessage<'_>) -> Stored {
    let offset = offset_number(message.offset()).unwrap_or(0);
    let millis = match message.timestamp() {
        Timestamp::NotAvailable => 0,
        Timestamp::CreateTime(millis) | Timestamp::LogAppendTime(millis) => millis,
    };
    Stored {
        offset,
        appended_at: Time::from_micros(millis.saturating_mul(1_000)),
        record: Record {
            key: Bytes::copy_from_slice(message.key().unwrap_or_default()),
            payload: message.payload().map(Bytes::copy_from_slice),
            replay: message.headers().and_then(|headers| replay(headers, offset)),
        },
    }
}

/// What the headers of the record at `offset` say of a replay.
fn replay<H: Headers>(headers: &H, offset: u64) -> Option<Replay> {
    let text = |key: &str| {
        let header = headers.iter().find(|header| header.key == key)?;
        Some(String::from_utf8_lossy(header.value?).into_owned())
    };
    // Whoever appended it by other means may not have said where it was.
    let first_offset = text(FIRST_OFFSET).and_then(|offset| offset.parse().ok()).unwrap_or(offset);
    Some(Replay { stage: text(FOR_STAGE)?, first_offset })
}
