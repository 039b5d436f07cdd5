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
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};
use tracing::{Span, debug};

use crate::{
    appender::{Appender, Parcel, Taken},
    counts::{Counts, Tally},
    marker::Marker,
    verdict::Verdict,
};

/// How long the gateway waits for the trace store when it asks about an old trace.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Takes checked traces in.
pub struct Intake {
    queues: Vec<Queue>,
    store: Option<Arc<dyn TraceStore>>,
    clock: SharedClock,
    seen_window: Duration,
    max_envelope_bytes: usize,
    /// What became of each app's traces.
    pub counts: Counts,
}

struct Queue {
    parcels: mpsc::UnboundedSender<Parcel>,
    /// Bounds the queue, in traces.
    room: Arc<Semaphore>,
    /// How many traces are in it.
    waiting: metrics::Gauge,
    /// How long a request waits for the log.
    timeout: Duration,
}

impl Queue {
    /// Puts traces into the queue; `None` when it is full.
    fn send(&self, traces: Vec<Taken>, bytes: usize) -> Option<oneshot::Receiver<Vec<Verdict>>> {
        let wanted = u32::try_from(traces.len()).ok()?;
        let Ok(room) = self.room.clone().try_acquire_many_owned(wanted) else {
            metrics::counter!("panopticon_gateway_queue_full_total").increment(u64::from(wanted));
            return None;
        };
        let (answer, verdicts) = oneshot::channel();
        self.waiting.increment(f64::from(wanted));
        let waiting = self.waiting.clone();
        let deadline = Instant::now() + self.timeout;
        let parcel = Parcel { traces, bytes, deadline, room, waiting, span: Span::current(), answer };
        self.parcels.send(parcel).ok()?;
        Some(verdicts)
    }
}

/// What one request brings to one envelope.
#[derive(Default)]
struct Load {
    /// Which traces of the request they are.
    indexes: Vec<usize>,
    traces: Vec<Taken>,
    bytes: usize,
}

/// About what the envelope adds to a trace.
const ADDED_BYTES: usize = 16;

impl Intake {
    /// Opens `traces.raw` and starts an appender for each partition. With a `store`, resends of traces that
    /// are older than the seen set's window are recognised here; without, by the dedupe stage alone.
    pub async fn open(
        log: Arc<dyn EventLog>,
        seen: Arc<dyn SeenSet>,
        store: Option<Arc<dyn TraceStore>>,
        config: &Config,
        clock: SharedClock,
    ) -> Result<Self, LogError> {
        let topic = log.topic(Topic::TracesRaw).await?;
        let timeout = Duration::from_millis(config.gateway.append_timeout_ms);
        let marker = Marker::start(seen, Duration::from_millis(config.gateway.mark_timeout_ms));
        let queues = (0..topic.partitions)
            .map(|partition| {
                let (parcels, queue) = mpsc::unbounded_channel();
                let waiting =
                    metrics::gauge!("panopticon_gateway_queue_traces", "partition" => partition.to_string());
                let place = (partition, topic.log_id);
                let appender = Appender::new(log.clone(), marker.clone(), place, &config.gateway);
                tokio::spawn(appender.run(queue));
                let room = Arc::new(Semaphore::new(config.gateway.queue_traces));
                Queue { parcels, room, waiting, timeout }
            })
            .collect();
        Ok(Self {
            queues,
            store,
            clock,
            seen_window: config.retention.seen_window(),
            max_envelope_bytes: config.gateway.max_envelope_bytes,
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
        let mut loads: Vec<Vec<Load>> = self.queues.iter().map(|_| Vec::new()).collect();
        for (i, trace) in traces.into_iter().enumerate() {
            if known.get(i).copied().unwrap_or(false) {
                verdicts[i] = Verdict::Duplicate;
                continue;
            }
            late[i] = trace.is_late(now);
            let partition = partition_of_hash(trace.partition_hash, partitions);
            let key = SeenKey::of(client_id, trace.event_id);
            let taken = Taken { key, bytes: trace.bytes, received_at: now, late: late[i] };
            if let Some(loads) = loads.get_mut(partition as usize) {
                self.load(loads, i, taken);
            }
        }
        let mut waiting = Vec::with_capacity(loads.len());
        for (queue, loads) in self.queues.iter().zip(loads) {
            for Load { indexes, traces, bytes } in loads {
                if let Some(answer) = queue.send(traces, bytes) {
                    waiting.push((indexes, answer));
                }
            }
        }
        for (indexes, answer) in waiting {
            // An appender that is gone leaves the verdict `Unavailable`.
            for (i, verdict) in indexes.into_iter().zip(answer.await.unwrap_or_default()) {
                verdicts[i] = verdict;
            }
        }
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

    /// Adds a trace to the loads of its partition, each of which fits into an envelope.
    fn load(&self, loads: &mut Vec<Load>, index: usize, taken: Taken) {
        let bytes = taken.bytes.len() + ADDED_BYTES;
        if loads.last().is_none_or(|load| load.bytes + bytes > self.max_envelope_bytes) {
            loads.push(Load::default());
        }
        if let Some(load) = loads.last_mut() {
            load.indexes.push(index);
            load.traces.push(taken);
            load.bytes += bytes;
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
