//! The ports of `panopticon-core` on one SQLite file: one process, nothing to install.
//!
//! One thread writes (`writer`): all jobs that wait share a transaction and, where one of them must be
//! durable, an fsync. Reads are snapshots on connections of their own (`readers`). A thread moves the
//! write-ahead log into the file in the background (`checkpoint`). No second process may use the same
//! data directory (`directory`), which is why leases and writers' rights live in memory.

mod catalog;
mod checkpoint;
mod directory;
mod fault;
mod log;
mod readers;
mod schema;
mod seen;
mod store;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod views;
mod writer;

use std::{path::PathBuf, sync::Arc, time::Duration};

use panopticon_core::{
    config::Config,
    ids::ClientId,
    log::EventLog,
    seen::SeenSet,
    store::{Parts, TraceStore},
    time::{SharedClock, Time},
    topic::Topic,
    trace::AcceptedTrace,
};
use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::watch;

use crate::{
    catalog::Catalog, checkpoint::Checkpointer, directory::Directory, fault::Fault, log::Groups,
    readers::Readers, schema::MigrateError, writer::Writer,
};

/// How long a read of the log may take; the largest is a whole table.
const LOG_READ_MAX: Duration = Duration::from_secs(60);

/// How long a query of the store may take.
const QUERY_MAX: Duration = Duration::from_secs(10);

/// Why a data directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be made, or its files cannot be opened.
    #[error("cannot use the data directory {}: {source}", path.display())]
    Directory {
        /// Which directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error(
        "the data directory {} is in use by another process{}; stop that one, or name another directory with --data-dir",
        path.display(),
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse {
        /// Which directory.
        path: PathBuf,
        /// The other process, if it is known.
        pid: Option<u32>,
    },
    /// A later build has written it.
    #[error(
        "the data directory {} was written by a later version (schema {found}, this build knows {known}); use that version",
        path.display()
    )]
    Newer {
        /// Which directory.
        path: PathBuf,
        /// Version of the file.
        found: usize,
        /// The latest that this build knows.
        known: usize,
    },
    /// There is nothing to read.
    #[error(
        "there is no database {}: name the data directory of `panopticon serve` with --data-dir",
        path.display()
    )]
    Missing {
        /// Which file was looked for.
        path: PathBuf,
    },
    /// An earlier build has written it.
    #[error(
        "the data directory {} was written by an earlier version; `panopticon serve` or `panopticon migrate` \
         of this version brings it up to date",
        path.display()
    )]
    Older {
        /// Which directory.
        path: PathBuf,
    },
    /// The file is damaged, or the disk does not take it.
    #[error("cannot open {}: {why}", path.display())]
    Database {
        /// Which file.
        path: PathBuf,
        /// What SQLite says.
        why: String,
    },
}

/// What the ports share.
pub(crate) struct Core {
    catalog: Arc<Catalog>,
    writer: Writer,
    /// For the log's short reads; a long query must not hold them up.
    log_readers: Arc<Readers>,
    /// For the store's queries.
    store_readers: Arc<Readers>,
    checkpointer: Checkpointer,
    groups: Groups,
    /// Becomes true when the engine closes.
    closing: watch::Sender<bool>,
    clock: SharedClock,
    config: Config,
    readers_each: usize,
    database: PathBuf,
    reader_cache_bytes: u64,
    /// Given back last of all.
    directory: Mutex<Option<Directory>>,
}

/// The embedded engine.
pub struct Embedded {
    /// The event log.
    pub log: Arc<dyn EventLog>,
    /// The seen set.
    pub seen: Arc<dyn SeenSet>,
    /// The trace store.
    pub store: Arc<dyn TraceStore>,
    core: Arc<Core>,
}

