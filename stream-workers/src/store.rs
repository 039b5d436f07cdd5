//! Puts the rows of a topic into the trace store, exactly once.
//!
//! Before a batch is inserted, its end is written as the *intent* beside the committed offset, in the same
//! commit that ends the batch before it. Whoever takes the partition over after a crash finds the intent,
//! reads exactly that range again whatever its own limits are, and gives it to the store as one that may
//! already be there. While one batch is being inserted, the next is gathered.

use std::{pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use panopticon_core::{
    config::StoreConfig,
    ids::LogId,
    log::{Commit, Lease, Output, Poll, PollLimits},
    stage::{PartitionContext, Stage, StageError, dead_letter_row},
    store::{Attempt, BatchRange, RefusedRow, Rows, StoreError, TraceStore},
    telemetry::SPANS,
    time::{SharedClock, Time},
    topic::Topic,
    trace::{decode_envelope, encode_envelope},
};
use tokio::{sync::Semaphore, time::Instant};
use tracing::{Instrument as _, info, trace_span, warn};

use crate::batch::{Batch, Table};

/// The stage that keeps one topic in the trace store.
pub struct Store {
    table: Table,
    store: Arc<dyn TraceStore>,
    limits: StoreConfig,
    /// Bounds what lies in memory as rows to send, whatever the number of partitions.
    inserts: Arc<Semaphore>,
}

const READ_BYTES: usize = 4 << 20;
/// Most bytes of one poll: by no more does a batch outgrow its limits.
const POLL_BYTES: usize = 1 << 20;
/// How many times as long as an insert took lies between its beginning and the next one's, up to the slowest pace.
const PACE_BY_COST: u32 = 3;
const SLOWEST_PACE: Duration = Duration::from_secs(2);
/// How long a poll waits; the batch's own age decides when it ends.
const POLL_WAIT: Duration = Duration::from_millis(500);

/// The intent as it stands in the commit's metadata.
fn intent(end: u64) -> String {
    format!("intent={end}")
}

fn parse_intent(metadata: &str) -> Option<u64> {
    metadata.strip_prefix("intent=")?.parse().ok()
}

/// When the trace came in that has waited longest.
fn oldest_trace(rows: &Rows) -> Option<Time> {
    match rows {
        Rows::Traces(traces) => traces.iter().map(|row| row.value.received_at()).min(),
        _ => None,
    }
}

/// Until when a batch gathers unless it fills up. The longer inserts take, the larger the next one is: a block
/// costs the store much the same however many rows are in it.
#[derive(Clone, Copy)]
struct Pace {
    least: Instant,
    by_cost: Instant,
}

type Insert = Pin<Box<dyn Future<Output = Result<Vec<RefusedRow>, StoreError>> + Send>>;

/// A batch that is being inserted. Its records are read again where the store refuses some: to keep them meanwhile
/// would double what a batch takes.
struct Begun {
    to: u64,
    /// How many records were decoded.
    records: usize,
    /// What could not be decoded.
    dead: Vec<Output>,
    began: Instant,
    insert: Insert,
}

impl Store {
    /// A stage for `table`.
    pub fn new(table: Table, store: Arc<dyn TraceStore>, limits: StoreConfig) -> Self {
        let inserts = Arc::new(Semaphore::new(limits.inserts_in_flight.max(1)));
        Self { table, store, limits, inserts }
    }

    fn insert(&self, range: BatchRange, rows: Rows, attempt: Attempt, clock: SharedClock) -> Insert {
        let (store, inserts) = (self.store.clone(), self.inserts.clone());
        Box::pin(async move {
            if rows.is_empty() {
                return Ok(Vec::new());
            }
            let _turn = inserts.acquire().await;
            let (count, began) = (rows.len(), Instant::now());
            let oldest = oldest_trace(&rows);
            let span = trace_span!(
                target: SPANS,
                parent: None,
                "insert",
                otel.name = format!("insert {}", range.topic),
                otel.kind = "client",
                topic = range.topic.name(),
                partition = range.partition,
                rows = count,
            );
            let refused = store.insert(range, rows, attempt).instrument(span).await?;
            metrics::counter!("panopticon_store_rows_total", "topic" => range.topic.name())
                .increment(count as u64);
            metrics::histogram!("panopticon_store_insert_seconds", "topic" => range.topic.name())
                .record(began.elapsed());
            if let Some(received_at) = oldest {
                metrics::histogram!("panopticon_store_row_age_seconds")
                    .record(clock.now().since(received_at).as_secs_f64());
            }
            Ok(refused)
        })
    }

    /// Whether the batch has reached a limit.
    fn is_full(&self, batch: &Batch) -> bool {
        self.has_reached(batch, 1)
    }

    /// Whether it has reached this part of a limit.
    fn has_reached(&self, batch: &Batch, part: usize) -> bool {
        batch.rows.len() >= self.limits.batch_rows / part || batch.bytes >= self.limits.batch_bytes / part
    }

    fn poll_limits(&self, context: &PartitionContext) -> PollLimits {
        let limits = context.poll_limits(POLL_WAIT);
        PollLimits { bytes: limits.bytes.min(POLL_BYTES), ..limits }
    }

    /// Whether a batch takes more. While another is under way a sixteenth of one is enough: the rest is gathered in a
    /// moment, and would only lie in memory.
    fn takes_more(&self, batch: &Batch, waits: bool) -> bool {
        !self.has_reached(batch, if waits { 16 } else { 1 })
    }

    /// How long the batch after the insert that began then and has just ended goes on gathering.
    fn pace(&self, began: Instant) -> Pace {
        let by_cost = (began.elapsed() * PACE_BY_COST).min(SLOWEST_PACE);
        Pace { least: began + self.store.insert_pace(), by_cost: began + by_cost }
    }

    /// When the batch ends if it does not fill up before.
    fn deadline(&self, batch: &Batch, pace: Pace) -> Option<Instant> {
        let (first, latest) = batch.came?;
        let batch_ms = Duration::from_millis(self.limits.batch_ms);
        // Where no more comes, to wait makes no block larger.
        let while_more_comes = pace.by_cost.min(latest + batch_ms);
        Some((first + batch_ms).max(pace.least).max(while_more_comes))
    }

    fn is_due(&self, batch: &Batch, pace: Pace) -> bool {
        let is_old = |deadline: Instant| deadline <= Instant::now();
        self.is_full(batch) || self.deadline(batch, pace).is_some_and(is_old)
    }
}

#[async_trait]
impl Stage for Store {
    fn name(&self) -> &'static str {
        self.table.stage
    }

    fn input(&self) -> Topic {
        self.table.topic
    }

    async fn run(&self, lease: &mut dyn Lease, context: &PartitionContext) -> Result<(), StageError> {
        let runtime = &context.runtime;
        let partition = lease.partition();
        let log_id = runtime.log.topic(self.table.topic).await?.log_id;
        let mut position = match lease.committed().offset {
            Some(offset) => offset,
            None => runtime.log.bounds(self.table.topic, partition).await?.low,
        };
        if let Some(end) = parse_intent(&lease.committed().metadata).filter(|end| *end > position) {
            self.settle(lease, context, (position, end), log_id).await?;
            position = end;
        }

        let mut gathering = Batch::new(self.table, position);
        let mut inserting: Option<Begun> = None;
        // The end that the committed intent names.
        let mut intended = position;
        let mut leaving = false;
        let mut pace = Pace { least: Instant::now(), by_cost: Instant::now() };
        loop {
            if inserting.is_none() && !gathering.is_empty() && (leaving || self.is_due(&gathering, pace)) {
                let next = Batch::new(self.table, gathering.to);
                let batch = std::mem::replace(&mut gathering, next);
                if intended != batch.to {
                    let metadata = intent(batch.to);
                    lease.commit(Commit { outputs: Vec::new(), next: Some(position), metadata }).await?;
                    intended = batch.to;
                }
                inserting = Some(self.begin(batch, (log_id, partition), Attempt::First, context));
            }
            if leaving && inserting.is_none() {
                return Ok(());
            }
            let idle_until = if inserting.is_none() { self.deadline(&gathering, pace) } else { None };
            tokio::select! {
                refused = async { match &mut inserting {
                    Some(begun) => begun.insert.as_mut().await,
                    None => std::future::pending().await,
                } } => {
                    let Some(Begun { to, records, dead, began, .. }) = inserting.take() else { continue };
                    pace = self.pace(began);
                    if !self.takes_more(&gathering, true) {
                        gathering.goes_on(Instant::now());
                    }
                    let outputs = self.dead_letters(context, partition, dead, refused?).await?;
                    position = to;
                    // The next batch's intent travels with this commit when its end is known already.
                    let due = !leaving && !gathering.is_empty() && self.is_due(&gathering, pace);
                    intended = if due { gathering.to } else { position };
                    let metadata = if due { intent(intended) } else { String::new() };
                    lease.commit(Commit { outputs, next: Some(position), metadata }).await?;
                    context.finished(records);
                }
                polled = lease.poll(self.poll_limits(context)), if !leaving && self.takes_more(&gathering, inserting.is_some()) => {
                    match polled? {
                        Poll::Records(records) => {
                            if !records.is_empty() || (gathering.is_empty() && inserting.is_none()) {
                                context.took(&records);
                            }
                            gathering.push(partition, records, runtime.clock.now());
                        }
                        // What is gathered but not begun is left to the next owner; what is begun is finished.
                        Poll::Revoked => {
                            leaving = true;
                            gathering = Batch::new(self.table, gathering.from);
                        }
                    }
                }
                () = runtime.shutdown.cancelled(), if !leaving => {
                    leaving = true;
                    gathering = Batch::new(self.table, gathering.from);
                }
                () = tokio::time::sleep_until(idle_until.unwrap_or_else(Instant::now)), if idle_until.is_some() => {}
            }
        }
    }
}

