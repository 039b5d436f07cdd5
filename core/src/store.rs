//! The port to the trace store: exactly-once inserts of batches, and the queries of the control room.

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use panopticon_proto::log::{AuditEntry, Delivery, Detection, GuardAction};
use serde::{Deserialize, Serialize};

use crate::{
    erasure::{ErasedCounts, Erasure},
    ids::{ClientId, EventId, LogId},
    time::Time,
    topic::Topic,
    trace::{AcceptedTrace, Status, TakenBytes},
};

/// Which records of a log a batch holds: the identity of the batch, the same after every crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BatchRange {
    /// Which topic.
    pub topic: Topic,
    /// Which creation of it.
    pub log_id: LogId,
    /// Partition.
    pub partition: u32,
    /// First offset.
    pub from: u64,
    /// One past the last offset.
    pub to: u64,
}

/// A row and the record that it came in.
#[derive(Debug, Clone, PartialEq)]
pub struct Row<T> {
    /// Offset of the record.
    pub offset: u64,
    /// Position in the record.
    pub index: u32,
    /// The row.
    pub value: T,
}

impl<T> Row<T> {
    /// The same row as something else.
    pub fn try_map<U, E>(self, as_other: impl FnOnce(T) -> Result<U, E>) -> Result<Row<U>, E> {
        let Self { offset, index, value } = self;
        Ok(Row { offset, index, value: as_other(value)? })
    }
}

/// The rows of a batch, all from one topic, in the order of (offset, index).
#[derive(Debug, Clone, PartialEq)]
pub enum Rows {
    /// From `traces`.
    Traces(Vec<Row<TakenBytes>>),
    /// From `detections`.
    Detections(Vec<Row<Detection>>),
    /// From `guard-actions`.
    GuardActions(Vec<Row<GuardAction>>),
    /// From `webhook-deliveries`: one row a change of state.
    Deliveries(Vec<Row<Delivery>>),
    /// From `audit`.
    Audit(Vec<Row<AuditEntry>>),
}

impl Rows {
    /// Rows of traces that are in no envelope.
    pub fn of_traces(rows: Vec<Row<AcceptedTrace>>) -> Self {
        let kept = |Row { offset, index, value }| Row { offset, index, value: TakenBytes::from(&value) };
        Self::Traces(rows.into_iter().map(kept).collect())
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Traces(rows) => rows.len(),
            Self::Detections(rows) => rows.len(),
            Self::GuardActions(rows) => rows.len(),
            Self::Deliveries(rows) => rows.len(),
            Self::Audit(rows) => rows.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether a batch may already be there, in whole or in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Nobody tried to insert this range before.
    First,
    /// An insert of this range was begun by someone and its end is not known.
    Again,
}

/// A row that the store will never take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRow {
    /// Offset of its record.
    pub offset: u64,
    /// Position in the record.
    pub index: u32,
    /// Why.
    pub error: String,
}

/// Why the store could not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The store is away or too slow; an insert may or may not have happened.
    #[error("the trace store is unavailable: {0}")]
    Unavailable(String),
    /// Does not pass by itself.
    #[error("the trace store refuses: {0}")]
    Broken(String),
}

/// Which traces a timeline shows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TimelineQuery {
    /// From this `started_at` on.
    pub since: Option<Time>,
    /// Up to and including this `started_at`.
    pub until: Option<Time>,
    /// Only this user's.
    pub user_sub: Option<String>,
    /// Only this tool's.
    pub tool: Option<String>,
    /// Only with this status.
    pub status: Option<Status>,
    /// Only after this trace in the order of the timeline.
    pub after: Option<TimelineCursor>,
    /// At most this many.
    pub limit: u32,
}

/// A position in a timeline, which is ordered by (started_at, event_id), newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineCursor {
    /// `started_at` of the last trace shown.
    pub started_at: Time,
    /// Its event id.
    pub event_id: EventId,
}

/// The figures of one app on one date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UsageCounts {
    /// All traces.
    pub traces: u64,
    /// Those with status error or denied.
    pub errors: u64,
    /// Approvals asked for.
    pub hitl_requests: u64,
    /// Times that the app or one of its users was killed.
    pub kills: u64,
}

/// Which of the small tables' rows are wanted; newest first.
#[derive(Debug, Clone, Default)]
pub struct EventQuery {
    /// Only this app's.
    pub client_id: Option<ClientId>,
    /// Only about this user.
    pub user_sub: Option<String>,
    /// Only about this trace (a detection's deciding trace).
    pub deciding_event_id: Option<EventId>,
    /// Only of this endpoint (deliveries).
    pub endpoint_id: Option<String>,
    /// Only with this id (detection, action, delivery's webhook or audit entry).
    pub id: Option<String>,
    /// From this time on.
    pub since: Option<Time>,
    /// Before this time, exclusive: the cursor.
    pub before: Option<(Time, String)>,
    /// At most this many.
    pub limit: u32,
}

