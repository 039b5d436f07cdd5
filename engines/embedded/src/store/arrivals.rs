//! An app's traces in the order in which they were received, for whoever looks at all of them again.
//!
//! The file has no index in that order. So the rows' numbers are sorted once, in a temporary table outside of
//! the file that SQLite may put on the disk, and then followed in parts. Only the sorting is one long read.

use std::path::PathBuf;

use futures::{StreamExt as _, stream};
use panopticon_core::{
    ids::ClientId,
    store::{ARRIVALS_PART, Arrivals},
    time::Time,
    trace::AcceptedTrace,
};
use rusqlite::{Connection, OpenFlags, params};
use tokio::sync::mpsc;

use super::timeline::{COLUMNS, trace_of};
use crate::{fault::Fault, schema};

/// Parts that are read ahead.
const AHEAD: usize = 1;

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
pub(crate) fn arrivals(wanted: Wanted) -> Arrivals {
    let (parts, receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        if let Err(fault) = wanted.read(&parts) {
            // Nobody may be listening any more.
            let _ = parts.blocking_send(Err(fault));
        }
    });
    let next = |mut receiver: mpsc::Receiver<Result<_, Fault>>| async move {
        let part = receiver.recv().await?;
        Some((part.map_err(Into::into), receiver))
    };
    stream::unfold(receiver, next).boxed()
}

impl Wanted {
    fn read(&self, parts: &mpsc::Sender<Result<Vec<AcceptedTrace>, Fault>>) -> Result<(), Fault> {
        let conn = Connection::open_with_flags(
            &self.database,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        schema::tune(&conn, self.cache_bytes)?;
        let last = self.sort(&conn)?;
        let mut after = 0;
        while after < last {
            let part = self.part(&conn, after)?;
            after += ARRIVALS_PART as i64;
            if !part.is_empty() && parts.blocking_send(Ok(part)).is_err() {
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
        let rows = statement.query_map(params![after, ARRIVALS_PART as i64], trace_of)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
