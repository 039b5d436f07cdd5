//! Traces in, verdicts out.

use std::{sync::Arc, time::Duration};

use panopticon_core::{
    admission::Admitted,
    config::Config,
    ids::{ClientId, EventId, SeenKey, partition_of_hash},
    log::{EventLog, LogError},
    seen::SeenSet,
    store::TraceStore,
    time::{SharedClock, Time},
    topic::Topic,
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};
use tracing::{Span, debug};

use crate::{
    counts::{Counts, Tally},
    parcel::{Parcel, Room, Taken, Waiting},
    rounds::{Door, Rounds},
    verdict::Verdict,
};

/// How long the gateway waits for the trace store when it asks about an old trace.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Takes checked traces in.
pub struct Intake {
    queues: Vec<Queue>,
    door: Door,
    store: Option<Arc<dyn TraceStore>>,
    clock: SharedClock,
    seen_window: Duration,
    max_envelope_bytes: usize,
    /// How long a request waits for the log.
    timeout: Duration,
    /// What became of each app's traces.
    pub counts: Counts,
}

/// What bounds the traces of a partition that wait.
struct Queue {
    room: Arc<Semaphore>,
    /// How many wait.
    waiting: metrics::Gauge,
}

impl Queue {
    /// Places for traces; `None` when it is full.
    fn room(&self, traces: usize) -> Option<Room> {
        let wanted = u32::try_from(traces).ok()?;
        let Ok(permit) = self.room.clone().try_acquire_many_owned(wanted) else {
            metrics::counter!("panopticon_gateway_queue_full_total").increment(u64::from(wanted));
            return None;
        };
        Some(Room::new(permit, self.waiting.clone()))
    }
}

/// What one request brings to one envelope.
#[derive(Default)]
struct Share {
    /// Which traces of the request they are.
    indexes: Vec<usize>,
    traces: Vec<Taken>,
    bytes: usize,
}

/// About what the envelope adds to a trace.
const ADDED_BYTES: usize = 16;

impl Intake {
    /// Opens `traces.raw` and starts appending to it. With a `store`, resends of traces that are older than the
    /// seen set's window are recognised here; without, by the dedupe stage alone.
    pub async fn open(
        log: Arc<dyn EventLog>,
        seen: Arc<dyn SeenSet>,
        store: Option<Arc<dyn TraceStore>>,
        config: &Config,
        clock: SharedClock,
    ) -> Result<Self, LogError> {
        let topic = log.topic(Topic::TracesRaw).await?;
        let queue = |partition: u32| Queue {
            room: Arc::new(Semaphore::new(config.gateway.queue_traces)),
            waiting: metrics::gauge!("panopticon_gateway_queue_traces", "partition" => partition.to_string()),
        };
        Ok(Self {
            queues: (0..topic.partitions).map(queue).collect(),
            door: Rounds::start(log, seen, topic, &config.gateway),
            store,
            clock,
            seen_window: config.retention.seen_window(),
            max_envelope_bytes: config.gateway.max_envelope_bytes,
            timeout: Duration::from_millis(config.gateway.append_timeout_ms),
            counts: Counts::default(),
        })
    }

