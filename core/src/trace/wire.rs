//! Traces as they lie in requests and envelopes, read without copying.
//!
//! A trace is the same bytes from the client's gRPC request to `traces`: the fields of
//! `panopticon.v1.Trace`. What the gateway and the dedupe stage add is appended to them
//! (`panopticon.log.v1.TakenTrace`), since in protobuf two messages one after the other are one message, in
//! which the later of two values counts. This is the encoding of
//! <https://protobuf.dev/programming-guides/encoding/>, for these two messages alone.

use prost::encoding::{decode_varint, encode_varint};

use super::{AcceptedTrace, Status, Trace, WireError};
use crate::{
    ids::{ClientId, EventId, LogId, Place},
    time::Time,
};

/// A `panopticon.v1.Trace` as somebody sent it: not checked, an absent text empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TraceRef<'a> {
    pub event_id: &'a str,
    pub client_id: &'a str,
    pub user_sub: &'a str,
    pub tool: &'a str,
    pub scope_used: &'a str,
    /// 1 ok, 2 error, 3 denied; anything else is none.
    pub status: u64,
    pub started_at: Option<Moment>,
    pub duration_ms: Option<u64>,
    pub session_id: &'a str,
    pub agent: &'a str,
    pub source_ip: &'a str,
    pub error_code: &'a str,
    /// In the order in which they were sent; of a key that is there twice the later value counts.
    pub attributes: Vec<(&'a str, &'a str)>,
}

/// What of a trace is more than text, once it is known to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Facts {
    pub event_id: EventId,
    pub status: Status,
    pub started_at: Time,
    pub duration_ms: u32,
}

/// A `google.protobuf.Timestamp` as it was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moment {
    /// Since the Unix epoch.
    pub seconds: i64,
    /// From there on, 0 to 999,999,999 in a valid one.
    pub nanos: i32,
}

impl Moment {
    /// The time, where it is a valid one.
    pub fn time(self) -> Option<Time> {
        if !(0..1_000_000_000).contains(&self.nanos) {
            return None;
        }
        let whole = self.seconds.checked_mul(1_000_000)?;
        whole.checked_add(i64::from(self.nanos) / 1_000).map(Time::from_micros)
    }
}

impl From<Time> for Moment {
    fn from(time: Time) -> Self {
        let micros = time.micros();
        let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or(0);
        Self { seconds: micros.div_euclid(1_000_000), nanos }
    }
}

/// A trace as the log holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TakenRef<'a> {
    /// What the RP sent.
    pub trace: TraceRef<'a>,
    /// When the gateway had it.
    pub received_at: Time,
    /// It raises no alarm.
    pub late: bool,
    /// Where it first entered the log; none before it is there.
    pub place: Option<Place>,
}

/// Bytes that are not protobuf of the expected shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A number or a length that goes beyond the end, or a kind of value that there is not.
    #[error("the bytes are cut off or no protobuf")]
    Bytes,
    /// A text is not UTF-8, or a field is of another kind than it should be.
    #[error("field `{0}` is not of its kind, or no UTF-8")]
    Field(&'static str),
}

pub(super) const VARINT: u64 = 0;
pub(super) const FIXED64: u64 = 1;
pub(super) const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

/// The names of the fields by their numbers.
const FIELDS: [&str; 17] = [
    "",
    "event_id",
    "client_id",
    "user_sub",
    "tool",
    "scope_used",
    "status",
    "started_at",
    "duration_ms",
    "session_id",
    "agent",
    "source_ip",
    "error_code",
    "attributes",
    "received_at",
    "late",
    "place",
];
/// The last field of `panopticon.v1.Trace`.
const LAST_SENT: u64 = 13;

impl<'a> TraceRef<'a> {
    /// Reads a trace that a client sent; also whether its bytes hold something that is none of its fields, so
    /// that they may not travel on as they are.
    pub fn read(bytes: &'a [u8]) -> Result<(Self, bool), Malformed> {
        let mut foreign = false;
        let taken = read(bytes, |field| foreign |= field > LAST_SENT)?;
        Ok((taken.trace, foreign))
    }

    /// The trace without what no rule looks at, which costs more to copy and to hold than a rule does.
    #[must_use]
    pub fn for_rules(self) -> Self {
        Self { scope_used: "", session_id: "", agent: "", attributes: Vec::new(), ..self }
    }

