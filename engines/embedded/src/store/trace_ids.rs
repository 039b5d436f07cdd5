//! Which rows have an event id. Ids come in random order, like the marks of the seen set, and are kept in the
//! same way: appended to a table as they come, with the index of that table in memory, then moved on in
//! sorted runs.

use std::{collections::BTreeSet, mem};

use panopticon_core::ids::EventId;
use parking_lot::Mutex;
use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::{fault::Fault, writer::Tx};

/// Ids that are collected for a run, in memory too: a few megabytes.
const RUN_IDS: usize = 65_536;

/// The index of what is not in runs yet.
pub(crate) struct TraceIds {
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    /// The generation of transactions in which this was read.
    generation: u64,
    /// What is collected for the next run.
    ids: BTreeSet<(EventId, i64)>,
    /// What went into the latest run: a reader may still have a snapshot from before it.
    before: BTreeSet<(EventId, i64)>,
}

impl TraceIds {
    /// Reads what is collected.
    pub(crate) fn open(conn: &Connection) -> Result<Self, Fault> {
        let mut recent = Recent::default();
        recent.load(conn)?;
        Ok(Self { recent: Mutex::new(recent) })
    }

    /// Adds the ids of new rows, which are in the order of their numbers.
    pub(super) fn collect(
        &self,
        tx: &Tx<'_>,
        ids: impl Iterator<Item = (EventId, i64)>,
    ) -> Result<(), Fault> {
        let mut recent = self.recent.lock();
        if recent.generation != tx.generation {
            recent.load(tx.conn)?;
            recent.generation = tx.generation;
        }
        let mut insert =
            tx.conn.prepare_cached("INSERT INTO trace_ids_recent (row, event_id) VALUES (?1, ?2)")?;
        let mut last_row = 0;
        for (event_id, row) in ids {
            insert.execute(params![row, event_id.0.as_bytes()])?;
            recent.ids.insert((event_id, row));
            last_row = row;
        }
        if recent.ids.len() >= RUN_IDS {
            close_run(tx, last_row)?;
            recent.before = mem::take(&mut recent.ids);
        }
        Ok(())
    }

    /// The rows that may have this id, in their order; some may be gone, or not be there yet.
    pub(super) fn rows(&self, conn: &Connection, event_id: EventId) -> Result<Vec<i64>, Fault> {
        let range = (event_id, i64::MIN)..=(event_id, i64::MAX);
        let mut rows: Vec<i64> = {
            let recent = self.recent.lock();
            recent.ids.range(range.clone()).chain(recent.before.range(range)).map(|(_, row)| *row).collect()
        };
        let mut query = conn.prepare_cached(
            "SELECT i.row FROM trace_id_runs r CROSS JOIN trace_ids i ON i.run = r.run AND i.event_id = ?1",
        )?;
        let mut found = query.query([event_id.0.as_bytes()])?;
        while let Some(row) = found.next()? {
            rows.push(row.get(0)?);
        }
        rows.sort_unstable();
        rows.dedup();
        Ok(rows)
    }
}

impl Recent {
    fn load(&mut self, conn: &Connection) -> Result<(), Fault> {
        let mut query = conn.prepare_cached("SELECT row, event_id FROM trace_ids_recent")?;
        let ids = query.query_map([], |row| Ok((EventId(Uuid::from_bytes(row.get(1)?)), row.get(0)?)))?;
        self.ids = ids.collect::<Result<_, _>>()?;
        Ok(())
    }
}

/// Moves what is collected into a run.
fn close_run(tx: &Tx<'_>, last_row: i64) -> Result<(), Fault> {
    let run: i64 = tx
        .conn
        .prepare_cached("INSERT INTO trace_id_runs (last_row) VALUES (?1) RETURNING run")?
        .query_row([last_row], |row| row.get(0))?;
    tx.conn
        .prepare_cached(
            "INSERT INTO trace_ids (run, event_id, row)
             SELECT ?1, event_id, row FROM trace_ids_recent ORDER BY event_id, row",
        )?
        .execute([run])?;
    tx.conn.prepare_cached("DELETE FROM trace_ids_recent")?.execute([])?;
    Ok(())
}
