//! The life of one delivery, from pending to its end. Pure.

use std::time::Duration;

use panopticon_core::{
    log::{Output, Record},
    time::Time,
    topic::Topic,
};
use panopticon_proto::log::Delivery;
use prost::Message as _;
use uuid::Uuid;

use crate::{message::Message, retry::Retry};

/// It waits for its next attempt.
pub const PENDING: &str = "pending";
/// The receiver answered 2xx.
pub const DELIVERED: &str = "delivered";
/// It was given up.
pub const DEAD: &str = "dead";
/// Its endpoint was disabled or removed.
pub const CANCELLED: &str = "cancelled";

/// A delivery is one of a message and an endpoint: UUIDv5 in this namespace.
const NAMESPACE: Uuid = Uuid::from_u128(0x1f0c_8f4e_52d7_5b6a_8a4b_c3a9_6e17_2d90);

/// The id of the delivery of a message to an endpoint.
pub fn delivery_id(webhook_id: &str, endpoint_id: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("{webhook_id}/{endpoint_id}").as_bytes())
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx.
    Delivered,
    /// 410: this endpoint wants nothing any more.
    Gone,
    /// Anything else; the receiver may have asked for a pause.
    Failed(Option<Duration>),
    /// The endpoint is disabled or removed, so nothing was sent.
    Withdrawn,
    /// The partition is being given up, so nothing was sent.
    NotTried,
}

/// An attempt that has ended.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Of which delivery.
    pub id: Uuid,
    /// When it ended.
    pub at: Time,
    /// How.
    pub outcome: Outcome,
    /// HTTP status; 0 when there was no answer.
    pub status: u32,
    /// Why it failed; empty where it did not.
    pub error: String,
    /// How long the receiver took.
    pub took: Duration,
}

/// A new delivery of `message`, due at once.
pub fn new(message: &Message, endpoint_id: &str, now: Time) -> Delivery {
    Delivery {
        delivery_id: delivery_id(&message.webhook_id, endpoint_id).to_string(),
        webhook_id: message.webhook_id.clone(),
        endpoint_id: endpoint_id.to_owned(),
        client_id: message.client_id.clone(),
        user_sub: message.user_sub.clone(),
        r#type: message.r#type.clone(),
        body: message.body.clone(),
        state: PENDING.to_owned(),
        created_at: now.micros(),
        updated_at: now.micros(),
        scheduled_at: now.micros(),
        next_attempt_at: now.micros(),
        ..Delivery::default()
    }
}

/// Takes in how an attempt ended. `chance` in 0..1 chooses within the jitter of the next pause.
pub fn attempted(delivery: &mut Delivery, attempt: &Attempt, retry: &Retry, chance: f64) {
    match attempt.outcome {
        Outcome::NotTried => return,
        Outcome::Withdrawn => return end(delivery, CANCELLED, &attempt.error, attempt.at),
        Outcome::Delivered | Outcome::Gone | Outcome::Failed(_) => {}
    }
    delivery.attempts += 1;
    delivery.last_status = attempt.status;
    delivery.last_latency_ms = u32::try_from(attempt.took.as_millis()).unwrap_or(u32::MAX);
    delivery.updated_at = attempt.at.micros();
    if attempt.outcome == Outcome::Delivered {
        return end(delivery, DELIVERED, "", attempt.at);
    }
    if delivery.first_failed_at == 0 {
        delivery.first_failed_at = attempt.at.micros();
    }
    let asked = match attempt.outcome {
        Outcome::Failed(asked) => asked,
        _ => return end(delivery, DEAD, &attempt.error, attempt.at),
    };
    let scheduled_at = Time::from_micros(delivery.scheduled_at);
    match retry.next(scheduled_at, attempt.at, delivery.attempts, asked, chance) {
        Some(next) => {
            delivery.last_error.clone_from(&attempt.error);
            delivery.next_attempt_at = next.micros();
        }
        None => end(delivery, DEAD, &attempt.error, attempt.at),
    }
}

/// Ends a delivery; only [`replay`] brings it back.
pub fn end(delivery: &mut Delivery, state: &str, error: &str, now: Time) {
    state.clone_into(&mut delivery.state);
    error.clone_into(&mut delivery.last_error);
    delivery.updated_at = now.micros();
    delivery.next_attempt_at = 0;
    delivery.replayed = false;
}

/// Schedules a delivery anew at an operator's wish: the same message, and all the time to give up again.
pub fn replay(delivery: &mut Delivery, now: Time) {
    PENDING.clone_into(&mut delivery.state);
    delivery.replayed = true;
    delivery.attempts = 0;
    delivery.first_failed_at = 0;
    delivery.updated_at = now.micros();
    delivery.scheduled_at = now.micros();
    delivery.next_attempt_at = now.micros();
}

