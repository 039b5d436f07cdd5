//! The marks in the file. Keys come in random order, and an index in random order that outgrows memory
//! writes a page for every key. So marks are collected in a small table; when that is full, they go on in
//! one sorted run, which is written from end to end, never touched again, and deleted as a whole.

use std::{collections::BTreeMap, time::Duration};

use panopticon_core::{
    ids::{LogId, Place, SeenKey},
    seen::Mark,
    time::Time,
};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::filter::Filter;
use crate::{fault::Fault, writer::Tx};

/// Marks that are collected for a run. They fit into memory wherever the writer's cache does.
const RUN_MARKS: i64 = 65_536;

/// A run that fills slowly is closed after this part of the window, so that marks do not outlive it long.
const WINDOW_PARTS: u32 = 4;

struct Run {
    /// When the youngest mark was made.
    last_at: Time,
    filter: Filter,
}

/// What is kept in memory of the runs in the file: at least of those that are there. A run that was rolled
/// back may still be here; its number is never used again, so it is only looked for in vain.
pub(crate) struct Runs {
    known: Mutex<Known>,
}

struct Known {
    runs: BTreeMap<i64, Run>,
    next: i64,
}

impl Runs {
    /// Reads the filters of the runs in the file.
    pub(crate) fn open(conn: &Connection) -> Result<Self, Fault> {
        let mut known = Known { runs: BTreeMap::new(), next: 1 };
        known.load(conn)?;
        Ok(Self { known: Mutex::new(known) })
    }

    /// Marks every key with its place unless it has one; answers the places that came first.
    pub(super) fn mark(&self, tx: &Tx<'_>, marks: &[Mark], window: Duration) -> Result<Vec<Place>, Fault> {
        let mut known = self.known.lock();
        known.prepare(tx, window)?;
        let mut places = Vec::with_capacity(marks.len());
        for mark in marks {
            places.push(recent(tx.conn, mark.key)?);
        }
        known.look_up(tx.conn, marks, &mut places, tx.now.minus(window))?;

        let mut insert = tx.conn.prepare_cached(
            "INSERT INTO seen_recent (key, log_id, partition, offset, idx) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO NOTHING",
        )?;
        let mut made = 0;
        let mut first = Vec::with_capacity(marks.len());
        for (Mark { key, place }, found) in marks.iter().zip(places) {
            let came_first = match found {
                Some(found) => found,
                None if insert.execute(columns(*key, place))? == 1 => {
                    made += 1;
                    *place
                }
                // The same key stood earlier in this batch.
                None => recent(tx.conn, *key)?.unwrap_or(*place),
            };
            first.push(came_first);
        }
        note(tx, made)?;
        Ok(first)
    }

    /// Writes marks over what is there.
    pub(super) fn restore(&self, tx: &Tx<'_>, marks: &[Mark], window: Duration) -> Result<(), Fault> {
        self.known.lock().prepare(tx, window)?;
        let mut replace = tx.conn.prepare_cached(
            "INSERT OR REPLACE INTO seen_recent (key, log_id, partition, offset, idx)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for Mark { key, place } in marks {
            replace.execute(columns(*key, place))?;
        }
        // Those that replaced one are counted too: the run is closed a little early.
        note(tx, marks.len())
    }

    /// The runs all of whose marks are older than the window.
    pub(super) fn expired(&self, before: Time) -> Vec<i64> {
        let known = self.known.lock();
        known.runs.iter().filter(|(_, run)| run.last_at < before).map(|(number, _)| *number).collect()
    }

    /// The run is no longer in the file.
    pub(super) fn forget(&self, number: i64) {
        self.known.lock().runs.remove(&number);
    }
}

impl Known {
    /// Reads the filters of runs that were not read before.
    fn load(&mut self, conn: &Connection) -> Result<(), Fault> {
        let mut query = conn.prepare_cached("SELECT run, last_at, filter FROM seen_runs WHERE run >= ?1")?;
        let mut rows = query.query([self.next])?;
        while let Some(row) = rows.next()? {
            let number: i64 = row.get(0)?;
            let filter = Filter::from_bytes(row.get_ref(2)?.as_blob().unwrap_or_default())
                .ok_or_else(|| Fault::Broken(format!("the filter of seen run {number} is damaged")))?;
            self.runs.insert(number, Run { last_at: Time::from_micros(row.get(1)?), filter });
            self.next = self.next.max(number + 1);
        }
        Ok(())
    }

