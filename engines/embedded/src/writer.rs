//! The one thread that writes. All jobs that wait are run in one SQLite transaction, each in a savepoint
//! of its own, and are answered once it is committed.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    thread::JoinHandle,
    time::Instant,
};

use panopticon_core::time::{SharedClock, Time};
use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::{
    catalog::{Catalog, Slot},
    fault::{Fault, is_lost_sync},
};

/// Most jobs that share a transaction, so that the first does not wait for the last for ever.
const GROUP_JOBS_MAX: usize = 256;

/// What an answered job is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// It is on the disk before it is answered.
    Durable,
    /// It is in the write-ahead log behind everything it depends on. A power cut may take it together
    /// with all that came after it, never without; who wrote it does the same work again.
    Lazy,
}

/// The transaction in which a job runs.
pub(crate) struct Tx<'a> {
    pub(crate) conn: &'a Connection,
    pub(crate) now: Time,
    /// One past the last offset, of each partition that was appended to.
    appended: Vec<(Slot, u64)>,
}

impl Tx<'_> {
    /// Notes that `slot` now ends before `next`; its readers are woken after the commit.
    pub(crate) fn appended(&mut self, slot: Slot, next: u64) {
        self.appended.push((slot, next));
    }
}

trait Job: Send {
    fn durability(&self) -> Durability;
    /// Does the work anew and keeps its result; the fault is also returned.
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), Fault>;
    fn answer(self: Box<Self>, committed: Result<(), Fault>);
}

struct Work<T, F> {
    durability: Durability,
    work: F,
    result: Option<Result<T, Fault>>,
    reply: oneshot::Sender<Result<T, Fault>>,
}

impl<T, F> Job for Work<T, F>
where
    T: Send,
    F: FnMut(&mut Tx<'_>) -> Result<T, Fault> + Send,
{
    fn durability(&self) -> Durability {
        self.durability
    }

    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let result = catch_unwind(AssertUnwindSafe(|| (self.work)(tx)))
            .unwrap_or_else(|_| Err(Fault::Broken("a write job panicked".to_owned())));
        let fault = result.as_ref().err().cloned();
        self.result = Some(result);
        fault.map_or(Ok(()), Err)
    }

    fn answer(self: Box<Self>, committed: Result<(), Fault>) {
        let result = match (committed, self.result) {
            (Err(fault), _) => Err(fault),
            (Ok(()), Some(result)) => result,
            (Ok(()), None) => Err(Fault::Broken("a write job was not run".to_owned())),
        };
        // Whoever asked may have gone away; what was written stays.
        let _ = self.reply.send(result);
    }
}

/// The way to the writer thread.
pub(crate) struct Writer {
    queue: Mutex<Option<SyncSender<Box<dyn Job>>>>,
    queue_jobs: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread on `conn`. `after_commit` is called on it after every transaction.
    pub(crate) fn start(
        conn: Connection,
        clock: SharedClock,
        catalog: std::sync::Arc<Catalog>,
        queue_jobs: usize,
        after_commit: impl FnMut() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (queue, jobs) = sync_channel(queue_jobs.max(1));
        let group_commit = GroupCommit {
            conn,
            clock,
            catalog,
            synchronous: None,
            lost_sync: None,
            after_commit: Box::new(after_commit),
        };
        let thread = std::thread::Builder::new()
            .name("panopticon-writer".to_owned())
            .spawn(move || group_commit.run(&jobs))?;
        Ok(Self { queue: Mutex::new(Some(queue)), queue_jobs, thread: Mutex::new(Some(thread)) })
    }

    /// Has `work` done in the next transaction. It may be run more than once; only one run takes effect.
    /// Dropping the future does not take the job back.
    pub(crate) async fn run<T, F>(&self, durability: Durability, work: F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let sent = match self.queue.lock().as_ref() {
            Some(queue) => queue.try_send(Box::new(Work { durability, work, result: None, reply })),
            None => return Err(Fault::closed()),
        };
        match sent {
            Ok(()) => answer.await.unwrap_or_else(|_| Err(Fault::closed())),
            Err(TrySendError::Full(_)) => {
                metrics::counter!("panopticon_embedded_queue_full_total").increment(1);
                Err(Fault::QueueFull(self.queue_jobs))
            }
            Err(TrySendError::Disconnected(_)) => Err(Fault::closed()),
        }
    }

