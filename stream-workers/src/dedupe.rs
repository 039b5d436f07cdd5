//! Keeps the first of each trace: `traces.raw` to `traces`, partition by partition.
//!
//! A trace is kept if the place that the seen set remembers for it is its own. The gateway has usually
//! marked it already; whoever marks first decides, and a batch that is processed again after a crash finds
//! its own places. A trace older than the set's window is also looked up in the trace store.
//!
//! Beside the position stands which owner of the partition has committed it. The seen set's word on how far
//! the partition has come counts only if that owner or a newer one has given it: a worker that was replaced
//! and does not know it yet could otherwise hide a loss of marks.
//!
//! A replayed record lies at a place of its own, while the marks of its traces name the place where it lay
//! at first: they are moved before they are asked for. Whoever replays a record twice finds them gone.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use panopticon_core::{
    config::Config,
    ids::{ClientId, EventId, LogId, Place},
    log::{Committed, EventLog, Lease, Output, Record, Stored},
    seen::{Mark, Marked, Move, Owner, Progress, Rebuild, Restored, SeenError, SeenSet},
    stage::{PartitionContext, Stage, StageError, Transform, decode_each, transform},
    store::TraceStore,
    time::SharedClock,
    topic::Topic,
    trace::EnvelopeWriter,
};
use tracing::{info, warn};

use crate::arrival::{Arrival, arrivals};

/// The stage.
pub struct Dedupe {
    seen: Arc<dyn SeenSet>,
    store: Arc<dyn TraceStore>,
    window: Duration,
    max_envelope_bytes: usize,
}

const NAME: &str = "dedupe";
const RESTORE_BYTES: usize = 4 << 20;
/// When marks may be lost.
const AGAIN: &str = "again while they were being rebuilt";

/// The owner as it stands in the commit's metadata.
fn signature(owner: Owner) -> String {
    format!("owner={owner}")
}

/// Who made the last commit. One that names nobody is of an older build, or was set by hand (then the marks are
/// rebuilt once, where a named owner has been further).
fn committer(committed: &Committed) -> Option<Owner> {
    committed.offset?;
    let named = committed.metadata.strip_prefix("owner=").and_then(|owner| owner.parse().ok());
    Some(named.unwrap_or(Owner::UNNAMED))
}

impl Dedupe {
    /// A dedupe stage that remembers in `seen` and looks up old traces in `store`.
    pub fn new(seen: Arc<dyn SeenSet>, store: Arc<dyn TraceStore>, config: &Config) -> Self {
        Self {
            seen,
            store,
            window: config.retention.seen_window(),
            max_envelope_bytes: config.gateway.max_envelope_bytes,
        }
    }
}

#[async_trait]
impl Stage for Dedupe {
    fn name(&self) -> &'static str {
        NAME
    }

    fn input(&self) -> Topic {
        Topic::TracesRaw
    }

    async fn run(&self, lease: &mut dyn Lease, context: &PartitionContext) -> Result<(), StageError> {
        let log = context.runtime.log.clone();
        let partition = lease.partition();
        let position = match lease.committed().offset {
            Some(offset) => offset,
            None => log.bounds(Topic::TracesRaw, partition).await?.low,
        };
        let before = committer(lease.committed());
        let first_of_each = FirstOfEach {
            owner: Owner::after(before),
            trusts: before,
            log_id: log.topic(Topic::TracesRaw).await?.log_id,
            log,
            seen: self.seen.clone(),
            store: self.store.clone(),
            clock: context.runtime.clock.clone(),
            window: self.window,
            max_envelope_bytes: self.max_envelope_bytes,
            partition,
            position,
            ahead: false,
        };
        transform(lease, context, first_of_each).await
    }
}

struct FirstOfEach {
    owner: Owner,
    /// The oldest owner whose word on the progress is taken.
    trusts: Option<Owner>,
    log: Arc<dyn EventLog>,
    log_id: LogId,
    seen: Arc<dyn SeenSet>,
    store: Arc<dyn TraceStore>,
    clock: SharedClock,
    window: Duration,
    max_envelope_bytes: usize,
    partition: u32,
    /// Where the next batch begins.
    position: u64,
    /// What was passed last left nothing to write, and may not be committed yet.
    ahead: bool,
}

#[async_trait]
impl Transform for FirstOfEach {
    async fn process(&mut self, records: &[Stored], next: u64) -> Result<Vec<Output>, StageError> {
        let mut outputs = Vec::new();
        let context = (NAME, Topic::TracesRaw, self.partition, self.clock.now());
        let decoded = decode_each(records, context, &mut outputs, |stored| {
            let place =
                Place { log_id: self.log_id, partition: self.partition, offset: stored.offset, index: 0 };
            arrivals(stored.record.bytes(), Some(place))
        });
        let (mut traces, mut moves) = (Vec::new(), Vec::new());
        for (stored, arrivals) in decoded {
            if let Some(replay) = &stored.record.replay {
                moves.extend(arrivals.iter().map(|arrival| Move {
                    key: arrival.key,
                    from: Place { offset: replay.first_offset, ..arrival.place },
                    to: arrival.place,
                }));
            }
            traces.extend(arrivals);
        }
        let came = traces.len();
        let kept = self.first_of_each(traces, &moves, self.progress(next)).await?;
        let kept = self.unknown_to_the_store(kept).await?;
        metrics::counter!("panopticon_dedupe_duplicates_total").increment((came - kept.len()) as u64);
        outputs.extend(self.envelopes(kept));
        (self.position, self.ahead) = (next, outputs.is_empty());
        Ok(outputs)
    }

    fn metadata(&self) -> String {
        signature(self.owner)
    }
}

