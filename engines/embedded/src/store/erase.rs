//! Takes a person out of the file: raw traces go, and a pseudonym stands where they were named.
//!
//! Rows are looked for by those who read and changed a few at a time by the writer, so that nobody waits
//! long for it. Each step leaves the sums as they are, and finds nothing to do when it is made again.

use std::{collections::HashMap, sync::Arc};

use panopticon_core::{
    erasure::{ErasedCounts, Erasure},
    proto::log::{Delivery, Detection, GuardAction},
};
use prost::Message;
use rusqlite::{Connection, params};
use serde::{Serialize, de::DeserializeOwned};

use super::{event_rows::json, trace_rows::user_hash};
use crate::{
    Core,
    fault::Fault,
    writer::{Durability, Tx},
};

/// Rows that one job changes.
const CHUNK_ROWS: usize = 500;

/// The state of a delivery that is still being tried.
const PENDING: &str = "pending";

pub(super) async fn erase(core: &Arc<Core>, erasure: Arc<Erasure>) -> Result<ErasedCounts, Fault> {
    let mut counts = ErasedCounts {
        traces: remove_traces(core, &erasure).await?,
        usage: rename_usage(core, &erasure).await?,
        ..ErasedCounts::default()
    };
    let (app, user) = (erasure.client_id.to_string(), erasure.user_sub.clone());
    let rows = found(core, DETECTIONS, app.clone(), user.clone()).await?;
    counts.detections = change(core, &erasure, rows, write_detection).await?;
    let rows = found(core, DELIVERIES, app.clone(), user.clone()).await?;
    (counts.deliveries, counts.pending_deliveries) = (rows.len() as u64, pending(&rows)?);
    change(core, &erasure, rows, write_delivery).await?;
    let rows = found(core, ACTIONS, app, user).await?;
    counts.actions = change(core, &erasure, rows, write_action).await?;
    // What was answered to have gone must not come back after a power cut.
    core.writer.run(Durability::Durable, |_| Ok(())).await?;
    Ok(counts)
}

