//! What an RP is told: the body of a webhook, rendered once from a guard action.
//!
//! The shapes below are the public contract (design §8): a field added to a message between stages does not
//! appear here by itself.

use bytes::Bytes;
use panopticon_core::time::Time;
use panopticon_proto::log::{Detection, GuardAction, KillSwitch, ReplayDelivery, TestMessage};
use prost::Message as _;
use serde::Serialize;

/// Why a guard action cannot be told to anyone.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// It is no guard action.
    #[error("not a guard action: {0}")]
    Wire(#[from] prost::DecodeError),
    /// It has no id.
    #[error("a guard action without an action_id")]
    NoId,
    /// It says nothing.
    #[error("guard action {0} of type `{1}` carries neither detection, kill, test nor replay")]
    Empty(String, String),
    /// It cannot be written as JSON.
    #[error("guard action {0} cannot be written as JSON: {1}")]
    Json(String, #[source] serde_json::Error),
}

/// A guard action as the dispatcher takes it.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// To be told to the app's endpoints.
    Tell(Message),
    /// An operator's wish.
    Replay(ReplayDelivery),
}

/// A message to an RP.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The same for every endpoint and every attempt.
    pub webhook_id: String,
    /// Such as `panopticon.kill_switch`.
    pub r#type: String,
    /// The app.
    pub client_id: String,
    /// The user concerned; empty: none or all.
    pub user_sub: String,
    /// Only for this endpoint; otherwise for all that want its type.
    pub only_to: Option<String>,
    /// The bytes that are signed and sent.
    pub body: Bytes,
}

#[derive(Serialize)]
struct Body<'a, D> {
    r#type: &'a str,
    timestamp: Time,
    data: D,
}

#[derive(Serialize)]
struct DetectionData<'a> {
    action_id: &'a str,
    detection_id: &'a str,
    rule: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    kind: &'a str,
    client_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_sub: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    source_ip: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    tool: &'a str,
    severity: &'a str,
    score: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    detected_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    emitted_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<Time>,
    #[serde(skip_serializing_if = "str::is_empty")]
    deciding_event_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<WindowData>,
    observed: f64,
    expected: f64,
    explanation: &'a str,
}

#[derive(Serialize)]
struct WindowData {
    start: Time,
    end: Time,
}

#[derive(Serialize)]
struct KillData<'a> {
    client_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_sub: &'a str,
    state: &'a str,
    reason: &'a str,
    actor: &'a str,
}

#[derive(Serialize)]
struct TestData<'a> {
    client_id: &'a str,
    note: &'a str,
}

/// 0 is absent.
fn time(micros: i64) -> Option<Time> {
    (micros != 0).then(|| Time::from_micros(micros))
}

impl<'a> DetectionData<'a> {
    fn new(action_id: &'a str, detection: &'a Detection) -> Self {
        Self {
            action_id,
            detection_id: &detection.detection_id,
            rule: &detection.rule,
            kind: &detection.kind,
            client_id: &detection.client_id,
            user_sub: &detection.user_sub,
            source_ip: &detection.source_ip,
            tool: &detection.tool,
            severity: &detection.severity,
            score: detection.score,
            detected_at: time(detection.detected_at),
            emitted_at: time(detection.emitted_at),
            ended_at: time(detection.ended_at),
            deciding_event_id: &detection.deciding_event_id,
            window: detection.window.map(|window| WindowData {
                start: Time::from_micros(window.start),
                end: Time::from_micros(window.end),
            }),
            observed: detection.observed,
            expected: detection.expected,
            explanation: &detection.explanation,
        }
    }
}

/// Reads a record of `guard-actions`.
pub fn read(payload: &[u8]) -> Result<Action, ActionError> {
    let mut action = GuardAction::decode(payload)?;
    if let Some(replay) = action.replay.take() {
        return Ok(Action::Replay(replay));
    }
    if action.action_id.is_empty() {
        return Err(ActionError::NoId);
    }
    let only_to = action.test.as_ref().map(|test| test.endpoint_id.clone());
    let body = render(&action)?;
    Ok(Action::Tell(Message {
        webhook_id: action.action_id,
        r#type: action.r#type,
        client_id: action.client_id,
        user_sub: action.user_sub,
        only_to,
        body,
    }))
}