impl Store {
    fn begin(
        &self,
        batch: Batch,
        (log_id, partition): (LogId, u32),
        attempt: Attempt,
        context: &PartitionContext,
    ) -> Begun {
        let Batch { from, to, rows, records, dead, .. } = batch;
        let range = BatchRange { topic: self.table.topic, log_id, partition, from, to };
        let insert = self.insert(range, rows, attempt, context.runtime.clock.clone());
        Begun { to, records, dead, began: Instant::now(), insert }
    }

    /// Finishes a batch that an earlier owner may have begun: exactly the range that its intent names.
    async fn settle(
        &self,
        lease: &mut dyn Lease,
        context: &PartitionContext,
        (from, end): (u64, u64),
        log_id: LogId,
    ) -> Result<(), StageError> {
        let partition = lease.partition();
        info!(stage = self.table.stage, partition, from, to = end, "settling the batch that was under way");
        let (log, now) = (&context.runtime.log, context.runtime.clock.now());
        let mut batch = Batch::new(self.table, from);
        while batch.to < end {
            let records = log.read(self.table.topic, partition, batch.to, end, READ_BYTES).await?;
            if records.is_empty() {
                break;
            }
            batch.push(partition, records, now);
        }
        batch.to = end;
        let Begun { records, dead, insert, .. } =
            self.begin(batch, (log_id, partition), Attempt::Again, context);
        let outputs = self.dead_letters(context, partition, dead, insert.await?).await?;
        lease.commit(Commit { outputs, next: Some(end), metadata: String::new() }).await?;
        context.finished(records);
        Ok(())
    }

