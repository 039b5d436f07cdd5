//! The one thread that writes. All jobs that wait are run in one SQLite transaction and are answered once it
//! is committed; a job that fails fails alone.

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
    checkpoint::WritersPart,
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
    /// Grows with every transaction that is rolled back: what was read or written in an earlier generation
    /// and is kept in memory may not be in the file.
    pub(crate) generation: u64,
    /// One past the last offset, of each partition that was appended to.
    appended: Vec<(Slot, u64)>,
}

impl Tx<'_> {
    /// Notes that `slot` now ends before `next`; its readers are woken after the commit.
    pub(crate) fn appended(&mut self, slot: Slot, next: u64) {
        self.appended.push((slot, next));
    }
}

/// A job has a fault for its answer.
struct Failed;

trait Job: Send {
    fn durability(&self) -> Durability;
    /// Does the work anew and keeps its result.
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), Failed>;
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

    fn run(&mut self, tx: &mut Tx<'_>) -> Result<(), Failed> {
        let result = catch_unwind(AssertUnwindSafe(|| (self.work)(tx)))
            .unwrap_or_else(|_| Err(Fault::Broken("a write job panicked".to_owned())));
        let outcome = if result.is_ok() { Ok(()) } else { Err(Failed) };
        self.result = Some(result);
        outcome
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
    /// Starts the thread on `conn`.
    pub(crate) fn start(
        conn: Connection,
        clock: SharedClock,
        catalog: std::sync::Arc<Catalog>,
        queue_jobs: usize,
        checkpoints: WritersPart,
    ) -> std::io::Result<Self> {
        let (queue, jobs) = sync_channel(queue_jobs.max(1));
        let group_commit = GroupCommit {
            conn,
            clock,
            catalog,
            synchronous: None,
            generation: 0,
            lost_sync: None,
            checkpoints,
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

/// What became of a transaction.
#[derive(Debug)]
enum Attempt {
    /// It is in the file.
    Committed,
    /// It was rolled back since this job failed.
    JobFailed(usize),
    /// It was rolled back for a reason that concerns all of it.
    Lost(Fault),
}

struct GroupCommit {
    conn: Connection,
    clock: SharedClock,
    catalog: std::sync::Arc<Catalog>,
    /// What `PRAGMA synchronous` was last set to.
    synchronous: Option<Durability>,
    generation: u64,
    /// Set for good once the disk has lost what was synced.
    lost_sync: Option<Fault>,
    checkpoints: WritersPart,
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

    /// Commits the group as one. A job that fails with something written takes the transaction down; it is
    /// answered, and the others are run again without it. That is rare, and cheaper than a savepoint for
    /// every job, which copies each page that it changes.
    fn commit_and_answer(&mut self, mut group: Vec<Box<dyn Job>>) {
        while !group.is_empty() {
            match self.commit(&mut group) {
                Attempt::Committed => group.drain(..).for_each(|job| job.answer(Ok(()))),
                Attempt::JobFailed(index) => group.remove(index).answer(Ok(())),
                Attempt::Lost(fault) if group.len() == 1 || self.lost_sync.is_some() => {
                    group.drain(..).for_each(|job| job.answer(Err(fault.clone())));
                }
                // Alone, each job stands for itself: a small one may find room where a large one does not.
                Attempt::Lost(_) => {
                    group.drain(..).for_each(|job| self.commit_and_answer(vec![job]));
                    return;
                }
            }
        }
        self.checkpoints.after_commit(&self.conn);
    }

    fn commit(&mut self, group: &mut [Box<dyn Job>]) -> Attempt {
        if let Some(fault) = &self.lost_sync {
            return Attempt::Lost(fault.clone());
        }
        let started = Instant::now();
        let attempt = self.transaction(group).unwrap_or_else(Attempt::Lost);
        if !matches!(attempt, Attempt::Committed) {
            if !self.conn.is_autocommit() {
                let _ = self.conn.execute_batch("ROLLBACK");
            }
            self.generation += 1;
            tracing::warn!(jobs = group.len(), ?attempt, "a write transaction was rolled back");
            metrics::counter!("panopticon_embedded_rollbacks_total").increment(1);
        }
        metrics::histogram!("panopticon_embedded_commit_seconds").record(started.elapsed().as_secs_f64());
        metrics::histogram!("panopticon_embedded_commit_jobs").record(group.len() as f64);
        attempt
    }

    fn transaction(&mut self, group: &mut [Box<dyn Job>]) -> Result<Attempt, Fault> {
        let durable = group.iter().any(|job| job.durability() == Durability::Durable);
        self.set_synchronous(if durable { Durability::Durable } else { Durability::Lazy })?;
        self.conn.execute_batch("BEGIN IMMEDIATE")?;
        let now = self.clock.now();
        let mut tx = Tx { conn: &self.conn, now, generation: self.generation, appended: Vec::new() };
        for (index, job) in group.iter_mut().enumerate() {
            let changes = tx.conn.total_changes();
            let failed = job.run(&mut tx).is_err();
            if failed && (tx.conn.is_autocommit() || tx.conn.total_changes() != changes) {
                return Ok(Attempt::JobFailed(index));
            }
        }
        let appended = tx.appended;
        if let Err(error) = self.conn.execute_batch("COMMIT") {
            if is_lost_sync(&error) {
                tracing::error!(%error, "fsync failed: no further write is taken");
                self.lost_sync = Some(Fault::Broken(format!(
                    "the disk failed to keep what was written ({error}); check it, then start again"
                )));
            }
            return Err(self.lost_sync.clone().unwrap_or_else(|| error.into()));
        }
        for (slot, next) in appended {
            self.catalog.publish(slot, next);
        }
        Ok(Attempt::Committed)
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
