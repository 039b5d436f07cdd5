//! Counts per app, tool, status and second, for rules that look at whole apps.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use panopticon_proto::log::{Denial, Rollup};

use crate::{
    time::Time,
    trace::{AcceptedTrace, Status},
};

/// The status of a rollup of refused calls that are the first ones from their address; it has no tool.
pub const FEW_FROM_SOURCE: u32 = 4;

/// What a rollup counts: app, tool, status, second, and whether they came too late.
type Key<'a> = (&'a str, &'a str, u32, i64, bool);

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
        self.count(key, at, accepted.received_at.micros(), trace.event_id.0.as_bytes());
    }

    /// Counts a refused call that is one of the first from its address.
    pub fn add_few(&mut self, denial: &Denial) {
        let at = Time::from_micros(denial.event_time);
        let key = (denial.client_id.as_str(), "", FEW_FROM_SOURCE, at.secs(), denial.late);
        self.count(key, at, denial.received_at, &denial.event_id);
    }

    fn count(&mut self, key: Key<'_>, at: Time, received_at: i64, event_id: &[u8]) {
        let hash = self.hasher.hash_one(key);
        let rollups = &self.rollups;
        let found = match self.index.find(hash, |place| key_of(&rollups[*place]) == key) {
            Some(place) => *place,
            None => {
                self.rollups.push(Rollup {
                    client_id: key.0.to_owned(),
                    tool: key.1.to_owned(),
                    status: key.2,
                    second: key.3,
                    late: key.4,
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
        rollup.received_at = received_at;
        rollup.event_id.clear();
        rollup.event_id.extend_from_slice(event_id);
    }

    /// The rollups so far, in the order in which they were begun; begins anew.
    pub fn take(&mut self) -> Vec<Rollup> {
        self.index.clear();
        std::mem::take(&mut self.rollups)
    }
}

fn key_of(rollup: &Rollup) -> Key<'_> {
    (&rollup.client_id, &rollup.tool, rollup.status, rollup.second, rollup.late)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;

    fn call(n: u128, tool: &str, status: Status, error_code: &str, millis: i64) -> AcceptedTrace {
        let started_at = Time::from_micros(1_780_000_000_000_000 + millis * 1_000);
        let trace = Trace {
            event_id: crate::ids::EventId(uuid::Uuid::from_u128(n)),
            client_id: "app".parse().unwrap(),
            user_sub: format!("user_{n}"),
            tool: tool.to_owned(),
            scope_used: String::new(),
            status,
            started_at,
            duration_ms: 0,
            session_id: String::new(),
            agent: String::new(),
            source_ip: String::new(),
            error_code: error_code.to_owned(),
            attributes: std::collections::BTreeMap::new(),
        };
        AcceptedTrace::new(trace, started_at)
    }

    #[test]
    fn traces_of_one_tool_status_and_second_become_one_and_none_is_lost() {
        let mut rollups = Rollups::default();
        for accepted in [
            call(1, "a", Status::Ok, "", 0),
            call(2, "b", Status::Ok, "", 1),
            call(3, "a", Status::Ok, "", 999),
            call(4, "a", Status::Ok, "", 1_000),
            call(5, "a", Status::Error, "timeout", 2),
            call(6, "a", Status::Error, "invalid_token", 3),
        ] {
            rollups.add(&accepted);
        }
        let all = rollups.take();
        let counts: Vec<_> =
            all.iter().map(|r| (r.tool.as_str(), r.status, r.second % 10, r.traces)).collect();
        assert_eq!(counts, [("a", 1, 0, 2), ("b", 1, 0, 1), ("a", 1, 1, 1), ("a", 2, 0, 1), ("a", 3, 0, 1)]);
        assert_eq!(all[0].event_id, uuid::Uuid::from_u128(3).as_bytes());
        assert!(rollups.take().is_empty());
    }
}
