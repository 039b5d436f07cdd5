//! Members, leases and exclusive writers: the right to commit, and its end.

use std::{future::pending, sync::Arc};

use async_trait::async_trait;
use panopticon_core::log::{
    Commit, Committed, ExclusiveWriter, Lease, LogError, Output, Poll, PollLimits, Subscription,
};
use tokio::{sync::watch, time::Instant};

use super::{
    committed,
    groups::{Group, SeatHeld, WriterPass},
    read,
    records::{self, Appendable, Limits, Range},
};
use crate::{Core, catalog::Slot, fault::Fault, writer::Durability};

/// A member of a group.
pub(super) struct Member {
    core: Arc<Core>,
    group: Arc<Group>,
}

impl Member {
    pub(super) fn new(core: Arc<Core>, group: Arc<Group>) -> Self {
        Self { core, group }
    }
}

#[async_trait]
impl Subscription for Member {
    async fn next_lease(&mut self) -> Result<Box<dyn Lease>, LogError> {
        let mut ends = self.group.ends();
        let mut closing = self.core.closing.subscribe();
        loop {
            if self.core.is_closing() {
                return Err(Fault::closed().into());
            }
            ends.borrow_and_update();
            if let Some(seat) = self.group.lease() {
                return Ok(Box::new(PartitionLease::begin(&self.core, seat).await?));
            }
            tokio::select! {
                _ = ends.changed() => {}
                _ = closing.changed() => {}
            }
        }
    }
}

struct PartitionLease {
    core: Arc<Core>,
    seat: SeatHeld,
    slot: Slot,
    /// Follows the end of the partition.
    end: watch::Receiver<u64>,
    committed: Committed,
    /// The next offset to read; `None` begins with what is there.
    next: Option<u64>,
}

impl PartitionLease {
    async fn begin(core: &Arc<Core>, seat: SeatHeld) -> Result<Self, LogError> {
        let slot = core.catalog.slot(seat.group().topic, seat.partition)?;
        let committed = committed(core, seat.group().stage, slot).await?;
        let next = committed.offset;
        Ok(Self { end: core.catalog.end(slot), core: Arc::clone(core), seat, slot, committed, next })
    }

    fn is_over(&self) -> bool {
        self.core.is_closing() || !self.seat.is_valid()
    }

    fn fenced(&self) -> LogError {
        let group = self.seat.group();
        Fault::Fenced(format!("{} on {}-{}", group.stage, group.topic, self.seat.partition)).into()
    }
}

#[async_trait]
impl Lease for PartitionLease {
    fn partition(&self) -> u32 {
        self.seat.partition
    }

    fn committed(&self) -> &Committed {
        &self.committed
    }

    async fn poll(&mut self, limits: PollLimits) -> Result<Poll, LogError> {
        let deadline = Instant::now() + limits.wait;
        let mut ends = self.seat.group().ends();
        let mut closing = self.core.closing.subscribe();
        loop {
            ends.borrow_and_update();
            if self.is_over() {
                return Ok(Poll::Revoked);
            }
            let end = *self.end.borrow_and_update();
            if self.next.is_none_or(|next| next < end) {
                let range = Range { from: self.next, to: end };
                let limits = Limits { records: limits.records.max(1), bytes: limits.bytes, exceed: true };
                let topic = self.seat.group().topic;
                let found = read(&self.core, topic, self.seat.partition, self.slot, range, limits).await?;
                match found.last() {
                    Some(last) => {
                        self.next = Some(last.offset + 1);
                        return Ok(Poll::Records(found));
                    }
                    // Compaction has left nothing up to here.
                    None => self.next = Some(end),
                }
            }
            tokio::select! {
                _ = self.end.changed() => {}
                _ = ends.changed() => {}
                _ = closing.changed() => {}
                () = tokio::time::sleep_until(deadline) => return Ok(Poll::Records(Vec::new())),
            }
        }
    }

    async fn commit(&mut self, commit: Commit) -> Result<(), LogError> {
        let Commit { outputs, next, metadata } = commit;
        let outputs = Appendable::all(&self.core.catalog, outputs)?;
        let (pass, slot, stage) = (self.seat.pass(), self.slot, self.seat.group().stage);
        let partition = self.seat.partition;
        let topic = self.seat.group().topic;
        let job = self.core.writer.run(Durability::Lazy, move |tx| {
            if !pass.is_valid() {
                return Err(Fault::Fenced(format!("{stage} on {topic}-{partition}")));
            }
            for output in &outputs {
                output.append(tx)?;
            }
            next.map_or(Ok(()), |next| records::set_committed(tx.conn, stage, slot, next, &metadata))
        });
        Ok(job.await?)
    }

    async fn rewind(&mut self) -> Result<(), LogError> {
        let committed = committed(&self.core, self.seat.group().stage, self.slot).await?;
        if !self.seat.is_valid() {
            return Err(self.fenced());
        }
        self.next = committed.offset;
        self.committed = committed;
        Ok(())
    }

    async fn revoked(&mut self) {
        let mut ends = self.seat.group().ends();
        let mut closing = self.core.closing.subscribe();
        while !self.is_over() {
            tokio::select! {
                _ = ends.changed() => {}
                changed = closing.changed() => if changed.is_err() { pending::<()>().await },
            }
        }
    }
}

/// The right to write under a name.
pub(super) struct Writership {
    core: Arc<Core>,
    pass: WriterPass,
}

impl Writership {
    pub(super) async fn take(core: Arc<Core>, id: &'static str) -> Result<Self, LogError> {
        let pass = core.groups.take_writer(id);
        // Behind all that the one before has under way: what is read from now on includes it.
        core.writer.run(Durability::Lazy, |_| Ok(())).await?;
        Ok(Self { core, pass })
    }
}

#[async_trait]
impl ExclusiveWriter for Writership {
    async fn commit(&mut self, outputs: Vec<Output>) -> Result<Vec<u64>, LogError> {
        let outputs = Appendable::all(&self.core.catalog, outputs)?;
        let pass = self.pass.clone();
        let job = self.core.writer.run(Durability::Durable, move |tx| {
            if !pass.is_valid() {
                return Err(Fault::Fenced(format!("writer {}", pass.id)));
            }
            outputs.iter().map(|output| output.append(tx)).collect()
        });
        Ok(job.await?)
    }
}
