//! Moves the write-ahead log into the file. Most of it is moved beside the writer, on a thread of its own; the
//! little rest by the writer between two transactions, so that it begins again at the front of the log: from
//! outside, the gap between two transactions of a busy writer is not to be had.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use rusqlite::{Connection, hooks::Wal};

use crate::schema::{BUSY_TIMEOUT, PAGE_BYTES};

/// A log that nobody wrote to for this long is moved as a whole and cut to nothing.
const IDLE_AFTER: Duration = Duration::from_secs(20);

/// How long the end of a checkpoint may keep the writer waiting for a reader.
const STALL_MAX: Duration = Duration::from_millis(100);

/// Pause of the thread after a failure, or a full disk would have it spin.
const FAILURE_PAUSE: Duration = Duration::from_millis(500);

/// So few pages are left that moving them does not keep the writer for long.
const REST_PAGES: i64 = 512;

/// Rounds beside the writer before it is asked for the rest, however much it has added meanwhile.
const ROUNDS_MAX: usize = 4;

/// What the thread and the writer tell each other.
#[derive(Default)]
struct Shared {
    /// Pages in the log after the last commit.
    pages: AtomicU64,
    /// Grows whenever the writer is asked for the rest.
    asked: AtomicU64,
}

/// The thread.
pub(crate) struct Checkpointer {
    shared: Arc<Shared>,
    wake: Mutex<Option<SyncSender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    wal: PathBuf,
    limit_bytes: u64,
}

impl Checkpointer {
    /// Starts the thread on its own connection `conn` to the file at `path`.
    pub(crate) fn start(conn: Connection, path: &Path, limit_bytes: u64) -> std::io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let shared = Arc::<Shared>::default();
        let work = Work { conn, shared: Arc::clone(&shared) };
        let thread = std::thread::Builder::new()
            .name("panopticon-checkpoint".to_owned())
            .spawn(move || work.run(&woken))?;
        Ok(Self {
            shared,
            wake: Mutex::new(Some(wake)),
            thread: Mutex::new(Some(thread)),
            wal: PathBuf::from(format!("{}-wal", path.display())),
            limit_bytes,
        })
    }

    /// The writer's part; `conn` is the writer's connection.
    pub(crate) fn writers_part(&self, conn: &mut Connection) -> rusqlite::Result<WritersPart> {
        let pages = Arc::new(AtomicU64::new(0));
        let noted = Arc::clone(&pages);
        conn.wal_hook(Some(move |_: &mut Wal, now| {
            noted.store(u64::try_from(now).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        }))?;
        let limit_pages = (self.limit_bytes / PAGE_BYTES).max(1);
        Ok(WritersPart {
            shared: Arc::clone(&self.shared),
            wake: self.wake.lock().clone(),
            wal: self.wal.clone(),
            truncate_above_bytes: self.limit_bytes.saturating_mul(2),
            pages,
            limit_pages,
            wake_at_pages: limit_pages,
            answered: 0,
        })
    }

    /// Ends the thread, once the writer's part has gone. Blocks.
    pub(crate) fn stop(&self) {
        drop(self.wake.lock().take());
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the checkpoint thread panicked");
        }
    }
}

/// What the writer does for checkpoints.
pub(crate) struct WritersPart {
    shared: Arc<Shared>,
    wake: Option<SyncSender<()>>,
    wal: PathBuf,
    truncate_above_bytes: u64,
    /// Pages in the log, as SQLite says at each commit.
    pages: Arc<AtomicU64>,
    limit_pages: u64,
    /// The thread is woken when the log has so many pages.
    wake_at_pages: u64,
    /// The last request for the rest that was answered.
    answered: u64,
}

impl WritersPart {
    /// To be called after every commit.
    pub(crate) fn after_commit(&mut self, conn: &Connection) {
        let pages = self.pages.load(Ordering::Relaxed);
        self.shared.pages.store(pages, Ordering::Relaxed);
        let asked = self.shared.asked.load(Ordering::Relaxed);
        if asked != self.answered {
            self.answered = asked;
            self.wake_at_pages = match self.move_rest(conn) {
                Ok(true) => self.limit_pages,
                // A reader is at work on the log: not again before it has grown noticeably.
                Ok(false) => pages + self.limit_pages / 4,
                Err(error) => {
                    failed(&error);
                    pages + self.limit_pages / 4
                }
            };
        } else if pages >= self.wake_at_pages
            && let Some(wake) = &self.wake
        {
            // A full channel means that it has been told already.
            let _ = wake.try_send(());
        }
    }

    /// Moves the rest; false when a reader is in the way.
    fn move_rest(&self, conn: &Connection) -> rusqlite::Result<bool> {
        let bytes = std::fs::metadata(&self.wal).map_or(0, |file| file.len());
        metrics::gauge!("panopticon_embedded_wal_bytes").set(bytes as f64);
        // Overwriting is cheaper than growing: the file is cut only when it has grown too far.
        let mode = if bytes > self.truncate_above_bytes { "TRUNCATE" } else { "RESTART" };
        conn.busy_timeout(STALL_MAX)?;
        let step = step(conn, mode);
        conn.busy_timeout(BUSY_TIMEOUT)?;
        Ok(!step?.busy)
    }
}

/// What a checkpoint came to.
struct Step {
    /// Somebody was in the way.
    busy: bool,
    /// Pages of the log that are not in the file yet.
    left: i64,
}

fn step(conn: &Connection, mode: &str) -> rusqlite::Result<Step> {
    conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        Ok(Step { busy: row.get(0)?, left: row.get::<_, i64>(1)? - row.get::<_, i64>(2)? })
    })
}

fn failed(error: &rusqlite::Error) {
    metrics::counter!("panopticon_embedded_checkpoint_failures_total").increment(1);
    tracing::warn!(%error, "a checkpoint failed; the write-ahead log goes on growing");
}

struct Work {
    conn: Connection,
    shared: Arc<Shared>,
}

impl Work {
    fn run(self, woken: &Receiver<()>) {
        let mut pages_before = 0;
        loop {
            let outcome = match woken.recv_timeout(IDLE_AFTER) {
                Ok(()) => self.move_most(),
                Err(RecvTimeoutError::Timeout) => {
                    let pages = self.shared.pages.load(Ordering::Relaxed);
                    let idle = pages > 0 && pages == pages_before;
                    pages_before = pages;
                    if idle { self.move_all() } else { Ok(()) }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Err(error) = outcome {
                failed(&error);
                std::thread::sleep(FAILURE_PAUSE);
            }
        }
    }

    fn move_most(&self) -> rusqlite::Result<()> {
        for _ in 0..ROUNDS_MAX {
            if step(&self.conn, "PASSIVE")?.left <= REST_PAGES {
                break;
            }
        }
        self.shared.asked.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Nobody writes: all of it, here.
    fn move_all(&self) -> rusqlite::Result<()> {
        self.conn.busy_timeout(STALL_MAX)?;
        if !step(&self.conn, "TRUNCATE")?.busy {
            self.shared.pages.store(0, Ordering::Relaxed);
        }
        Ok(())
    }
}