    /// Moves the collected marks into a run where it is time to.
    fn prepare(&mut self, tx: &Tx<'_>, window: Duration) -> Result<(), Fault> {
        let (marks, first_at, last_at): (i64, i64, i64) = tx
            .conn
            .prepare_cached("SELECT marks, first_at, last_at FROM seen_recent_info")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let old = tx.now.since(Time::from_micros(first_at)) > window / WINDOW_PARTS;
        if marks == 0 || (marks < RUN_MARKS && !old) {
            return Ok(());
        }
        let number = self.next;
        self.next += 1;
        let mut filter = Filter::for_keys(usize::try_from(marks).unwrap_or(0));
        let mut keys = tx.conn.prepare_cached("SELECT key FROM seen_recent")?;
        let mut rows = keys.query([])?;
        while let Some(row) = rows.next()? {
            filter.insert(SeenKey(row.get(0)?));
        }
        drop(rows);
        tx.conn
            .prepare_cached(
                "INSERT INTO seen_places (run, key, log_id, partition, offset, idx)
                 SELECT ?1, key, log_id, partition, offset, idx FROM seen_recent ORDER BY key",
            )?
            .execute([number])?;
        tx.conn
            .prepare_cached("INSERT INTO seen_runs (run, last_at, filter) VALUES (?1, ?2, ?3)")?
            .execute(params![number, last_at, filter.to_bytes()])?;
        tx.conn.prepare_cached("DELETE FROM seen_recent")?.execute([])?;
        tx.conn.prepare_cached("UPDATE seen_recent_info SET marks = 0")?.execute([])?;
        self.runs.insert(number, Run { last_at: Time::from_micros(last_at), filter });
        Ok(())
    }

    /// Looks for the marks that have no place yet in the runs that are not older than `alive`.
    fn look_up(
        &self,
        conn: &Connection,
        marks: &[Mark],
        places: &mut [Option<Place>],
        alive: Time,
    ) -> Result<(), Fault> {
        let mut query = conn.prepare_cached(
            "SELECT log_id, partition, offset, idx FROM seen_places WHERE run = ?1 AND key = ?2",
        )?;
        // The youngest first: a restored mark stands before the one it replaces.
        for (number, run) in self.runs.iter().rev().filter(|(_, run)| run.last_at >= alive) {
            for (mark, place) in marks.iter().zip(places.iter_mut()) {
                if place.is_none() && run.filter.may_have(mark.key) {
                    *place = query.query_row(params![number, mark.key.0], place_of).optional()?;
                }
            }
        }
        Ok(())
    }
}

fn recent(conn: &Connection, key: SeenKey) -> Result<Option<Place>, Fault> {
    let mut query =
        conn.prepare_cached("SELECT log_id, partition, offset, idx FROM seen_recent WHERE key = ?1")?;
    Ok(query.query_row([key.0], place_of).optional()?)
}

/// Counts `made` new marks among those collected.
fn note(tx: &Tx<'_>, made: usize) -> Result<(), Fault> {
    if made > 0 {
        tx.conn
            .prepare_cached(
                "UPDATE seen_recent_info SET first_at = iif(marks = 0, ?2, first_at), last_at = ?2,
                 marks = marks + ?1",
            )?
            .execute(params![i64::try_from(made).unwrap_or(i64::MAX), tx.now.micros()])?;
    }
    Ok(())
}

fn columns(SeenKey(key): SeenKey, place: &Place) -> ([u8; 16], i64, u32, i64, u32) {
    (key, place.log_id.0.cast_signed(), place.partition, place.offset.cast_signed(), place.index)
}

fn place_of(row: &Row<'_>) -> rusqlite::Result<Place> {
    Ok(Place {
        log_id: LogId(row.get::<_, i64>(0)?.cast_unsigned()),
        partition: row.get(1)?,
        offset: row.get::<_, i64>(2)?.cast_unsigned(),
        index: row.get(3)?,
    })
}
