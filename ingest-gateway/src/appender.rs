//! Group commit: the traces that wait for a partition go into one envelope and one append.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use panopticon_core::{
    config::GatewayConfig,
    ids::{LogId, Place, SeenKey},
    log::{EventLog, LogError, Record},
    telemetry::SPANS,
    time::Time,
    topic::Topic,
    trace::EnvelopeWriter,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{Instrument as _, Span, trace_span, warn};

use crate::{
    marker::{Appended, Marker},
    verdict::Verdict,
};

/// A trace that was taken in.
pub(crate) struct Taken {
    pub key: SeenKey,
    /// Its `panopticon.v1.Trace`.
    pub bytes: Bytes,
    pub received_at: Time,
    pub late: bool,
}

/// Traces of one request that go to one partition.
pub(crate) struct Parcel {
    pub traces: Vec<Taken>,
    /// About how many bytes they take in an envelope.
    pub bytes: usize,
    /// Until when the request waits for the log.
    pub deadline: Instant,
    /// Their places in the queue, given back when they are answered.
    pub room: OwnedSemaphorePermit,
    /// How many traces wait in the partition's queue.
    pub waiting: metrics::Gauge,
    /// Of the request, where spans are exported.
    pub span: Span,
    pub answer: oneshot::Sender<Vec<Verdict>>,
}

/// Appends to one partition of `traces.raw`.
pub(crate) struct Appender {
    pub log: Arc<dyn EventLog>,
    pub marker: Marker,
    pub partition: u32,
    pub log_id: LogId,
    pub max_envelope_bytes: usize,
    pub in_flight: Arc<Semaphore>,
    pub pace: Duration,
}

impl Appender {
    pub fn new(
        log: Arc<dyn EventLog>,
        marker: Marker,
        (partition, log_id): (u32, LogId),
        limits: &GatewayConfig,
    ) -> Self {
        Self {
            log,
            marker,
            partition,
            log_id,
            max_envelope_bytes: limits.max_envelope_bytes,
            in_flight: Arc::new(Semaphore::new(limits.appends_in_flight)),
            pace: Duration::from_millis(limits.append_pace_ms),
        }
    }

    /// Runs until the queue is closed. While all appends that may be under way are, and until the pace
    /// of the last one has passed, requests gather: the busier the gateway, the larger the envelopes.
    pub async fn run(self, mut queue: mpsc::UnboundedReceiver<Parcel>) {
        let appender = Arc::new(self);
        let mut held: Option<Parcel> = None;
        let mut next = Instant::now();
        loop {
            let first = match held.take() {
                Some(parcel) => parcel,
                None => match queue.recv().await {
                    Some(parcel) => parcel,
                    None => return,
                },
            };
            let Ok(permit) = appender.in_flight.clone().acquire_owned().await else { return };
            sleep_until(next).await;
            next = Instant::now() + appender.pace;
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

    async fn append(&self, parcels: Vec<Parcel>) {
        let mut envelope =
            EnvelopeWriter::with_capacity(parcels.iter().map(|parcel| parcel.bytes).sum::<usize>());
        let mut keys = Vec::with_capacity(parcels.iter().map(|parcel| parcel.traces.len()).sum());
        for trace in parcels.iter().flat_map(|parcel| &parcel.traces) {
            envelope.take_in(&trace.bytes, trace.received_at, trace.late);
            keys.push(trace.key);
        }
        metrics::histogram!("panopticon_gateway_envelope_traces").record(keys.len() as f64);
        let began = Instant::now();
        // The first one has waited longest: it is answered in time, and the others with it.
        let deadline = parcels.first().map_or(began, |first| first.deadline);
        let record = Record::message(envelope.finish());
        let span = shared_by(
            &parcels,
            |parent| trace_span!(target: SPANS, parent: parent, "append", partition = self.partition, traces = keys.len()),
        );
        let append = self.log.append(Topic::TracesRaw, self.partition, record);
        let appended = timeout_at(deadline, append)
            .instrument(span)
            .await
            .unwrap_or_else(|_| Err(LogError::Unavailable("no answer in time".to_owned())));
        metrics::histogram!("panopticon_gateway_append_seconds").record(began.elapsed());
        match appended {
            Ok(Some(offset)) => {
                let place = Place { log_id: self.log_id, partition: self.partition, offset, index: 0 };
                self.marker.mark(Appended { place, keys, parcels });
            }
            // An acknowledgement without an offset: durable, but its place is not known here.
            Ok(None) => answer(parcels, std::iter::repeat(Verdict::Accepted)),
            Err(error) => {
                warn!(partition = self.partition, traces = keys.len(), %error, "an append failed; its requests are told to send again");
                metrics::counter!("panopticon_gateway_append_errors_total").increment(1);
                answer(parcels, std::iter::repeat(Verdict::Unavailable));
            }
        }
    }
}

/// The span of what is done for several requests at once: it is part of the first one's, and linked to the others'.
pub(crate) fn shared_by(parcels: &[Parcel], made: impl FnOnce(&Span) -> Span) -> Span {
    let Some((first, others)) = parcels.split_first() else { return Span::none() };
    let span = made(&first.span);
    if !span.is_none() {
        others.iter().for_each(|other| _ = span.follows_from(&other.span));
    }
    span
}

/// Answers parcels, each with its part of `verdicts`.
pub(crate) fn answer(parcels: Vec<Parcel>, mut verdicts: impl Iterator<Item = Verdict>) {
    for parcel in parcels {
        let length = parcel.traces.len();
        let own: Vec<Verdict> = verdicts.by_ref().take(length).collect();
        // A request that has gone away needs no answer.
        let _ = parcel.answer.send(own);
        drop(parcel.room);
        parcel.waiting.decrement(length as f64);
    }
}
