//! The port to the event log, and to the tables that are read from it.
//!
//! A log is a set of topics cut into partitions; a partition is a sequence of records with growing
//! offsets (not always consecutive: an engine may use some for itself). What an engine promises:
//!
//! - [`EventLog::append`] returns once the record is durable; a record that it returned for is never lost.
//! - [`Lease::commit`] and [`ExclusiveWriter::commit`] are atomic: all of their records and offsets, or none.
//! - Readers see committed records only, in the order of their offsets.
//! - At most one lease of a (group, topic, partition) can commit at a time: a newer one fences the older.
//! - Reading below what the log still has is [`LogError::Hole`], never a jump.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{ids::LogId, time::Time, topic::Topic};

/// What is written to a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// What compaction goes by; empty in topics that are not compacted.
    pub key: Bytes,
    /// The message; `None` is a tombstone.
    pub payload: Option<Bytes>,
    /// Set where a record that was a dead letter has been appended again.
    pub replay: Option<Replay>,
}

/// What is known of a record that was appended again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// It is for this stage alone; the others skip it.
    pub stage: String,
    /// Where in its partition it lay before it was replayed for the first time.
    pub first_offset: u64,
}

impl Record {
    /// A record without a key.
    pub fn message(payload: impl Into<Bytes>) -> Self {
        Self { payload: Some(payload.into()), ..Self::default() }
    }

    /// A record of a compacted topic.
    pub fn keyed(key: impl Into<Bytes>, payload: impl Into<Bytes>) -> Self {
        Self { key: key.into(), payload: Some(payload.into()), replay: None }
    }

    /// A record that takes `key` out of a compacted topic.
    pub fn tombstone(key: impl Into<Bytes>) -> Self {
        Self { key: key.into(), ..Self::default() }
    }

    /// Whether `stage` takes it up: all stages do, unless it was replayed for another one.
    pub fn is_for(&self, stage: &str) -> bool {
        self.replay.as_ref().is_none_or(|replay| replay.stage == stage)
    }

    /// The message's bytes; empty for a tombstone.
    pub fn bytes(&self) -> &[u8] {
        self.payload.as_deref().unwrap_or_default()
    }

    /// About how many bytes it takes.
    pub fn size(&self) -> usize {
        self.key.len() + self.bytes().len()
    }
}

/// A record as it lies in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its offset in the partition.
    pub offset: u64,
    /// When it was appended.
    pub appended_at: Time,
    /// What was written.
    pub record: Record,
}

/// A record and where it shall go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The topic.
    pub topic: Topic,
    /// The partition.
    pub partition: u32,
    /// What is written.
    pub record: Record,
}

/// A created topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicInfo {
    /// How many partitions it has, for ever.
    pub partitions: u32,
    /// Which creation of the topic this is.
    pub log_id: LogId,
}

/// Which offsets a partition can be read at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The first offset that is still there.
    pub low: u64,
    /// One past the last committed record.
    pub high: u64,
}

/// How far a group has come in a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Committed {
    /// The next offset to process; `None` before the first commit.
    pub offset: Option<u64>,
    /// What the last commit said beside it.
    pub metadata: String,
}

/// How far a group is behind in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionLag {
    /// The partition.
    pub partition: u32,
    /// How far the group has come.
    pub committed: Committed,
    /// What there is to read.
    pub bounds: Bounds,
}

/// What a poll brings.
#[derive(Debug)]
pub enum Poll {
    /// The next records; empty when none came within the wait.
    Records(Vec<Stored>),
    /// The partition goes to another member, or the process ends: finish and drop the lease.
    Revoked,
}

/// How much a poll takes, and for how long it waits for the first record.
#[derive(Debug, Clone, Copy)]
pub struct PollLimits {
    /// At most this many records.
    pub records: usize,
    /// Ends after the record that reaches this size.
    pub bytes: usize,
    /// How long to wait for the first record.
    pub wait: Duration,
}

/// An effect that becomes visible as a whole or not at all.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// Records to append.
    pub outputs: Vec<Output>,
    /// The next offset to process; `None` leaves the group's position as it is.
    pub next: Option<u64>,
    /// Kept beside the offset and given back in [`Committed`].
    pub metadata: String,
}

/// Where a tail begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TailFrom {
    /// At the first record that is still there.
    Start,
    /// After the last record that is there now.
    End,
    /// At these offsets, one per partition.
    Offsets(Vec<u64>),
}