impl FirstOfEach {
    /// The batch from the position on and before `to`, as the seen set compares it.
    fn progress(&self, to: u64) -> Progress {
        let Self { log_id, partition, position: from, owner, trusts, .. } = *self;
        Progress { log_id, partition, from, to, owner, trusts }
    }

    /// Passes by itself: dedupe begins anew at what is committed.
    fn lost(&self, when: &str) -> StageError {
        let partition = self.partition;
        StageError::Seen(SeenError::Unavailable(format!("it lost marks of partition {partition} {when}")))
    }

    /// The traces whose own place is the one that came first, after `moves`.
    async fn first_of_each<'a>(
        &mut self,
        traces: Vec<Arrival<'a>>,
        moves: &[Move],
        progress: Progress,
    ) -> Result<Vec<Arrival<'a>>, StageError> {
        let marks: Vec<Mark> = traces.iter().map(Arrival::mark).collect();
        let first = match self.move_and_mark(moves, &marks, progress).await? {
            Marked::First(first) => first,
            // A rebuild draws a line at the position: marks below count only if they are of something kept.
            // Whoever came back behind it would keep what was dropped here in favour of something after it.
            Marked::Lost if self.ahead => return Err(self.lost("beyond what is committed")),
            Marked::Lost => {
                self.restore().await?;
                self.trusts = Some(self.owner);
                match self.move_and_mark(moves, &marks, self.progress(progress.to)).await? {
                    Marked::First(first) => first,
                    Marked::Lost => return Err(self.lost(AGAIN)),
                }
            }
        };
        self.trusts = Some(self.owner);
        Ok(traces
            .into_iter()
            .zip(first)
            .filter(|(trace, first)| trace.place == *first)
            .map(|(trace, _)| trace)
            .collect())
    }

    async fn move_and_mark(
        &self,
        moves: &[Move],
        marks: &[Mark],
        progress: Progress,
    ) -> Result<Marked, StageError> {
        if !moves.is_empty() {
            self.seen.shift(moves.to_vec()).await?;
        }
        Ok(self.seen.mark(marks.to_vec(), Some(progress)).await?)
    }

    /// Rebuilds this partition's marks from what has already been kept.
    async fn restore(&self) -> Result<(), StageError> {
        warn!(partition = self.partition, "the seen set has lost marks; rebuilding them from `traces`");
        metrics::counter!("panopticon_dedupe_restores_total").increment(1);
        let mut rebuild = Rebuild::new(self.progress(self.position));
        // Begun before anything is read: whatever is lost from here on is missed.
        let mut so_far = self.seen.restore(&mut rebuild, Vec::new()).await?;
        let bounds = self.log.bounds(Topic::Traces, self.partition).await?;
        let horizon = self.clock.now().minus(self.window);
        let (mut at, mut restored) = (bounds.low, 0);
        while at < bounds.high && so_far == Restored::Whole {
            let records =
                self.log.read(Topic::Traces, self.partition, at, bounds.high, RESTORE_BYTES).await?;
            let Some(last) = records.last() else { break };
            at = last.offset + 1;
            let mut marks = Vec::new();
            for stored in records.iter().filter(|stored| stored.appended_at >= horizon) {
                let kept = arrivals(stored.record.bytes(), None).unwrap_or_default();
                marks.extend(kept.iter().map(Arrival::mark));
            }
            restored += marks.len();
            if !marks.is_empty() {
                so_far = self.seen.restore(&mut rebuild, marks).await?;
            }
        }
        if so_far == Restored::Whole {
            so_far = self.seen.end_rebuild(rebuild).await?;
        }
        if so_far == Restored::LostAgain {
            return Err(self.lost(AGAIN));
        }
        info!(partition = self.partition, marks = restored, "rebuilt the marks");
        Ok(())
    }

    /// Leaves out traces older than the window that the store already has.
    async fn unknown_to_the_store<'a>(
        &self,
        traces: Vec<Arrival<'a>>,
    ) -> Result<Vec<Arrival<'a>>, StageError> {
        let is_old = |trace: &Arrival<'_>| trace.started_at < trace.received_at.minus(self.window);
        let (which, old): (Vec<usize>, Vec<(ClientId, EventId)>) = traces
            .iter()
            .enumerate()
            .filter(|(_, trace)| is_old(trace))
            .filter_map(|(position, trace)| Some((position, trace.identity()?)))
            .unzip();
        if old.is_empty() {
            return Ok(traces);
        }
        let mut known = vec![false; traces.len()];
        for (position, answer) in which.into_iter().zip(self.store.known(&old).await?) {
            known[position] = answer;
        }
        Ok(traces.into_iter().zip(known).filter(|(_, known)| !known).map(|(trace, _)| trace).collect())
    }

    /// Packs traces, in their order, into envelopes for `traces`.
    fn envelopes(&self, traces: Vec<Arrival<'_>>) -> Vec<Output> {
        let mut outputs = Vec::new();
        let mut left: usize = traces.iter().map(Arrival::encoded_size).sum();
        let mut rest = traces.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut bytes, mut envelope) =
                (0, EnvelopeWriter::with_capacity(left.min(self.max_envelope_bytes)));
            let fits = |bytes: usize, trace: &Arrival<'_>| {
                bytes == 0 || bytes + trace.encoded_size() <= self.max_envelope_bytes
            };
            while let Some(next) = rest.next_if(|trace| fits(bytes, trace)) {
                bytes += next.encoded_size();
                envelope.keep(&next.bytes, next.place);
            }
            left -= bytes;
            outputs.push(Output {
                topic: Topic::Traces,
                partition: self.partition,
                record: Record::message(envelope.finish()),
            });
        }
        outputs
    }
}