    /// Takes in traces of one app and answers a verdict for each, in order.
    pub async fn take_in(&self, client_id: &str, traces: Vec<Admitted>) -> Vec<Verdict> {
        let now = self.clock.now();
        let mut verdicts = vec![Verdict::Unavailable; traces.len()];
        if traces.is_empty() {
            return verdicts;
        }
        let known = self.known(client_id, &traces, now).await;
        let mut late = vec![false; traces.len()];
        let partitions = u32::try_from(self.queues.len()).unwrap_or(u32::MAX);
        let mut shares: Vec<Vec<Share>> = self.queues.iter().map(|_| Vec::new()).collect();
        for (i, trace) in traces.into_iter().enumerate() {
            if known.get(i).copied().unwrap_or(false) {
                verdicts[i] = Verdict::Duplicate;
                continue;
            }
            late[i] = trace.is_late(now);
            let partition = partition_of_hash(trace.partition_hash, partitions);
            let key = SeenKey::of(client_id, trace.event_id);
            let taken = Taken { key, bytes: trace.bytes, received_at: now, late: late[i] };
            if let Some(shares) = shares.get_mut(partition as usize) {
                self.share(shares, i, taken);
            }
        }
        let answered = self.append(verdicts, shares).await;
        let verdicts = answered.unwrap_or_else(|_| vec![Verdict::Unavailable; late.len()]);
        let mut tally = Tally::default();
        for (verdict, late) in verdicts.iter().zip(late) {
            match verdict {
                Verdict::Accepted => {
                    tally.accepted += 1;
                    tally.late += u64::from(late);
                }
                Verdict::Duplicate => tally.duplicate += 1,
                Verdict::Unavailable => tally.unavailable += 1,
            }
        }
        self.counts.add(client_id, tally, now);
        verdicts
    }

    /// Sends shares, by partition, on their way; their verdicts are answered among those of the request.
    fn append(&self, verdicts: Vec<Verdict>, shares: Vec<Vec<Share>>) -> oneshot::Receiver<Vec<Verdict>> {
        let (waiting, answer) = Waiting::new(verdicts);
        let deadline = Instant::now() + self.timeout;
        let parcels = (0..).zip(&self.queues).zip(shares).flat_map(|((partition, queue), shares)| {
            let waiting = &waiting;
            shares.into_iter().filter_map(move |Share { indexes, traces, bytes }| {
                let _room = queue.room(traces.len())?;
                let (span, waiting) = (Span::current(), waiting.clone());
                Some(Parcel { partition, traces, indexes, bytes, deadline, span, waiting, _room })
            })
        });
        // Parcels that nobody takes any more are answered as they are dropped.
        let _ = self.door.send(parcels.collect());
        answer
    }

    /// Adds a trace to the shares of its partition, each of which fits into an envelope.
    fn share(&self, shares: &mut Vec<Share>, index: usize, taken: Taken) {
        let bytes = taken.bytes.len() + ADDED_BYTES;
        if shares.last().is_none_or(|share| share.bytes + bytes > self.max_envelope_bytes) {
            shares.push(Share::default());
        }
        if let Some(share) = shares.last_mut() {
            share.indexes.push(index);
            share.traces.push(taken);
            share.bytes += bytes;
        }
    }

    /// Which of the traces that are older than the seen set's window are in the store already. Without an
    /// answer none is: the dedupe stage asks again, and waits.
    async fn known(&self, client_id: &str, traces: &[Admitted], now: Time) -> Vec<bool> {
        let Some(store) = &self.store else { return Vec::new() };
        let horizon = now.minus(self.seen_window);
        let is_old = |trace: &&Admitted| trace.started_at < horizon;
        if !traces.iter().any(|trace| is_old(&trace)) {
            return Vec::new();
        }
        let Ok(app) = ClientId::new(client_id) else { return Vec::new() };
        let mut known = vec![false; traces.len()];
        let (indexes, ids): (Vec<usize>, Vec<(ClientId, EventId)>) = traces
            .iter()
            .enumerate()
            .filter(|(_, trace)| is_old(trace))
            .map(|(i, trace)| (i, (app.clone(), trace.event_id)))
            .unzip();
        match tokio::time::timeout(KNOWN_TIMEOUT, store.known(&ids)).await {
            Ok(Ok(answers)) => {
                for (i, answer) in indexes.into_iter().zip(answers) {
                    known[i] = answer;
                }
            }
            Ok(Err(error)) => debug!(%error, "old traces are left to the dedupe stage"),
            Err(_) => {
                debug!("the trace store did not answer in time; old traces are left to the dedupe stage")
            }
        }
        known
    }
}
