//! Turns a line of the file into a trace to send, changing what the options ask for and nothing else.

use std::borrow::Cow;

use bytes::Bytes;
use panopticon_core::{
    admission::{MAX_AHEAD_US, trace_from_json},
    ids::EventId,
    time::Time,
    trace::{Status, Trace},
};
use panopticon_proto::v1;
use prost::Message as _;
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::tally::Rejection;

/// A trace in the form in which it travels.
#[derive(Debug, Clone)]
pub(super) enum Payload {
    /// JSON, without a line end.
    Json(Bytes),
    Proto(Box<v1::Trace>),
}

/// A trace to send.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    /// Where it is in the file.
    pub(super) line: u64,
    /// When it began, before any shift, where that can be read; paces the replay.
    pub(super) started_at: Option<Time>,
    /// The same for all traces of a user.
    pub(super) user_hash: u64,
    pub(super) payload: Payload,
}

impl Outgoing {
    /// About how many bytes it adds to a request.
    pub(super) fn bytes(&self) -> usize {
        match &self.payload {
            Payload::Json(text) => text.len() + 1,
            Payload::Proto(trace) => trace.encoded_len() + 8,
        }
    }
}

/// What to change in every trace.
#[derive(Debug, Clone, Default)]
pub(super) struct Rewrite {
    pub(super) client_id: Option<String>,
    /// New ids are UUIDv5 of the old ones in this namespace: the same old id gives the same new one.
    pub(super) id_namespace: Option<Uuid>,
    pub(super) shift_us: i64,
}

/// What has to be known of every line.
#[derive(Deserialize)]
struct Glance<'a> {
    #[serde(borrow, default)]
    started_at: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    user_sub: Option<Cow<'a, str>>,
}

impl Rewrite {
    /// The trace of a line; none where the line is blank. Only what cannot be sent is refused here: the
    /// gateway knows best what it takes.
    pub(super) fn apply(&self, line: u64, text: Bytes, grpc: bool) -> Result<Option<Outgoing>, Rejection> {
        let text = text.strip_suffix(b"\r").map_or(text.clone(), |rest| text.slice_ref(rest));
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        if grpc {
            return self.apply_grpc(line, &text).map(Some);
        }
        let started_at = |text: Option<&str>| text.and_then(Time::parse_rfc3339);
        let user_hash = |user: Option<&str>| xxh3_64(user.unwrap_or_default().as_bytes());
        if !self.changes_something()
            && let Ok(glance) = serde_json::from_slice::<Glance<'_>>(&text)
        {
            return Ok(Some(Outgoing {
                line,
                started_at: started_at(glance.started_at.as_deref()),
                user_hash: user_hash(glance.user_sub.as_deref()),
                payload: Payload::Json(text.clone()),
            }));
        }
        let mut trace = object(line, &text)?;
        let started_at = started_at(trace.get("started_at").and_then(Value::as_str));
        let user_hash = user_hash(trace.get("user_sub").and_then(Value::as_str));
        self.change(&mut trace, started_at);
        let text = serde_json::to_vec(&trace).map_err(|error| Rejection::of_line(line, error.to_string()))?;
        Ok(Some(Outgoing { line, started_at, user_hash, payload: Payload::Json(text.into()) }))
    }

    fn changes_something(&self) -> bool {
        self.client_id.is_some() || self.id_namespace.is_some() || self.shift_us != 0
    }

    fn change(&self, trace: &mut Map<String, Value>, started_at: Option<Time>) {
        if let Some(client_id) = &self.client_id {
            trace.insert("client_id".to_owned(), Value::String(client_id.clone()));
        }
        if let Some(namespace) = &self.id_namespace
            && let Some(old) = trace.get("event_id").and_then(Value::as_str).and_then(EventId::parse)
        {
            trace.insert("event_id".to_owned(), Value::String(fresh(namespace, old).to_string()));
        }
        // What is not a time goes as it is, so that the gateway names it.
        if let Some(at) = started_at
            && self.shift_us != 0
        {
            trace.insert("started_at".to_owned(), Value::String(self.shifted(at).to_string()));
        }
    }

    fn shifted(&self, at: Time) -> Time {
        Time::from_micros(at.micros().saturating_add(self.shift_us))
    }

