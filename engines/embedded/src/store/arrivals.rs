//! An app's traces in the order in which they were received, for whoever looks at all of them again.
//!
//! The file has no index in that order. So the rows' numbers are sorted once, in a temporary table outside of
//! the file that SQLite may put on the disk, and then followed in parts. Only the sorting is one long read.

use std::path::PathBuf;

use panopticon_core::{
    ids::ClientId,
    store::{PART_ROWS, Parts},
    time::Time,
    trace::AcceptedTrace,
};
use rusqlite::{Connection, params};

use super::{
    parts::{Sending, in_parts},
    timeline::{COLUMNS, trace_of},
};
use crate::{fault::Fault, readers};

/// What is looked for, and where.
pub(crate) struct Wanted {
    pub(crate) database: PathBuf,
    pub(crate) cache_bytes: u64,
    pub(crate) client_id: ClientId,
    pub(crate) since: Time,
    pub(crate) until: Time,
    /// Rows received before this are past their time.
    pub(crate) raw_since: Time,
}

/// Reads on a connection and a thread of its own: nobody else waits for it.
pub(crate) fn arrivals(wanted: Wanted) -> Parts<AcceptedTrace> {
    in_parts(move |parts| wanted.read(parts))
}

impl Wanted {
    fn read(&self, parts: &Sending<AcceptedTrace>) -> Result<(), Fault> {
        let conn = readers::open(&self.database, self.cache_bytes)?;
        let last = self.sort(&conn)?;
        let mut after = 0;
        while after < last {
            let part = self.part(&conn, after)?;
            after += PART_ROWS as i64;
            if !parts.send(part) {
                break;
            }
        }
        Ok(())
    }

    /// Puts the rows in their order; answers how many there are.
    fn sort(&self, conn: &Connection) -> Result<i64, Fault> {
        conn.execute_batch(
            "PRAGMA temp_store=FILE;
             CREATE TEMP TABLE arrivals (place INTEGER PRIMARY KEY, trace INTEGER NOT NULL);",
        )?;
        let since = self.since.max(self.raw_since);
        conn.execute(
            "INSERT INTO arrivals (trace)
                 SELECT row FROM traces_rows INDEXED BY traces_rows_timeline
                 WHERE client_id = ?1 AND received_at BETWEEN ?2 AND ?3
                 ORDER BY received_at, log_partition, log_offset, log_index",
            params![self.client_id.as_str(), since.micros(), self.until.micros()],
        )?;
        Ok(conn.query_row("SELECT coalesce(max(place), 0) FROM arrivals", [], |row| row.get(0))?)
    }

    /// The next rows after a place. What was removed since is left out.
    fn part(&self, conn: &Connection, after: i64) -> Result<Vec<AcceptedTrace>, Fault> {
        let mut statement = conn.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM arrivals a CROSS JOIN traces_rows t ON t.row = a.trace
             WHERE a.place > ?1 AND a.place <= ?1 + ?2 ORDER BY a.place"
        ))?;
        let rows = statement.query_map(params![after, PART_ROWS as i64], trace_of)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
