//! Traces on their way through the gateway, and the request that waits for them.

use std::{mem, sync::Arc};

use bytes::Bytes;
use panopticon_core::{ids::SeenKey, time::Time};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};
use tracing::Span;

use crate::verdict::Verdict;

/// A trace that was taken in.
pub(crate) struct Taken {
    pub key: SeenKey,
    /// Its `panopticon.v1.Trace`.
    pub bytes: Bytes,
    pub received_at: Time,
    pub late: bool,
}

/// A request that waits. Each of its parcels holds it; with the last one it is answered, whatever became of them:
/// the verdict on a trace of which nothing was heard is [`Verdict::Unavailable`].
pub(crate) struct Waiting {
    verdicts: Mutex<Vec<Verdict>>,
    answer: Option<oneshot::Sender<Vec<Verdict>>>,
}

impl Waiting {
    /// For a request of as many traces as there are `verdicts`, some of which may be known already.
    pub(crate) fn new(verdicts: Vec<Verdict>) -> (Arc<Self>, oneshot::Receiver<Vec<Verdict>>) {
        let (answer, answered) = oneshot::channel();
        (Arc::new(Self { verdicts: Mutex::new(verdicts), answer: Some(answer) }), answered)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            // A request that has gone away needs no answer.
            let _ = answer.send(mem::take(self.verdicts.get_mut()));
        }
    }
}

/// Traces of one request that go to one partition, and fit into one envelope.
pub(crate) struct Parcel {
    pub partition: u32,
    pub traces: Vec<Taken>,
    /// Which traces of the request they are.
    pub indexes: Vec<usize>,
    /// About how many bytes they take in an envelope.
    pub bytes: usize,
    /// Until when the request waits for the log.
    pub deadline: Instant,
    /// Of the request, where spans are exported.
    pub span: Span,
    pub waiting: Arc<Waiting>,
    /// Held for as long as the parcel is.
    pub _room: Room,
}

impl Parcel {
    /// Says what became of its traces, in their order.
    pub(crate) fn answer(self, own: impl Iterator<Item = Verdict>) {
        let mut verdicts = self.waiting.verdicts.lock();
        for (index, verdict) in self.indexes.iter().zip(own) {
            if let Some(slot) = verdicts.get_mut(*index) {
                *slot = verdict;
            }
        }
    }
}

/// The traces' places in the queue of their partition, given back when it is dropped.
pub(crate) struct Room {
    permit: OwnedSemaphorePermit,
    /// How many traces of the partition wait for their answer.
    waiting: metrics::Gauge,
}

impl Room {
    pub(crate) fn new(permit: OwnedSemaphorePermit, waiting: metrics::Gauge) -> Self {
        waiting.increment(permit.num_permits() as f64);
        Self { permit, waiting }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.waiting.decrement(self.permit.num_permits() as f64);
    }
}

/// Answers parcels, each with its part of `verdicts`.
pub(crate) fn answer(parcels: Vec<Parcel>, mut verdicts: impl Iterator<Item = Verdict>) {
    for parcel in parcels {
        let length = parcel.traces.len();
        parcel.answer(verdicts.by_ref().take(length));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    fn parcel(waiting: &Arc<Waiting>, room: &Arc<Semaphore>, indexes: &[usize]) -> Parcel {
        let taken = |_| Taken {
            key: SeenKey([0; 16]),
            bytes: Bytes::new(),
            received_at: Time::from_secs(1),
            late: false,
        };
        let permit = room.clone().try_acquire_many_owned(indexes.len() as u32).unwrap();
        Parcel {
            partition: 0,
            traces: indexes.iter().map(taken).collect(),
            indexes: indexes.to_vec(),
            bytes: 0,
            deadline: Instant::now(),
            span: Span::none(),
            waiting: waiting.clone(),
            _room: Room::new(permit, metrics::Gauge::noop()),
        }
    }

    #[tokio::test]
    async fn a_request_is_answered_once_all_its_parcels_are_and_a_lost_one_is_not_confirmed() {
        let room = Arc::new(Semaphore::new(10));
        let (waiting, mut answered) = Waiting::new(vec![Verdict::Unavailable; 4]);
        let parcels = [&[0, 2][..], &[3], &[1]].map(|indexes| parcel(&waiting, &room, indexes));
        drop(waiting);
        let [first, second, lost] = parcels;
        answer(vec![first, second], [Verdict::Accepted, Verdict::Duplicate, Verdict::Accepted].into_iter());
        assert!(answered.try_recv().is_err(), "one parcel is still under way");
        drop(lost);
        let expected = [Verdict::Accepted, Verdict::Unavailable, Verdict::Duplicate, Verdict::Accepted];
        assert_eq!(answered.await.unwrap(), expected);
        assert_eq!(room.available_permits(), 10, "the places in the queue are free again");
    }
}
