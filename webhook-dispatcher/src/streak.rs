//! Since when everything has failed on an endpoint. Derived from deliveries, so that it survives restarts.

use std::collections::HashMap;

use panopticon_core::time::Time;
use panopticon_proto::log::Delivery;

use crate::delivery::{DEAD, DELIVERED, PENDING};

/// The failing endpoints of one partition.
#[derive(Debug, Default)]
pub struct Streaks {
    since: HashMap<String, Time>,
}

impl Streaks {
    /// What the deliveries of a table say.
    pub fn of(deliveries: &[Delivery]) -> Self {
        let mut delivered: HashMap<&str, i64> = HashMap::new();
        for delivery in deliveries.iter().filter(|delivery| delivery.state == DELIVERED) {
            let last = delivered.entry(&delivery.endpoint_id).or_default();
            *last = (*last).max(delivery.updated_at);
        }
        let mut since: HashMap<String, Time> = HashMap::new();
        for delivery in deliveries {
            let fails = delivery.first_failed_at != 0 && [PENDING, DEAD].contains(&&*delivery.state);
            let last_success = delivered.get(&*delivery.endpoint_id).copied().unwrap_or(i64::MIN);
            if fails && delivery.updated_at > last_success {
                let first = Time::from_micros(delivery.first_failed_at.max(last_success));
                since
                    .entry(delivery.endpoint_id.clone())
                    .and_modify(|since| *since = first.min(*since))
                    .or_insert(first);
            }
        }
        Self { since }
    }

    /// A message came through.
    pub fn succeeded(&mut self, endpoint_id: &str) {
        self.since.remove(endpoint_id);
    }

    /// A message came through at `at`, in another partition.
    pub fn succeeded_elsewhere(&mut self, endpoint_id: &str, at: Time) {
        if let Some(since) = self.since.get_mut(endpoint_id) {
            *since = at.max(*since);
        }
    }

    /// A message failed at `at` on an endpoint that was last changed at `changed_at`: what failed before
    /// that does not count. Returns since when everything has failed.
    pub fn failed(&mut self, endpoint_id: &str, at: Time, changed_at: Time) -> Time {
        if let Some(since) = self.since.get_mut(endpoint_id) {
            if *since < changed_at {
                *since = at;
            }
            return *since;
        }
        self.since.insert(endpoint_id.to_owned(), at);
        at
    }
}

/// When a message last came through to the endpoint, as far as these deliveries say.
pub fn last_delivered(deliveries: &[Delivery], endpoint_id: &str) -> Option<Time> {
    let delivered = deliveries
        .iter()
        .filter(|delivery| delivery.endpoint_id == endpoint_id && delivery.state == DELIVERED);
    delivered.map(|delivery| Time::from_micros(delivery.updated_at)).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(state: &str, first_failed_at: i64, updated_at: i64) -> Delivery {
        Delivery {
            endpoint_id: "e".to_owned(),
            state: state.to_owned(),
            first_failed_at,
            updated_at,
            ..Delivery::default()
        }
    }

    fn since(deliveries: &[Delivery]) -> Option<i64> {
        Streaks::of(deliveries).since.get("e").map(|time| time.micros())
    }

    #[test]
    fn a_streak_begins_with_the_first_failure_after_the_last_success() {
        assert_eq!(since(&[delivery(DEAD, 10, 20), delivery(PENDING, 15, 30)]), Some(10));
        assert_eq!(
            since(&[delivery(DEAD, 10, 20), delivery(DELIVERED, 0, 25), delivery(PENDING, 27, 30)]),
            Some(27)
        );
        assert_eq!(since(&[delivery(DEAD, 10, 20), delivery(DELIVERED, 5, 25)]), None);
        assert_eq!(
            since(&[delivery(PENDING, 10, 30), delivery(DELIVERED, 0, 25)]),
            Some(25),
            "still failing"
        );
        assert_eq!(since(&[delivery(PENDING, 0, 30)]), None, "not tried yet");
    }

    #[test]
    fn a_success_or_a_change_of_the_endpoint_ends_a_streak() {
        let mut streaks = Streaks::default();
        let at = Time::from_secs;
        assert_eq!(streaks.failed("e", at(10), at(0)), at(10));
        assert_eq!(streaks.failed("e", at(20), at(0)), at(10));
        assert_eq!(streaks.failed("e", at(40), at(30)), at(40), "it was changed in between");
        assert_eq!(streaks.failed("e", at(50), at(30)), at(40));
        streaks.succeeded_elsewhere("e", at(45));
        streaks.succeeded_elsewhere("e", at(44));
        assert_eq!(streaks.failed("e", at(50), at(30)), at(45));
        streaks.succeeded("e");
        assert_eq!(streaks.failed("e", at(60), at(30)), at(60));
    }
}