    /// What could not be decoded, and what the store will never take.
    async fn dead_letters(
        &self,
        context: &PartitionContext,
        partition: u32,
        dead: Vec<Output>,
        refused: Vec<RefusedRow>,
    ) -> Result<Vec<Output>, StageError> {
        let (topic, now) = (self.table.topic, context.runtime.clock.now());
        let mut outputs = dead;
        for rows in refused.chunk_by(|a, b| a.offset == b.offset) {
            let offset = rows[0].offset;
            let records = context.runtime.log.read(topic, partition, offset, offset + 1, READ_BYTES).await?;
            let Some(stored) = records.first() else {
                warn!(
                    stage = self.table.stage,
                    partition, offset, "a refused record is not in the log any more"
                );
                continue;
            };
            let traces = match topic {
                Topic::Traces => decode_envelope(stored.record.bytes()).unwrap_or_default(),
                _ => Vec::new(),
            };
            for row in rows {
                let payload = match topic {
                    Topic::Traces => {
                        traces.get(row.index as usize).map(|trace| encode_envelope([trace.clone()]))
                    }
                    _ => stored.record.payload.clone(),
                };
                let row_of = (row.index, payload.unwrap_or_default());
                outputs.push(dead_letter_row(
                    self.table.stage,
                    topic,
                    partition,
                    stored,
                    row_of,
                    &row.error,
                    now,
                ));
            }
        }
        Ok(outputs)
    }
}