    /// The status, where its number stands for one.
    pub(crate) fn known_status(&self) -> Option<Status> {
        u32::try_from(self.status).ok().and_then(Status::of_code)
    }

    /// The trace with texts of its own, given what its check found.
    pub(crate) fn with_own_texts(&self, client_id: ClientId, facts: Facts) -> Trace {
        let Facts { event_id, status, started_at, duration_ms } = facts;
        Trace {
            event_id,
            client_id,
            user_sub: self.user_sub.to_owned(),
            tool: self.tool.to_owned(),
            scope_used: self.scope_used.to_owned(),
            status,
            started_at,
            duration_ms,
            session_id: self.session_id.to_owned(),
            agent: self.agent.to_owned(),
            source_ip: self.source_ip.to_owned(),
            error_code: self.error_code.to_owned(),
            attributes: self.attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    /// Appends the trace to `out`, as [`TraceRef::read`] reads it.
    pub fn write(&self, out: &mut Vec<u8>) {
        let front = [self.event_id, self.client_id, self.user_sub, self.tool, self.scope_used];
        for (field, text) in (1..).zip(front) {
            put_text(out, field, text);
        }
        put_number(out, 6, self.status);
        if let Some(moment) = self.started_at {
            let mut inner = Vec::with_capacity(16);
            put_number(&mut inner, 1, moment.seconds.cast_unsigned());
            put_number(&mut inner, 2, i64::from(moment.nanos).cast_unsigned());
            put_bytes(out, 7, &inner);
        }
        if let Some(ms) = self.duration_ms {
            put_key(out, 8, VARINT);
            encode_varint(ms, out);
        }
        let back = [self.session_id, self.agent, self.source_ip, self.error_code];
        for (field, text) in (9..).zip(back) {
            put_text(out, field, text);
        }
        for (key, value) in &self.attributes {
            let mut inner = Vec::with_capacity(key.len() + value.len() + 8);
            put_text(&mut inner, 1, key);
            put_text(&mut inner, 2, value);
            put_bytes(out, LAST_SENT, &inner);
        }
    }
}

impl<'a> TakenRef<'a> {
    /// Reads a trace of an envelope.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        read(bytes, |_| {})
    }

    /// What is more than text in it.
    pub fn facts(&self) -> Result<Facts, WireError> {
        let trace = &self.trace;
        let duration_ms = trace.duration_ms.and_then(|ms| u32::try_from(ms).ok());
        ClientId::check(trace.client_id).map_err(|_| WireError::Field("client_id"))?;
        Ok(Facts {
            event_id: EventId::parse(trace.event_id).ok_or(WireError::Field("event_id"))?,
            status: trace.known_status().ok_or(WireError::Field("status"))?,
            started_at: trace.started_at.and_then(Moment::time).ok_or(WireError::Field("started_at"))?,
            duration_ms: duration_ms.ok_or(WireError::Field("duration_ms"))?,
        })
    }

    /// The trace with texts of its own.
    pub fn to_owned(&self) -> Result<AcceptedTrace, WireError> {
        let facts = self.facts()?;
        let client_id = ClientId::new(self.trace.client_id).map_err(|_| WireError::Field("client_id"))?;
        let trace = self.trace.with_own_texts(client_id, facts);
        Ok(AcceptedTrace { trace, received_at: self.received_at, late: self.late, place: self.place })
    }
}

/// Reads the fields of either message; `sees` each number above those of the first.
fn read<'a>(mut rest: &'a [u8], mut sees: impl FnMut(u64)) -> Result<TakenRef<'a>, Malformed> {
    let mut taken = TakenRef::default();
    let trace = &mut taken.trace;
    while !rest.is_empty() {
        let key = number(&mut rest)?;
        let field = key >> 3;
        if field > LAST_SENT {
            sees(field);
        }
        match (field, key & 7) {
            (1, LENGTH) => trace.event_id = text(&mut rest, field)?,
            (2, LENGTH) => trace.client_id = text(&mut rest, field)?,
            (3, LENGTH) => trace.user_sub = text(&mut rest, field)?,
            (4, LENGTH) => trace.tool = text(&mut rest, field)?,
            (5, LENGTH) => trace.scope_used = text(&mut rest, field)?,
            (6, VARINT) => trace.status = number(&mut rest)?,
            (7, LENGTH) => trace.started_at = Some(moment(piece(&mut rest)?)?),
            (8, VARINT) => trace.duration_ms = Some(number(&mut rest)?),
            (9, LENGTH) => trace.session_id = text(&mut rest, field)?,
            (10, LENGTH) => trace.agent = text(&mut rest, field)?,
            (11, LENGTH) => trace.source_ip = text(&mut rest, field)?,
            (12, LENGTH) => trace.error_code = text(&mut rest, field)?,
            (13, LENGTH) => trace.attributes.push(attribute(piece(&mut rest)?)?),
            (14, FIXED64) => taken.received_at = Time::from_micros(fixed64(&mut rest)?.cast_signed()),
            (15, VARINT) => taken.late = number(&mut rest)? != 0,
            (16, LENGTH) => taken.place = Some(place(piece(&mut rest)?)?),
            (0, _) => return Err(Malformed::Bytes),
            (1..=16, _) => return Err(Malformed::Field(name(field))),
            (_, kind) => skip(&mut rest, kind)?,
        }
    }
    Ok(taken)
}

