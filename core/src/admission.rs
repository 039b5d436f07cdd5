//! What a client sends, turned into a [`Trace`] or into an error that names the field.
//!
//! The table of fields and limits is in `docs/api.md`. JSON and protobuf share the checks.

use std::{collections::BTreeMap, net::IpAddr};

use panopticon_proto::v1;
use serde_json::{Map, Value};

use crate::{
    ids::{ClientId, EventId},
    time::Time,
    trace::{Status, Trace},
};

/// The most bytes of `tool`.
pub const MAX_TOOL_BYTES: usize = 256;
/// The most bytes of `scope_used`.
pub const MAX_SCOPE_BYTES: usize = 1024;
/// The most bytes of `user_sub`, `session_id`, `agent`, `source_ip` and `error_code`.
pub const MAX_TEXT_BYTES: usize = 255;
/// The most bytes of all keys and values of `attributes` together.
pub const MAX_ATTRIBUTES_BYTES: usize = 8 * 1024;
/// The longest call, in milliseconds: a day.
pub const MAX_DURATION_MS: u64 = 86_400_000;
/// The earliest `started_at`: 2000-01-01T00:00:00Z.
pub const EARLIEST_START: Time = Time::from_secs(946_684_800);
/// How far ahead of the gateway's clock `started_at` may be, in microseconds.
pub const MAX_AHEAD_US: i64 = 300_000_000;

/// Why a trace is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{description}", if field.is_empty() { String::new() } else { format!("{field}: ") })]
pub struct Refusal {
    /// The field at fault; empty when it is the trace as a whole.
    pub field: String,
    /// What is wrong and what is expected.
    pub description: String,
    /// The trace's event_id, where it could be read.
    pub event_id: String,
}

fn refuse<T>(field: &str, description: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { field: field.to_owned(), description: description.into(), event_id: String::new() })
}

/// Reads one trace from JSON text. `now` bounds `started_at`.
pub fn trace_from_json(text: &[u8], now: Time) -> Result<Trace, Refusal> {
    let value: Value = match serde_json::from_slice(text) {
        Ok(value) => value,
        Err(error) => return refuse("", format!("malformed JSON: {error}")),
    };
    let Value::Object(object) = value else {
        return refuse("", "a trace is a JSON object");
    };
    trace_from_object(object, now)
}

/// Reads one trace from a JSON object. `now` bounds `started_at`.
pub fn trace_from_object(object: Map<String, Value>, now: Time) -> Result<Trace, Refusal> {
    let event_id = object.get("event_id").and_then(Value::as_str).unwrap_or_default().to_owned();
    from_object(object, now).map_err(|refusal| Refusal { event_id: shown_event_id(&event_id), ..refusal })
}

/// The id as it is answered: canonical when valid, else what was sent, cut to a sane length.
fn shown_event_id(text: &str) -> String {
    EventId::parse(text).map_or_else(|| text.chars().take(64).collect(), |id| id.to_string())
}

fn from_object(object: Map<String, Value>, now: Time) -> Result<Trace, Refusal> {
    let mut draft = Draft::default();
    for (name, value) in object {
        match name.as_str() {
            "event_id" => draft.event_id = required_text("event_id", value)?,
            "client_id" => draft.client_id = required_text("client_id", value)?,
            "tool" => draft.tool = required_text("tool", value)?,
            "status" => {
                let text = required_text("status", value)?;
                draft.status = Some(match Status::parse(&text) {
                    Some(status) => status,
                    None => return refuse("status", "must be `ok`, `error` or `denied`"),
                });
            }
            "started_at" => {
                let text = required_text("started_at", value)?;
                draft.started_at = Some(match Time::parse_rfc3339(&text) {
                    Some(time) => time,
                    None => {
                        return refuse(
                            "started_at",
                            "must be an RFC 3339 time with an offset, such as 2026-06-30T12:00:00Z",
                        );
                    }
                });
            }
            "duration_ms" => match value.as_u64() {
                Some(ms) => draft.duration_ms = Some(ms),
                None => return refuse("duration_ms", "must be a whole number from 0 to 86400000"),
            },
            "scope_used" => draft.scope_used = optional_text("scope_used", value)?,
            "user_sub" => draft.user_sub = optional_text("user_sub", value)?,
            "session_id" => draft.session_id = optional_text("session_id", value)?,
            "agent" => draft.agent = optional_text("agent", value)?,
            "source_ip" => draft.source_ip = optional_text("source_ip", value)?,
            "error_code" => draft.error_code = optional_text("error_code", value)?,
            "attributes" => draft.attributes = attributes(value)?,
            unknown => {
                let shown: String = unknown.chars().take(64).collect();
                return refuse(&shown, "unknown field; the RP's own data goes into `attributes`");
            }
        }
    }
    draft.check(now)
}

fn required_text(field: &'static str, value: Value) -> Result<String, Refusal> {
    match value {
        Value::String(text) => Ok(text),
        Value::Null => refuse(field, "is required"),
        _ => refuse(field, "must be a string"),
    }
}