/// Rows on their way out, with the cursor of the next page where there is one.
#[derive(Debug, Clone, Serialize)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Whether there are more after the last.
    pub more: bool,
}

/// Rows on their way out, in parts of at most [`PART_ROWS`]; an error is the last.
pub type Parts<T> = BoxStream<'static, Result<Vec<T>, StoreError>>;

/// The most rows of one part.
pub const PART_ROWS: usize = 5_000;

/// Whose activity is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// That of each user of an app; calls without a user are those of one.
    Users,
    /// That of each tool of an app, whoever called it.
    Tools,
}

/// What the aggregates say of a user or a tool of an app in a quarter of an hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    /// The app.
    pub client_id: String,
    /// The user or the tool.
    pub name: String,
    /// When the quarter began.
    pub since: Time,
    /// Traces that began in it.
    pub traces: u64,
    /// Those of them with status denied.
    pub denied: u64,
}

/// The trace store.
#[async_trait]
pub trait TraceStore: Send + Sync + 'static {
    /// Puts a batch in, exactly once however often it is called for the same range: rows and their
    /// aggregates together. The rows that the store will never take are answered; all others are in.
    async fn insert(
        &self,
        range: BatchRange,
        rows: Rows,
        attempt: Attempt,
    ) -> Result<Vec<RefusedRow>, StoreError>;

    /// Least time between the beginnings of two inserts from one partition that this store wants, unless
    /// their batches are full: where an insert costs much and a row in it little.
    fn insert_pace(&self) -> Duration {
        Duration::ZERO
    }

    /// An app's traces, newest first. Never shows a row past its time.
    async fn timeline(
        &self,
        client_id: &ClientId,
        query: &TimelineQuery,
    ) -> Result<Page<AcceptedTrace>, StoreError>;

    /// An app's traces that were received from `since` to `until` inclusive, in the order in which they were
    /// received and, of those received at the same time, of the log. Each part is read when it is asked for,
    /// so what is held does not grow with what there is. Never shows a row past its time.
    fn arrivals(&self, client_id: &ClientId, since: Time, until: Time) -> Parts<AcceptedTrace>;

    /// What the aggregates hold of the users or the tools of all apps, in the quarters of an hour that began
    /// at `since` or later and had ended by `until`; a user's or a tool's in the order of time.
    fn activity(&self, whose: Whose, since: Time, until: Time) -> Parts<Activity>;

    /// The traces with this event id, of whichever app.
    async fn find(&self, event_id: EventId) -> Result<Vec<AcceptedTrace>, StoreError>;

    /// Which of these traces are there, with an answer for each in order. For traces that are older than
    /// the seen set's window.
    async fn known(&self, traces: &[(ClientId, EventId)]) -> Result<Vec<bool>, StoreError>;

    /// An app's figures per date from `since` to `until` inclusive, where a date is a day of `started_at`
    /// in `zone` (an IANA name); dates without any figure are left out.
    async fn usage(
        &self,
        client_id: &ClientId,
        since: jiff::civil::Date,
        until: jiff::civil::Date,
        zone: &str,
    ) -> Result<Vec<(jiff::civil::Date, UsageCounts)>, StoreError>;

    /// Detections by `detected_at`, newest first; an ended episode appears once, as ended.
    async fn detections(&self, query: &EventQuery) -> Result<Page<Detection>, StoreError>;

    /// Guard actions by `created_at`, newest first.
    async fn actions(&self, query: &EventQuery) -> Result<Page<GuardAction>, StoreError>;

    /// Deliveries by `created_at`, newest first, each in its latest state.
    async fn deliveries(&self, query: &EventQuery) -> Result<Page<Delivery>, StoreError>;

    /// Audit entries by `at`, newest first.
    async fn audit(&self, query: &EventQuery) -> Result<Page<AuditEntry>, StoreError>;

    /// When an app's latest trace was received, if it has one.
    async fn last_received(&self, client_id: &ClientId) -> Result<Option<Time>, StoreError>;

    /// Removes a person's raw traces, and has the pseudonym stand for the person in aggregates, detections,
    /// guard actions and deliveries. The sums of the app stay as they are. Can be called again after any
    /// failure, with the same pseudonym or another one, until nothing is left to do. One call at a time.
    async fn erase(&self, erasure: &Erasure) -> Result<ErasedCounts, StoreError>;

    /// Deletes raw rows past their time. Engines that do so by themselves do nothing.
    async fn expire(&self, now: Time) -> Result<(), StoreError>;
}
