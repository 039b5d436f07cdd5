//! The right to process one partition.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use panopticon_core::log::{Commit, Committed, Lease, LogError, Poll, PollLimits, Stored};
use parking_lot::Mutex;
use rdkafka::{TopicPartitionList, consumer::ConsumerGroupMetadata};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    blocking,
    member::{Seek, Shared},
    slot::{Failure, Ready, Slot},
    txn::{Position, TxnProducer},
    writer::targets,
};

/// Keeps the partition with this member until the last of the lease's work has ended: a commit goes on
/// when the future that asked for it is dropped.
struct Hold(Arc<Slot>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Records that were polled and not yet committed.
struct Batch {
    /// Who this member was when the batch began: had it been thrown out and joined again since, the
    /// commit would be refused.
    member: Arc<ConsumerGroupMetadata>,
    /// Offset of the last record.
    last: u64,
}

/// A lease on a partition of Kafka.
pub(super) struct KafkaLease {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    hold: Arc<Hold>,
    producer: Arc<Mutex<TxnProducer>>,
    committed: Committed,
    batch: Option<Batch>,
    /// A commit began and its outcome was not seen: only a rewind tells where the group stands.
    unsure: bool,
}

impl KafkaLease {
    /// Takes over an offer; nothing when it was revoked before anybody came for it.
    pub(super) fn claim(
        shared: &Arc<Shared>,
        slot: Arc<Slot>,
        producer: TxnProducer,
        committed: Committed,
    ) -> Option<Self> {
        slot.claim().then(|| Self {
            shared: Arc::clone(shared),
            hold: Arc::new(Hold(Arc::clone(&slot))),
            slot,
            producer: Arc::new(Mutex::new(producer)),
            committed,
            batch: None,
            unsure: false,
        })
    }

    fn fenced(&self) -> LogError {
        self.shared.fenced(self.slot.partition)
    }

    /// Who this member is now; `None` once the group has moved on.
    async fn membership(&self) -> Option<Arc<ConsumerGroupMetadata>> {
        let (shared, slot) = (Arc::clone(&self.shared), Arc::clone(&self.slot));
        let ask = move || Ok(shared.membership().filter(|_| !slot.is_revoked()));
        blocking(ask).await.ok().flatten()
    }
}

#[async_trait]
impl Lease for KafkaLease {
    fn partition(&self) -> u32 {
        self.slot.partition
    }

    fn committed(&self) -> &Committed {
        &self.committed
    }

    async fn poll(&mut self, limits: PollLimits) -> Result<Poll, LogError> {
        let deadline = Instant::now() + limits.wait.min(Duration::from_secs(86_400));
        loop {
            match self.slot.ready() {
                Ready::Revoked => return Ok(Poll::Revoked),
                Ready::Failed(error) => return Err(error),
                Ready::Records => break,
                Ready::Nothing => {
                    if timeout_at(deadline, self.slot.arrival()).await.is_err() {
                        return Ok(Poll::Records(Vec::new()));
                    }
                }
            }
        }
        let member = match &self.batch {
            Some(batch) => Some(Arc::clone(&batch.member)),
            None => self.membership().await,
        };
        let Some(member) = member else {
            // The group's decision is on its way to the slot.
            self.slot.revocation().await;
            return Ok(Poll::Revoked);
        };
        let records = self.slot.take(limits);
        match records.last() {
            Some(Stored { offset, .. }) => {
                self.batch = Some(Batch { member, last: *offset });
                Ok(Poll::Records(records))
            }
            None => Ok(Poll::Revoked),
        }
    }

    async fn commit(&mut self, commit: Commit) -> Result<(), LogError> {
        if commit.outputs.is_empty() && commit.next.is_none() {
            return Ok(());
        }
        if self.slot.is_over() {
            return Err(self.fenced());
        }
        if self.unsure {
            return Err(LogError::Aborted("an earlier commit was cut short; rewind first".to_owned()));
        }
        let names = self.shared.topics.names_of(&commit.outputs).await?;
        let member = match (&commit.next, &self.batch) {
            (None, _) => None,
            (Some(_), Some(batch)) => Some(Arc::clone(&batch.member)),
            (Some(_), None) => Some(self.membership().await.ok_or_else(|| self.fenced())?),
        };
        let next = commit.next;
        let offsets = match next {
            Some(next) => self.shared.offsets_to_commit(self.slot.partition, next, &commit.metadata)?,
            None => TopicPartitionList::new(),
        };
        let (producer, hold) = (Arc::clone(&self.producer), Arc::clone(&self.hold));
        self.unsure = true;
        let outcome = blocking(move || {
            let _held = hold;
            let targets = targets(&names, &commit.outputs);
            let position = member.map(|member| Position { offsets, member });
            producer.lock().commit(&targets, position).map(|_| ())
        })
        .await;
        // Whatever else failed has been undone; where that is not known, the next step is a rewind.
        self.unsure = matches!(outcome, Err(LogError::Unavailable(_)));
        outcome?;
        if next.is_some_and(|next| self.batch.as_ref().is_none_or(|batch| next > batch.last)) {
            self.batch = None;
        }
        Ok(())
    }

    async fn rewind(&mut self) -> Result<(), LogError> {
        if self.slot.is_revoked() {
            return Err(self.fenced());
        }
        let (shared, producer) = (Arc::clone(&self.shared), Arc::clone(&self.producer));
        let (partition, hold) = (self.slot.partition, Arc::clone(&self.hold));
        let (committed, low) = blocking(move || {
            let _held = hold;
            shared.claim(&mut producer.lock(), partition)
        })
        .await?;
        if let Some(wanted) = committed.offset.filter(|offset| *offset < low) {
            let failure = Failure::Hole { topic: self.shared.topic, partition, wanted, low };
            self.slot.fail(failure.clone());
            return Err(failure.into());
        }
        let (done, sought) = oneshot::channel();
        self.shared.seek(Seek { slot: Arc::clone(&self.slot), to: committed.offset, done });
        tokio::select! {
            outcome = sought => outcome.unwrap_or_else(|_| Err(self.fenced()))?,
            () = self.slot.revocation() => return Err(self.fenced()),
        }
        (self.committed, self.batch, self.unsure) = (committed, None, false);
        Ok(())
    }

    async fn revoked(&mut self) {
        self.slot.revocation().await;
    }
}
