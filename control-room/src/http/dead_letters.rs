//! `/dead-letters`: read from the topic itself, newest first.

use std::sync::Arc;

use axum::{Json, extract::State};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use panopticon_core::{
    api::ListAnswer,
    log::{LogError, Stored},
    proto::log::DeadLetter,
    topic::Topic,
};
use prost::Message as _;
use serde_json::Value;
use tracing::warn;

use crate::{
    access::Caller,
    answer::ApiError,
    input::{Cursor, Params, encode_cursor},
    room::Room,
};

/// A page ends early when the records on it have this size: one can have 4 MiB.
const PAGE_BYTES: usize = 8 << 20;
/// Read at once, backwards.
const WINDOW_OFFSETS: u64 = 16;
const READ_BYTES: usize = 4 << 20;

/// Before an offset.
struct Before(u64);

impl Cursor for Before {
    const KIND: &'static str = "dead";
    fn write(&self) -> String {
        self.0.to_string()
    }
    fn read(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

pub(super) async fn list(
    State(room): State<Arc<Room>>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<ListAnswer<Value>>, ApiError> {
    caller.all_apps()?;
    let (limit, before) = params.page::<Before>()?;
    params.done()?;
    let bounds = room.log.bounds(Topic::DeadLetters, 0).await?;
    let mut end = before.map_or(bounds.high, |before| before.0.min(bounds.high));
    let (mut items, mut bytes) = (Vec::new(), 0);
    while end > bounds.low {
        let start = end.saturating_sub(WINDOW_OFFSETS).max(bounds.low);
        for stored in read(&room, start, end).await?.into_iter().rev() {
            if items.len() >= limit as usize || bytes >= PAGE_BYTES {
                let next_cursor = Some(encode_cursor(&Before(stored.offset + 1)));
                return Ok(Json(ListAnswer { items, next_cursor }));
            }
            bytes += stored.record.size();
            items.extend(show(&stored));
        }
        end = start;
    }
    Ok(Json(ListAnswer { items, next_cursor: None }))
}

/// All records of a range, oldest first.
async fn read(room: &Room, start: u64, end: u64) -> Result<Vec<Stored>, ApiError> {
    let (mut found, mut from) = (Vec::new(), start);
    while from < end {
        let records = match room.log.read(Topic::DeadLetters, 0, from, end, READ_BYTES).await {
            // Retention has just taken the rest.
            Err(LogError::Hole { low, .. }) if low > from => {
                from = low;
                continue;
            }
            records => records?,
        };
        let Some(last) = records.last() else { break };
        from = last.offset + 1;
        found.extend(records);
    }
    Ok(found)
}

/// The JSON of the message, its bytes in base64.
fn show(stored: &Stored) -> Option<Value> {
    let letter = match DeadLetter::decode(stored.record.bytes()) {
        Ok(letter) => letter,
        Err(error) => {
            warn!(offset = stored.offset, %error, "a dead letter that cannot be read is left out of the list");
            return None;
        }
    };
    let (key, payload) = (STANDARD.encode(&letter.key), STANDARD.encode(&letter.payload));
    let bare = DeadLetter { key: Bytes::new(), payload: Bytes::new(), ..letter };
    let mut shown = serde_json::to_value(bare).ok()?;
    shown["key"] = Value::String(key);
    shown["payload"] = Value::String(payload);
    Some(shown)
}
