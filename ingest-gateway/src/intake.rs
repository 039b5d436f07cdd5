//! Traces in, verdicts out.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use panopticon_core::{
    config::Config,
    ids::{ClientId, EventId, partition_of},
    log::{EventLog, LogError},
    seen::SeenSet,
    store::TraceStore,
    time::{SharedClock, Time},
    topic::Topic,
    trace::{AcceptedTrace, Trace},
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::debug;

use crate::{
    appender::{Appender, Parcel},
    counts::{Counts, Tally},
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
}

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
        let queues = (0..topic.partitions)
            .map(|partition| {
                let (parcels, queue) = mpsc::unbounded_channel();
                let waiting =
                    metrics::gauge!("panopticon_gateway_queue_traces", "partition" => partition.to_string());
                let place = (partition, topic.log_id);
                let appender =
                    Appender::new(log.clone(), seen.clone(), place, waiting.clone(), &config.gateway);
                tokio::spawn(appender.run(queue));
                Queue { parcels, room: Arc::new(Semaphore::new(config.gateway.queue_traces)), waiting }
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
    pub async fn take_in(&self, traces: Vec<Trace>) -> Vec<Verdict> {
        let now = self.clock.now();
        let mut verdicts = vec![Verdict::Unavailable; traces.len()];
        let Some(client_id) = traces.first().map(|trace| trace.client_id.clone()) else { return verdicts };
        let known = self.known(&traces, now).await;
        let mut tally = Tally::default();
        let mut late = vec![false; traces.len()];
        let partitions = u32::try_from(self.queues.len()).unwrap_or(u32::MAX);
        let mut by_partition: BTreeMap<u32, (Vec<usize>, Vec<AcceptedTrace>)> = BTreeMap::new();
        for (i, trace) in traces.into_iter().enumerate() {
            if known.get(i).copied().unwrap_or(false) {
                verdicts[i] = Verdict::Duplicate;
                continue;
            }
            let partition = partition_of(&[client_id.as_str(), &trace.user_sub], partitions);
            let accepted = AcceptedTrace::new(trace, now);
            late[i] = accepted.late;
            let (indexes, group) = by_partition.entry(partition).or_default();
            indexes.push(i);
            group.push(accepted);
        }
        let mut waiting = Vec::with_capacity(by_partition.len());
        for (partition, (indexes, group)) in by_partition {
            for (indexes, group, bytes) in self.cut(indexes, group) {
                if let Some(answer) = self.send(partition, group, bytes) {
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
        self.counts.add(client_id.as_str(), tally, now);
        verdicts
    }

    /// Cuts a group so that each part fits into an envelope.
    fn cut(
        &self,
        indexes: Vec<usize>,
        group: Vec<AcceptedTrace>,
    ) -> Vec<(Vec<usize>, Vec<AcceptedTrace>, usize)> {
        let mut parts = vec![(Vec::with_capacity(indexes.len()), Vec::with_capacity(group.len()), 0)];
        for (i, trace) in indexes.into_iter().zip(group) {
            let bytes = trace.trace.encoded_size();
            if let Some(last) = parts.last()
                && last.2 + bytes > self.max_envelope_bytes
                && !last.1.is_empty()
            {
                parts.push((Vec::new(), Vec::new(), 0));
            }
            if let Some(last) = parts.last_mut() {
                last.0.push(i);
                last.1.push(trace);
                last.2 += bytes;
            }
        }
        parts
    }

    /// Puts traces into a partition's queue; `None` when it is full.
    fn send(
        &self,
        partition: u32,
        traces: Vec<AcceptedTrace>,
        bytes: usize,
    ) -> Option<oneshot::Receiver<Vec<Verdict>>> {
        let queue = self.queues.get(partition as usize)?;
        let wanted = u32::try_from(traces.len()).ok()?;
        let Ok(room) = queue.room.clone().try_acquire_many_owned(wanted) else {
            metrics::counter!("panopticon_gateway_queue_full_total").increment(u64::from(wanted));
            return None;
        };
        let (answer, verdicts) = oneshot::channel();
        queue.waiting.increment(f64::from(wanted));
        queue.parcels.send(Parcel { traces, bytes, room, answer }).ok()?;
        Some(verdicts)
    }

    /// Which of the traces that are older than the seen set's window are in the store already. Without an
    /// answer none is: the dedupe stage asks again, and waits.
    async fn known(&self, traces: &[Trace], now: Time) -> Vec<bool> {
        let Some(store) = &self.store else { return Vec::new() };
        let horizon = now.minus(self.seen_window);
        let old: Vec<(usize, (ClientId, EventId))> = traces
            .iter()
            .enumerate()
            .filter(|(_, trace)| trace.started_at < horizon)
            .map(|(i, trace)| (i, (trace.client_id.clone(), trace.event_id)))
            .collect();
        let mut known = vec![false; if old.is_empty() { 0 } else { traces.len() }];
        if old.is_empty() {
            return known;
        }
        let (indexes, ids): (Vec<_>, Vec<_>) = old.into_iter().unzip();
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
