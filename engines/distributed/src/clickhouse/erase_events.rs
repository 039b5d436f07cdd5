//! Renames a person in the small tables: messages are read, renamed as [`Erasure`] says, and written over
//! the rows that they came from.
//!
//! [`Erasure`]: panopticon_core::erasure::Erasure

use std::collections::HashMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use panopticon_core::{
    erasure::ErasedCounts,
    proto::log::{Delivery, Detection, GuardAction},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{erase::Work, server::Failure};

/// Rows that one statement changes: all that is new of them is in its address.
const CHUNK_ROWS: usize = 40;
/// The most bytes that are new in one statement, unless a row alone has more.
const CHUNK_BYTES: usize = 200 << 10;

/// What a row is told apart by.
const PLACE: &str = "concat(toString(log_id), ':', toString(log_partition), ':', toString(log_offset), ':', \
                     toString(log_index))";

/// The state of a delivery that is still being tried.
const PENDING: &str = "pending";

#[derive(clickhouse::Row, serde::Deserialize)]
struct Stored {
    place: String,
    data: String,
    body: String,
}

/// A row after the person was taken out.
struct Renamed {
    place: String,
    /// The new values of the table's columns.
    values: Vec<String>,
}

/// A table, and which of its columns change.
struct Table {
    name: &'static str,
    /// The condition that finds the person's rows.
    of_person: &'static str,
    body: &'static str,
    columns: &'static [&'static str],
}

const DETECTIONS: Table = Table {
    name: "detections",
    of_person: "user_sub = {user_sub:String}",
    body: "''",
    columns: &["data", "user_sub", "source_ip", "explanation"],
};

const ACTIONS: Table = Table {
    name: "guard_actions",
    of_person: "user_sub = {user_sub:String}",
    body: "''",
    columns: &["data", "user_sub", "kill_reason"],
};

const DELIVERIES: Table = Table {
    name: "webhook_deliveries",
    // Only the message says whom it is about.
    of_person: "JSONExtractString(data, 'user_sub') = {user_sub:String}",
    body: "base64Encode(body)",
    columns: &["data", "body"],
};

pub(super) async fn rename(work: &Work<'_>, counts: &mut ErasedCounts) -> Result<(), Failure> {
    let person = work.erasure;
    counts.detections = change(work, &DETECTIONS, |row| {
        let mut detection: Detection = message(&row.data)?;
        person.detection(&mut detection);
        let data = text(&detection)?;
        Ok(vec![data, detection.user_sub, detection.source_ip, detection.explanation])
    })
    .await?;
    let mut states = HashMap::new();
    counts.deliveries = change(work, &DELIVERIES, |row| {
        let body = BASE64_STANDARD
            .decode(&row.body)
            .map_err(|error| Failure::Broken(format!("a body cannot be read: {error}")))?;
        let mut delivery = Delivery { body: body.into(), ..message(&row.data)? };
        states.insert(delivery.delivery_id.clone(), delivery.state.clone());
        person.delivery(&mut delivery);
        let body = String::from_utf8_lossy(&std::mem::take(&mut delivery.body)).into_owned();
        Ok(vec![text(&delivery)?, body])
    })
    .await?;
    counts.pending_deliveries = states.values().filter(|state| *state == PENDING).count() as u64;
    counts.actions = change(work, &ACTIONS, |row| {
        let mut action: GuardAction = message(&row.data)?;
        person.action(&mut action);
        let data = text(&action)?;
        Ok(vec![data, action.user_sub, action.kill.unwrap_or_default().reason])
    })
    .await?;
    Ok(())
}

/// Changes all rows of the person in a table; answers how many.
async fn change(
    work: &Work<'_>,
    table: &Table,
    mut rename: impl FnMut(&Stored) -> Result<Vec<String>, Failure>,
) -> Result<u64, Failure> {
    let Table { name, of_person, body, .. } = table;
    let sql = format!(
        "SELECT {PLACE} AS place, data, {body} AS body FROM {name} \
         WHERE client_id = {{client_id:String}} AND {of_person} \
         ORDER BY log_id, log_partition, log_offset, log_index"
    );
    let rows: Vec<Stored> = work.server.rows(work.query(&sql)).await?;
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    for row in &rows {
        let values = rename(row)?;
        let size = values.iter().map(String::len).sum::<usize>();
        if chunk.len() >= CHUNK_ROWS || (bytes + size > CHUNK_BYTES && !chunk.is_empty()) {
            write(work, table, &std::mem::take(&mut chunk)).await?;
            bytes = 0;
        }
        bytes += size;
        chunk.push(Renamed { place: row.place.clone(), values });
    }
    if !chunk.is_empty() {
        write(work, table, &chunk).await?;
    }
    Ok(rows.len() as u64)
}

/// Writes the new values over those of the same rows.
async fn write(work: &Work<'_>, table: &Table, rows: &[Renamed]) -> Result<(), Failure> {
    let assignments: Vec<String> = table
        .columns
        .iter()
        .enumerate()
        .map(|(i, column)| {
            format!(
                "{column} = transform({PLACE}, {{places:Array(String)}}, {{v{i}:Array(String)}}, {column})"
            )
        })
        .collect();
    let sql = format!(
        "ALTER TABLE {} UPDATE {} WHERE client_id = {{client_id:String}} \
         AND has({{places:Array(String)}}, {PLACE})",
        table.name,
        assignments.join(", ")
    );
    let places: Vec<&str> = rows.iter().map(|row| row.place.as_str()).collect();
    let mut query = work.change(&sql).param("places", places);
    for i in 0..table.columns.len() {
        let values: Vec<&str> = rows.iter().map(|row| row.values[i].as_str()).collect();
        query = query.param(&format!("v{i}"), values);
    }
    work.server.change(query).await
}

fn message<T: DeserializeOwned>(data: &str) -> Result<T, Failure> {
    serde_json::from_str(data)
        .map_err(|error| Failure::Broken(format!("a stored message cannot be read: {error}")))
}

fn text(message: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(message)
        .map_err(|error| Failure::Broken(format!("a message cannot be written as JSON: {error}")))
}
