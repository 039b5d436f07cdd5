//! Where a lease and the thread of its group meet: what was fetched of the partition, and whose turn it is.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use panopticon_core::{
    log::{LogError, PollLimits, Stored},
    topic::Topic,
};
use parking_lot::{Condvar, Mutex};
use rdkafka::{
    consumer::base_consumer::PartitionQueue,
    error::{KafkaError, RDKafkaErrorCode as Code},
};
use tokio::sync::{Notify, watch};

use super::{
    error::{is_missing, is_refusal},
    rebalance::Rebalances,
    record::incoming,
};

/// Wakes the thread of a group.
#[derive(Default)]
pub(super) struct Wake {
    called: Mutex<bool>,
    changed: Condvar,
}

impl Wake {
    pub(super) fn call(&self) {
        *self.called.lock() = true;
        self.changed.notify_one();
    }

    /// Waits for a call, at most for `limit`.
    pub(super) fn wait(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut called = self.called.lock();
        while !*called && !self.changed.wait_until(&mut called, deadline).timed_out() {}
        *called = false;
    }
}

/// Why a partition cannot be read on.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// Retention has taken away what comes next.
    Hole { topic: Topic, partition: u32, wanted: u64, low: u64 },
    /// The topic was deleted.
    NoTopic(Topic),
    /// Something else that does not pass by itself.
    Broken(String),
}

impl From<Failure> for LogError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Hole { topic, partition, wanted, low } => Self::Hole { topic, partition, wanted, low },
            Failure::NoTopic(topic) => Self::NoTopic(topic),
            Failure::Broken(why) => Self::Broken(why),
        }
    }
}

/// Whose turn it is with a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nobody has taken it yet.
    Offered,
    /// Somebody works with it.
    Held,
    /// It was dropped, or its time was over.
    Ended,
}

/// Where records come from.
pub(super) trait Fetched: Send {
    /// The next record, if one has been fetched.
    fn next(&self) -> Option<Result<Stored, KafkaError>>;
}

impl Fetched for PartitionQueue<Rebalances> {
    fn next(&self) -> Option<Result<Stored, KafkaError>> {
        self.poll(Duration::ZERO).map(|polled| polled.map(|message| incoming(&message)))
    }
}

struct Inner {
    /// The driver's queue of this partition. The driver stops fetching while it is full, so it bounds the
    /// memory, and a slow partition holds up no other.
    fetched: Option<Box<dyn Fetched>>,
    /// A record that was taken out and not yet polled.
    head: Option<Stored>,
    /// Records below it were there before: the driver fetches some again after a rebalance.
    next: u64,
    failure: Option<Failure>,
    /// The driver does not have the position that it was to fetch from.
    astray: bool,
    phase: Phase,
}

/// What a poll finds.
pub(super) enum Ready {
    Revoked,
    Failed(LogError),
    Records,
    Nothing,
}

/// One lease's share of a group's thread.
pub(super) struct Slot {
    pub(super) topic: Topic,
    pub(super) partition: u32,
    inner: Mutex<Inner>,
    arrived: Arc<Notify>,
    revoked: watch::Sender<bool>,
    wake: Arc<Wake>,
}

impl Slot {
    /// The slot of a partition whose records from `next` on come out of `fetched`, which tells `arrived`.
    pub(super) fn new(
        (topic, partition): (Topic, u32),
        next: u64,
        fetched: Box<dyn Fetched>,
        arrived: Arc<Notify>,
        wake: &Arc<Wake>,
    ) -> Self {
        let inner = Inner {
            fetched: Some(fetched),
            head: None,
            next,
            failure: None,
            astray: false,
            phase: Phase::Offered,
        };
        Self {
            topic,
            partition,
            inner: Mutex::new(inner),
            arrived,
            revoked: watch::Sender::new(false),
            wake: Arc::clone(wake),
        }
    }

    // The thread's side.

    /// Takes records from `next` on, after the driver has gone there.
    pub(super) fn restart(&self, next: u64) {
        let mut inner = self.inner.lock();
        (inner.head, inner.next, inner.failure, inner.astray) = (None, next, None, false);
    }

    /// What comes next in the partition, as far as was taken from the driver.
    pub(super) fn next(&self) -> u64 {
        self.inner.lock().next
    }

    /// Whether the driver has lost its position since the last call.
    pub(super) fn take_astray(&self) -> bool {
        std::mem::take(&mut self.inner.lock().astray)
    }

    /// Tells the lease, after the records that wait.
    pub(super) fn fail(&self, failure: Failure) {
        self.inner.lock().failure = Some(failure);
        self.arrived.notify_one();
    }

    /// Asks for the lease back.
    pub(super) fn revoke(&self) {
        let mut inner = self.inner.lock();
        (inner.head, inner.fetched) = (None, None);
        // Nobody has it: nobody will.
        if inner.phase == Phase::Offered {
            inner.phase = Phase::Ended;
        }
        self.revoked.send_replace(true);
        drop(inner);
        self.arrived.notify_one();
    }

    /// Takes the lease away from whoever does not give it back.
    pub(super) fn close(&self) {
        self.revoke();
        self.inner.lock().phase = Phase::Ended;
    }

    /// Whether nobody works with the lease any more.
    pub(super) fn is_over(&self) -> bool {
        self.inner.lock().phase == Phase::Ended
    }

