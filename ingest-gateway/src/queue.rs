//! The queue between requests and the log: bounded by partition, in traces.

use std::sync::Arc;

use bytes::Bytes;
use panopticon_core::{ids::SeenKey, time::Time};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::verdict::Verdict;

/// A trace that was taken in.
pub(crate) struct Taken {
    /// Of `traces.raw`.
    pub partition: u32,
    pub key: SeenKey,
    /// Its `panopticon.v1.Trace`.
    pub bytes: Bytes,
    pub received_at: Time,
    pub late: bool,
}

/// The traces of one request.
pub(crate) struct Parcel {
    pub traces: Vec<Taken>,
    /// Where the verdicts go, in their order.
    pub answer: oneshot::Sender<Vec<Verdict>>,
}

/// How many traces may wait for each partition, from the queue until they are answered.
#[derive(Clone)]
pub(crate) struct Rooms(Arc<[Room]>);

struct Room {
    free: Semaphore,
    limit: usize,
    /// How many traces wait.
    waiting: metrics::Gauge,
}

impl Rooms {
    pub fn new(partitions: u32, limit: usize) -> Self {
        let room = |partition: u32| Room {
            free: Semaphore::new(limit),
            limit,
            waiting: metrics::gauge!("panopticon_gateway_queue_traces", "partition" => partition.to_string()),
        };
        Self((0..partitions).map(room).collect())
    }

    /// Takes room for so many traces; `false` where there is not enough.
    pub fn take(&self, partition: usize, traces: usize) -> bool {
        let wanted = u32::try_from(traces).unwrap_or(u32::MAX);
        match self.0.get(partition).map(|room| room.free.try_acquire_many(wanted)) {
            Some(Ok(permit)) => {
                permit.forget();
                true
            }
            _ => {
                metrics::counter!("panopticon_gateway_queue_full_total").increment(u64::from(wanted));
                false
            }
        }
    }

    /// Gives back the room of traces that are answered.
    pub fn give_back(&self, partition: u32, traces: usize) {
        if let Some(room) = self.0.get(partition as usize) {
            room.free.add_permits(traces);
            room.tell();
        }
    }
}

impl Room {
    fn tell(&self) {
        self.waiting.set(self.limit.saturating_sub(self.free.available_permits()) as f64);
    }
}

/// Where requests put what they have taken in.
pub(crate) struct Queue {
    pub parcels: mpsc::UnboundedSender<Parcel>,
    pub rooms: Rooms,
}

impl Queue {
    /// Puts traces into the queue, all but those of partitions that have no room for them. Returns which were
    /// put, by position, and where their verdicts come from.
    pub fn put(&self, traces: Vec<Option<Taken>>) -> (Vec<usize>, oneshot::Receiver<Vec<Verdict>>) {
        let mut wanted = vec![0; self.rooms.0.len()];
        for trace in traces.iter().flatten() {
            wanted[trace.partition as usize] += 1;
        }
        let has_room: Vec<bool> = wanted
            .iter()
            .enumerate()
            .map(|(partition, traces)| self.rooms.take(partition, *traces))
            .collect();
        let (positions, traces) = traces
            .into_iter()
            .enumerate()
            .filter_map(|(position, trace)| Some((position, trace?)))
            .filter(|(_, trace)| has_room[trace.partition as usize])
            .unzip();
        let (answer, verdicts) = oneshot::channel();
        // A queue that is gone drops the parcel, and with it the answer.
        let _ = self.parcels.send(Parcel { traces, answer });
        (positions, verdicts)
    }
}
