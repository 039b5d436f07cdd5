//! The stage runtime: joins a group, runs one task a partition, retries, dead-letters, drains.
//!
//! A stage reads one topic. Most are a [`Transform`]: a batch of records in, records out, committed
//! together with the position. Stages with effects outside the log drive the lease themselves.

mod calm;
mod dead_letter;
mod entities;
mod episode;
mod groups;
mod keys;
mod reading;
mod rollups;
mod rule;
mod seeding;
mod sliding;
mod transform;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info, info_span, warn};

pub use self::{
    dead_letter::{dead_letter, dead_letter_row},
    entities::{Entities, Entity, Slot},
    episode::{Course, EpisodeForm},
    groups::GROUPS,
    rollups::{FEW_FROM_SOURCE, Rollups},
    rule::{Findings, Rule, RuleStage, entity_bytes, traces_of},
    seeding::Seeds,
    sliding::{Crossing, MAX_DELAY, SlidingWindow, Span},
    transform::{Transform, decode_each, transform},
};
use crate::{
    config::StagesConfig,
    health::{Health, PartHealth},
    log::{EventLog, Lease, LogError, PollLimits, Stored},
    seen::SeenError,
    store::StoreError,
    time::SharedClock,
    topic::Topic,
};

/// Why a stage cannot go on with a partition.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// From the log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// From the seen set.
    #[error(transparent)]
    Seen(#[from] SeenError),
    /// From the trace store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Of the stage itself; does not pass by itself.
    #[error("{0}")]
    Broken(String),
}

impl StageError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Log(error) => error.is_transient(),
            Self::Seen(error) => matches!(error, SeenError::Unavailable(_)),
            Self::Store(error) => matches!(error, StoreError::Unavailable(_)),
            Self::Broken(_) => false,
        }
    }
}

/// What every stage has at hand.
#[derive(Clone)]
pub struct Runtime {
    /// The event log.
    pub log: Arc<dyn EventLog>,
    /// The clock.
    pub clock: SharedClock,
    /// The condition of the process.
    pub health: Health,
    /// Limits.
    pub limits: StagesConfig,
    /// Cancelled when the process shall end.
    pub shutdown: CancellationToken,
}

/// A step on the road of a message.
#[async_trait]
pub trait Stage: Send + Sync + 'static {
    /// The name of its group.
    fn name(&self) -> &'static str;

    /// What it reads.
    fn input(&self) -> Topic;

    /// Works on a partition, from its committed position on, until the lease is revoked (`Ok`) or
    /// something fails. After an error it is called again with the lease rewound.
    async fn run(&self, lease: &mut dyn Lease, partition: &PartitionContext) -> Result<(), StageError>;
}