    /// Takes no more jobs, finishes those that wait and ends the thread. Blocks.
    pub(crate) fn stop(&self) {
        drop(self.queue.lock().take());
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the writer thread panicked");
        }
    }
}

struct GroupCommit {
    conn: Connection,
    clock: SharedClock,
    catalog: std::sync::Arc<Catalog>,
    /// What `PRAGMA synchronous` was last set to.
    synchronous: Option<Durability>,
    /// Set for good once the disk has lost what was synced.
    lost_sync: Option<Fault>,
    after_commit: Box<dyn FnMut() + Send>,
}

impl GroupCommit {
    fn run(mut self, jobs: &Receiver<Box<dyn Job>>) {
        while let Ok(first) = jobs.recv() {
            let mut group = vec![first];
            while group.len() < GROUP_JOBS_MAX
                && let Ok(job) = jobs.try_recv()
            {
                group.push(job);
            }
            self.commit_and_answer(group);
        }
    }

    fn commit_and_answer(&mut self, mut group: Vec<Box<dyn Job>>) {
        let committed = self.commit(&mut group);
        if committed.is_err() && group.len() > 1 && self.lost_sync.is_none() {
            // The transaction was lost as a whole. Alone, each job stands for itself: a small one may
            // find room where a large one did not.
            for job in group {
                let mut alone = vec![job];
                let committed = self.commit(&mut alone);
                alone.into_iter().for_each(|job| job.answer(committed.clone()));
            }
        } else {
            group.into_iter().for_each(|job| job.answer(committed.clone()));
        }
        (self.after_commit)();
    }

    /// Runs the group in one transaction; a job that fails is rolled back alone.
    fn commit(&mut self, group: &mut [Box<dyn Job>]) -> Result<(), Fault> {
        if let Some(fault) = &self.lost_sync {
            return Err(fault.clone());
        }
        let started = Instant::now();
        let outcome = self.transaction(group);
        if let Err(error) = &outcome {
            if !self.conn.is_autocommit() {
                let _ = self.conn.execute_batch("ROLLBACK");
            }
            tracing::warn!(jobs = group.len(), %error, "a write transaction was rolled back");
            metrics::counter!("panopticon_embedded_rollbacks_total").increment(1);
        }
        metrics::histogram!("panopticon_embedded_commit_seconds").record(started.elapsed().as_secs_f64());
        metrics::histogram!("panopticon_embedded_commit_jobs").record(group.len() as f64);
        outcome
    }

    fn transaction(&mut self, group: &mut [Box<dyn Job>]) -> Result<(), Fault> {
        let durable = group.iter().any(|job| job.durability() == Durability::Durable);
        self.set_synchronous(if durable { Durability::Durable } else { Durability::Lazy })?;
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        let mut tx = Tx { conn: &self.conn, now: self.clock.now(), appended: Vec::new() };
        for job in group.iter_mut() {
            tx.conn.prepare_cached("SAVEPOINT job")?.execute([])?;
            let before = tx.appended.len();
            if let Err(fault) = job.run(&mut tx) {
                if tx.conn.is_autocommit() {
                    return Err(fault);
                }
                tx.conn.prepare_cached("ROLLBACK TO job")?.execute([])?;
                tx.appended.truncate(before);
            }
            tx.conn.prepare_cached("RELEASE job")?.execute([])?;
        }
        let appended = tx.appended;
        if let Err(error) = self.conn.execute_batch("COMMIT") {
            if is_lost_sync(&error) {
                let fault = Fault::Broken(format!(
                    "the disk failed to keep what was written ({error}); check it, then start again"
                ));
                tracing::error!(%error, "fsync failed: no further write is taken");
                self.lost_sync = Some(fault.clone());
                return Err(fault);
            }
            return Err(error.into());
        }
        for (slot, next) in appended {
            self.catalog.publish(slot, next);
        }
        Ok(())
    }

    fn set_synchronous(&mut self, wanted: Durability) -> Result<(), Fault> {
        if self.synchronous != Some(wanted) {
            self.conn.execute_batch(match wanted {
                Durability::Durable => "PRAGMA synchronous=FULL",
                Durability::Lazy => "PRAGMA synchronous=NORMAL",
            })?;
            self.synchronous = Some(wanted);
        }
        Ok(())
    }
}
