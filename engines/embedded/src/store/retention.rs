//! Deletes raw rows past their time, a little at a time, so that nobody waits long for it.

use std::sync::Arc;

use panopticon_core::time::Time;
use rusqlite::{Connection, params};

use crate::{
    Core,
    fault::Fault,
    writer::{Durability, Tx},
};

/// Rows that one job looks at.
const CHUNK_ROWS: i64 = 1_000;

/// Parts in which a run of event ids is deleted.
const RUN_PARTS: u8 = 8;

/// A table whose rows are deleted by a time that grows with their number, more or less.
#[derive(Clone, Copy)]
struct Aging {
    table: &'static str,
    time: &'static str,
}

const AGING: [Aging; 2] = [
    Aging { table: "traces_rows", time: "received_at" },
    // Bodies repeat what detections say of users: they go with the raw traces.
    Aging { table: "webhook_deliveries_rows", time: "created_at" },
];

/// Deletes what was received before `before`.
pub(super) async fn expire(core: &Arc<Core>, before: Time) -> Result<(), Fault> {
    for aging in AGING {
        let mut after = 0;
        loop {
            let chunk =
                core.writer.run(Durability::Lazy, move |tx| delete_chunk(tx.conn, aging, after, before));
            match chunk.await? {
                Some(last) => after = last,
                None => break,
            }
        }
    }
    for run in core.writer.run(Durability::Lazy, |tx| dead_runs(tx.conn)).await? {
        for part in 1..=RUN_PARTS {
            core.writer.run(Durability::Lazy, move |tx| delete_part_of_run(tx, run, part)).await?;
        }
    }
    Ok(())
}

/// Deletes what is too old among the next rows after `after`; answers the last row it looked at, or `None`
/// when there was nothing to delete any more.
fn delete_chunk(conn: &Connection, aging: Aging, after: i64, before: Time) -> Result<Option<i64>, Fault> {
    let Aging { table, time } = aging;
    let last: Option<i64> = conn
        .prepare_cached(&format!(
            "SELECT max(row) FROM (SELECT row FROM {table} WHERE row > ?1 ORDER BY row LIMIT ?2)"
        ))?
        .query_row([after, CHUNK_ROWS], |row| row.get(0))?;
    let Some(last) = last else { return Ok(None) };
    let deleted = conn
        .prepare_cached(&format!("DELETE FROM {table} WHERE row > ?1 AND row <= ?2 AND {time} < ?3"))?
        .execute(params![after, last, before.micros()])?;
    metrics::counter!("panopticon_embedded_expired_rows_total", "table" => table).increment(deleted as u64);
    Ok((deleted > 0).then_some(last))
}

/// Runs of event ids none of whose rows is left.
fn dead_runs(conn: &Connection) -> Result<Vec<i64>, Fault> {
    let mut query = conn.prepare_cached(
        "SELECT run FROM trace_id_runs WHERE last_row <
             (SELECT coalesce((SELECT min(row) FROM traces_rows), (SELECT next_row FROM traces_info)))",
    )?;
    Ok(query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// Deletes a part of a run, and with the last one the row that names it.
fn delete_part_of_run(tx: &Tx<'_>, run: i64, part: u8) -> Result<(), Fault> {
    if part < RUN_PARTS {
        let below = [u8::MAX / RUN_PARTS * part];
        tx.conn
            .prepare_cached("DELETE FROM trace_ids WHERE run = ?1 AND event_id < ?2")?
            .execute(params![run, below])?;
    } else {
        tx.conn.prepare_cached("DELETE FROM trace_ids WHERE run = ?1")?.execute([run])?;
        tx.conn.prepare_cached("DELETE FROM trace_id_runs WHERE run = ?1")?.execute([run])?;
    }
    Ok(())
}
