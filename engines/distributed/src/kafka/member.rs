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
use rdkafka::consumer::BaseConsumer;
use tokio::sync::{mpsc, oneshot};

use super::{
    client::Clients,
    group::Group,
    lease::KafkaLease,
    offsets::Offsets,
    rebalance::Rebalances,
    slot::{Slot, Wake},
    topics::Topics,
    txn::TxnProducer,
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

    /// How far the group has come in `partition`, and the first offset there is. Blocks.
    pub(super) fn standing(&self, partition: u32) -> Result<(Committed, u64), LogError> {
        let committed = self.offsets.committed(self.stage, self.topic, &[partition])?;
        let low = self.offsets.bounds(self.topic, partition)?.low;
        Ok((committed.into_iter().next().unwrap_or_default(), low))
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
