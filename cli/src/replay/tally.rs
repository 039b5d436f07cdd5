//! What has become of the traces so far, and who is told.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use serde::Serialize;
use tokio::sync::mpsc;

use super::{ReplayError, source::ReadProgress};

/// How many kinds of rejection are told apart; the rest are counted together.
const MAX_KINDS: usize = 50;

/// How many traces came to which end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Durable in the log.
    pub accepted: u64,
    /// Known from before.
    pub duplicate: u64,
    /// Refused, by the gateway or because they could not be sent.
    pub rejected: u64,
    /// Not confirmed when the replay ended.
    pub unavailable: u64,
    /// Traces that were sent again, each time counted.
    pub retried: u64,
    /// Bytes read of the source, as it is stored.
    pub bytes_read: u64,
    /// Bytes of the source, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
}

impl Counts {
    /// Traces and lines that are done with.
    pub fn done(&self) -> u64 {
        self.accepted + self.duplicate + self.rejected
    }
}

/// A line that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// Its number in the file, from 1.
    pub line: u64,
    /// The stable error code.
    pub error: String,
    /// The field at fault; empty where it is the line as a whole.
    pub field: String,
    /// What is wrong, for people.
    pub description: String,
}

impl Rejection {
    /// A line that cannot be sent.
    pub(super) fn of_line(line: u64, description: impl Into<String>) -> Self {
        Self { line, error: "invalid_request".into(), field: String::new(), description: description.into() }
    }
}

/// What a replay tells while it runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// After every request.
    Progress(&'a Counts),
    /// A line was refused; the rest goes on.
    Rejected(&'a Rejection),
    /// Something could not be confirmed and is sent again after a wait.
    Retrying {
        /// Why.
        why: &'a str,
        /// The wait.
        wait: Duration,
    },
}

/// Rejections of one kind.
#[derive(Debug, Clone, Serialize)]
pub struct RejectedKind {
    /// The stable error code.
    pub error: String,
    /// The field at fault.
    pub field: String,
    /// How many.
    pub count: u64,
    /// The first of them.
    pub first_line: u64,
    /// What was said of the first.
    pub description: String,
}

/// How a replay ended.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The counts at the end.
    #[serde(flatten)]
    pub counts: Counts,
    /// The rejections by error and field.
    pub rejections: Vec<RejectedKind>,
    /// What AI Guard said last, where it said something.
    pub guard: Option<String>,
    /// How long it took.
    pub elapsed_secs: f64,
    /// Accepted and duplicate traces a second.
    pub traces_per_sec: f64,
}

struct Inner<F> {
    counts: Counts,
    rejections: BTreeMap<(String, String), RejectedKind>,
    guard: Option<String>,
    on_event: F,
}

/// The counts that all lanes share.
pub(super) struct Tally<F> {
    inner: Mutex<Inner<F>>,
    reading: ReadProgress,
}

impl<F: FnMut(Event<'_>) + Send> Tally<F> {
    pub(super) fn new(on_event: F, reading: ReadProgress) -> Self {
        let inner = Inner { counts: Counts::default(), rejections: BTreeMap::new(), guard: None, on_event };
        Self { inner: Mutex::new(inner), reading }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner<F>) -> T) -> T {
        // Counts are as good after a panic of the listener as before.
        work(&mut self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Whether anything was ever confirmed.
    pub(super) fn reached(&self) -> bool {
        self.with(|inner| inner.counts.accepted + inner.counts.duplicate > 0)
    }

    pub(super) fn add(&self, accepted: u64, duplicate: u64, guard: Option<String>) {
        self.with(|inner| {
            inner.counts.accepted += accepted;
            inner.counts.duplicate += duplicate;
            if guard.is_some() {
                inner.guard = guard;
            }
            (inner.counts.bytes_read, inner.counts.bytes_total) = self.reading.now();
            (inner.on_event)(Event::Progress(&inner.counts));
        });
    }

    pub(super) fn rejected(&self, rejection: &Rejection) {
        self.with(|inner| {
            inner.counts.rejected += 1;
            let mut kind = (rejection.error.clone(), rejection.field.clone());
            if inner.rejections.len() >= MAX_KINDS && !inner.rejections.contains_key(&kind) {
                kind = ("other".to_owned(), String::new());
            }
            let entry = inner.rejections.entry(kind).or_insert_with_key(|(error, field)| RejectedKind {
                error: error.clone(),
                field: field.clone(),
                count: 0,
                first_line: rejection.line,
                description: rejection.description.clone(),
            });
            entry.count += 1;
            (inner.on_event)(Event::Rejected(rejection));
        });
    }

    pub(super) fn retrying(&self, traces: usize, why: &str, wait: Duration) {
        self.with(|inner| {
            inner.counts.retried += traces as u64;
            (inner.on_event)(Event::Retrying { why, wait });
        });
    }

    pub(super) fn not_confirmed(&self, traces: usize) {
        self.with(|inner| {
            inner.counts.unavailable += traces as u64;
            (inner.on_event)(Event::Progress(&inner.counts));
        });
    }

    /// Takes in what the reader refused, until it ends.
    pub(super) async fn take_rejections(
        &self,
        mut unreadable: mpsc::Receiver<Rejection>,
    ) -> Result<(), ReplayError> {
        while let Some(rejection) = unreadable.recv().await {
            self.rejected(&rejection);
        }
        Ok(())
    }

    pub(super) fn summary(&self, elapsed: Duration) -> Summary {
        self.with(|inner| {
            (inner.counts.bytes_read, inner.counts.bytes_total) = self.reading.now();
            let confirmed = inner.counts.accepted + inner.counts.duplicate;
            let elapsed_secs = elapsed.as_secs_f64();
            Summary {
                counts: inner.counts,
                rejections: inner.rejections.values().cloned().collect(),
                guard: inner.guard.clone(),
                elapsed_secs,
                traces_per_sec: confirmed as f64 / elapsed_secs.max(0.001),
            }
        })
    }
}
