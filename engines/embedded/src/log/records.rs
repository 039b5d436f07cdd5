//! Records in the file: appending, reading, and how far groups have come.

use bytes::Bytes;
use panopticon_core::{
    log::{Bounds, Committed, LogError, Output, Record, Replay, Stored},
    time::Time,
    topic::{Cleanup, Topic},
};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{
    catalog::{Catalog, Slot},
    fault::Fault,
    writer::Tx,
};

/// Largest record: what one read, one job and one answer hold in memory at least.
const RECORD_BYTES_MAX: usize = 4 << 20;

/// What happens to a record once a newer one has its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overtaken {
    /// The topic is not compacted.
    Stays,
    /// Kept for a while, for those who follow the topic.
    KeptAWhile,
    /// Goes at once: nobody follows the topic, and its records are overtaken all the time.
    Goes,
}

impl Overtaken {
    const fn of(topic: Topic) -> Self {
        match (topic.cleanup(), topic) {
            (Cleanup::Delete, _) => Self::Stays,
            (Cleanup::Compact, Topic::DetectorState | Topic::EnforcerState) => Self::Goes,
            (Cleanup::Compact, _) => Self::KeptAWhile,
        }
    }
}

/// An output that the log can take: its partition exists and it is not too large.
pub(super) struct Appendable {
    slot: Slot,
    overtaken: Overtaken,
    record: Record,
}

impl Appendable {
    /// Checks `output`.
    pub(super) fn new(catalog: &Catalog, output: Output) -> Result<Self, LogError> {
        let slot = catalog.slot(output.topic, output.partition)?;
        let bytes = output.record.size();
        if bytes > RECORD_BYTES_MAX {
            return Err(Fault::TooLarge { bytes, limit: RECORD_BYTES_MAX }.into());
        }
        Ok(Self { slot, overtaken: Overtaken::of(output.topic), record: output.record })
    }

    /// Checks all of `outputs`.
    pub(super) fn all(catalog: &Catalog, outputs: Vec<Output>) -> Result<Vec<Self>, LogError> {
        outputs.into_iter().map(|output| Self::new(catalog, output)).collect()
    }

    /// Writes the record at the end of its partition and answers its offset.
    pub(super) fn append(&self, tx: &mut Tx<'_>) -> Result<u64, Fault> {
        let next: i64 = tx
            .conn
            .prepare_cached("UPDATE log_partitions SET next = next + 1 WHERE slot = ?1 RETURNING next")?
            .query_row([self.slot.number()], |row| row.get(0))?;
        let offset = (next - 1).cast_unsigned();
        let position = self.slot.position(offset);
        let Record { key, payload, replay } = &self.record;
        tx.conn
            .prepare_cached(
                "INSERT INTO log_records (position, appended_at, key, for_stage, first_offset, payload)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                position,
                tx.now.micros(),
                &key[..],
                replay.as_ref().map(|replay| &replay.stage),
                replay.as_ref().map(|replay| replay.first_offset.cast_signed()),
                payload.as_deref()
            ])?;
        if self.overtaken != Overtaken::Stays && !key.is_empty() {
            self.compact(tx, position)?;
        }
        tx.appended(self.slot, next.cast_unsigned());
        Ok(offset)
    }

    /// Makes the record at `position` the latest of its key; one that was replayed tells nothing new.
    fn compact(&self, tx: &Tx<'_>, position: i64) -> Result<(), Fault> {
        let mut supersede =
            tx.conn.prepare_cached("INSERT INTO log_superseded (since, position) VALUES (?1, ?2)")?;
        if self.record.replay.is_some() {
            supersede.execute([tx.now.micros(), position])?;
            return Ok(());
        }
        let key = &self.record.key[..];
        let before: Option<i64> = tx
            .conn
            .prepare_cached("SELECT position FROM log_keys WHERE slot = ?1 AND key = ?2")?
            .query_row(params![self.slot.number(), key], |row| row.get(0))
            .optional()?;
        tx.conn
            .prepare_cached("INSERT OR REPLACE INTO log_keys (slot, key, position) VALUES (?1, ?2, ?3)")?
            .execute(params![self.slot.number(), key, position])?;
        match (before, self.overtaken) {
            (Some(before), Overtaken::Goes) => {
                tx.conn.prepare_cached("DELETE FROM log_records WHERE position = ?1")?.execute([before])?;
            }
            (Some(before), _) => {
                supersede.execute([tx.now.micros(), before])?;
            }
            (None, _) => {}
        }
        if self.record.payload.is_none() {
            supersede.execute([tx.now.micros(), position])?;
        }
        Ok(())
    }
}

