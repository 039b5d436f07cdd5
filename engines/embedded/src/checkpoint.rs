//! Moves the write-ahead log into the file, beside the writer.

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
use rusqlite::Connection;

use crate::schema::PAGE_BYTES;

/// A log that nobody wrote to for this long is moved as a whole and cut to nothing.
const IDLE_AFTER: Duration = Duration::from_secs(20);

/// How long the end of a checkpoint may keep the writer waiting for a reader.
const STALL_MAX: Duration = Duration::from_millis(100);

/// Pause after somebody was in the way.
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// So few pages are left that moving them does not keep the writer for long.
const REST_PAGES: i64 = 512;

/// Rounds beside the writer before the last, which holds it up.
const ROUNDS_MAX: usize = 4;

/// What the writer tells the checkpointer.
#[derive(Clone)]
pub(crate) struct WalSize {
    pages: Arc<AtomicU64>,
    limit_pages: u64,
    wake: Arc<Mutex<Option<SyncSender<()>>>>,
}

impl WalSize {
    /// The write-ahead log has `pages` pages after a commit.
    pub(crate) fn set(&self, pages: u64) {
        self.pages.store(pages, Ordering::Relaxed);
        if pages >= self.limit_pages
            && let Some(wake) = self.wake.lock().as_ref()
        {
            // A full channel means that it has been told already.
            let _ = wake.try_send(());
        }
    }
}

/// The thread that does it.
pub(crate) struct Checkpointer {
    size: WalSize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Checkpointer {
    /// Starts the thread on its own connection `conn` to the file at `path`.
    pub(crate) fn start(conn: Connection, path: &Path, checkpoint_bytes: u64) -> std::io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let size = WalSize {
            pages: Arc::default(),
            limit_pages: (checkpoint_bytes / PAGE_BYTES).max(1),
            wake: Arc::new(Mutex::new(Some(wake))),
        };
        let work = Work {
            conn,
            wal: PathBuf::from(format!("{}-wal", path.display())),
            pages: Arc::clone(&size.pages),
            truncate_above_bytes: checkpoint_bytes.saturating_mul(2),
        };
        let thread = std::thread::Builder::new()
            .name("panopticon-checkpoint".to_owned())
            .spawn(move || work.run(&woken))?;
        Ok(Self { size, thread: Mutex::new(Some(thread)) })
    }

    /// What the writer reports to.
    pub(crate) fn size(&self) -> WalSize {
        self.size.clone()
    }

    /// Ends the thread. Blocks.
    pub(crate) fn stop(&self) {
        drop(self.size.wake.lock().take());
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the checkpoint thread panicked");
        }
    }
}

/// What a checkpoint came to.
struct Step {
    /// Somebody was in the way.
    busy: bool,
    /// Pages of the log that are not in the file yet.
    left: i64,
}

struct Work {
    conn: Connection,
    wal: PathBuf,
    pages: Arc<AtomicU64>,
    truncate_above_bytes: u64,
}

impl Work {
    fn run(self, woken: &Receiver<()>) {
        if let Err(error) = self.conn.busy_timeout(STALL_MAX) {
            tracing::warn!(%error, "the checkpointer cannot set its timeout");
        }
        let mut pages_before = 0;
        loop {
            let outcome = match woken.recv_timeout(IDLE_AFTER) {
                Ok(()) => self.checkpoint(),
                Err(RecvTimeoutError::Timeout) => {
                    let pages = self.pages.load(Ordering::Relaxed);
                    let idle = pages > 0 && pages == pages_before;
                    pages_before = pages;
                    if !idle {
                        continue;
                    }
                    self.pages.store(0, Ordering::Relaxed);
                    self.step("TRUNCATE").map(|_| ())
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if let Err(error) = outcome {
                metrics::counter!("panopticon_embedded_checkpoint_failures_total").increment(1);
                tracing::warn!(%error, "a checkpoint failed; the write-ahead log goes on growing");
                // No faster than this, or a full disk would have it spin.
                std::thread::sleep(STALL_MAX);
            }
        }
    }

    /// Moves most of the log beside the writer, then the little rest while it waits, so that it begins
    /// again at the front of the log instead of growing it.
    fn checkpoint(&self) -> rusqlite::Result<()> {
        for _ in 0..ROUNDS_MAX {
            if self.step("PASSIVE")?.left <= REST_PAGES {
                break;
            }
        }
        let bytes = std::fs::metadata(&self.wal).map_or(0, |file| file.len());
        metrics::gauge!("panopticon_embedded_wal_bytes").set(bytes as f64);
        // Overwriting is cheaper than growing: the file is cut only when it has grown too far.
        if self.step(if bytes > self.truncate_above_bytes { "TRUNCATE" } else { "RESTART" })?.busy {
            // A reader is at work on the log. Asking again at once would only hold the writer up.
            std::thread::sleep(BUSY_PAUSE);
        }
        Ok(())
    }

    fn step(&self, mode: &str) -> rusqlite::Result<Step> {
        self.conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
            Ok(Step { busy: row.get(0)?, left: row.get::<_, i64>(1)? - row.get::<_, i64>(2)? })
        })
    }
}

/// Notes the size of the write-ahead log at each commit of `conn`; what is returned reports it.
pub(crate) fn report_wal_size(
    conn: &mut Connection,
    size: WalSize,
) -> rusqlite::Result<impl FnMut() + Send + 'static> {
    let pages = Arc::new(AtomicU64::new(0));
    let noted = Arc::clone(&pages);
    conn.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, now| {
        noted.store(u64::try_from(now).unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }))?;
    Ok(move || size.set(pages.load(Ordering::Relaxed)))
}
