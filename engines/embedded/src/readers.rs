//! Connections that read. Every read is a snapshot, on a thread that may block.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

use crate::{fault::Fault, schema};

/// Steps of a query between two looks at the time.
const STEPS_PER_LOOK: i32 = 10_000;

/// A pool of read-only connections.
pub(crate) struct Readers {
    path: PathBuf,
    cache_bytes: u64,
    /// A read that takes longer is cut off: its snapshot keeps the write-ahead log from beginning anew.
    time_max: Duration,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    /// At most `connections` of them, with `cache_bytes` each, for reads of at most `time_max`.
    pub(crate) fn new(path: PathBuf, connections: usize, cache_bytes: u64, time_max: Duration) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(connections.max(1)));
        Arc::new(Self { path, cache_bytes, time_max, permits, idle: Mutex::default() })
    }

    /// Runs `work` on one snapshot of the file.
    pub(crate) async fn read<T, F>(self: &Arc<Self>, work: F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| Fault::closed())?;
        let readers = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let mut conn = readers.connection()?;
            let deadline = Instant::now() + readers.time_max;
            conn.progress_handler(STEPS_PER_LOOK, Some(move || Instant::now() > deadline))?;
            let result = {
                let snapshot = conn.unchecked_transaction()?;
                work(&snapshot)
            };
            if Instant::now() > deadline && result.is_err() {
                metrics::counter!("panopticon_embedded_reads_cut_off_total").increment(1);
            }
            if !readers.permits.is_closed() {
                readers.idle.lock().push(conn);
            }
            drop(permit);
            result
        })
        .await
        .unwrap_or_else(|error| Err(Fault::Broken(format!("a read was cut off: {error}"))))
    }

    /// Refuses further reads, waits for those under way and closes the connections.
    pub(crate) async fn close(&self, connections: usize) {
        if let Ok(all) =
            self.permits.acquire_many(u32::try_from(connections.max(1)).unwrap_or(u32::MAX)).await
        {
            drop(all);
        }
        self.permits.close();
        self.idle.lock().clear();
    }

    fn connection(&self) -> Result<Connection, Fault> {
        if let Some(conn) = self.idle.lock().pop() {
            return Ok(conn);
        }
        open(&self.path, self.cache_bytes)
    }
}

/// A connection that reads.
pub(crate) fn open(database: &Path, cache_bytes: u64) -> Result<Connection, Fault> {
    let conn = Connection::open_with_flags(
        database,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    schema::tune(&conn, cache_bytes)?;
    Ok(conn)
}