/// Why the log could not do it.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log is away or too slow; the record may or may not be there.
    #[error("the log is unavailable: {0}")]
    Unavailable(String),
    /// The log is full; nothing was written.
    #[error("the log has no room: {0}")]
    Full(String),
    /// The record is larger than the log takes.
    #[error("a record of {bytes} bytes is larger than the log takes ({limit})")]
    TooLarge {
        /// Size of the record.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Another lease or writer has taken over; what was begun is undone.
    #[error("fenced by a newer owner: {0}")]
    Fenced(String),
    /// What was begun is undone; begin again from the committed position.
    #[error("the commit was undone: {0}")]
    Aborted(String),
    /// Retention has taken away what was to be read next.
    #[error(
        "offsets {wanted} to {low} of {topic}-{partition} are gone: retention was shorter than the outage; set the group's offset by hand to accept the loss"
    )]
    Hole {
        /// The topic.
        topic: Topic,
        /// The partition.
        partition: u32,
        /// The next offset to process.
        wanted: u64,
        /// The first offset there is.
        low: u64,
    },
    /// The topic was never created.
    #[error("topic `{0}` does not exist; run `panopticon migrate`")]
    NoTopic(Topic),
    /// Does not pass by itself.
    #[error("{0}")]
    Broken(String),
}

impl LogError {
    /// Whether the same call may succeed later.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Full(_) | Self::Aborted(_))
    }
}

/// A stream of committed records with their partitions.
pub type Tail = BoxStream<'static, Result<(u32, Stored), LogError>>;

/// The event log.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// The partitions and the identity of a topic.
    async fn topic(&self, topic: Topic) -> Result<TopicInfo, LogError>;

    /// Appends one record; returns once it is durable, with its offset where the log said it.
    async fn append(&self, topic: Topic, partition: u32, record: Record) -> Result<Option<u64>, LogError>;

    /// What can be read.
    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError>;

    /// The committed records from offset `from` on and before `to`, as many as fit into `max_bytes` but
    /// at least one if there is one. May return fewer; is empty only when there are none in the range.
    async fn read(
        &self,
        topic: Topic,
        partition: u32,
        from: u64,
        to: u64,
        max_bytes: usize,
    ) -> Result<Vec<Stored>, LogError>;

    /// The latest record of every key of one partition of a compacted topic; tombstones and replayed
    /// records left out.
    async fn table(&self, topic: Topic, partition: u32) -> Result<Vec<(Bytes, Bytes)>, LogError>;

    /// Follows all partitions of a topic without being a member of a group.
    async fn tail(&self, topic: Topic, from: TailFrom) -> Result<Tail, LogError>;

    /// Joins the group of `stage` on `topic`; partitions then come as leases.
    async fn subscribe(&self, stage: &'static str, topic: Topic) -> Result<Box<dyn Subscription>, LogError>;

    /// Takes the right to write as `id`, fencing whoever had it.
    async fn writer(&self, id: &'static str) -> Result<Box<dyn ExclusiveWriter>, LogError>;

    /// How far the group of `stage` is behind in each partition of `topic`.
    async fn lag(&self, stage: &'static str, topic: Topic) -> Result<Vec<PartitionLag>, LogError>;
}

/// Membership in a group.
#[async_trait]
pub trait Subscription: Send {
    /// The next partition that becomes this member's. Safe to cancel.
    async fn next_lease(&mut self) -> Result<Box<dyn Lease>, LogError>;
}

/// The right to process one partition, until it is revoked. Dropping it ends the work on it: a revoke
/// waits for that.
#[async_trait]
pub trait Lease: Send {
    /// The partition.
    fn partition(&self) -> u32;

    /// How far the group had come when this lease began, or at the last [`Lease::rewind`].
    fn committed(&self) -> &Committed;

    /// The next records. Safe to cancel.
    async fn poll(&mut self, limits: PollLimits) -> Result<Poll, LogError>;

    /// Makes outputs and position visible together.
    async fn commit(&mut self, commit: Commit) -> Result<(), LogError>;

    /// Goes back to the committed position after an error; fails with [`LogError::Fenced`] when the
    /// partition is no longer this member's, also where the member has not heard of that yet: what
    /// [`Lease::committed`] tells is never a successor's.
    async fn rewind(&mut self) -> Result<(), LogError>;

    /// Resolves when the partition is to be given up.
    async fn revoked(&mut self);
}

/// The right to write under one name.
#[async_trait]
pub trait ExclusiveWriter: Send {
    /// Appends all records or none, and returns their offsets in order; [`LogError::Fenced`] when a
    /// newer writer has the name.
    async fn commit(&mut self, outputs: Vec<Output>) -> Result<Vec<u64>, LogError>;
}