fn name(field: u64) -> &'static str {
    usize::try_from(field).ok().and_then(|field| FIELDS.get(field)).copied().unwrap_or_default()
}

pub(super) fn number(rest: &mut &[u8]) -> Result<u64, Malformed> {
    decode_varint(rest).map_err(|_| Malformed::Bytes)
}

fn fixed64(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let (eight, after) = rest.split_first_chunk::<8>().ok_or(Malformed::Bytes)?;
    *rest = after;
    Ok(u64::from_le_bytes(*eight))
}

pub(super) fn piece<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = usize::try_from(number(rest)?).map_err(|_| Malformed::Bytes)?;
    let (piece, after) = rest.split_at_checked(length).ok_or(Malformed::Bytes)?;
    *rest = after;
    Ok(piece)
}

fn text<'a>(rest: &mut &'a [u8], field: u64) -> Result<&'a str, Malformed> {
    std::str::from_utf8(piece(rest)?).map_err(|_| Malformed::Field(name(field)))
}

pub(super) fn skip(rest: &mut &[u8], kind: u64) -> Result<(), Malformed> {
    match kind {
        VARINT => number(rest).map(drop),
        FIXED64 => fixed64(rest).map(drop),
        LENGTH => piece(rest).map(drop),
        FIXED32 => {
            *rest = rest.get(4..).ok_or(Malformed::Bytes)?;
            Ok(())
        }
        // Groups are of a time before these messages.
        _ => Err(Malformed::Bytes),
    }
}

fn moment(mut rest: &[u8]) -> Result<Moment, Malformed> {
    let mut moment = Moment::default();
    while !rest.is_empty() {
        let key = number(&mut rest)?;
        match (key >> 3, key & 7) {
            (1, VARINT) => moment.seconds = number(&mut rest)?.cast_signed(),
            // An int32 is sent as the 64-bit number; what does not fit is cut, as everywhere in protobuf.
            #[allow(clippy::cast_possible_truncation)]
            (2, VARINT) => moment.nanos = number(&mut rest)? as i32,
            (1 | 2, _) => return Err(Malformed::Field("started_at")),
            (_, kind) => skip(&mut rest, kind)?,
        }
    }
    Ok(moment)
}

fn attribute(mut rest: &[u8]) -> Result<(&str, &str), Malformed> {
    let (mut name, mut value) = ("", "");
    while !rest.is_empty() {
        let key = number(&mut rest)?;
        match (key >> 3, key & 7) {
            (1, LENGTH) => name = text(&mut rest, LAST_SENT)?,
            (2, LENGTH) => value = text(&mut rest, LAST_SENT)?,
            (1 | 2, _) => return Err(Malformed::Field("attributes")),
            (_, kind) => skip(&mut rest, kind)?,
        }
    }
    Ok((name, value))
}