    /// Protobuf has no room for what is not valid, so here the whole check is made on this side. Only
    /// whether a time lies too far ahead is for the gateway's clock to say.
    fn apply_grpc(&self, line: u64, text: &[u8]) -> Result<Outgoing, Rejection> {
        let any_time = Time::from_micros(i64::MAX - MAX_AHEAD_US);
        let mut trace = trace_from_json(text, any_time).map_err(|refusal| Rejection {
            line,
            error: "invalid_request".to_owned(),
            field: refusal.field,
            description: refusal.description,
        })?;
        let started_at = trace.started_at;
        trace.started_at = self.shifted(started_at);
        if let Some(namespace) = &self.id_namespace {
            trace.event_id = EventId(fresh(namespace, trace.event_id));
        }
        let user_hash = xxh3_64(trace.user_sub.as_bytes());
        let mut trace = proto(trace);
        if let Some(client_id) = &self.client_id {
            trace.client_id.clone_from(client_id);
        }
        Ok(Outgoing {
            line,
            started_at: Some(started_at),
            user_hash,
            payload: Payload::Proto(Box::new(trace)),
        })
    }
}

fn fresh(namespace: &Uuid, old: EventId) -> Uuid {
    Uuid::new_v5(namespace, old.0.as_bytes())
}

fn object(line: u64, text: &[u8]) -> Result<Map<String, Value>, Rejection> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Rejection::of_line(line, "a trace is a JSON object")),
        Err(error) => Err(Rejection::of_line(line, format!("malformed JSON: {error}"))),
    }
}

fn proto(trace: Trace) -> v1::Trace {
    let status = match trace.status {
        Status::Ok => v1::Status::Ok,
        Status::Error => v1::Status::Error,
        Status::Denied => v1::Status::Denied,
    };
    let (seconds, micros) = (trace.started_at.secs(), trace.started_at.micros().rem_euclid(1_000_000));
    v1::Trace {
        event_id: trace.event_id.to_string(),
        client_id: trace.client_id.into(),
        user_sub: trace.user_sub,
        tool: trace.tool,
        scope_used: trace.scope_used,
        status: status.into(),
        started_at: Some(prost_types::Timestamp {
            seconds,
            nanos: i32::try_from(micros * 1_000).unwrap_or_default(),
        }),
        duration_ms: Some(trace.duration_ms),
        session_id: trace.session_id,
        agent: trace.agent,
        source_ip: trace.source_ip,
        error_code: trace.error_code,
        attributes: trace.attributes.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"event_id":"0190b0a0-7b1a-7c3e-9d2a-000000000001","client_id":"a","user_sub":"u","tool":"t","status":"ok","started_at":"2026-06-30T12:00:00Z","duration_ms":5,"attributes":{"k":"v"}}"#;

    fn json(outgoing: &Outgoing) -> Value {
        let Payload::Json(text) = &outgoing.payload else { panic!("not JSON") };
        serde_json::from_slice(text).unwrap()
    }

    #[test]
    fn without_a_wish_a_line_goes_as_it_is_even_if_it_is_not_valid() {
        for line in [LINE, r#"{"event_id":7, "unknown" : [1]}"#] {
            let outgoing = Rewrite::default().apply(1, line.into(), false).unwrap().unwrap();
            assert!(matches!(&outgoing.payload, Payload::Json(text) if text == line), "{line}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused_here_and_blank_lines_are_nothing() {
        for bad in ["[1]", "{\"a\":", "nonsense"] {
            assert!(Rewrite::default().apply(9, bad.into(), false).is_err_and(|r| r.line == 9), "{bad}");
        }
        assert!(Rewrite::default().apply(1, " \r".into(), false).unwrap().is_none());
    }

    #[test]
    fn only_what_was_asked_for_is_changed() {
        let rewrite = Rewrite {
            client_id: Some("mine".into()),
            id_namespace: Some(Uuid::new_v4()),
            shift_us: 3_600_000_000,
        };
        let (first, again) = (
            json(&rewrite.apply(1, LINE.into(), false).unwrap().unwrap()),
            json(&rewrite.apply(2, LINE.into(), false).unwrap().unwrap()),
        );
        assert_eq!(first, again, "the same old id must give the same new one");
        let mut expected: Value = serde_json::from_str(LINE).unwrap();
        expected["client_id"] = "mine".into();
        expected["started_at"] = "2026-06-30T13:00:00.000000Z".into();
        assert_ne!(first["event_id"], expected["event_id"]);
        expected["event_id"] = first["event_id"].clone();
        assert_eq!(first, expected);
    }

    #[test]
    fn by_grpc_the_same_trace_travels() {
        let rewrite = Rewrite { shift_us: 1_500_000, ..Rewrite::default() };
        let outgoing = rewrite.apply(1, LINE.into(), true).unwrap().unwrap();
        let Payload::Proto(trace) = outgoing.payload else { panic!("not protobuf") };
        let time = trace.started_at.unwrap();
        assert_eq!((trace.tool.as_str(), trace.duration_ms, time.nanos), ("t", Some(5), 500_000_000));
        let refusal = rewrite.apply(4, r#"{"tool":"t"}"#.into(), true).unwrap_err();
        assert_eq!((refusal.line, refusal.field.as_str()), (4, "event_id"));
    }
}
