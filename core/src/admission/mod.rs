//! What a client sends, admitted as the bytes that travel on, or refused by the name of the field.
//!
//! The table of fields and limits is in `docs/api.md`. JSON and protobuf share the checks.

mod json;

use std::net::IpAddr;

use bytes::Bytes;
use serde::Deserialize as _;
use serde_json::{Map, Value, error::Category};

use self::json::Sent;
use crate::{
    ids::{ClientId, EventId, partition_hash},
    time::Time,
    trace::{Facts, Malformed, Trace, TraceRef, is_late},
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

/// A checked trace on its way through the gateway: its bytes and what has to be known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Identity, with the client_id.
    pub event_id: EventId,
    /// When the call began.
    pub started_at: Time,
    /// How long it took.
    pub duration_ms: u32,
    /// What its partition follows from; see [`partition_hash`].
    pub partition_hash: u64,
    /// A serialized `panopticon.v1.Trace` of known fields only.
    pub bytes: Bytes,
}

impl Admitted {
    /// Whether it arrives, at `received_at`, too late to raise an alarm.
    pub fn is_late(&self, received_at: Time) -> bool {
        is_late(self.started_at, self.duration_ms, received_at)
    }
}

/// A trace that was read: checked, with what JSON and protobuf have in common of it.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The trace as it was sent.
    pub trace: &'a TraceRef<'a>,
    facts: Facts,
}

impl Seen<'_> {
    /// The identity.
    pub const fn event_id(&self) -> EventId {
        self.facts.event_id
    }

    /// For the way on, as `bytes`, which say the same.
    fn on_its_way(&self, bytes: Bytes) -> Admitted {
        let Facts { event_id, started_at, duration_ms, .. } = self.facts;
        let partition_hash = partition_hash(&[self.trace.client_id, self.trace.user_sub]);
        Admitted { event_id, started_at, duration_ms, partition_hash, bytes }
    }

    fn written(&self) -> Admitted {
        let mut bytes = Vec::with_capacity(256);
        self.trace.write(&mut bytes);
        self.on_its_way(bytes.into())
    }
}

