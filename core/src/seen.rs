//! The port to the seen set: which place came first for a (client_id, event_id).

use async_trait::async_trait;

use crate::ids::{Place, SeenKey};

/// A trace and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Which trace.
    pub key: SeenKey,
    /// Where it entered the log.
    pub place: Place,
}

/// A mark that is to name another place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Which trace.
    pub key: SeenKey,
    /// Where it must lie for the mark to move.
    pub from: Place,
    /// Where it lies from then on.
    pub to: Place,
}

/// Which part of a raw partition a batch of marks stands for. The set remembers how far each partition
/// has come: finding less than `from` means that it has lost marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Partition of `traces.raw`.
    pub partition: u32,
    /// First offset of the batch.
    pub from: u64,
    /// One past its last offset.
    pub to: u64,
}

/// What the set answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marked {
    /// The place that came first, for each mark in order.
    First(Vec<Place>),
    /// The set has lost marks of this partition (emptied, failed over, restored from a snapshot):
    /// nothing was marked; rebuild them first.
    Lost,
}

/// Why the set could not do it.
#[derive(Debug, thiserror::Error)]
pub enum SeenError {
    /// The set is away or too slow.
    #[error("the seen set is unavailable: {0}")]
    Unavailable(String),
    /// Does not pass by itself.
    #[error("the seen set refuses: {0}")]
    Broken(String),
}

/// Remembers, for a window, which place came first.
#[async_trait]
pub trait SeenSet: Send + Sync + 'static {
    /// Marks each key with its place unless it has one, in one round trip, and answers the places that
    /// came first. With `progress`, the partition's progress is compared and advanced in the same step.
    async fn mark(&self, marks: Vec<Mark>, progress: Option<Progress>) -> Result<Marked, SeenError>;

    /// Writes marks anew, over what is there; the last call of a rebuild carries the progress reached.
    async fn restore(&self, marks: Vec<Mark>, progress: Option<Progress>) -> Result<(), SeenError>;

    /// Compares and sets, in order: a mark that names the place it is to be moved from names the new one
    /// afterwards; one that names another, or is not there, stays as it is.
    async fn shift(&self, moves: Vec<Move>) -> Result<(), SeenError>;

    /// Forgets what is older than the window. Engines that forget by themselves do nothing.
    async fn expire(&self) -> Result<(), SeenError>;
}
