//! The common kind of stage: records in, records out, one commit for both.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tracing::debug;

use super::{IDLE_WAIT, PartitionContext, StageError, dead_letter};
use crate::{
    log::{Commit, Lease, Output, Poll, Stored},
    time::Time,
};

/// What a stage does with the records of one partition. Made anew after every error, so it may hold state
/// that follows from what is committed.
#[async_trait]
pub trait Transform: Send {
    /// What follows from these records, which end before offset `next`.
    async fn process(&mut self, records: &[Stored], next: u64) -> Result<Vec<Output>, StageError>;

    /// What follows from the time alone; called about twice a second while no records come.
    async fn idle(&mut self, _now: Time) -> Result<Vec<Output>, StageError> {
        Ok(Vec::new())
    }
}

/// Work that is done but not yet committed: there was nothing to write.
struct Uncommitted {
    next: u64,
    records: usize,
    since: Instant,
}

/// Runs a transform on a lease until it is revoked.
///
/// A commit costs the log the same for one record as for hundreds. So two commits lie at least
/// `stages.pace_ms` apart, and what comes meanwhile goes into the second; and a position without outputs is
/// held back for up to `stages.commit_ms`. After a crash such records are looked at once more, with the same
/// result.
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
            Some(done) => IDLE_WAIT.min((done.since + hold).saturating_duration_since(Instant::now())),
            None => IDLE_WAIT,
        };
        let Some(mut records) = gather(lease, context, wait, paced_until).await? else { break };
        context.took(&records);
        let taken = records.len();
        let next = records.last().map(|last| last.offset + 1);
        records.retain(|stored| stored.record.is_for(context.stage));
        let outputs = match next {
            Some(next) => transform.process(&records, next).await?,
            None => transform.idle(context.runtime.clock.now()).await?,
        };
        if let Some(next) = next {
            let done = uncommitted.get_or_insert(Uncommitted { next, records: 0, since: Instant::now() });
            (done.next, done.records) = (next, done.records + taken);
        }
        let due = uncommitted.as_ref().is_some_and(|done| done.since.elapsed() >= hold);
        if due || !outputs.is_empty() {
            paced_until = Instant::now() + pace;
            let next = uncommitted.as_ref().map(|done| done.next);
            lease.commit(Commit { outputs, next, metadata: String::new() }).await?;
            context.finished(uncommitted.take().map_or(0, |done| done.records));
        }
    }
    // Whoever comes next need not look at these again; should this fail, it does.
    if let Some(done) = uncommitted {
        let commit = Commit { next: Some(done.next), ..Commit::default() };
        match lease.commit(commit).await {
            Ok(()) => context.finished(done.records),
            Err(error) => debug!(stage = context.stage, %error, "the last position was not committed"),
        }
    }
    Ok(())
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
    decode: impl Fn(&[u8]) -> Result<T, E>,
) -> Vec<(&'a Stored, T)> {
    let (stage, topic, partition, now) = context;
    let mut decoded = Vec::with_capacity(records.len());
    for stored in records {
        match decode(stored.record.bytes()) {
            Ok(message) => decoded.push((stored, message)),
            Err(error) => {
                outputs.push(dead_letter(stage, topic, partition, stored, &error.to_string(), now));
            }
        }
    }
    decoded
}
