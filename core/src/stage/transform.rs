//! The common kind of stage: records in, records out, one commit for both.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tracing::{Instrument as _, Span, debug, trace_span};

use super::{IDLE_WAIT, PartitionContext, StageError, dead_letter};
use crate::{
    log::{Commit, Lease, Output, Poll, Stored},
    telemetry::SPANS,
    time::Time,
};

/// What a stage does with the records of one partition. Made anew after every error, so it may hold state
/// that follows from what is committed.
#[async_trait]
pub trait Transform: Send {
    /// What follows from these records, which end before offset `next`.
    async fn process(&mut self, records: &[Stored], next: u64) -> Result<Vec<Output>, StageError>;

    /// Whether somebody waits for this output. What nobody waits for may be held back for
    /// `stages.commit_ms`.
    fn is_urgent(&self, _output: &Output) -> bool {
        true
    }

    /// What follows from the time alone; called about twice a second while no records come.
    async fn idle(&mut self, _now: Time) -> Result<Vec<Output>, StageError> {
        Ok(Vec::new())
    }

    /// What is kept beside the position with each commit.
    fn metadata(&self) -> String {
        String::new()
    }
}

/// How many times as long a position is held back beside which there is nothing to write at all: only whoever
/// takes the partition over reads it.
const POSITION_HOLDS: u32 = 4;

/// Work that is done but not yet committed: there was nothing to write, or nothing that anybody waits for.
struct Uncommitted {
    commit: Commit,
    records: usize,
    /// Of the outputs.
    bytes: usize,
    since: Instant,
}

impl Uncommitted {
    fn begin() -> Self {
        Self { commit: Commit::default(), records: 0, bytes: 0, since: Instant::now() }
    }

    /// Until when it may wait, given how long outputs may that nobody waits for.
    fn until(&self, hold: Duration) -> Instant {
        let holds = if self.commit.outputs.is_empty() { POSITION_HOLDS } else { 1 };
        self.since + hold * holds
    }

    fn add(&mut self, records: usize, next: Option<u64>, outputs: Vec<Output>) {
        self.records += records;
        self.commit.next = next.or(self.commit.next);
        self.bytes += outputs.iter().map(|output| output.record.size()).sum::<usize>();
        self.commit.outputs.extend(outputs);
    }
}

/// Runs a transform on a lease until it is revoked.
///
/// A commit costs the log the same for one record as for hundreds. So two commits lie at least
/// `stages.pace_ms` apart, or twice as long as the first took: the busier the log, the more goes into a
/// commit. What comes meanwhile goes into the second; outputs that are not urgent are held back for up to
/// `stages.commit_ms`, a position without any outputs four times as long. After a crash such records are looked
/// at once more, with the same result.
pub async fn transform<T: Transform>(
    lease: &mut dyn Lease,
    context: &PartitionContext,
    mut transform: T,
) -> Result<(), StageError> {
    let limits = &context.runtime.limits;
    let pace = Duration::from_millis(limits.pace_ms);
    let hold = Duration::from_millis(limits.commit_ms);
    let mut uncommitted: Option<Uncommitted> = None;
    let mut paced_until = Instant::now();
    loop {
        let wait = match &uncommitted {
            Some(done) => IDLE_WAIT.min(done.until(hold).saturating_duration_since(Instant::now())),
            None => IDLE_WAIT,
        };
        let polled = Instant::now();
        let Some(mut records) = gather(lease, context, wait, paced_until).await? else { break };
        context.took(&records);
        let taken = records.len();
        let batch = batch_span(context, taken, polled);
        let next = records.last().map(|last| last.offset + 1);
        records.retain(|stored| stored.record.is_for(context.stage));
        let outputs = match next {
            Some(next) => {
                let process = trace_span!(target: SPANS, parent: &batch, "process");
                transform.process(&records, next).instrument(process).await?
            }
            None => transform.idle(context.runtime.clock.now()).await?,
        };
        let urgent = outputs.iter().any(|output| transform.is_urgent(output));
        if next.is_some() || !outputs.is_empty() {
            uncommitted.get_or_insert_with(Uncommitted::begin).add(taken, next, outputs);
        }
        let is_due = |done: &mut Uncommitted| {
            urgent || done.bytes >= limits.batch_bytes || done.until(hold) <= Instant::now()
        };
        if let Some(done) = uncommitted.take_if(is_due) {
            let began = Instant::now();
            let commit = trace_span!(target: SPANS, parent: &batch, "commit", records = done.records);
            lease.commit(Commit { metadata: transform.metadata(), ..done.commit }).instrument(commit).await?;
            context.finished(done.records);
            paced_until = began + pace.max(began.elapsed() * 2);
        }
    }
    // Whoever comes next need not look at these again; should this fail, it does.
    if let Some(done) = uncommitted {
        match lease.commit(Commit { metadata: transform.metadata(), ..done.commit }).await {
            Ok(()) => context.finished(done.records),
            Err(error) => debug!(stage = context.stage, %error, "the last position was not committed"),
        }
    }
    Ok(())
}

/// The span of a batch, which began with a poll; none where nothing came.
fn batch_span(context: &PartitionContext, records: usize, polled: Instant) -> Span {
    if records == 0 {
        return Span::none();
    }
    trace_span!(
        target: SPANS,
        parent: None,
        "batch",
        otel.name = format!("{} batch", context.stage),
        otel.kind = "consumer",
        stage = context.stage,
        topic = context.topic.name(),
        partition = context.partition,
        records,
        poll_ms = polled.elapsed().as_millis() as u64,
    )
}

/// The next records, all that came before `until`; none when none came within `wait`. `None`: the partition
/// or the process is to be given up.
async fn gather(
    lease: &mut dyn Lease,
    context: &PartitionContext,
    wait: Duration,
    until: Instant,
) -> Result<Option<Vec<Stored>>, StageError> {
    let shutdown = &context.runtime.shutdown;
    let mut limits = context.poll_limits(wait);
    let polled = tokio::select! {
        polled = lease.poll(limits) => polled?,
        () = shutdown.cancelled() => return Ok(None),
    };
    let Poll::Records(mut records) = polled else { return Ok(None) };
    let bytes: usize = records.iter().map(|stored| stored.record.size()).sum();
    let full = records.len() >= limits.records || bytes >= limits.bytes;
    if records.is_empty() || full || until <= Instant::now() {
        return Ok(Some(records));
    }
    tokio::select! {
        () = tokio::time::sleep_until(until) => {}
        () = shutdown.cancelled() => return Ok(None),
    }
    limits.records -= records.len();
    limits.bytes -= bytes;
    limits.wait = Duration::ZERO;
    match lease.poll(limits).await? {
        Poll::Records(more) => records.extend(more),
        Poll::Revoked => return Ok(None),
    }
    Ok(Some(records))
}

/// Decodes each record; those that cannot be decoded become dead letters in `outputs`.
pub fn decode_each<'a, T, E: std::fmt::Display>(
    records: &'a [Stored],
    context: (&'static str, crate::topic::Topic, u32, Time),
    outputs: &mut Vec<Output>,
    decode: impl Fn(&'a Stored) -> Result<T, E>,
) -> Vec<(&'a Stored, T)> {
    let (stage, topic, partition, now) = context;
    let mut decoded = Vec::with_capacity(records.len());
    for stored in records {
        match decode(stored) {
            Ok(message) => decoded.push((stored, message)),
            Err(error) => {
                outputs.push(dead_letter(stage, topic, partition, stored, &error.to_string(), now));
            }
        }
    }
    decoded
}
