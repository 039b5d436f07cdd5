//! `/dead-letters`: read from the topic itself, newest first; whether they were replayed says the control table.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use panopticon_core::{
    api::{DeadLetterReplayAnswer, ListAnswer},
    control::ControlState,
    log::{LogError, Stored},
    proto::log::DeadLetter,
    time::Time,
    topic::Topic,
};
use prost::Message as _;
use serde_json::{Value, json};
use tracing::warn;

use crate::{
    access::Caller,
    answer::ApiError,
    input::{Cursor, Params, encode_cursor},
    ops::{self, dead_letters::Found},
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
            items.extend(show(&stored, &room.view.state()));
        }
        end = start;
    }
    Ok(Json(ListAnswer { items, next_cursor: None }))
}

/// All records of a range, oldest first.
async fn read(room: &Room, start: u64, end: u64) -> Result<Vec<Stored>, ApiError> {
    let (mut found, mut from) = (Vec::new(), start);
    while from < end {
        found.extend(read_some(room, &mut from, end).await?);
    }
    Ok(found)
}

/// The next records from `from` on and before `end`, which it moves past them.
async fn read_some(room: &Room, from: &mut u64, end: u64) -> Result<Vec<Stored>, ApiError> {
    match room.log.read(Topic::DeadLetters, 0, *from, end, READ_BYTES).await {
        // Retention has just taken the rest.
        Err(LogError::Hole { low, .. }) if low > *from => {
            *from = low;
            Ok(Vec::new())
        }
        records => {
            let records = records?;
            *from = records.last().map_or(end, |last| last.offset + 1);
            Ok(records)
        }
    }
}

/// Appends the record of a letter again: 202, and 200 where that has been done before.
pub(super) async fn replay(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(dead_letter_id): Path<String>,
) -> Result<(StatusCode, Json<DeadLetterReplayAnswer>), ApiError> {
    caller.admin()?;
    let found = find(&room, &dead_letter_id).await?;
    let topic = match Topic::parse(&found.letter.topic) {
        Some(topic) => Some((topic, room.log.topic(topic).await?)),
        None => None,
    };
    let decide =
        move |_: &Room, state: &ControlState, now: Time| ops::dead_letters::replay(state, now, &found, topic);
    let (answer, is_new) = room.change(&caller, decide).await?;
    Ok((if is_new { StatusCode::ACCEPTED } else { StatusCode::OK }, Json(answer)))
}

/// The letter with this id, from the oldest on: what an operator replays has lain there for a while.
async fn find(room: &Room, dead_letter_id: &str) -> Result<Found, ApiError> {
    let bounds = room.log.bounds(Topic::DeadLetters, 0).await?;
    let mut from = bounds.low;
    while from < bounds.high {
        for stored in read_some(room, &mut from, bounds.high).await? {
            if let Some(letter) = decode(&stored).filter(|letter| letter.dead_letter_id == dead_letter_id) {
                return Ok(Found { offset: stored.offset, low: bounds.low, letter });
            }
        }
    }
    let shown: String = dead_letter_id.chars().take(64).collect();
    Err(ApiError::not_found(format!("there is no dead letter `{shown}`; they expire with the log")))
}

fn decode(stored: &Stored) -> Option<DeadLetter> {
    DeadLetter::decode(stored.record.bytes())
        .inspect_err(|error| {
            warn!(offset = stored.offset, %error, "a dead letter that cannot be read is left out");
        })
        .ok()
}

/// The JSON of the message, its bytes in base64, and what became of it.
fn show(stored: &Stored, state: &ControlState) -> Option<Value> {
    let letter = decode(stored)?;
    let replayed_at =
        state.replayed(&letter.dead_letter_id).map(|replayed| Time::from_micros(replayed.replayed_at));
    let size = letter.key.len() + letter.payload.len();
    let (key, payload) = (STANDARD.encode(&letter.key), STANDARD.encode(&letter.payload));
    let bare = DeadLetter { key: Bytes::new(), payload: Bytes::new(), ..letter };
    let mut shown = serde_json::to_value(bare).ok()?;
    shown["key"] = Value::String(key);
    shown["payload"] = Value::String(payload);
    shown["size"] = json!(size);
    shown["state"] = json!(if replayed_at.is_some() { "replayed" } else { "dead" });
    shown["replayed_at"] = json!(replayed_at);
    Some(shown)
}
