//! The port to the seen set: which place came first for a (client_id, event_id).

use std::{fmt, str::FromStr};

use async_trait::async_trait;

use crate::ids::{LogId, Place, SeenKey};

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

/// An owner of a raw partition: one run of dedupe, from its lease or its last error on.
///
/// A worker that was replaced may live on for a while and go on marking, though it cannot commit. By this it
/// is told from the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// One more than that of the owner whose commit it began at.
    pub number: u64,
    /// Random: tells owners apart that began at the same commit.
    pub nonce: u64,
}

impl Owner {
    /// Who wrote what names no owner: a build that knew of none.
    pub const UNNAMED: Self = Self { number: 0, nonce: 0 };

    /// A new one, that begins at a commit of `before`.
    pub fn after(before: Option<Self>) -> Self {
        Self { number: before.map_or(0, |before| before.number) + 1, nonce: rand::random() }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.number, self.nonce)
    }
}

/// The text names no owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an owner of a partition")]
pub struct NotAnOwner;

impl FromStr for Owner {
    type Err = NotAnOwner;

    fn from_str(text: &str) -> Result<Self, NotAnOwner> {
        let (number, nonce) = text.split_once('.').ok_or(NotAnOwner)?;
        Ok(Self {
            number: number.parse().map_err(|_| NotAnOwner)?,
            nonce: u64::from_str_radix(nonce, 16).map_err(|_| NotAnOwner)?,
        })
    }
}

/// Which part of a raw partition a batch of marks stands for. The set remembers how far each partition
/// has come, and by whose word: finding less than `from`, or the word of an owner that is not trusted, means
/// that it has lost marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Which creation of `traces.raw`.
    pub log_id: LogId,
    /// Its partition.
    pub partition: u32,
    /// First offset of the batch.
    pub from: u64,
    /// One past its last offset.
    pub to: u64,
    /// Who asks.
    pub owner: Owner,
    /// The oldest owner whose word is taken: the asker itself once it has had an answer, before that whoever
    /// made the last commit; `None` when there was no commit, and nothing can have been lost.
    pub trusts: Option<Owner>,
}

/// A rebuild of a partition's marks under way. Each of its calls must find what the calls before have
/// written, or marks have been lost again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuild {
    /// What the partition has reached when it is done: `to`, which is what is committed. Below it only marks
    /// count that are restored: others were left behind by the loss.
    pub progress: Progress,
    /// Which rebuild it is.
    pub nonce: u64,
    /// How many calls there were.
    pub calls: u64,
}

impl Rebuild {
    /// A new one, not begun yet.
    pub fn new(progress: Progress) -> Self {
        Self { progress, nonce: rand::random(), calls: 0 }
    }
}

/// What became of a step of a rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// It is written, and so is everything before.
    Whole,
    /// What was written before is there no more, or somebody else has begun: nothing was written.
    LostAgain,
}

/// What the set answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Marked {
    /// The place that came first, for each mark in order.
    First(Vec<Place>),
    /// The set has lost marks of this partition (emptied, failed over, restored from a snapshot), perhaps
    /// of this very batch: rebuild them first.
    Lost,
}

/// Why the set could not do it.
#[derive(Debug, Clone, thiserror::Error)]
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
    /// It is not advanced over the word of a newer owner.
    async fn mark(&self, marks: Vec<Mark>, progress: Option<Progress>) -> Result<Marked, SeenError>;

    /// A step of a rebuild: writes marks anew, over what is there. The first one, before what was kept is
    /// read, may be without marks.
    async fn restore(&self, rebuild: &mut Rebuild, marks: Vec<Mark>) -> Result<Restored, SeenError>;

    /// The last step of a rebuild: from here on the partition's progress counts again.
    async fn end_rebuild(&self, rebuild: Rebuild) -> Result<Restored, SeenError>;

    /// Compares and sets, in order: a mark that names the place it is to be moved from names the new one
    /// afterwards; one that names another, or is not there, stays as it is.
    async fn shift(&self, moves: Vec<Move>) -> Result<(), SeenError>;

    /// Forgets what is older than the window. Engines that forget by themselves do nothing.
    async fn expire(&self) -> Result<(), SeenError>;
}
