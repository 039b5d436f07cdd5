//! Erasing a person: what is asked of the trace store, and what is left of a message that names them.
//!
//! A message keeps what the app needs to understand its own history: that somebody did something, when, and
//! what became of it. Whom it was about becomes a pseudonym that nothing leads back from.

use bytes::Bytes;
use panopticon_proto::log::{Delivery, Detection, GuardAction};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{ClientId, LogId};

/// Who is to be erased, and who they become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// The app.
    pub client_id: ClientId,
    /// Its user.
    pub user_sub: String,
    /// The user from then on: random, not made of anything that is known of them.
    pub pseudonym: String,
    /// Where the traces end that are to go.
    pub until: TracesEnd,
}

/// A position in the topic `traces`. The person's traces before it are in the store, and no batch with any of
/// them is under way; what lies after it is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TracesEnd {
    /// Which creation of the topic.
    pub log_id: LogId,
    /// The partition that the person's traces go to.
    pub partition: u32,
    /// The first offset that is left alone.
    pub offset: u64,
}

/// What was removed or renamed by one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ErasedCounts {
    /// Raw traces removed.
    pub traces: u64,
    /// Traces in the aggregates that are counted for the pseudonym now.
    pub usage: u64,
    /// Rows of detections renamed.
    pub detections: u64,
    /// Guard actions renamed.
    pub actions: u64,
    /// Rows of deliveries renamed.
    pub deliveries: u64,
    /// Deliveries among them that are still being tried: their next state names the person again.
    pub pending_deliveries: u64,
    /// Aggregates that name the person beside counts that are left alone; 0: none is left.
    pub usage_left: u64,
}

/// Stands for a text that named the person.
const SCRUBBED: &str = "(the text named a person who was erased)";

impl Erasure {
    /// Whether a name is that of the person.
    pub fn is_of(&self, client_id: &str, user_sub: &str) -> bool {
        self.client_id.as_str() == client_id && self.user_sub == user_sub
    }

    /// Takes the person out of a detection.
    pub fn detection(&self, detection: &mut Detection) {
        if self.is_of(&detection.client_id, &detection.user_sub) {
            detection.user_sub.clone_from(&self.pseudonym);
            detection.source_ip.clear();
            self.scrub(&mut detection.explanation);
        }
    }

    /// Takes the person out of a guard action.
    pub fn action(&self, action: &mut GuardAction) {
        if self.is_of(&action.client_id, &action.user_sub) {
            action.user_sub.clone_from(&self.pseudonym);
        }
        if let Some(detection) = &mut action.detection {
            self.detection(detection);
        }
        if let Some(kill) = action.kill.as_mut().filter(|kill| self.is_of(&kill.client_id, &kill.user_sub)) {
            kill.user_sub.clone_from(&self.pseudonym);
            self.scrub(&mut kill.reason);
        }
    }

    /// Takes the person out of a delivery and its body.
    pub fn delivery(&self, delivery: &mut Delivery) {
        if self.is_of(&delivery.client_id, &delivery.user_sub) {
            delivery.user_sub.clone_from(&self.pseudonym);
            delivery.body = self.body(&delivery.body);
        }
    }

    /// What is left of the body of a webhook; nothing of one that is not understood.
    fn body(&self, body: &[u8]) -> Bytes {
        let Ok(mut message) = serde_json::from_slice::<Value>(body) else { return Bytes::new() };
        if let Some(data) = message.get_mut("data").and_then(Value::as_object_mut) {
            data.remove("source_ip");
            if let Some(user) = data.get_mut("user_sub") {
                *user = Value::String(self.pseudonym.clone());
            }
            for text in ["explanation", "reason"] {
                if let Some(Value::String(text)) = data.get_mut(text) {
                    self.scrub(text);
                }
            }
        }
        message.to_string().into()
    }

    /// A name inside a text cannot be told from a part of another word: the whole text goes.
    fn scrub(&self, text: &mut String) {
        if text.contains(&self.user_sub) {
            SCRUBBED.clone_into(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use panopticon_proto::log::KillSwitch;

    use super::*;

    fn erasure() -> Erasure {
        Erasure {
            client_id: ClientId::new("app").unwrap(),
            user_sub: "alice".to_owned(),
            pseudonym: "erased-1".to_owned(),
            until: TracesEnd { log_id: LogId(1), partition: 0, offset: 9 },
        }
    }

    fn detection(user: &str) -> Detection {
        Detection {
            client_id: "app".to_owned(),
            user_sub: user.to_owned(),
            source_ip: "192.0.2.1".to_owned(),
            explanation: format!("{user} made 80 calls"),
            tool: "search".to_owned(),
            ..Detection::default()
        }
    }

    #[test]
    fn nothing_that_names_the_person_is_left_in_a_message() {
        let mut action = GuardAction {
            client_id: "app".to_owned(),
            user_sub: "alice".to_owned(),
            detection: Some(detection("alice")),
            kill: Some(KillSwitch {
                client_id: "app".to_owned(),
                user_sub: "alice".to_owned(),
                reason: "alice loops".to_owned(),
                ..KillSwitch::default()
            }),
            ..GuardAction::default()
        };
        let body = r#"{"type":"t","data":{"user_sub":"alice","source_ip":"192.0.2.1","explanation":"alice made 80 calls","tool":"search"}}"#;
        let mut delivery = Delivery {
            client_id: "app".to_owned(),
            user_sub: "alice".to_owned(),
            body: Bytes::from_static(body.as_bytes()),
            ..Delivery::default()
        };
        erasure().action(&mut action);
        erasure().delivery(&mut delivery);
        for text in [format!("{action:?}"), String::from_utf8_lossy(&delivery.body).into_owned()] {
            assert!(!text.contains("alice") && !text.contains("192.0.2.1"), "{text}");
            assert!(text.contains("erased-1") && text.contains("search"), "{text}");
        }
    }

    #[test]
    fn other_people_and_other_apps_stay_as_they_are() {
        let mut bob = detection("bob");
        let mut elsewhere = Detection { client_id: "other".to_owned(), ..detection("alice") };
        let before = (bob.clone(), elsewhere.clone());
        erasure().detection(&mut bob);
        erasure().detection(&mut elsewhere);
        assert_eq!((bob, elsewhere), before);
    }

    #[test]
    fn a_body_that_is_not_understood_goes_as_a_whole() {
        assert!(erasure().body(b"alice").is_empty());
    }
}