/// What a stage tells and asks while it works on a partition.
pub struct PartitionContext {
    /// The runtime's parts.
    pub runtime: Runtime,
    /// The stage's name.
    pub stage: &'static str,
    /// The topic that it reads.
    pub topic: Topic,
    partition: u32,
    health: PartHealth,
    labels: [(&'static str, String); 3],
}

impl PartitionContext {
    fn new(runtime: &Runtime, stage: &dyn Stage, partition: u32) -> Self {
        Self {
            health: runtime.health.part(format!("{}/{}-{partition}", stage.name(), stage.input())),
            runtime: runtime.clone(),
            stage: stage.name(),
            topic: stage.input(),
            partition,
            labels: [
                ("stage", stage.name().to_owned()),
                ("topic", stage.input().name().to_owned()),
                ("partition", partition.to_string()),
            ],
        }
    }

    /// How much one poll takes.
    pub fn poll_limits(&self, wait: Duration) -> PollLimits {
        PollLimits {
            records: self.runtime.limits.batch_records,
            bytes: self.runtime.limits.batch_bytes,
            wait,
        }
    }

    /// Notes that these records have been taken up; empty: there is nothing to do.
    pub fn took(&self, records: &[Stored]) {
        let age = match records.first() {
            None => {
                self.health.progressed();
                Duration::ZERO
            }
            Some(first) => {
                self.health.busy();
                self.runtime.clock.now().since(first.appended_at)
            }
        };
        metrics::gauge!("panopticon_stage_lag_seconds", &self.labels).set(age.as_secs_f64());
    }

    /// Notes that `records` records have been finished and committed.
    pub fn finished(&self, records: usize) {
        self.health.progressed();
        metrics::counter!("panopticon_stage_records_total", &self.labels).increment(records as u64);
        metrics::histogram!("panopticon_stage_batch_records", "stage" => self.stage).record(records as f64);
    }
}

impl Drop for PartitionContext {
    /// From here on another process tells how far behind the partition is.
    fn drop(&mut self) {
        metrics::gauge!("panopticon_stage_lag_seconds", &self.labels).set(0.0);
    }
}

/// How long a stage waits for records before it looks at the time.
pub const IDLE_WAIT: Duration = Duration::from_millis(500);

/// Runs a stage until `runtime.shutdown` is cancelled and its partitions have been given up.
pub async fn run_stage(stage: Arc<dyn Stage>, runtime: Runtime) {
    let membership = runtime.health.part(format!("{}/{}", stage.name(), stage.input()));
    let mut partitions = JoinSet::new();
    let mut pause = Backoff::new(&runtime.limits);
    'joined: while !runtime.shutdown.is_cancelled() {
        let mut subscription = match runtime.log.subscribe(stage.name(), stage.input()).await {
            Ok(subscription) => subscription,
            Err(error) => {
                warn!(stage = stage.name(), topic = %stage.input(), %error, "cannot join the group yet");
                membership.waiting(error.to_string());
                pause.wait(&runtime.shutdown).await;
                continue;
            }
        };
        membership.running();
        pause.reset();
        loop {
            let lease = tokio::select! {
                () = runtime.shutdown.cancelled() => break 'joined,
                Some(ended) = partitions.join_next(), if !partitions.is_empty() => {
                    if let Err(panic) = ended {
                        error!(stage = stage.name(), error = %panic, "a partition's task ended in a panic; its lease is given up");
                    }
                    continue;
                }
                lease = subscription.next_lease() => lease,
            };
            match lease {
                Ok(lease) => {
                    let span = info_span!("stage", stage = stage.name(), topic = %stage.input(), partition = lease.partition());
                    partitions.spawn(work(stage.clone(), runtime.clone(), lease).instrument(span));
                }
                Err(error) => {
                    warn!(stage = stage.name(), topic = %stage.input(), %error, "lost the group; joining again");
                    membership.waiting(error.to_string());
                    pause.wait(&runtime.shutdown).await;
                    continue 'joined;
                }
            }
        }
    }
    // The tasks see the shutdown through their leases or the token; what they have begun, they finish.
    let drained = tokio::time::timeout(Duration::from_millis(runtime.limits.drain_timeout_ms), async {
        while partitions.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        warn!(
            stage = stage.name(),
            "the drain deadline passed; unfinished work is undone and will be done again"
        );
    }
}

/// Works on one partition until it is given up.
async fn work(stage: Arc<dyn Stage>, runtime: Runtime, mut lease: Box<dyn Lease>) {
    let context = PartitionContext::new(&runtime, &*stage, lease.partition());
    let mut pause = Backoff::new(&runtime.limits);
    debug!("took the partition");
    // After an error nothing is worked from what was known before it: the stage may have committed since, and would
    // write over that (an intent of the store, say, whose batch it has begun).
    let mut is_stale = false;
    loop {
        context.health.running();
        let before = tokio::time::Instant::now();
        let ended = match is_stale {
            true => lease.rewind().await.map_err(StageError::from),
            false => stage.run(&mut *lease, &context).await,
        };
        let error = match ended {
            Ok(()) if is_stale => {
                is_stale = false;
                continue;
            }
            Ok(()) => break,
            Err(StageError::Log(LogError::Fenced(why))) => {
                info!(%why, "the lease is over");
                break;
            }
            Err(error) => error,
        };
        if before.elapsed() > Duration::from_millis(runtime.limits.retry_max_ms) {
            pause.reset();
        }
        metrics::counter!("panopticon_stage_errors_total", "stage" => context.stage).increment(1);
        if error.is_transient() {
            warn!(%error, "trying again");
            context.health.busy();
        } else {
            // It may be mended from outside (an offset set by hand, a table repaired), so look again.
            error!(%error, "the partition stands still until this is mended");
            context.health.failed(error.to_string());
            pause.longest();
        }
        tokio::select! {
            () = pause.wait(&runtime.shutdown) => {}
            () = lease.revoked() => break,
        }
        if runtime.shutdown.is_cancelled() {
            break;
        }
        is_stale = true;
    }
    debug!("gave the partition up");
}

/// Growing, jittered pauses that end at once on shutdown.
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses as the limits say.
    pub fn new(limits: &StagesConfig) -> Self {
        let min = Duration::from_millis(limits.retry_min_ms.max(1));
        Self { min, max: Duration::from_millis(limits.retry_max_ms).max(min), next: min }
    }

    /// Begins with the shortest pause again.
    pub fn reset(&mut self) {
        self.next = self.min;
    }

    /// Makes the next pause the longest.
    pub fn longest(&mut self) {
        self.next = self.max;
    }

    /// Pauses for between half of and the whole current length, then doubles it.
    pub async fn wait(&mut self, shutdown: &CancellationToken) {
        let pause = self.next.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        self.next = (self.next * 2).min(self.max);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests;