async fn remove_traces(core: &Arc<Core>, erasure: &Arc<Erasure>) -> Result<u64, Fault> {
    let person = Arc::clone(erasure);
    let rows: Vec<i64> = core
        .store_readers
        .read(move |conn| {
            let mut query = conn.prepare_cached(
                "SELECT row FROM traces_rows INDEXED BY traces_rows_timeline
                 WHERE client_id = ?1 AND user_hash = ?2 AND user_sub = ?3
                     AND NOT (log_partition = ?4 AND log_offset >= ?5)",
            )?;
            let rows = query.query_map(
                params![
                    person.client_id.as_str(),
                    user_hash(&person.user_sub),
                    person.user_sub,
                    person.until.partition,
                    person.until.offset.cast_signed()
                ],
                |row| row.get(0),
            )?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await?;
    for chunk in rows.chunks(CHUNK_ROWS) {
        let chunk = chunk.to_vec();
        let job = core.writer.run(Durability::Lazy, move |tx| {
            let mut delete = tx.conn.prepare_cached("DELETE FROM traces_rows WHERE row = ?1")?;
            chunk.iter().try_for_each(|row| delete.execute([row]).map(drop))?;
            Ok(())
        });
        job.await?;
    }
    Ok(rows.len() as u64)
}

/// Has the pseudonym's rows take up the person's, bucket by bucket; answers how many traces they count.
async fn rename_usage(core: &Arc<Core>, erasure: &Arc<Erasure>) -> Result<u64, Fault> {
    let person = Arc::clone(erasure);
    let buckets: Vec<i64> = core
        .store_readers
        .read(move |conn| {
            let mut query = conn.prepare_cached(
                "SELECT DISTINCT bucket FROM usage_15m_rows WHERE client_id = ?1 AND user_sub = ?2",
            )?;
            let rows = query.query_map([person.client_id.as_str(), &person.user_sub], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await?;
    let mut traces = 0;
    for chunk in buckets.chunks(CHUNK_ROWS) {
        let (chunk, person) = (chunk.to_vec(), Arc::clone(erasure));
        let job = core.writer.run(Durability::Lazy, move |tx| {
            chunk.iter().map(|bucket| rename_bucket(tx, &person, *bucket)).sum::<Result<u64, Fault>>()
        });
        traces += job.await?;
    }
    Ok(traces)
}

fn rename_bucket(tx: &Tx<'_>, person: &Erasure, bucket: i64) -> Result<u64, Fault> {
    let of_person = params![person.client_id.as_str(), bucket, person.user_sub];
    let traces: i64 = tx
        .conn
        .prepare_cached(
            "SELECT coalesce(sum(traces), 0) FROM usage_15m_rows
             WHERE client_id = ?1 AND bucket = ?2 AND user_sub = ?3",
        )?
        .query_row(of_person, |row| row.get(0))?;
    tx.conn
        .prepare_cached(
            "INSERT INTO usage_15m_rows
                 (client_id, bucket, user_sub, tool, scope_used, status, traces, duration_ms)
             SELECT client_id, bucket, ?4, tool, scope_used, status, traces, duration_ms
             FROM usage_15m_rows WHERE client_id = ?1 AND bucket = ?2 AND user_sub = ?3
             ON CONFLICT DO UPDATE SET
                 traces = traces + excluded.traces, duration_ms = duration_ms + excluded.duration_ms",
        )?
        .execute(params![person.client_id.as_str(), bucket, person.user_sub, person.pseudonym])?;
    tx.conn
        .prepare_cached("DELETE FROM usage_15m_rows WHERE client_id = ?1 AND bucket = ?2 AND user_sub = ?3")?
        .execute(of_person)?;
    Ok(traces.cast_unsigned())
}

/// A row of a small table: its number, its JSON, its message and its body, as far as it has them.
type EventRow = (i64, String, Vec<u8>, Vec<u8>);

const DETECTIONS: &str = "SELECT row, data, message, x'' FROM detections_rows
    WHERE client_id = ?1 AND user_sub = ?2 ORDER BY row";

const ACTIONS: &str = "SELECT rowid, data, message, x'' FROM guard_actions_rows
    WHERE client_id = ?1 AND user_sub = ?2 ORDER BY rowid";

/// Whom a delivery is about, only its message says.
const DELIVERIES: &str = "SELECT row, data, message, body FROM webhook_deliveries_rows
    WHERE client_id = ?1 AND data ->> '$.user_sub' = ?2 ORDER BY row";

async fn found(
    core: &Arc<Core>,
    sql: &'static str,
    app: String,
    user: String,
) -> Result<Vec<EventRow>, Fault> {
    let read = move |conn: &Connection| {
        let mut query = conn.prepare_cached(sql)?;
        let rows =
            query.query_map([&app, &user], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    };
    core.store_readers.read(read).await
}

/// How many of the deliveries are in a state that another one follows.
fn pending(rows: &[EventRow]) -> Result<u64, Fault> {
    let mut states = HashMap::new();
    for (_, data, ..) in rows {
        let delivery: Delivery = of_json(data)?;
        states.insert(delivery.delivery_id, delivery.state);
    }
    Ok(states.values().filter(|state| *state == PENDING).count() as u64)
}

async fn change(
    core: &Arc<Core>,
    erasure: &Arc<Erasure>,
    rows: Vec<EventRow>,
    write: fn(&Tx<'_>, &Erasure, &EventRow) -> Result<(), Fault>,
) -> Result<u64, Fault> {
    let changed = rows.len() as u64;
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let (chunk, person) = (rows.by_ref().take(CHUNK_ROWS).collect::<Vec<_>>(), Arc::clone(erasure));
        let job = core
            .writer
            .run(Durability::Lazy, move |tx| chunk.iter().try_for_each(|row| write(tx, &person, row)));
        job.await?;
    }
    Ok(changed)
}

fn write_detection(tx: &Tx<'_>, person: &Erasure, (row, data, message, _): &EventRow) -> Result<(), Fault> {
    let mut detection: Detection = of_json(data)?;
    person.detection(&mut detection);
    let message = renamed(message, |listed| person.detection(listed))?;
    tx.conn
        .prepare_cached(
            "UPDATE detections_rows SET user_sub = ?2, source_ip = ?3, explanation = ?4, data = ?5, message = ?6
             WHERE row = ?1",
        )?
        .execute(params![
            row,
            detection.user_sub,
            detection.source_ip,
            detection.explanation,
            text(&detection)?,
            message
        ])?;
    Ok(())
}

fn write_action(tx: &Tx<'_>, person: &Erasure, (row, data, message, _): &EventRow) -> Result<(), Fault> {
    let mut action: GuardAction = of_json(data)?;
    person.action(&mut action);
    let message = renamed(message, |action| person.action(action))?;
    let reason = action.kill.as_ref().map_or("", |kill| &kill.reason);
    tx.conn
        .prepare_cached(
            "UPDATE guard_actions_rows SET user_sub = ?2, kill_reason = ?3, data = ?4, message = ?5
             WHERE rowid = ?1",
        )?
        .execute(params![row, action.user_sub, reason, text(&action)?, message])?;
    Ok(())
}

fn write_delivery(tx: &Tx<'_>, person: &Erasure, (row, data, message, body): &EventRow) -> Result<(), Fault> {
    let mut delivery = Delivery { body: body.clone().into(), ..of_json(data)? };
    person.delivery(&mut delivery);
    let message = renamed(message, |delivery: &mut Delivery| {
        delivery.user_sub.clone_from(&person.pseudonym);
    })?;
    let body = std::mem::take(&mut delivery.body);
    let mut data = json(&delivery)?;
    if let Some(fields) = data.as_object_mut() {
        fields.remove("body");
    }
    tx.conn
        .prepare_cached(
            "UPDATE webhook_deliveries_rows SET body = ?2, data = ?3, message = ?4 WHERE row = ?1",
        )?
        .execute(params![row, &body[..], data.to_string(), message])?;
    Ok(())
}

fn of_json<T: DeserializeOwned>(data: &str) -> Result<T, Fault> {
    serde_json::from_str(data).map_err(|error| Fault::Broken(error.to_string()))
}

fn text<T: Serialize>(message: &T) -> Result<String, Fault> {
    Ok(json(message)?.to_string())
}

/// The message after `rename`; a row that is not listed has none.
fn renamed<M: Message + Default>(bytes: &[u8], rename: impl FnOnce(&mut M)) -> Result<Vec<u8>, Fault> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let mut message = M::decode(bytes).map_err(|error| Fault::Broken(error.to_string()))?;
    rename(&mut message);
    Ok(message.encode_to_vec())
}