fn render(action: &GuardAction) -> Result<Bytes, ActionError> {
    let id = &action.action_id;
    match action {
        GuardAction { detection: Some(detection), .. } => write(action, DetectionData::new(id, detection)),
        GuardAction { kill: Some(kill), .. } => {
            let KillSwitch { client_id, user_sub, state, reason, actor } = kill;
            write(action, KillData { client_id, user_sub, state, reason, actor })
        }
        GuardAction { test: Some(TestMessage { note, .. }), client_id, .. } => {
            write(action, TestData { client_id, note })
        }
        _ => Err(ActionError::Empty(id.clone(), action.r#type.clone())),
    }
}

fn write(action: &GuardAction, data: impl Serialize) -> Result<Bytes, ActionError> {
    let body = Body { r#type: &action.r#type, timestamp: Time::from_micros(action.created_at), data };
    let bytes =
        serde_json::to_vec(&body).map_err(|error| ActionError::Json(action.action_id.clone(), error))?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use panopticon_proto::log::Window;
    use serde_json::{Value, json};

    use super::*;

    const SECOND: i64 = 1_000_000;

    fn told(action: &GuardAction) -> (Message, Value) {
        let Action::Tell(message) = read(&action.encode_to_vec()).unwrap() else { panic!("a replay") };
        let body = serde_json::from_slice(&message.body).unwrap();
        (message, body)
    }

    fn action(r#type: &str) -> GuardAction {
        GuardAction {
            action_id: "a1".to_owned(),
            r#type: r#type.to_owned(),
            client_id: "app".to_owned(),
            user_sub: "u".to_owned(),
            created_at: 9 * SECOND,
            ..GuardAction::default()
        }
    }

    #[test]
    fn an_anomaly_is_told_with_the_names_of_the_contract_and_without_absent_fields() {
        let detection = Detection {
            detection_id: "d1".to_owned(),
            rule: "burst".to_owned(),
            kind: "tool".to_owned(),
            client_id: "app".to_owned(),
            user_sub: "u".to_owned(),
            tool: "search".to_owned(),
            severity: "high".to_owned(),
            score: 87.5,
            detected_at: 8 * SECOND,
            deciding_event_id: "e1".to_owned(),
            window: Some(Window { start: 0, end: 8 * SECOND }),
            observed: 120.0,
            explanation: "120 calls in a minute".to_owned(),
            phase: "started".to_owned(),
            ..Detection::default()
        };
        let (message, body) = told(&GuardAction {
            detection: Some(detection.clone()),
            ..action("panopticon.anomaly_detected")
        });
        assert_eq!(
            body,
            json!({
                "type": "panopticon.anomaly_detected",
                "timestamp": "1970-01-01T00:00:09.000000Z",
                "data": {
                    "action_id": "a1", "detection_id": "d1", "rule": "burst", "kind": "tool",
                    "client_id": "app", "user_sub": "u", "tool": "search", "severity": "high",
                    "score": 87.5, "detected_at": "1970-01-01T00:00:08.000000Z", "deciding_event_id": "e1",
                    "window": {"start": "1970-01-01T00:00:00.000000Z", "end": "1970-01-01T00:00:08.000000Z"},
                    "observed": 120.0, "expected": 0.0, "explanation": "120 calls in a minute",
                },
            })
        );
        assert_eq!((message.webhook_id.as_str(), message.only_to), ("a1", None));

        let ended = Detection { ended_at: 20 * SECOND, phase: "ended".to_owned(), ..detection };
        let (_, body) =
            told(&GuardAction { detection: Some(ended), ..action("panopticon.anomaly_resolved") });
        assert_eq!(body["data"]["ended_at"], "1970-01-01T00:00:20.000000Z");
    }

    #[test]
    fn a_kill_and_a_test_say_only_what_they_should() {
        let kill = KillSwitch {
            client_id: "app".to_owned(),
            state: "killed".to_owned(),
            reason: "incident".to_owned(),
            actor: "token:ci".to_owned(),
            ..KillSwitch::default()
        };
        let (_, body) = told(&GuardAction { kill: Some(kill), ..action("panopticon.kill_switch") });
        assert_eq!(
            body["data"],
            json!({"client_id": "app", "state": "killed", "reason": "incident", "actor": "token:ci"})
        );
        let test = TestMessage { endpoint_id: "e1".to_owned(), note: "hello".to_owned() };
        let (message, body) = told(&GuardAction { test: Some(test), ..action("panopticon.test") });
        assert_eq!(body["data"], json!({"client_id": "app", "note": "hello"}));
        assert_eq!(message.only_to.as_deref(), Some("e1"));
    }

    #[test]
    fn what_is_no_guard_action_is_refused_with_a_reason() {
        for (bytes, why) in [
            (b"\xff\xff".to_vec(), "not a guard action"),
            (Vec::new(), "without an action_id"),
            (action("panopticon.kill_switch").encode_to_vec(), "carries neither"),
        ] {
            let error = read(&bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