fn optional_text(field: &'static str, value: Value) -> Result<String, Refusal> {
    match value {
        Value::String(text) => Ok(text),
        Value::Null => Ok(String::new()),
        _ => refuse(field, "must be a string or null"),
    }
}

fn attributes(value: Value) -> Result<BTreeMap<String, String>, Refusal> {
    match value {
        Value::Null => Ok(BTreeMap::new()),
        Value::Object(object) => object
            .into_iter()
            .map(|(key, value)| match value {
                Value::String(text) => Ok((key, text)),
                _ => {
                    let shown: String = key.chars().take(64).collect();
                    refuse("attributes", format!("the value of `{shown}` must be a string"))
                }
            })
            .collect(),
        _ => refuse("attributes", "must be an object whose values are strings"),
    }
}

/// Checks a trace from gRPC. `now` bounds `started_at`.
pub fn trace_from_proto(sent: v1::Trace, now: Time) -> Result<Trace, Refusal> {
    let event_id = shown_event_id(&sent.event_id);
    let status = match sent.status() {
        v1::Status::Ok => Some(Status::Ok),
        v1::Status::Error => Some(Status::Error),
        v1::Status::Denied => Some(Status::Denied),
        v1::Status::Unspecified => None,
    };
    let started_at = match sent.started_at {
        None => None,
        Some(time) => match from_proto_time(time) {
            Some(time) => Some(time),
            None => {
                return refuse("started_at", "is not a valid google.protobuf.Timestamp")
                    .map_err(|refusal: Refusal| Refusal { event_id, ..refusal });
            }
        },
    };
    Draft {
        event_id: sent.event_id,
        client_id: sent.client_id,
        user_sub: sent.user_sub,
        tool: sent.tool,
        scope_used: sent.scope_used,
        status,
        started_at,
        duration_ms: sent.duration_ms.map(u64::from),
        session_id: sent.session_id,
        agent: sent.agent,
        source_ip: sent.source_ip,
        error_code: sent.error_code,
        attributes: sent.attributes.into_iter().collect(),
    }
    .check(now)
    .map_err(|refusal| Refusal { event_id, ..refusal })
}

fn from_proto_time(time: prost_types::Timestamp) -> Option<Time> {
    if !(0..1_000_000_000).contains(&time.nanos) {
        return None;
    }
    time.seconds.checked_mul(1_000_000)?.checked_add(i64::from(time.nanos) / 1_000).map(Time::from_micros)
}

/// The fields as sent, before the checks that JSON and protobuf share.
#[derive(Default)]
struct Draft {
    event_id: String,
    client_id: String,
    user_sub: String,
    tool: String,
    scope_used: String,
    status: Option<Status>,
    started_at: Option<Time>,
    duration_ms: Option<u64>,
    session_id: String,
    agent: String,
    source_ip: String,
    error_code: String,
    attributes: BTreeMap<String, String>,
}

impl Draft {
    fn check(self, now: Time) -> Result<Trace, Refusal> {
        if self.event_id.is_empty() {
            return refuse("event_id", "is required");
        }
        let Some(event_id) = EventId::parse(&self.event_id) else {
            return refuse("event_id", "must be a hyphenated UUID");
        };
        if self.client_id.is_empty() {
            return refuse("client_id", "is required");
        }
        let client_id = match ClientId::new(&self.client_id) {
            Ok(id) => id,
            Err(why) => return refuse("client_id", why),
        };
        if self.tool.is_empty() {
            return refuse("tool", "is required");
        }
        at_most("tool", &self.tool, MAX_TOOL_BYTES)?;
        if self.tool.chars().any(char::is_control) {
            return refuse("tool", "must not contain control characters");
        }
        let Some(status) = self.status else {
            return refuse("status", "is required: `ok`, `error` or `denied`");
        };
        let Some(started_at) = self.started_at else {
            return refuse("started_at", "is required: an RFC 3339 time with an offset");
        };
        if started_at < EARLIEST_START {
            return refuse("started_at", "must not be before 2000-01-01T00:00:00Z");
        }
        if started_at.micros() > now.micros() + MAX_AHEAD_US {
            return refuse(
                "started_at",
                format!("is more than 5 minutes ahead of the server's clock ({now})"),
            );
        }
        let duration_ms = match self.duration_ms {
            None => return refuse("duration_ms", "is required: milliseconds from 0 to 86400000"),
            Some(ms) if ms > MAX_DURATION_MS => {
                return refuse("duration_ms", "must be at most 86400000 (a day)");
            }
            Some(ms) => u32::try_from(ms).unwrap_or(u32::MAX),
        };
        at_most("scope_used", &self.scope_used, MAX_SCOPE_BYTES)?;
        for (field, text) in [
            ("user_sub", &self.user_sub),
            ("session_id", &self.session_id),
            ("agent", &self.agent),
            ("source_ip", &self.source_ip),
            ("error_code", &self.error_code),
        ] {
            at_most(field, text, MAX_TEXT_BYTES)?;
        }
        if !self.source_ip.is_empty() && self.source_ip.parse::<IpAddr>().is_err() {
            return refuse("source_ip", "must be an IPv4 or IPv6 address without a port");
        }
        let size: usize = self.attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
        if size > MAX_ATTRIBUTES_BYTES {
            return refuse(
                "attributes",
                format!("has {size} bytes of keys and values; at most {MAX_ATTRIBUTES_BYTES}"),
            );
        }
        Ok(Trace {
            event_id,
            client_id,
            user_sub: self.user_sub,
            tool: self.tool,
            scope_used: self.scope_used,
            status,
            started_at,
            duration_ms,
            session_id: self.session_id,
            agent: self.agent,
            source_ip: self.source_ip,
            error_code: self.error_code,
            attributes: self.attributes,
        })
    }
}