impl Embedded {
    /// Opens the data directory of `config`, making it where it does not exist. Blocks for a moment.
    pub fn open(config: &Config, clock: SharedClock) -> Result<Self, OpenError> {
        let directory = Directory::take(&config.data_dir)?;
        let path = directory.database.clone();
        let database = |fault: Fault| OpenError::Database { path: path.clone(), why: fault.to_string() };
        // Half of the cache for the writer, the rest for those who read.
        let readers_each = config.embedded.readers.div_ceil(2).max(1);
        let cache_bytes = config.embedded.cache_bytes / 2;
        let reader_cache_bytes = cache_bytes / (2 * readers_each as u64);

        let open = |cache_bytes| -> Result<Connection, Fault> {
            let conn = Connection::open(&path)?;
            schema::tune(&conn, cache_bytes)?;
            Ok(conn)
        };
        let mut conn = open(cache_bytes).map_err(database)?;
        schema::migrate(&mut conn, &config.retention).map_err(|error| match error {
            MigrateError::Newer { found, known } => {
                OpenError::Newer { path: config.data_dir.clone(), found, known }
            }
            MigrateError::Failed(fault) => database(fault),
        })?;
        let catalog = Catalog::open(&conn, config.embedded.partitions, clock.now()).map_err(database)?;
        let catalog = Arc::new(catalog);
        let seen_runs = seen::Runs::open(&conn).map_err(database)?;
        let trace_ids = store::TraceIds::open(&conn).map_err(database)?;

        let threads = |source| OpenError::Directory { path: config.data_dir.clone(), source };
        let checkpoint_conn = open(reader_cache_bytes).map_err(database)?;
        let checkpointer =
            Checkpointer::start(checkpoint_conn, &path, config.embedded.checkpoint_bytes).map_err(threads)?;
        let checkpoints = checkpointer.writers_part(&mut conn).map_err(|error| database(error.into()))?;
        let queue_jobs = config.embedded.queue_jobs;
        let writer = Writer::start(conn, Arc::clone(&clock), Arc::clone(&catalog), queue_jobs, checkpoints)
            .map_err(threads)?;

        let core = Arc::new(Core {
            catalog,
            writer,
            log_readers: Readers::new(path.clone(), readers_each, reader_cache_bytes, LOG_READ_MAX),
            store_readers: Readers::new(path.clone(), readers_each, reader_cache_bytes, QUERY_MAX),
            checkpointer,
            groups: Groups::default(),
            closing: watch::Sender::new(false),
            clock,
            config: config.clone(),
            readers_each,
            database: path,
            reader_cache_bytes,
            directory: Mutex::new(Some(directory)),
        });
        Ok(Self {
            log: Arc::new(log::Log::new(Arc::clone(&core))),
            seen: Arc::new(seen::Seen::new(Arc::clone(&core), seen_runs)),
            store: Arc::new(store::Store::new(Arc::clone(&core), trace_ids)),
            core,
        })
    }

    /// Revokes all leases, waits for them to be dropped (at most `stages.drain_timeout_ms`), finishes the
    /// writes that wait, moves everything into the one file and gives the directory free. Whoever still
    /// holds a port is answered that it is unavailable.
    pub async fn close(&self) {
        self.core.closing.send_replace(true);
        let drain = Duration::from_millis(self.core.config.stages.drain_timeout_ms);
        if tokio::time::timeout(drain, self.core.groups.all_freed()).await.is_err() {
            tracing::warn!("closing although some leases are still held");
        }
        self.core.log_readers.close(self.core.readers_each).await;
        self.core.store_readers.close(self.core.readers_each).await;
        let core = Arc::clone(&self.core);
        let stopped = tokio::task::spawn_blocking(move || core.stop()).await;
        if let Err(error) = stopped {
            tracing::error!(%error, "the engine did not close in order");
        }
    }

    /// Ends all leases of a group without asking those who hold them, as is done to a member that is taken
    /// for dead: what they still commit is fenced, and the partitions are free at once.
    pub fn take_leases(&self, stage: &'static str, topic: Topic) {
        self.core.groups.take_all(stage, topic);
    }
}

/// [`TraceStore::arrivals`] of a data directory that another process may be using: only reads.
pub fn arrivals(
    config: &Config,
    now: Time,
    client_id: &ClientId,
    since: Time,
    until: Time,
) -> Result<Parts<AcceptedTrace>, OpenError> {
    let database = directory::database(&config.data_dir);
    if !database.exists() {
        return Err(OpenError::Missing { path: database });
    }
    let path = config.data_dir.clone();
    match schema::version(&database) {
        Ok(found) if found > schema::VERSION => {
            return Err(OpenError::Newer { path, found, known: schema::VERSION });
        }
        Ok(found) if found < schema::VERSION => return Err(OpenError::Older { path }),
        Ok(_) => {}
        Err(fault) => return Err(OpenError::Database { path: database, why: fault.to_string() }),
    }
    Ok(store::arrivals::arrivals(store::arrivals::Wanted {
        database,
        cache_bytes: config.embedded.cache_bytes / 2,
        client_id: client_id.clone(),
        since,
        until,
        raw_since: now.minus(config.retention.raw()),
    }))
}

impl Core {
    fn stop(&self) {
        // Whichever connection ends last has SQLite move the whole log.
        self.writer.stop();
        self.checkpointer.stop();
        drop(self.directory.lock().take());
    }

    fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.stop();
    }
}