    // The lease's side.

    /// Takes the offered lease; false when it was revoked meanwhile.
    pub(super) fn claim(&self) -> bool {
        let mut inner = self.inner.lock();
        let offered = inner.phase == Phase::Offered;
        if offered {
            inner.phase = Phase::Held;
        }
        offered
    }

    /// Gives the lease back.
    pub(super) fn end(&self) {
        let mut inner = self.inner.lock();
        (inner.head, inner.fetched, inner.phase) = (None, None, Phase::Ended);
        drop(inner);
        self.wake.call();
    }

    pub(super) fn is_revoked(&self) -> bool {
        *self.revoked.borrow()
    }

    /// Resolves when the lease is asked for back.
    pub(super) async fn revocation(&self) {
        // The sender is in `self`, so it cannot be gone.
        let _ = self.revoked.subscribe().wait_for(|revoked| *revoked).await;
    }

    /// Whether there is something to poll. A record that is there stays until it is taken.
    pub(super) fn ready(&self) -> Ready {
        let mut inner = self.inner.lock();
        if self.is_revoked() {
            return Ready::Revoked;
        }
        if inner.head.is_none() {
            inner.head = self.fetch(&mut inner);
        }
        match (&inner.head, &inner.failure) {
            (Some(_), _) => Ready::Records,
            (None, Some(failure)) => Ready::Failed(failure.clone().into()),
            (None, None) => Ready::Nothing,
        }
    }

    /// Resolves when there may be something new to see.
    pub(super) async fn arrival(&self) {
        self.arrived.notified().await;
    }

    /// Takes records up to the limits.
    pub(super) fn take(&self, limits: PollLimits) -> Vec<Stored> {
        let mut inner = self.inner.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < limits.records.max(1) && (taken.is_empty() || bytes < limits.bytes) {
            let Some(record) = inner.head.take().or_else(|| self.fetch(&mut inner)) else { break };
            bytes += record.record.size();
            taken.push(record);
        }
        taken
    }

    /// The next record that is not a repetition.
    fn fetch(&self, inner: &mut Inner) -> Option<Stored> {
        loop {
            match inner.fetched.as_ref()?.next()? {
                Ok(record) if record.offset < inner.next => {}
                Ok(record) => {
                    inner.next = record.offset + 1;
                    return Some(record);
                }
                Err(error) => match error.rdkafka_error_code() {
                    Some(Code::AutoOffsetReset) => {
                        inner.astray = true;
                        self.wake.call();
                    }
                    Some(code) if is_missing(code) => inner.failure = Some(Failure::NoTopic(self.topic)),
                    Some(code) if is_refusal(code) => {
                        inner.failure = Some(Failure::Broken(error.to_string()))
                    }
                    // The driver connects again and goes on.
                    _ => tracing::debug!(%error, "a partition's consumer complains"),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use panopticon_core::{log::Record, time::Time};

    use super::*;

    struct Script(Mutex<Vec<Result<u64, Code>>>);

    impl Fetched for Script {
        fn next(&self) -> Option<Result<Stored, KafkaError>> {
            let mut left = self.0.lock();
            let stored = |offset| Stored { offset, appended_at: Time::EPOCH, record: Record::message("x") };
            (!left.is_empty()).then(|| left.remove(0).map(stored).map_err(KafkaError::MessageConsumption))
        }
    }

    fn slot(script: &[Result<u64, Code>]) -> Slot {
        let script = Box::new(Script(Mutex::new(script.to_vec())));
        Slot::new((Topic::Traces, 0), 0, script, Arc::default(), &Arc::default())
    }

    fn offsets(slot: &Slot, records: usize) -> Vec<u64> {
        let limits = PollLimits { records, bytes: 1 << 20, wait: Duration::ZERO };
        slot.take(limits).iter().map(|record| record.offset).collect()
    }

    #[test]
    fn a_record_that_the_driver_brings_twice_is_taken_once() {
        let slot = slot(&[Ok(0), Ok(1), Ok(1), Ok(0), Ok(2)]);
        assert_eq!(offsets(&slot, 10), [0, 1, 2]);
    }

    #[test]
    fn a_record_that_was_seen_to_be_there_stays_until_it_is_taken() {
        let slot = slot(&[Ok(0), Ok(1)]);
        assert!(matches!(slot.ready(), Ready::Records) && matches!(slot.ready(), Ready::Records));
        assert_eq!(offsets(&slot, 1), [0]);
        assert_eq!(offsets(&slot, 1), [1]);
        assert!(matches!(slot.ready(), Ready::Nothing));
    }

    #[test]
    fn a_lost_position_is_told_to_the_thread_once() {
        let slot = slot(&[Ok(0), Err(Code::AutoOffsetReset)]);
        assert_eq!(offsets(&slot, 10), [0]);
        assert!(slot.take_astray() && !slot.take_astray());
    }

    #[test]
    fn a_revoked_lease_has_nothing_to_poll_and_cannot_be_claimed() {
        let slot = slot(&[Ok(0)]);
        slot.revoke();
        assert!(matches!(slot.ready(), Ready::Revoked) && offsets(&slot, 10).is_empty());
        assert!(!slot.claim() && slot.is_over());
    }
}