/// Admits a trace in JSON. `now` bounds `started_at`; `look` sees the trace once it is checked.
pub fn admit_json<T>(
    text: &[u8],
    now: Time,
    look: impl FnOnce(&Seen<'_>) -> T,
) -> Result<(Admitted, T), Refusal> {
    let sent = sent_as_json(text)?;
    with_event_id(sent.event_id(), || {
        let trace = sent.trace()?;
        let seen = Seen { trace: &trace, facts: check(&trace, now)? };
        Ok((seen.written(), look(&seen)))
    })
}

/// Admits a serialized `panopticon.v1.Trace`: its bytes travel on as they are, unless they hold what is no
/// field of a trace.
pub fn admit_proto<T>(
    sent: &Bytes,
    now: Time,
    look: impl FnOnce(&Seen<'_>) -> T,
) -> Result<(Admitted, T), Refusal> {
    let (trace, foreign) = match TraceRef::read(sent) {
        Ok(read) => read,
        Err(Malformed::Field(field)) => return refuse(field, "is of another kind in protobuf, or no UTF-8"),
        Err(Malformed::Bytes) => return refuse("", "malformed protobuf: this is no panopticon.v1.Trace"),
    };
    with_event_id(trace.event_id, || {
        let seen = Seen { trace: &trace, facts: check(&trace, now)? };
        let admitted = if foreign { seen.written() } else { seen.on_its_way(sent.clone()) };
        Ok((admitted, look(&seen)))
    })
}

/// Reads one trace from JSON text. `now` bounds `started_at`.
pub fn trace_from_json(text: &[u8], now: Time) -> Result<Trace, Refusal> {
    trace_of(&sent_as_json(text)?, now, |trace| trace)
}

/// Reads one trace from a JSON object, as rules see it. `now` bounds `started_at`.
pub fn rule_trace_from_object(object: Map<String, Value>, now: Time) -> Result<Trace, Refusal> {
    match Sent::deserialize(Value::Object(object)) {
        Ok(sent) => trace_of(&sent, now, TraceRef::for_rules),
        Err(error) => refuse("", format!("malformed JSON: {error}")),
    }
}

fn sent_as_json(text: &[u8]) -> Result<Sent<'_>, Refusal> {
    serde_json::from_slice(text).or_else(|error| match error.classify() {
        Category::Data => refuse("", "a trace is a JSON object"),
        _ => refuse("", format!("malformed JSON: {error}")),
    })
}

/// `keeps` leaves away what is not wanted of a trace that was checked.
fn trace_of<'a>(
    sent: &'a Sent<'_>,
    now: Time,
    keeps: impl FnOnce(TraceRef<'a>) -> TraceRef<'a>,
) -> Result<Trace, Refusal> {
    with_event_id(sent.event_id(), || {
        let trace = sent.trace()?;
        let facts = check(&trace, now)?;
        let client_id = ClientId::new(trace.client_id).or_else(|why| refuse("client_id", why))?;
        Ok(keeps(trace).with_own_texts(client_id, facts))
    })
}

/// A refusal says which trace it is about.
fn with_event_id<T>(sent: &str, reads: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    reads().map_err(|refusal| Refusal { event_id: shown_event_id(sent), ..refusal })
}

/// The id as it is answered: canonical when valid, else what was sent, cut to a sane length.
fn shown_event_id(text: &str) -> String {
    EventId::parse(text).map_or_else(|| text.chars().take(64).collect(), |id| id.to_string())
}

/// The checks that JSON and protobuf share.
fn check(trace: &TraceRef<'_>, now: Time) -> Result<Facts, Refusal> {
    if trace.event_id.is_empty() {
        return refuse("event_id", "is required");
    }
    let Some(event_id) = EventId::parse(trace.event_id) else {
        return refuse("event_id", "must be a hyphenated UUID");
    };
    if trace.client_id.is_empty() {
        return refuse("client_id", "is required");
    }
    if let Err(why) = ClientId::check(trace.client_id) {
        return refuse("client_id", why);
    }
    if trace.tool.is_empty() {
        return refuse("tool", "is required");
    }
    at_most("tool", trace.tool, MAX_TOOL_BYTES)?;
    if trace.tool.chars().any(char::is_control) {
        return refuse("tool", "must not contain control characters");
    }
    let Some(status) = trace.known_status() else {
        return refuse("status", "is required: `ok`, `error` or `denied`");
    };
    let Some(moment) = trace.started_at else {
        return refuse("started_at", "is required: an RFC 3339 time with an offset");
    };
    let Some(started_at) = moment.time() else {
        return refuse("started_at", "is not a valid google.protobuf.Timestamp");
    };
    if started_at < EARLIEST_START {
        return refuse("started_at", "must not be before 2000-01-01T00:00:00Z");
    }
    if started_at.micros() > now.micros() + MAX_AHEAD_US {
        return refuse("started_at", format!("is more than 5 minutes ahead of the server's clock ({now})"));
    }
    let duration_ms = match trace.duration_ms {
        None => return refuse("duration_ms", "is required: milliseconds from 0 to 86400000"),
        Some(ms) if ms > MAX_DURATION_MS => {
            return refuse("duration_ms", "must be at most 86400000 (a day)");
        }
        Some(ms) => u32::try_from(ms).unwrap_or(u32::MAX),
    };
    at_most("scope_used", trace.scope_used, MAX_SCOPE_BYTES)?;
    for (field, text) in [
        ("user_sub", trace.user_sub),
        ("session_id", trace.session_id),
        ("agent", trace.agent),
        ("source_ip", trace.source_ip),
        ("error_code", trace.error_code),
    ] {
        at_most(field, text, MAX_TEXT_BYTES)?;
    }
    if !trace.source_ip.is_empty() && trace.source_ip.parse::<IpAddr>().is_err() {
        return refuse("source_ip", "must be an IPv4 or IPv6 address without a port");
    }
    let size: usize = trace.attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_ATTRIBUTES_BYTES {
        return refuse(
            "attributes",
            format!("has {size} bytes of keys and values; at most {MAX_ATTRIBUTES_BYTES}"),
        );
    }
    Ok(Facts { event_id, status, started_at, duration_ms })
}

fn at_most(field: &'static str, text: &str, limit: usize) -> Result<(), Refusal> {
    if text.len() > limit {
        return refuse(field, format!("has {} bytes; at most {limit}", text.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use panopticon_proto::v1;
    use proptest::prelude::*;
    use prost::Message as _;
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

    fn good_proto() -> v1::Trace {
        v1::Trace {
            event_id: "0190B0A0-7b1a-7c3e-9d2a-000000000001".to_owned(),
            client_id: "app".to_owned(),
            tool: "search".to_owned(),
            status: 1,
            started_at: Some(prost_types::Timestamp { seconds: now().secs() - 1, nanos: 7 }),
            duration_ms: Some(0),
            ..v1::Trace::default()
        }
    }

    #[test]
    fn a_bad_value_in_protobuf_is_refused_by_the_name_of_its_field() {
        let time = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        type Spoil = fn(&mut v1::Trace);
        let spoil: [(&str, Spoil); 9] = [
            ("event_id", |trace| trace.event_id = "7".to_owned()),
            ("client_id", |trace| trace.client_id = "caf\u{e9}".to_owned()),
            ("tool", |trace| trace.tool.clear()),
            ("status", |trace| trace.status = 0),
            ("status", |trace| trace.status = 4),
            ("status", |trace| trace.status = -1),
            ("started_at", |trace| trace.started_at = None),
            ("duration_ms", |trace| trace.duration_ms = None),
            ("source_ip", |trace| trace.source_ip = "1.2.3.4:80".to_owned()),
        ];
        for (field, spoil) in spoil {
            let mut trace = good_proto();
            spoil(&mut trace);
            let refusal = admit_proto(&trace.encode_to_vec().into(), now(), |_| ()).unwrap_err();
            assert_eq!(refusal.field, field, "{trace:?} gave {refusal:?}");
        }
        for started_at in [time(now().secs(), -1), time(i64::MAX, 0), time(0, 0), time(now().secs() + 301, 0)]
        {
            let trace = v1::Trace { started_at, ..good_proto() };
            let refusal = admit_proto(&trace.encode_to_vec().into(), now(), |_| ()).unwrap_err();
            assert_eq!(refusal.field, "started_at", "{started_at:?}");
        }
    }

    #[test]
    fn a_trace_in_protobuf_travels_on_as_it_was_sent_and_one_in_json_as_the_same_trace() {
        let sent = Bytes::from(good_proto().encode_to_vec());
        let (admitted, id) = admit_proto(&sent, now(), |seen| seen.event_id().to_string()).unwrap();
        assert_eq!((admitted.bytes.as_ptr(), admitted.bytes.len()), (sent.as_ptr(), sent.len()));
        assert_eq!(id, "0190b0a0-7b1a-7c3e-9d2a-000000000001");
        let (from_json, ()) = admit_json(&with("attributes", json!({"a": "b"})), now(), |_| ()).unwrap();
        let trace = v1::Trace::decode(from_json.bytes).unwrap();
        assert_eq!((trace.tool.as_str(), trace.status, trace.duration_ms), ("search", 1, Some(12)));
        assert_eq!(trace.attributes["a"], "b");
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
