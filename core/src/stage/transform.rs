//! The common kind of stage: records in, records out, one commit for both.

use async_trait::async_trait;

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

/// Runs a transform on a lease until it is revoked.
pub async fn transform<T: Transform>(
    lease: &mut dyn Lease,
    context: &PartitionContext,
    mut transform: T,
) -> Result<(), StageError> {
    loop {
        let polled = tokio::select! {
            polled = lease.poll(context.poll_limits(IDLE_WAIT)) => polled?,
            () = context.runtime.shutdown.cancelled() => return Ok(()),
        };
        let Poll::Records(mut records) = polled else { return Ok(()) };
        context.took(&records);
        let taken = records.len();
        let next = records.last().map(|last| last.offset + 1);
        records
            .retain(|stored| stored.record.for_stage.as_deref().is_none_or(|stage| stage == context.stage));
        let outputs = match next {
            Some(next) => transform.process(&records, next).await?,
            None => transform.idle(context.runtime.clock.now()).await?,
        };
        if next.is_some() || !outputs.is_empty() {
            lease.commit(Commit { outputs, next, metadata: String::new() }).await?;
        }
        if taken > 0 {
            context.finished(taken);
        }
    }
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
