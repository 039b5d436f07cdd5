//! The marks in the file. Keys come in random order, and an index in random order that outgrows memory
//! writes a page for every key. So marks are appended to a table as they come, with the index of that table
//! in memory; when it is full, they go on in one sorted run, which is written from end to end, never touched
//! again, and deleted as a whole.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use panopticon_core::{
    ids::{LogId, Place, SeenKey},
    seen::{Mark, Move},
    time::Time,
};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::filter::Filter;
use crate::{fault::Fault, writer::Tx};

/// Marks that are collected for a run, in memory too: a few megabytes.
const RUN_MARKS: usize = 65_536;

/// A run that fills slowly is closed after this part of the window, so that marks do not outlive it long.
const WINDOW_PARTS: u32 = 4;

struct Run {
    /// When the youngest mark was made.
    last_at: Time,
    filter: Filter,
}

/// What is kept in memory of the marks in the file.
pub(crate) struct Runs {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The generation of transactions in which this was read.
    generation: u64,
    /// Exactly what is collected for the next run.
    recent: HashMap<SeenKey, Place>,
    /// When the oldest and the youngest of it were made.
    recent_from: Time,
    recent_to: Time,
    /// At least the runs in the file. One that was rolled back may be here too: its number is never used
    /// again, so it is only looked into in vain.
    runs: BTreeMap<i64, Run>,
    next_run: i64,
}

impl Runs {
    /// Reads what is collected, and the filters of the runs.
    pub(crate) fn open(conn: &Connection) -> Result<Self, Fault> {
        let mut known = Known { next_run: 1, ..Known::default() };
        known.load(conn)?;
        Ok(Self { known: Mutex::new(known) })
    }

    /// Marks every key with its place unless it has one; answers the places that came first.
    pub(super) fn mark(&self, tx: &Tx<'_>, marks: &[Mark], window: Duration) -> Result<Vec<Place>, Fault> {
        let mut known = self.known.lock();
        known.prepare(tx, window)?;
        let keys: Vec<SeenKey> = marks.iter().map(|mark| mark.key).collect();
        let places = known.places(tx, &keys, window)?;
        let first = marks.iter().zip(places).map(|(mark, found)| {
            // The same key may stand earlier in this batch.
            match found.or_else(|| known.recent.get(&mark.key).copied()) {
                Some(place) => Ok(place),
                None => known.collect(tx, mark).map(|()| mark.place),
            }
        });
        first.collect()
    }

    /// Writes marks over what is there.
    pub(super) fn restore(&self, tx: &Tx<'_>, marks: &[Mark], window: Duration) -> Result<(), Fault> {
        let mut known = self.known.lock();
        known.prepare(tx, window)?;
        marks.iter().try_for_each(|mark| known.collect(tx, mark))
    }

    /// Writes the new place of each mark that names the old one, over what is there.
    pub(super) fn shift(&self, tx: &Tx<'_>, moves: &[Move], window: Duration) -> Result<(), Fault> {
        let mut known = self.known.lock();
        known.prepare(tx, window)?;
        let keys: Vec<SeenKey> = moves.iter().map(|shift| shift.key).collect();
        let places = known.places(tx, &keys, window)?;
        for (Move { key, from, to }, found) in moves.iter().zip(places) {
            // One of these moves may have written it by now.
            if known.recent.get(key).copied().or(found) == Some(*from) {
                known.collect(tx, &Mark { key: *key, place: *to })?;
            }
        }
        Ok(())
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
    /// Reads what is collected, and the filters of runs that were not read before.
    fn load(&mut self, conn: &Connection) -> Result<(), Fault> {
        self.recent.clear();
        let mut query = conn
            .prepare_cached("SELECT log_id, partition, offset, idx, key, at FROM seen_recent ORDER BY id")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            self.note(SeenKey(row.get(4)?), place_of(row)?, Time::from_micros(row.get(5)?));
        }
        let mut query = conn.prepare_cached("SELECT run, last_at, filter FROM seen_runs WHERE run >= ?1")?;
        let mut rows = query.query([self.next_run])?;
        while let Some(row) = rows.next()? {
            let number: i64 = row.get(0)?;
            let filter = Filter::from_bytes(row.get_ref(2)?.as_blob().unwrap_or_default())
                .ok_or_else(|| Fault::Broken(format!("the filter of seen run {number} is damaged")))?;
            self.runs.insert(number, Run { last_at: Time::from_micros(row.get(1)?), filter });
            self.next_run = self.next_run.max(number + 1);
        }
        Ok(())
    }

