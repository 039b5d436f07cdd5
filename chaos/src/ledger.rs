//! What was sent, and what was answered: the truth that the tables are held against.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::call::{App, Call};

/// What became of one trace of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// 202: durable.
    Accepted,
    /// 200: it came before.
    Duplicate,
    /// 4xx: will never be taken.
    Rejected(String),
    /// 503, no answer in time, connection lost: may be there or not.
    Unconfirmed(String),
}

/// What was answered about one trace so far.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The trace.
    pub call: Arc<Call>,
    /// How often it was answered `accepted`.
    pub accepted: u32,
    /// How often it was answered `duplicate`.
    pub duplicate: u32,
    /// How often it was sent and not confirmed.
    pub unconfirmed: u32,
}

impl Entry {
    /// Whether it was promised to be kept.
    pub const fn is_promised(&self) -> bool {
        self.accepted + self.duplicate > 0
    }
}

/// Identity of a trace.
pub type Key = (App, Uuid);

/// The counts of a run.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Counts {
    /// Traces that were sent at least once.
    pub traces: usize,
    /// Traces that were promised.
    pub promised: usize,
    /// Answers `accepted`.
    pub answers_accepted: u64,
    /// Answers `duplicate`.
    pub answers_duplicate: u64,
    /// Traces that were never confirmed and given up.
    pub never_confirmed: usize,
    /// Traces that were answered `accepted` more than once.
    pub accepted_again: usize,
    /// Invalid traces that were sent.
    pub invalid: usize,
    /// Why answers stayed away, with counts.
    pub unconfirmed: BTreeMap<String, u64>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<Key, Entry>,
    invalid: HashSet<Uuid>,
    unconfirmed: BTreeMap<String, u64>,
    wrong: Vec<String>,
}

/// The ledger, filled by all senders at once.
#[derive(Default)]
pub struct Ledger {
    inner: Mutex<Inner>,
}

impl Ledger {
    /// Takes down the answers to a request, in order.
    pub fn record(&self, calls: &[Arc<Call>], answers: &[Answer]) {
        let mut inner = self.inner.lock();
        for (call, answer) in calls.iter().zip(answers) {
            let entry = inner.entries.entry((call.app, call.event_id)).or_insert_with(|| Entry {
                call: call.clone(),
                accepted: 0,
                duplicate: 0,
                unconfirmed: 0,
            });
            match answer {
                Answer::Accepted => entry.accepted += 1,
                Answer::Duplicate => entry.duplicate += 1,
                Answer::Unconfirmed(why) => {
                    entry.unconfirmed += 1;
                    *inner.unconfirmed.entry(why.clone()).or_default() += 1;
                }
                Answer::Rejected(why) => {
                    let wrong = format!("valid trace {} of {} refused: {why}", call.event_id, call.app.id());
                    inner.wrong.push(wrong);
                }
            }
        }
    }

    /// Takes down the answer to an invalid trace.
    pub fn record_invalid(&self, event_id: Uuid, what: &str, answer: &Answer) {
        let mut inner = self.inner.lock();
        inner.invalid.insert(event_id);
        match answer {
            Answer::Accepted | Answer::Duplicate => {
                inner.wrong.push(format!("invalid trace {event_id} ({what}) was answered {answer:?}"));
            }
            Answer::Unconfirmed(why) => *inner.unconfirmed.entry(why.clone()).or_default() += 1,
            Answer::Rejected(_) => {}
        }
    }

    /// All that was sent.
    pub fn entries(&self) -> HashMap<Key, Entry> {
        self.inner.lock().entries.clone()
    }

    /// The ids of the invalid ones.
    pub fn invalid(&self) -> HashSet<Uuid> {
        self.inner.lock().invalid.clone()
    }

    /// Answers that must never be given.
    pub fn wrong(&self) -> Vec<String> {
        self.inner.lock().wrong.clone()
    }

    /// The counts.
    pub fn counts(&self) -> Counts {
        let inner = self.inner.lock();
        let sum = |of: fn(&Entry) -> u32| inner.entries.values().map(|e| u64::from(of(e))).sum();
        Counts {
            traces: inner.entries.len(),
            promised: inner.entries.values().filter(|entry| entry.is_promised()).count(),
            answers_accepted: sum(|entry| entry.accepted),
            answers_duplicate: sum(|entry| entry.duplicate),
            never_confirmed: inner.entries.values().filter(|entry| !entry.is_promised()).count(),
            accepted_again: inner.entries.values().filter(|entry| entry.accepted > 1).count(),
            invalid: inner.invalid.len(),
            unconfirmed: inner.unconfirmed.clone(),
        }
    }
}