/// The record that says how a delivery stands.
pub fn record(delivery: &Delivery, partition: u32) -> Output {
    let record = Record::keyed(delivery.delivery_id.clone(), delivery.encode_to_vec());
    Output { topic: Topic::WebhookDeliveries, partition, record }
}

/// The record that takes a delivery out of the table.
pub fn tombstone(id: Uuid, partition: u32) -> Output {
    let record = Record::tombstone(id.to_string());
    Output { topic: Topic::WebhookDeliveries, partition, record }
}

#[cfg(test)]
mod tests {
    use panopticon_core::config::Config;

    use super::*;

    fn retry(give_up_after_secs: u64) -> Retry {
        let mut webhooks = Config::default().webhooks;
        webhooks.give_up_after_secs = give_up_after_secs;
        Retry::new(&webhooks)
    }

    fn pending() -> Delivery {
        let message = Message {
            webhook_id: "a1".to_owned(),
            r#type: "panopticon.test".to_owned(),
            client_id: "app".to_owned(),
            user_sub: "u".to_owned(),
            only_to: None,
            body: "{}".into(),
        };
        new(&message, "e1", Time::from_secs(10))
    }

    fn attempt(at: i64, outcome: Outcome, status: u32) -> Attempt {
        let error = if status == 200 { String::new() } else { format!("status {status}") };
        Attempt {
            id: Uuid::nil(),
            at: Time::from_secs(at),
            outcome,
            status,
            error,
            took: Duration::from_millis(7),
        }
    }

    #[test]
    fn the_same_message_to_the_same_endpoint_is_the_same_delivery() {
        assert_eq!(pending().delivery_id, delivery_id("a1", "e1").to_string());
        assert_ne!(delivery_id("a1", "e1"), delivery_id("a1", "e2"));
    }

    #[test]
    fn a_failed_delivery_stays_pending_until_it_is_given_up() {
        let mut delivery = pending();
        attempted(&mut delivery, &attempt(11, Outcome::Failed(None), 500), &retry(60), 1.0);
        assert_eq!((delivery.state.as_str(), delivery.attempts, delivery.last_status), (PENDING, 1, 500));
        assert_eq!(Time::from_micros(delivery.next_attempt_at), Time::from_secs(13));
        attempted(&mut delivery, &attempt(70, Outcome::Failed(None), 500), &retry(60), 1.0);
        assert_eq!((delivery.state.as_str(), delivery.attempts), (DEAD, 2));
        assert_eq!(Time::from_micros(delivery.first_failed_at), Time::from_secs(11));
    }

    #[test]
    fn gone_ends_it_at_once_and_success_clears_the_error() {
        let mut gone = pending();
        attempted(&mut gone, &attempt(11, Outcome::Gone, 410), &retry(60), 1.0);
        assert_eq!((gone.state.as_str(), gone.last_error.as_str()), (DEAD, "status 410"));
        let mut delivered = pending();
        attempted(&mut delivered, &attempt(11, Outcome::Failed(None), 500), &retry(60), 1.0);
        attempted(&mut delivered, &attempt(13, Outcome::Delivered, 200), &retry(60), 1.0);
        assert_eq!((delivered.state.as_str(), delivered.last_error.as_str()), (DELIVERED, ""));
    }

    #[test]
    fn a_replay_keeps_the_message_and_starts_the_time_anew() {
        let mut delivery = pending();
        attempted(&mut delivery, &attempt(100, Outcome::Failed(None), 500), &retry(60), 1.0);
        assert_eq!(delivery.state, DEAD);
        replay(&mut delivery, Time::from_secs(200));
        attempted(&mut delivery, &attempt(201, Outcome::Failed(None), 500), &retry(60), 1.0);
        assert_eq!((delivery.state.as_str(), delivery.replayed), (PENDING, true));
        attempted(&mut delivery, &attempt(203, Outcome::Delivered, 200), &retry(60), 1.0);
        assert_eq!((delivery.state.as_str(), delivery.replayed), (DELIVERED, false));
        assert_eq!((delivery.webhook_id, &delivery.body[..]), ("a1".to_owned(), &b"{}"[..]));
    }

    #[test]
    fn what_was_not_tried_is_as_before() {
        let (mut delivery, before) = (pending(), pending());
        attempted(&mut delivery, &attempt(11, Outcome::NotTried, 0), &retry(60), 1.0);
        assert_eq!(delivery, before);
    }
}