/// Offsets to read; without `from` those that are there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) from: Option<u64>,
    /// Not included.
    pub(super) to: u64,
}

/// How much to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) records: usize,
    pub(super) bytes: usize,
    /// Whether the record that goes beyond `bytes` is still taken; the first always is.
    pub(super) exceed: bool,
}

/// The beginning of a range has been taken away.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gone {
    pub(super) wanted: u64,
    pub(super) low: u64,
}

/// What a partition can be read at.
pub(super) fn bounds(conn: &Connection, slot: Slot) -> Result<Bounds, Fault> {
    let (low, next): (i64, i64) = conn
        .prepare_cached("SELECT low, next FROM log_partitions WHERE slot = ?1")?
        .query_row([slot.number()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(Bounds { low: low.cast_unsigned(), high: next.cast_unsigned() })
}

/// The records of a range, in order.
pub(super) fn read(
    conn: &Connection,
    slot: Slot,
    range: Range,
    limits: Limits,
) -> Result<Result<Vec<Stored>, Gone>, Fault> {
    let low = bounds(conn, slot)?.low;
    let from = range.from.unwrap_or(low);
    if from < low && from < range.to {
        return Ok(Err(Gone { wanted: from, low }));
    }
    let mut found = Vec::new();
    let mut bytes = 0_usize;
    let mut query = conn.prepare_cached(
        "SELECT position, appended_at, key, for_stage, first_offset, payload FROM log_records
         WHERE position >= ?1 AND position < ?2 ORDER BY position",
    )?;
    let mut rows = query.query([slot.position(from), slot.position(range.to)])?;
    while found.len() < limits.records
        && let Some(row) = rows.next()?
    {
        let offset = Slot::offset(row.get(0)?);
        let first_offset = row.get::<_, Option<i64>>(4)?.map_or(offset, i64::cast_unsigned);
        let stored = Stored {
            offset,
            appended_at: Time::from_micros(row.get(1)?),
            record: Record {
                key: row.get::<_, Vec<u8>>(2)?.into(),
                replay: row.get::<_, Option<String>>(3)?.map(|stage| Replay { stage, first_offset }),
                payload: row.get::<_, Option<Vec<u8>>>(5)?.map(Bytes::from),
            },
        };
        let full = bytes.saturating_add(stored.record.size()) > limits.bytes;
        if full && !limits.exceed && !found.is_empty() {
            break;
        }
        bytes += stored.record.size();
        found.push(stored);
        if full || bytes == limits.bytes {
            break;
        }
    }
    Ok(Ok(found))
}

/// The latest value of every key.
pub(super) fn table(conn: &Connection, slot: Slot) -> Result<Vec<(Bytes, Bytes)>, Fault> {
    let mut query = conn.prepare_cached(
        "SELECT k.key, r.payload FROM log_keys k CROSS JOIN log_records r ON r.position = k.position
         WHERE k.slot = ?1 AND r.payload IS NOT NULL",
    )?;
    let rows = query.query_map([slot.number()], |row| {
        Ok((Bytes::from(row.get::<_, Vec<u8>>(0)?), Bytes::from(row.get::<_, Vec<u8>>(1)?)))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// How far a group has come.
pub(super) fn committed(conn: &Connection, stage: &str, slot: Slot) -> Result<Committed, Fault> {
    let found = conn
        .prepare_cached("SELECT next, metadata FROM log_groups WHERE stage = ?1 AND slot = ?2")?
        .query_row(params![stage, slot.number()], |row| {
            Ok(Committed { offset: Some(row.get::<_, i64>(0)?.cast_unsigned()), metadata: row.get(1)? })
        })
        .optional()?;
    Ok(found.unwrap_or_default())
}

/// Notes how far a group has come.
pub(super) fn set_committed(
    conn: &Connection,
    stage: &str,
    slot: Slot,
    next: u64,
    metadata: &str,
) -> Result<(), Fault> {
    conn.prepare_cached(
        "INSERT OR REPLACE INTO log_groups (stage, slot, next, metadata) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![stage, slot.number(), next.cast_signed(), metadata])?;
    Ok(())
}