    /// Makes sure that this is what is in the file, and that there is room to collect in.
    fn prepare(&mut self, tx: &Tx<'_>, window: Duration) -> Result<(), Fault> {
        if self.generation != tx.generation {
            self.load(tx.conn)?;
            self.generation = tx.generation;
        }
        let old = tx.now.since(self.recent_from) > window / WINDOW_PARTS;
        if self.recent.len() >= RUN_MARKS || (old && !self.recent.is_empty()) {
            self.close_run(tx)?;
        }
        Ok(())
    }

    /// Moves what is collected into a run.
    fn close_run(&mut self, tx: &Tx<'_>) -> Result<(), Fault> {
        let number = self.next_run;
        self.next_run += 1;
        let mut filter = Filter::for_keys(self.recent.len());
        self.recent.keys().for_each(|key| filter.insert(*key));
        // Of a key that was marked and restored, what was written last counts.
        tx.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO seen_places (run, key, log_id, partition, offset, idx)
                 SELECT ?1, key, log_id, partition, offset, idx FROM seen_recent ORDER BY key, id",
            )?
            .execute([number])?;
        tx.conn
            .prepare_cached("INSERT INTO seen_runs (run, last_at, filter) VALUES (?1, ?2, ?3)")?
            .execute(params![number, self.recent_to.micros(), filter.to_bytes()])?;
        tx.conn.prepare_cached("DELETE FROM seen_recent")?.execute([])?;
        self.runs.insert(number, Run { last_at: self.recent_to, filter });
        self.recent.clear();
        Ok(())
    }

    /// Adds a mark to what is collected.
    fn collect(&mut self, tx: &Tx<'_>, Mark { key, place }: &Mark) -> Result<(), Fault> {
        tx.conn
            .prepare_cached(
                "INSERT INTO seen_recent (at, key, log_id, partition, offset, idx)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                tx.now.micros(),
                key.0,
                place.log_id.0.cast_signed(),
                place.partition,
                place.offset.cast_signed(),
                place.index
            ])?;
        self.note(*key, *place, tx.now);
        Ok(())
    }

    fn note(&mut self, key: SeenKey, place: Place, at: Time) {
        if self.recent.is_empty() {
            self.recent_from = at;
        }
        self.recent_to = at;
        self.recent.insert(key, place);
    }

    /// The places of the keys that have one, in what is collected or in a run that is not past the window.
    fn places(&self, tx: &Tx<'_>, keys: &[SeenKey], window: Duration) -> Result<Vec<Option<Place>>, Fault> {
        let mut places: Vec<_> = keys.iter().map(|key| self.recent.get(key).copied()).collect();
        let mut query = tx.conn.prepare_cached(
            "SELECT log_id, partition, offset, idx FROM seen_places WHERE run = ?1 AND key = ?2",
        )?;
        let alive = tx.now.minus(window);
        // The youngest first: a mark that was written again stands before the one it replaces.
        for (number, run) in self.runs.iter().rev().filter(|(_, run)| run.last_at >= alive) {
            for (key, place) in keys.iter().zip(places.iter_mut()) {
                if place.is_none() && run.filter.may_have(*key) {
                    *place = query.query_row(params![number, key.0], place_of).optional()?;
                }
            }
        }
        Ok(places)
    }
}

fn place_of(row: &Row<'_>) -> rusqlite::Result<Place> {
    Ok(Place {
        log_id: LogId(row.get::<_, i64>(0)?.cast_unsigned()),
        partition: row.get(1)?,
        offset: row.get::<_, i64>(2)?.cast_unsigned(),
        index: row.get(3)?,
    })
}
