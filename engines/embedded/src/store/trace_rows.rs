//! Rows of traces, and what is counted of them.

use std::{collections::HashMap, hash::Hash};

use panopticon_core::{
    store::Row,
    trace::{AcceptedTrace, Trace},
};
use rusqlite::params;

use super::{
    trace_ids::TraceIds,
    usage::{BUCKET_SECS, DAY_SECS},
};
use crate::{fault::Fault, writer::Tx};

/// Writes traces and everything that is counted of them.
pub(super) fn put(
    tx: &mut Tx<'_>,
    ids: &TraceIds,
    partition: u32,
    rows: &[Row<AcceptedTrace>],
) -> Result<(), Fault> {
    if rows.is_empty() {
        return Ok(());
    }
    let first_row = put_rows(tx, partition, rows)?;
    ids.collect(tx, (first_row..).zip(rows).map(|(row, trace)| (trace.value.trace.event_id, row)))?;
    count_buckets(tx, rows)?;
    count_days(tx, rows)?;
    note_received(tx, rows)
}

/// Writes the rows, with numbers in their order; answers the first.
fn put_rows(tx: &Tx<'_>, partition: u32, rows: &[Row<AcceptedTrace>]) -> Result<i64, Fault> {
    let first_row: i64 =
        tx.conn.prepare_cached("SELECT next_row FROM traces_info")?.query_row([], |row| row.get(0))?;
    let mut insert = tx.conn.prepare_cached(
        "INSERT INTO traces_rows (row, client_id, started_at, user_hash, event_id, user_sub, tool,
             scope_used, status, duration_ms, session_id, agent, source_ip, error_code, attributes,
             received_at, late, log_partition, log_offset, log_index)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)",
    )?;
    let mut next_row = first_row;
    for Row { offset, index, value } in rows {
        let AcceptedTrace { trace, received_at, late, .. } = value;
        insert.execute(params![
            next_row,
            trace.client_id.as_str(),
            trace.started_at.micros(),
            user_hash(&trace.user_sub),
            trace.event_id.0.as_bytes(),
            trace.user_sub,
            trace.tool,
            trace.scope_used,
            trace.status.as_str(),
            trace.duration_ms,
            trace.session_id,
            trace.agent,
            trace.source_ip,
            trace.error_code,
            attributes(trace)?,
            received_at.micros(),
            late,
            partition,
            offset.cast_signed(),
            index,
        ])?;
        next_row += 1;
    }
    tx.conn.prepare_cached("UPDATE traces_info SET next_row = ?1")?.execute([next_row])?;
    Ok(first_row)
}

fn attributes(trace: &Trace) -> Result<String, Fault> {
    if trace.attributes.is_empty() {
        return Ok(String::new());
    }
    serde_json::to_string(&trace.attributes).map_err(|error| Fault::Broken(error.to_string()))
}

/// A part of the timeline's index: a user's traces are found without a look at the others' rows. FNV-1a,
/// 32 bits, since what is in the file must not change.
pub(super) fn user_hash(user_sub: &str) -> u32 {
    user_sub.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[derive(Default)]
struct Share {
    traces: i64,
    duration_ms: i64,
}

/// Adds the traces of each key up; sorted, so that the table is walked through once.
fn shares<'a, K: Hash + Ord>(
    rows: &'a [Row<AcceptedTrace>],
    key: impl Fn(&'a Trace) -> K,
) -> Vec<(K, Share)> {
    let mut shares: HashMap<K, Share> = HashMap::new();
    for row in rows {
        let share = shares.entry(key(&row.value.trace)).or_default();
        share.traces += 1;
        share.duration_ms += i64::from(row.value.trace.duration_ms);
    }
    let mut shares: Vec<_> = shares.into_iter().collect();
    shares.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    shares
}

fn count_buckets(tx: &Tx<'_>, rows: &[Row<AcceptedTrace>]) -> Result<(), Fault> {
    let mut count = tx.conn.prepare_cached(
        "INSERT INTO usage_15m_rows
             (client_id, bucket, user_sub, tool, scope_used, status, traces, duration_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT DO UPDATE SET
             traces = traces + excluded.traces, duration_ms = duration_ms + excluded.duration_ms",
    )?;
    let shares = shares(rows, |trace| {
        let bucket = trace.started_at.secs().div_euclid(BUCKET_SECS) * BUCKET_SECS;
        (trace.client_id.as_str(), bucket, &trace.user_sub, &trace.tool, &trace.scope_used, trace.status)
    });
    for ((client_id, bucket, user_sub, tool, scope_used, status), share) in shares {
        count.execute(params![
            client_id,
            bucket,
            user_sub,
            tool,
            scope_used,
            status.as_str(),
            share.traces,
            share.duration_ms
        ])?;
    }
    Ok(())
}

fn count_days(tx: &Tx<'_>, rows: &[Row<AcceptedTrace>]) -> Result<(), Fault> {
    let mut count = tx.conn.prepare_cached(
        "INSERT INTO usage_daily_rows (client_id, day, tool, scope_used, status, traces, duration_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT DO UPDATE SET
             traces = traces + excluded.traces, duration_ms = duration_ms + excluded.duration_ms",
    )?;
    let shares = shares(rows, |trace| {
        let day = trace.started_at.secs().div_euclid(DAY_SECS);
        (trace.client_id.as_str(), day, &trace.tool, &trace.scope_used, trace.status)
    });
    for ((client_id, day, tool, scope_used, status), share) in shares {
        count.execute(params![
            client_id,
            day,
            tool,
            scope_used,
            status.as_str(),
            share.traces,
            share.duration_ms
        ])?;
    }
    Ok(())
}

/// Notes when each app's latest trace was received.
fn note_received(tx: &Tx<'_>, rows: &[Row<AcceptedTrace>]) -> Result<(), Fault> {
    let mut latest = HashMap::new();
    for Row { value, .. } in rows {
        let last = latest.entry(value.trace.client_id.as_str()).or_insert(value.received_at);
        *last = value.received_at.max(*last);
    }
    let mut note = tx.conn.prepare_cached(
        "INSERT INTO apps_received (client_id, last_at) VALUES (?1, ?2)
         ON CONFLICT DO UPDATE SET last_at = max(last_at, excluded.last_at)",
    )?;
    for (client_id, last_at) in latest {
        note.execute(params![client_id, last_at.micros()])?;
    }
    Ok(())
}
