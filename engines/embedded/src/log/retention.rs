//! What the log forgets.

use std::{sync::Arc, time::Duration};

use panopticon_core::{
    time::Time,
    topic::{Cleanup, Topic},
};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{
    Core,
    catalog::Slot,
    fault::Fault,
    writer::{Durability, Tx},
};

/// Records that one job deletes, so that nobody waits long for it.
const CHUNK_RECORDS: i64 = 200;

/// For how long an overtaken record or a tombstone can still be followed.
const SUPERSEDED_KEPT: Duration = Duration::from_secs(86_400);

/// Deletes the records whose time is over at `now`, chunk by chunk.
pub(crate) async fn expire(core: &Arc<Core>, now: Time) -> Result<(), Fault> {
    let before = now.minus(core.config.retention.log());
    for topic in Topic::ALL.into_iter().filter(|topic| topic.cleanup() == Cleanup::Delete) {
        let slots = core.catalog.slots(topic).map_err(|error| Fault::Broken(error.to_string()))?;
        for &slot in slots {
            while core.writer.run(Durability::Lazy, move |tx| delete_chunk(tx, slot, before)).await? {}
        }
    }
    let before = now.minus(SUPERSEDED_KEPT);
    while core.writer.run(Durability::Lazy, move |tx| purge_chunk(tx.conn, before)).await? {}
    Ok(())
}

/// Deletes the first records of a partition as far as they are older than `before`, and moves its low
/// mark; answers whether there may be more.
fn delete_chunk(tx: &Tx<'_>, slot: Slot, before: Time) -> Result<bool, Fault> {
    let mut oldest = tx.conn.prepare_cached(
        "SELECT position, appended_at FROM log_records WHERE position >= ?1 AND position < ?2
         ORDER BY position LIMIT ?3",
    )?;
    let mut rows = oldest.query([slot.position(0), slot.position(u64::MAX), CHUNK_RECORDS])?;
    let (mut old, mut last) = (0, None);
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(1)? >= before.micros() {
            break;
        }
        old += 1;
        last = Some(row.get::<_, i64>(0)?);
    }
    drop(rows);
    let Some(last) = last else { return Ok(false) };
    tx.conn
        .prepare_cached("DELETE FROM log_records WHERE position >= ?1 AND position <= ?2")?
        .execute([slot.position(0), last])?;
    tx.conn
        .prepare_cached("UPDATE log_partitions SET low = ?2 WHERE slot = ?1")?
        .execute([slot.number(), Slot::offset(last).cast_signed() + 1])?;
    Ok(old == CHUNK_RECORDS)
}

/// Deletes records of compacted topics that were superseded before `before`.
fn purge_chunk(conn: &Connection, before: Time) -> Result<bool, Fault> {
    let mut query =
        conn.prepare_cached("SELECT id, since, position FROM log_superseded ORDER BY id LIMIT ?1")?;
    let superseded: Vec<(i64, i64, i64)> = query
        .query_map([CHUNK_RECORDS], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    let (mut purged, mut last) = (0, None);
    for (id, _, position) in superseded.into_iter().take_while(|(_, since, _)| *since < before.micros()) {
        purge(conn, position)?;
        purged += 1;
        last = Some(id);
    }
    if let Some(last) = last {
        conn.prepare_cached("DELETE FROM log_superseded WHERE id <= ?1")?.execute([last])?;
    }
    Ok(purged == CHUNK_RECORDS)
}

fn purge(conn: &Connection, position: i64) -> Result<(), Fault> {
    let key: Option<Vec<u8>> = conn
        .prepare_cached("DELETE FROM log_records WHERE position = ?1 RETURNING key")?
        .query_row([position], |row| row.get(0))
        .optional()?;
    if let Some(key) = key {
        // Only a tombstone is still the latest of its key.
        conn.prepare_cached("DELETE FROM log_keys WHERE slot = ?1 AND key = ?2 AND position = ?3")?
            .execute(params![Slot::of(position).number(), key, position])?;
    }
    Ok(())
}
