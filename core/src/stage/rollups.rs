//! Counts per app, tool, status and second, for rules that look at whole apps.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use panopticon_proto::log::Rollup;

use crate::trace::{AcceptedTrace, Status};

/// Rollups of one batch of traces: a text is copied only for the first trace of each.
#[derive(Debug, Default)]
pub struct Rollups {
    rollups: Vec<Rollup>,
    index: HashTable<usize>,
    hasher: DefaultHashBuilder,
}

impl Rollups {
    /// Counts a trace.
    pub fn add(&mut self, accepted: &AcceptedTrace) {
        let trace = &accepted.trace;
        let status = match trace.status {
            _ if trace.is_denied() => 3,
            Status::Ok => 1,
            _ => 2,
        };
        let at = accepted.event_time();
        let key = (trace.client_id.as_str(), trace.tool.as_str(), status, at.secs(), accepted.late);
        let hash = self.hasher.hash_one(key);
        let rollups = &self.rollups;
        let found = match self.index.find(hash, |place| key_of(&rollups[*place]) == key) {
            Some(place) => *place,
            None => {
                self.rollups.push(Rollup {
                    client_id: key.0.to_owned(),
                    tool: key.1.to_owned(),
                    status,
                    second: at.secs(),
                    late: accepted.late,
                    ..Rollup::default()
                });
                let (place, hasher, rollups) = (self.rollups.len() - 1, &self.hasher, &self.rollups);
                self.index.insert_unique(hash, place, |place| hasher.hash_one(key_of(&rollups[*place])));
                place
            }
        };
        let rollup = &mut self.rollups[found];
        rollup.traces += 1;
        rollup.event_time = at.micros();
        rollup.received_at = accepted.received_at.micros();
        rollup.event_id.clear();
        rollup.event_id.extend_from_slice(trace.event_id.0.as_bytes());
    }

    /// The rollups so far, in the order in which they were begun; begins anew.
    pub fn take(&mut self) -> Vec<Rollup> {
        self.index.clear();
        std::mem::take(&mut self.rollups)
    }
}

fn key_of(rollup: &Rollup) -> (&str, &str, u32, i64, bool) {
    (&rollup.client_id, &rollup.tool, rollup.status, rollup.second, rollup.late)
}
