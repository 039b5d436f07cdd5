//! Marks what the log has taken, for all partitions together: what is appended while one call of the seen set
//! is under way goes into the next.

use std::{sync::Arc, time::Duration};

use panopticon_core::{
    ids::{Place, SeenKey},
    seen::{Mark, Marked, SeenSet},
    telemetry::SPANS,
};
use tokio::{sync::mpsc, time::Instant};
use tracing::{Instrument as _, trace_span, warn};

use crate::{
    appender::shared_by,
    parcel::{Parcel, answer},
    verdict::Verdict,
};

/// More marks than this wait for the next call: as many as the seen set takes at once.
const MAX_MARKS: usize = 20_000;

/// How often the log says, at most, that traces are answered without the seen set: while it is away, that is so for
/// each of them.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// An envelope that is in the log.
pub(crate) struct Appended {
    /// Of its first trace.
    pub place: Place,
    /// Its traces, in order.
    pub keys: Vec<SeenKey>,
    /// Whose traces they are.
    pub parcels: Vec<Parcel>,
}

impl Appended {
    fn marks(&self) -> impl Iterator<Item = Mark> {
        (0..).zip(&self.keys).map(|(index, key)| Mark { key: *key, place: Place { index, ..self.place } })
    }
}

/// Takes what is to be marked.
#[derive(Clone)]
pub(crate) struct Marker(mpsc::UnboundedSender<Vec<Appended>>);

impl Marker {
    /// Starts the task that marks; it ends with the last of its marker's copies.
    pub(crate) fn start(seen: Arc<dyn SeenSet>, timeout: Duration) -> Self {
        let (marker, queue) = mpsc::unbounded_channel();
        tokio::spawn(run(seen, timeout, queue));
        Self(marker)
    }

    /// Marks the traces of envelopes and answers those who wait. The queue is bounded by the rooms of the
    /// partitions' queues, which the parcels keep until then.
    pub(crate) fn mark(&self, appended: Vec<Appended>) {
        // The task ends after its senders only.
        let _ = self.0.send(appended);
    }
}

async fn run(seen: Arc<dyn SeenSet>, timeout: Duration, mut queue: mpsc::UnboundedReceiver<Vec<Appended>>) {
    let mut told: Option<Instant> = None;
    while let Some(mut envelopes) = queue.recv().await {
        let mut marks: Vec<Mark> = envelopes.iter().flat_map(Appended::marks).collect();
        while marks.len() < MAX_MARKS
            && let Ok(next) = queue.try_recv()
        {
            marks.extend(next.iter().flat_map(Appended::marks));
            envelopes.extend(next);
        }
        let places: Vec<Place> = marks.iter().map(|mark| mark.place).collect();
        let parcels: Vec<Parcel> = envelopes.into_iter().flat_map(|envelope| envelope.parcels).collect();
        let span = shared_by(
            &parcels,
            |parent| trace_span!(target: SPANS, parent: parent, "mark", traces = marks.len()),
        );
        match tokio::time::timeout(timeout, seen.mark(marks, None)).instrument(span).await {
            Ok(Ok(Marked::First(first))) => {
                let is_own = places.iter().zip(&first).map(|(own, first)| own == first);
                // What had another place before is a duplicate.
                answer(parcels, is_own.map(|own| if own { Verdict::Accepted } else { Verdict::Duplicate }));
            }
            unmarked => {
                // The traces are in the log, and the dedupe stage marks them: only the word is lost.
                metrics::counter!("panopticon_gateway_unmarked_total").increment(places.len() as u64);
                if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                    told = Some(Instant::now());
                    match unmarked {
                        Ok(Err(error)) => warn!(%error, "answering without the seen set"),
                        Err(_) => warn!("the seen set did not answer in time; answering without it"),
                        Ok(Ok(_)) => {}
                    }
                }
                answer(parcels, std::iter::repeat(Verdict::Accepted));
            }
        }
    }
}
