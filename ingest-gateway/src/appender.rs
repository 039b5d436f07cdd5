//! One round: an envelope for each partition, appended at once.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use panopticon_core::{
    ids::{LogId, Place},
    log::{EventLog, LogError, Record},
    telemetry::SPANS,
    topic::Topic,
    trace::EnvelopeWriter,
};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{Instrument as _, Span, trace_span, warn};

use crate::{
    marker::{Appended, Marker},
    parcel::{Parcel, answer},
    rounds::Turn,
    verdict::Verdict,
};

/// How long traces that are in the log wait for those that were appended with them, to be marked in the same call
/// of the seen set. Where all partitions are well, that is shorter.
const TOGETHER: Duration = Duration::from_millis(2);

/// What goes into one envelope.
pub(crate) struct Load {
    /// At least one; all of the same partition.
    pub parcels: Vec<Parcel>,
    pub turn: Turn,
}

/// Appends envelopes and hands on what the log has taken.
pub(crate) struct Appender {
    pub log: Arc<dyn EventLog>,
    pub marker: Marker,
    pub log_id: LogId,
}

impl Appender {
    /// Appends all of a round. A partition that does not answer holds nobody else up.
    pub(crate) async fn append_all(self: Arc<Self>, loads: Vec<Load>) {
        let mut appends: FuturesUnordered<_> = loads.into_iter().map(|load| self.append(load)).collect();
        while let Some(first) = appends.next().await {
            let mut appended: Vec<Appended> = first.into_iter().collect();
            let others = async {
                while let Some(next) = appends.next().await {
                    appended.extend(next);
                }
            };
            // What came in time is there; what did not goes on.
            let _ = timeout(TOGETHER, others).await;
            if !appended.is_empty() {
                self.marker.mark(appended);
            }
        }
    }

    /// Appends one envelope; `None` when its requests are answered already.
    async fn append(&self, load: Load) -> Option<Appended> {
        let Load { parcels, turn } = load;
        let first = parcels.first()?;
        // It has waited longest: it is answered in time, and the others with it.
        let (partition, deadline) = (first.partition, first.deadline);
        let mut envelope =
            EnvelopeWriter::with_capacity(parcels.iter().map(|parcel| parcel.bytes).sum::<usize>());
        let mut keys = Vec::with_capacity(parcels.iter().map(|parcel| parcel.traces.len()).sum());
        for trace in parcels.iter().flat_map(|parcel| &parcel.traces) {
            envelope.take_in(&trace.bytes, trace.received_at, trace.late);
            keys.push(trace.key);
        }
        metrics::histogram!("panopticon_gateway_envelope_traces").record(keys.len() as f64);
        let began = Instant::now();
        let record = Record::message(envelope.finish());
        let span = shared_by(
            &parcels,
            |parent| trace_span!(target: SPANS, parent: parent, "append", partition, traces = keys.len()),
        );
        let append = self.log.append(Topic::TracesRaw, partition, record);
        let appended = timeout_at(deadline, append)
            .instrument(span)
            .await
            .unwrap_or_else(|_| Err(LogError::Unavailable("no answer in time".to_owned())));
        drop(turn);
        metrics::histogram!("panopticon_gateway_append_seconds").record(began.elapsed());
        match appended {
            Ok(Some(offset)) => {
                let place = Place { log_id: self.log_id, partition, offset, index: 0 };
                return Some(Appended { place, keys, parcels });
            }
            // An acknowledgement without an offset: durable, but its place is not known here.
            Ok(None) => answer(parcels, std::iter::repeat(Verdict::Accepted)),
            Err(error) => {
                warn!(partition, traces = keys.len(), %error, "an append failed; its requests are told to send again");
                metrics::counter!("panopticon_gateway_append_errors_total").increment(1);
                answer(parcels, std::iter::repeat(Verdict::Unavailable));
            }
        }
        None
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
