//! The deliveries of one partition: those under way with all they need, of the finished only when they ended.

use std::collections::{BTreeSet, HashMap};

use panopticon_core::{config::WebhooksConfig, time::Time};
use panopticon_proto::log::Delivery;
use tracing::warn;
use uuid::Uuid;

use crate::delivery::PENDING;

/// How many deliveries of one partition there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Pending; beyond that no new actions are taken up.
    pub pending: usize,
    /// Pending to one endpoint; one more is dead at once.
    pub pending_per_endpoint: usize,
    /// Finished; beyond that the oldest are forgotten before their time.
    pub finished: usize,
}

impl Limits {
    /// As configured.
    pub const fn new(config: &WebhooksConfig) -> Self {
        Self {
            pending: config.max_pending,
            pending_per_endpoint: config.max_pending_per_endpoint,
            finished: config.max_finished,
        }
    }
}

/// The deliveries of one partition.
#[derive(Debug)]
pub struct Book {
    limits: Limits,
    pending: HashMap<Uuid, Delivery>,
    /// The pending ones that no attempt is under way for, by when they are due.
    scheduled: BTreeSet<(Time, Uuid)>,
    pending_by_endpoint: HashMap<String, usize>,
    finished: HashMap<Uuid, Time>,
    by_end: BTreeSet<(Time, Uuid)>,
}

