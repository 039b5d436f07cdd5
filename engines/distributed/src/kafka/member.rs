//! Membership in a group: what its leases and its thread share, and the port's side of it.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use async_trait::async_trait;
use panopticon_core::{
    log::{Committed, Lease, LogError, Subscription},
    topic::Topic,
};
use parking_lot::Mutex;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata},
};
use tokio::sync::{mpsc, oneshot};

use super::{
    client::Clients,
    error::failed,
    group::Group,
    lease::KafkaLease,
    offsets::Offsets,
    rebalance::Rebalances,
    record::{partition_number, raw_offset},
    slot::{Slot, Wake},
    topics::Topics,
    txn::{Position, TxnProducer},
};

/// What a lease asks of the thread: go back to `to`, or to the first record.
pub(super) struct Seek {
    pub(super) slot: Arc<Slot>,
    pub(super) to: Option<u64>,
    pub(super) done: oneshot::Sender<Result<(), LogError>>,
}

/// A partition that is this member's, with everything that a lease needs.
pub(super) struct Offer {
    pub(super) slot: Arc<Slot>,
    pub(super) producer: TxnProducer,
    pub(super) committed: Committed,
}

/// What the leases, the thread and the subscription share.
pub(super) struct Shared {
    pub(super) stage: &'static str,
    pub(super) topic: Topic,
    /// The topic's full name.
    pub(super) name: String,
    pub(super) clients: Arc<Clients>,
    pub(super) offsets: Arc<Offsets>,
    pub(super) topics: Arc<Topics>,
    /// The thread has the consumer; leases only look at it.
    pub(super) consumer: Weak<BaseConsumer<Rebalances>>,
    pub(super) wake: Arc<Wake>,
    seeks: Mutex<Vec<Seek>>,
    leaving: AtomicBool,
}

impl Shared {
    /// The transactional id of whoever owns `partition`. The topic is in it since a stage may have several.
    pub(super) fn transactional_id(&self, partition: u32) -> String {
        self.clients.id(&format!("{}-{}-{partition}", self.stage, self.topic))
    }

    /// How far the group has come in `partition`, and the first offset there is; [`LogError::Fenced`] where another
    /// owner has taken over since `producer` did. Blocks.
    ///
    /// What is read may be that owner's, who works on from there, and only a commit is refused then: so the position
    /// is committed once more as it is.
    pub(super) fn claim(
        &self,
        producer: &mut TxnProducer,
        partition: u32,
    ) -> Result<(Committed, u64), LogError> {
        producer.settle()?;
        let committed = self.offsets.committed(self.stage, self.topic, &[partition])?;
        let committed = committed.into_iter().next().unwrap_or_default();
        let low = self.offsets.bounds(self.topic, partition)?.low;
        if let Some(offset) = committed.offset {
            let offsets = self.offsets_to_commit(partition, offset, &committed.metadata)?;
            let member = self.membership().ok_or_else(|| self.fenced(partition))?;
            producer.commit(&[], Some(Position { offsets, member }))?;
        }
        Ok((committed, low))
    }

    /// What puts the group's position in `partition` to `next`, with `metadata`.
    pub(super) fn offsets_to_commit(
        &self,
        partition: u32,
        next: u64,
        metadata: &str,
    ) -> Result<TopicPartitionList, LogError> {
        let mut offsets = TopicPartitionList::with_capacity(1);
        let mut entry = offsets.add_partition(&self.name, partition_number(partition));
        entry.set_offset(Offset::Offset(raw_offset(next))).map_err(|error| failed("commit", &error))?;
        if !metadata.is_empty() {
            entry.set_metadata(metadata);
        }
        Ok(offsets)
    }

    /// Who this member is now. One that was thrown out has no generation, and a commit without one would be accepted
    /// from anybody: so it is asked for first, then whether it still counts. Blocks for a moment.
    pub(super) fn membership(&self) -> Option<Arc<ConsumerGroupMetadata>> {
        let consumer = self.consumer.upgrade()?;
        let metadata = consumer.group_metadata()?;
        (!consumer.assignment_lost()).then(|| Arc::new(metadata))
    }

    pub(super) fn fenced(&self, partition: u32) -> LogError {
        LogError::Fenced(format!("{}-{partition} is no longer this member's", self.topic))
    }

    pub(super) fn seek(&self, seek: Seek) {
        self.seeks.lock().push(seek);
        self.wake.call();
    }

    pub(super) fn take_seeks(&self) -> Vec<Seek> {
        std::mem::take(&mut self.seeks.lock())
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }
}

/// A member of a group.
pub(super) struct Member {
    shared: Arc<Shared>,
    offers: mpsc::UnboundedReceiver<Result<Offer, LogError>>,
}

impl Member {
    /// Joins; the thread that does it ends some time after the member is dropped. Blocks shortly.
    pub(super) fn join(
        clients: &Arc<Clients>,
        offsets: &Arc<Offsets>,
        topics: &Arc<Topics>,
        stage: &'static str,
        topic: Topic,
    ) -> Result<(Self, JoinHandle<()>), LogError> {
        let context = Rebalances::new(clients.voice(stage));
        let mut consumer: BaseConsumer<Rebalances> = clients.create(clients.member(stage, topic), context)?;
        let wake = Arc::new(Wake::default());
        let bell = Arc::clone(&wake);
        consumer.set_nonempty_callback(move || bell.call());
        let consumer = Arc::new(consumer);
        let shared = Arc::new(Shared {
            stage,
            topic,
            name: clients.topic(topic),
            clients: Arc::clone(clients),
            offsets: Arc::clone(offsets),
            topics: Arc::clone(topics),
            consumer: Arc::downgrade(&consumer),
            wake,
            seeks: Mutex::default(),
            leaving: AtomicBool::new(false),
        });
        let (offered, offers) = mpsc::unbounded_channel();
        let thread = Group::start(Arc::clone(&shared), consumer, offered)?;
        Ok((Self { shared, offers }, thread))
    }
}

#[async_trait]
impl Subscription for Member {
    async fn next_lease(&mut self) -> Result<Box<dyn Lease>, LogError> {
        loop {
            let Some(offer) = self.offers.recv().await else {
                return Err(LogError::Unavailable(format!(
                    "the membership of {} has ended",
                    self.shared.stage
                )));
            };
            let Offer { slot, producer, committed } = offer?;
            if let Some(lease) = KafkaLease::claim(&self.shared, slot, producer, committed) {
                return Ok(Box::new(lease));
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.shared.leaving.store(true, Ordering::Release);
        self.shared.wake.call();
    }
}