fn at_most(field: &'static str, text: &str, limit: usize) -> Result<(), Refusal> {
    if text.len() > limit {
        return refuse(field, format!("has {} bytes; at most {limit}", text.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn now() -> Time {
        "2026-06-30T12:00:00Z".parse().unwrap()
    }

    fn good() -> Value {
        json!({"event_id":"0190b0a0-7b1a-7c3e-9d2a-000000000001","client_id":"app","tool":"search","status":"ok",
               "started_at":"2026-06-30T11:59:59Z","duration_ms":12})
    }

    fn with(field: &str, value: Value) -> Vec<u8> {
        let mut trace = good();
        trace[field] = value;
        serde_json::to_vec(&trace).unwrap()
    }

    #[test]
    fn a_minimal_trace_is_taken_and_nulls_are_absent_fields() {
        let trace = trace_from_json(&with("user_sub", Value::Null), now()).unwrap();
        assert_eq!((trace.tool.as_str(), trace.user_sub.as_str(), trace.duration_ms), ("search", "", 12));
    }

    #[test]
    fn a_bad_value_is_refused_by_the_name_of_its_field() {
        for (field, value) in [
            ("event_id", json!("not-a-uuid")),
            ("event_id", json!(7)),
            ("client_id", json!("")),
            ("client_id", json!("caf\u{e9}")),
            ("tool", json!("a\nb")),
            ("tool", json!("x".repeat(257))),
            ("tool", Value::Null),
            ("status", json!("OK")),
            ("started_at", json!("2026-06-30T12:00:00")),
            ("started_at", json!("1999-12-31T23:59:59Z")),
            ("started_at", json!("2026-06-30T12:05:01Z")),
            ("duration_ms", json!(-1)),
            ("duration_ms", json!(1.5)),
            ("duration_ms", json!("12")),
            ("duration_ms", json!(86_400_001)),
            ("scope_used", json!("s".repeat(1025))),
            ("user_sub", json!("u".repeat(256))),
            ("source_ip", json!("1.2.3.4:80")),
            ("attributes", json!({"a": {"b": "c"}})),
            ("attributes", json!({"a": "x".repeat(8192)})),
            ("attributes", json!([])),
            ("colour", json!("red")),
        ] {
            let refusal = trace_from_json(&with(field, value.clone()), now()).unwrap_err();
            assert_eq!(refusal.field, field, "{value} gave {refusal:?}");
        }
    }

    #[test]
    fn every_required_field_is_missed_by_name() {
        for field in ["event_id", "client_id", "tool", "status", "started_at", "duration_ms"] {
            let mut trace = good();
            trace.as_object_mut().unwrap().remove(field);
            let refusal = trace_from_json(&serde_json::to_vec(&trace).unwrap(), now()).unwrap_err();
            assert_eq!(refusal.field, field);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = trace_from_json(&bytes, now());
        }

        #[test]
        fn no_json_value_in_any_field_makes_it_panic(field in "[a-z_]{1,12}", text in ".{0,300}", number in any::<i64>()) {
            let _ = trace_from_json(&with(&field, json!(text)), now());
            let _ = trace_from_json(&with("started_at", json!(text)), now());
            let _ = trace_from_json(&with("duration_ms", json!(number)), now());
        }

        #[test]
        fn a_trace_comes_out_of_an_envelope_as_it_went_in(tool in "[a-z.]{1,20}", user in ".{0,60}", ms in 0u64..86_400_000) {
            let mut sent = good();
            sent["tool"] = json!(tool);
            sent["user_sub"] = json!(user);
            sent["duration_ms"] = json!(ms);
            let trace = trace_from_json(&serde_json::to_vec(&sent).unwrap(), now()).unwrap();
            let accepted = crate::trace::AcceptedTrace::new(trace, now());
            let bytes = crate::trace::encode_envelope([accepted.clone()]);
            prop_assert_eq!(crate::trace::decode_envelope(&bytes).unwrap(), vec![accepted]);
        }
    }
}