impl Book {
    /// An empty book.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            pending: HashMap::new(),
            scheduled: BTreeSet::new(),
            pending_by_endpoint: HashMap::new(),
            finished: HashMap::new(),
            by_end: BTreeSet::new(),
        }
    }

    /// How many deliveries there may be.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Takes in a delivery as it now stands; a pending one is scheduled.
    pub fn put(&mut self, id: Uuid, delivery: Delivery) {
        self.take(id);
        if let Some(ended_at) = self.finished.remove(&id) {
            self.by_end.remove(&(ended_at, id));
        }
        if delivery.state == PENDING {
            *self.pending_by_endpoint.entry(delivery.endpoint_id.clone()).or_default() += 1;
            self.scheduled.insert((Time::from_micros(delivery.next_attempt_at), id));
            self.pending.insert(id, delivery);
        } else {
            let ended_at = Time::from_micros(delivery.updated_at);
            self.finished.insert(id, ended_at);
            self.by_end.insert((ended_at, id));
        }
    }

    fn take(&mut self, id: Uuid) {
        let Some(delivery) = self.pending.remove(&id) else { return };
        self.scheduled.remove(&(Time::from_micros(delivery.next_attempt_at), id));
        if let Some(count) = self.pending_by_endpoint.get_mut(&delivery.endpoint_id) {
            *count -= 1;
            if *count == 0 {
                self.pending_by_endpoint.remove(&delivery.endpoint_id);
            }
        }
    }

    /// A pending delivery.
    pub fn get(&self, id: Uuid) -> Option<&Delivery> {
        self.pending.get(&id)
    }

    /// The next delivery that is due by `now`. It stays pending, but is not scheduled any more.
    pub fn next_due(&mut self, now: Time) -> Option<(Uuid, &Delivery)> {
        let &(due, id) = self.scheduled.first()?;
        if due > now {
            return None;
        }
        self.scheduled.remove(&(due, id));
        self.pending.get(&id).map(|delivery| (id, delivery))
    }

    /// When the next delivery is due.
    pub fn next_due_at(&self) -> Option<Time> {
        self.scheduled.first().map(|(due, _)| *due)
    }

    /// Whether the delivery is known, pending or finished.
    pub fn knows(&self, id: Uuid) -> bool {
        self.pending.contains_key(&id) || self.finished.contains_key(&id)
    }

    /// Whether an attempt at the delivery is under way.
    pub fn is_under_way(&self, id: Uuid) -> bool {
        self.pending.get(&id).is_some_and(|delivery| {
            !self.scheduled.contains(&(Time::from_micros(delivery.next_attempt_at), id))
        })
    }

    /// How many deliveries are pending.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Whether new actions may be taken up.
    pub fn has_room(&self) -> bool {
        self.pending.len() < self.limits.pending
    }

    /// Whether one more delivery to this endpoint may be pending.
    pub fn has_room_for(&self, endpoint_id: &str) -> bool {
        self.pending_by_endpoint
            .get(endpoint_id)
            .is_none_or(|count| *count < self.limits.pending_per_endpoint)
    }

    /// The endpoints that have pending deliveries.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.pending_by_endpoint.keys().map(String::as_str)
    }

    /// The scheduled deliveries to an endpoint: those that no attempt is under way for.
    pub fn scheduled_to(&self, endpoint_id: &str) -> Vec<Uuid> {
        let to_endpoint = |id: &Uuid| self.pending.get(id).is_some_and(|d| d.endpoint_id == endpoint_id);
        self.scheduled.iter().map(|(_, id)| *id).filter(to_endpoint).collect()
    }

    /// Forgets, oldest first, at most `most` deliveries that ended at `before` or earlier or that there is
    /// no room for, and returns them.
    pub fn forget(&mut self, before: Time, most: usize) -> Vec<Uuid> {
        let crowded = self.finished.len().saturating_sub(self.limits.finished);
        if crowded > 0 {
            warn!(crowded, "more finished deliveries than are remembered; the oldest are forgotten early");
            metrics::counter!("panopticon_webhook_forgotten_early_total").increment(crowded as u64);
        }
        let mut forgotten = Vec::new();
        while forgotten.len() < most
            && let Some(&(ended_at, id)) = self.by_end.first()
            && (ended_at <= before || forgotten.len() < crowded)
        {
            self.by_end.pop_first();
            self.finished.remove(&id);
            forgotten.push(id);
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::DEAD;

    fn delivery(endpoint: &str, state: &str, at: i64) -> Delivery {
        Delivery {
            endpoint_id: endpoint.to_owned(),
            state: state.to_owned(),
            next_attempt_at: at,
            updated_at: at,
            ..Delivery::default()
        }
    }

    fn book() -> Book {
        Book::new(Limits { pending: 3, pending_per_endpoint: 2, finished: 5 })
    }

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn deliveries_come_up_in_the_order_in_which_they_are_due_and_once() {
        let mut book = book();
        for (n, due) in [(1, 30), (2, 10), (3, 20)] {
            book.put(id(n), delivery("e", PENDING, due));
        }
        let now = Time::from_micros(20);
        assert_eq!(book.next_due_at(), Some(Time::from_micros(10)));
        assert_eq!(book.next_due(now).map(|(id, _)| id), Some(id(2)));
        assert_eq!(book.next_due(now).map(|(id, _)| id), Some(id(3)));
        assert!(book.next_due(now).is_none());
        assert_eq!((book.pending(), book.scheduled_to("e")), (3, vec![id(1)]));
        assert!(book.is_under_way(id(2)) && !book.is_under_way(id(1)));
        let mut tried = book.get(id(2)).unwrap().clone();
        tried.next_attempt_at = 25;
        book.put(id(2), tried);
        assert_eq!(book.next_due_at(), Some(Time::from_micros(25)));
    }

    #[test]
    fn an_endpoint_that_is_away_fills_its_own_room_only() {
        let mut book = book();
        book.put(id(1), delivery("away", PENDING, 0));
        book.put(id(2), delivery("away", PENDING, 0));
        assert!(!book.has_room_for("away") && book.has_room_for("other") && book.has_room());
        book.put(id(1), delivery("away", DEAD, 1));
        assert!(book.has_room_for("away"));
        book.put(id(3), delivery("other", PENDING, 0));
        book.put(id(4), delivery("third", PENDING, 0));
        assert!(!book.has_room());
    }

    #[test]
    fn finished_deliveries_are_forgotten_oldest_first_and_bounded_per_pass() {
        let mut book = book();
        for n in 1..=5 {
            book.put(id(n), delivery("e", DEAD, n as i64));
        }
        assert_eq!(book.forget(Time::from_micros(3), 2), [id(1), id(2)]);
        assert_eq!(book.forget(Time::from_micros(3), 2), [id(3)]);
        assert!(!book.knows(id(3)) && book.knows(id(4)));
        book.put(id(4), delivery("e", PENDING, 9));
        assert_eq!(book.forget(Time::from_micros(99), 9), [id(5)], "a replayed one is pending again");
        for n in 10..17 {
            book.put(id(n), delivery("e", DEAD, n as i64));
        }
        assert_eq!(book.forget(Time::EPOCH, 9), [id(10), id(11)], "there is room for five");
    }
}