fn place(mut rest: &[u8]) -> Result<Place, Malformed> {
    let mut place = Place { log_id: LogId(0), partition: 0, offset: 0, index: 0 };
    let small = |number: u64| u32::try_from(number).map_err(|_| Malformed::Field("place"));
    while !rest.is_empty() {
        let key = number(&mut rest)?;
        match (key >> 3, key & 7) {
            (1, FIXED64) => place.log_id = LogId(fixed64(&mut rest)?),
            (2, VARINT) => place.partition = small(number(&mut rest)?)?,
            (3, VARINT) => place.offset = number(&mut rest)?,
            (4, VARINT) => place.index = small(number(&mut rest)?)?,
            (1..=4, _) => return Err(Malformed::Field("place")),
            (_, kind) => skip(&mut rest, kind)?,
        }
    }
    Ok(place)
}

pub(super) fn put_key(out: &mut Vec<u8>, field: u64, kind: u64) {
    encode_varint(field << 3 | kind, out);
}

pub(super) fn put_number(out: &mut Vec<u8>, field: u64, number: u64) {
    if number != 0 {
        put_key(out, field, VARINT);
        encode_varint(number, out);
    }
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, LENGTH);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put_text(out: &mut Vec<u8>, field: u64, text: &str) {
    if !text.is_empty() {
        put_bytes(out, field, text.as_bytes());
    }
}

/// The most bytes that a place takes, with key and length.
pub(super) const PLACE_BYTES: usize = 40;

pub(super) fn put_place(out: &mut Vec<u8>, place: Place) {
    let mut inner = Vec::with_capacity(PLACE_BYTES);
    put_key(&mut inner, 1, FIXED64);
    inner.extend_from_slice(&place.log_id.0.to_le_bytes());
    put_number(&mut inner, 2, place.partition.into());
    put_number(&mut inner, 3, place.offset);
    put_number(&mut inner, 4, place.index.into());
    put_bytes(out, 16, &inner);
}

#[cfg(test)]
pub(super) mod tests {
    use panopticon_proto::{log, v1};
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    pub(in crate::trace) fn sent() -> impl Strategy<Value = v1::Trace> {
        let texts = prop::array::uniform8(".{0,20}");
        let moment = prop::option::of((any::<i64>(), any::<i32>()));
        let attributes = prop::collection::hash_map(".{0,5}", ".{0,9}", 0..3);
        (texts, 0..5_i32, moment, prop::option::of(any::<u32>()), attributes).prop_map(
            |([id, app, user, tool, scope, session, agent, code], status, moment, ms, attributes)| {
                v1::Trace {
                    event_id: id,
                    client_id: app,
                    user_sub: user,
                    tool,
                    scope_used: scope,
                    status,
                    started_at: moment.map(|(seconds, nanos)| prost_types::Timestamp { seconds, nanos }),
                    duration_ms: ms,
                    session_id: session,
                    agent,
                    source_ip: String::new(),
                    error_code: code,
                    attributes,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_trace_reads_as_the_generated_code_reads_it_and_is_written_so(sent in sent()) {
            let bytes = sent.encode_to_vec();
            let (read, foreign) = TraceRef::read(&bytes).unwrap();
            prop_assert!(!foreign);
            prop_assert_eq!(read.event_id, &sent.event_id);
            prop_assert_eq!(read.error_code, &sent.error_code);
            prop_assert_eq!(read.duration_ms, sent.duration_ms.map(u64::from));
            prop_assert_eq!(
                read.started_at,
                sent.started_at.map(|time| Moment { seconds: time.seconds, nanos: time.nanos })
            );
            let mut written = Vec::new();
            read.write(&mut written);
            prop_assert_eq!(v1::Trace::decode(&written[..]).unwrap(), sent);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = TraceRef::read(&bytes);
            let _ = TakenRef::read(&bytes);
        }

        #[test]
        fn a_trace_that_is_cut_off_is_refused_or_lacks_its_last_fields(sent in sent(), keep in 0.0..1.0) {
            let bytes = sent.encode_to_vec();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let cut = &bytes[..(bytes.len() as f64 * keep) as usize];
            prop_assert_eq!(TraceRef::read(cut).is_ok(), v1::Trace::decode(cut).is_ok());
        }
    }

    #[test]
    fn a_field_that_is_none_of_a_traces_is_told() {
        let log = log::TakenTrace { tool: "t".to_owned(), received_at: 5, ..log::TakenTrace::default() };
        let (read, foreign) =
            TraceRef::read(&log.encode_to_vec()).map(|(t, f)| (t.tool.to_owned(), f)).unwrap();
        assert_eq!((read.as_str(), foreign), ("t", true));
    }
}
