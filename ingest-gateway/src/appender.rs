//! Group commit: the traces that wait for a partition go into one envelope and one append.

use std::{sync::Arc, time::Duration};

use panopticon_core::{
    config::GatewayConfig,
    ids::{LogId, Place, SeenKey},
    log::{EventLog, LogError, Record},
    seen::{Mark, Marked, SeenSet},
    topic::Topic,
    trace::{AcceptedTrace, encode_envelope},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::warn;

use crate::verdict::Verdict;

/// Traces of one request that go to one partition.
pub(crate) struct Parcel {
    pub traces: Vec<AcceptedTrace>,
    /// About how many bytes they take in an envelope.
    pub bytes: usize,
    /// Their places in the queue, given back when they are answered.
    pub room: OwnedSemaphorePermit,
    pub answer: oneshot::Sender<Vec<Verdict>>,
}

/// Appends to one partition of `traces.raw`.
pub(crate) struct Appender {
    pub log: Arc<dyn EventLog>,
    pub seen: Arc<dyn SeenSet>,
    pub partition: u32,
    pub log_id: LogId,
    pub append_timeout: Duration,
    pub mark_timeout: Duration,
    pub max_envelope_bytes: usize,
    pub in_flight: Arc<Semaphore>,
    /// How many traces wait for an answer.
    pub waiting: metrics::Gauge,
}

impl Appender {
    pub fn new(
        log: Arc<dyn EventLog>,
        seen: Arc<dyn SeenSet>,
        (partition, log_id): (u32, LogId),
        waiting: metrics::Gauge,
        limits: &GatewayConfig,
    ) -> Self {
        Self {
            log,
            seen,
            partition,
            log_id,
            append_timeout: Duration::from_millis(limits.append_timeout_ms),
            mark_timeout: Duration::from_millis(limits.mark_timeout_ms),
            max_envelope_bytes: limits.max_envelope_bytes,
            in_flight: Arc::new(Semaphore::new(limits.appends_in_flight)),
            waiting,
        }
    }

    /// Runs until the queue is closed. While all appends that may be under way are, requests gather: the
    /// busier the log, the larger the envelopes.
    pub async fn run(self, mut queue: mpsc::UnboundedReceiver<Parcel>) {
        let appender = Arc::new(self);
        let mut held: Option<Parcel> = None;
        loop {
            let first = match held.take() {
                Some(parcel) => parcel,
                None => match queue.recv().await {
                    Some(parcel) => parcel,
                    None => return,
                },
            };
            let Ok(permit) = appender.in_flight.clone().acquire_owned().await else { return };
            let mut bytes = first.bytes;
            let mut parcels = vec![first];
            while let Ok(parcel) = queue.try_recv() {
                if bytes + parcel.bytes > appender.max_envelope_bytes {
                    held = Some(parcel);
                    break;
                }
                bytes += parcel.bytes;
                parcels.push(parcel);
            }
            let appender = appender.clone();
            tokio::spawn(async move {
                appender.append(parcels).await;
                drop(permit);
            });
        }
    }

    async fn append(&self, mut parcels: Vec<Parcel>) {
        let traces: Vec<AcceptedTrace> =
            parcels.iter_mut().flat_map(|parcel| std::mem::take(&mut parcel.traces)).collect();
        let keys: Vec<SeenKey> =
            traces.iter().map(|t| SeenKey::of(t.trace.client_id.as_str(), t.trace.event_id)).collect();
        metrics::histogram!("panopticon_gateway_envelope_traces").record(keys.len() as f64);
        // The parcels' lengths are needed again: each answers its own part.
        let lengths: Vec<usize> = parcels.iter().map(|parcel| parcel.room.num_permits()).collect();
        let began = tokio::time::Instant::now();
        let record = Record::message(encode_envelope(traces));
        let appended = tokio::time::timeout(
            self.append_timeout,
            self.log.append(Topic::TracesRaw, self.partition, record),
        )
        .await
        .unwrap_or_else(|_| {
            Err(LogError::Unavailable(format!("no answer within {} ms", self.append_timeout.as_millis())))
        });
        metrics::histogram!("panopticon_gateway_append_seconds").record(began.elapsed());
        let mut verdicts = match appended {
            Ok(Some(offset)) => self.mark(&keys, offset).await,
            // An acknowledgement without an offset: durable, but its place is not known here.
            Ok(None) => vec![Verdict::Accepted; keys.len()],
            Err(error) => {
                warn!(partition = self.partition, traces = keys.len(), %error, "an append failed; its requests are told to send again");
                metrics::counter!("panopticon_gateway_append_errors_total").increment(1);
                vec![Verdict::Unavailable; keys.len()]
            }
        }
        .into_iter();
        for (parcel, length) in parcels.into_iter().zip(lengths) {
            let own: Vec<Verdict> = verdicts.by_ref().take(length).collect();
            // A request that has gone away needs no answer.
            let _ = parcel.answer.send(own);
            drop(parcel.room);
            self.waiting.decrement(length as f64);
        }
    }

    /// Marks what the log has taken; what had another place before is a duplicate.
    async fn mark(&self, keys: &[SeenKey], offset: u64) -> Vec<Verdict> {
        let marks: Vec<Mark> = (0..)
            .zip(keys)
            .map(|(index, key)| Mark {
                key: *key,
                place: Place { log_id: self.log_id, partition: self.partition, offset, index },
            })
            .collect();
        let places: Vec<Place> = marks.iter().map(|mark| mark.place).collect();
        match tokio::time::timeout(self.mark_timeout, self.seen.mark(marks, None)).await {
            Ok(Ok(Marked::First(first))) => places
                .iter()
                .zip(first)
                .map(|(own, first)| if *own == first { Verdict::Accepted } else { Verdict::Duplicate })
                .collect(),
            unmarked => {
                // The traces are in the log, and the dedupe stage marks them: only the word is lost.
                metrics::counter!("panopticon_gateway_unmarked_total").increment(keys.len() as u64);
                match unmarked {
                    Ok(Err(error)) => warn!(%error, "answering without the seen set"),
                    Err(_) => warn!("the seen set did not answer in time; answering without it"),
                    Ok(Ok(_)) => {}
                }
                vec![Verdict::Accepted; keys.len()]
            }
        }
    }
}
