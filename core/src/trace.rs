//! A trace: one call of one tool by an agent, checked.

use std::{collections::BTreeMap, fmt};

use panopticon_proto::log as wire;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    ids::{ClientId, EventId, Place},
    time::Time,
};

/// How a tool call ended, as the RP said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The tool did its work.
    Ok,
    /// The tool failed.
    Error,
    /// The call was refused for lack of authentication or authorization.
    Denied,
}

impl Status {
    /// `ok`, `error` or `denied`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Denied => "denied",
        }
    }

    /// Reads what [`Status::as_str`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Ok, Self::Error, Self::Denied].into_iter().find(|status| status.as_str() == text)
    }

    const fn code(self) -> u32 {
        match self {
            Self::Ok => 1,
            Self::Error => 2,
            Self::Denied => 3,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Error codes that mean a refusal for lack of authentication or authorization: a trace with status
/// `error` and one of these counts as denied. From RFC 6749 §4.1.2.1 and §5.2, RFC 6750 §3.1, RFC 9470
/// §3 and the names of HTTP 401, 403 and 407 and of gRPC codes 7 and 16.
pub const DENIED_ERROR_CODES: &[&str] = &[
    "access_denied",
    "authentication_failed",
    "authentication_required",
    "consent_required",
    "expired_token",
    "forbidden",
    "insufficient_scope",
    "insufficient_user_authentication",
    "invalid_client",
    "invalid_credentials",
    "invalid_grant",
    "invalid_scope",
    "invalid_token",
    "login_required",
    "not_authenticated",
    "permission_denied",
    "proxy_authentication_required",
    "token_expired",
    "token_revoked",
    "unauthenticated",
    "unauthorized",
    "unauthorized_client",
    "http_401",
    "http_403",
    "401",
    "403",
];

/// A checked trace. Optional text is empty where it is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Identity, with `client_id`.
    pub event_id: EventId,
    /// The app.
    pub client_id: ClientId,
    /// Whose data; at most 255 bytes.
    pub user_sub: String,
    /// 1–256 bytes without control characters.
    pub tool: String,
    /// OAuth scopes, space-separated; at most 1 KiB.
    pub scope_used: String,
    /// How the call ended.
    pub status: Status,
    /// When the call began.
    pub started_at: Time,
    /// 0 to 86,400,000.
    pub duration_ms: u32,
    /// The conversation; at most 255 bytes.
    pub session_id: String,
    /// The agent's name; at most 255 bytes.
    pub agent: String,
    /// An IP address, as the RP wrote it.
    pub source_ip: String,
    /// A short code such as `timeout`; at most 255 bytes.
    pub error_code: String,
    /// The RP's own; at most 8 KiB of keys and values.
    pub attributes: BTreeMap<String, String>,
}

impl Trace {
    /// Whether the call was refused for lack of authentication or authorization.
    pub fn is_denied(&self) -> bool {
        is_denied(self.status, &self.error_code)
    }

    /// About how many bytes it takes in an envelope: its texts and an allowance for the rest.
    pub fn encoded_size(&self) -> usize {
        const FIXED: usize = 96;
        const PER_ATTRIBUTE: usize = 8;
        let attributes: usize = self.attributes.iter().map(|(k, v)| k.len() + v.len() + PER_ATTRIBUTE).sum();
        let texts =
            [&self.user_sub, &self.tool, &self.scope_used, &self.session_id, &self.agent, &self.source_ip];
        FIXED
            + self.client_id.as_str().len()
            + texts.iter().map(|text| text.len()).sum::<usize>()
            + self.error_code.len()
            + attributes
    }
}

/// Whether `status` with `error_code` counts as denied; see [`DENIED_ERROR_CODES`].
pub fn is_denied(status: Status, error_code: &str) -> bool {
    match status {
        Status::Ok => false,
        Status::Denied => true,
        Status::Error => DENIED_ERROR_CODES.iter().any(|code| code.eq_ignore_ascii_case(error_code)),
    }
}

/// How long after its end a trace may arrive and still raise an alarm, in microseconds.
pub const LATE_AFTER_US: i64 = 60_000_000;

/// A trace that the gateway has taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedTrace {
    /// What the RP sent.
    #[serde(flatten)]
    pub trace: Trace,
    /// When the gateway had it.
    pub received_at: Time,
    /// It arrived more than a minute after it ended: stored and counted, but raises no alarm.
    pub late: bool,
    /// Where it first entered the log; none before it is there.
    #[serde(skip)]
    pub place: Option<Place>,
}

impl AcceptedTrace {
    /// Takes in `trace` at `received_at`, deciding here once whether it is late.
    pub fn new(trace: Trace, received_at: Time) -> Self {
        let ended_at = trace.started_at.micros() + i64::from(trace.duration_ms) * 1_000;
        let late = received_at.micros() - ended_at > LATE_AFTER_US;
        Self { trace, received_at, late, place: None }
    }

    /// When it happened, for rules: `started_at`, but never ahead of `received_at`.
    pub fn event_time(&self) -> Time {
        self.trace.started_at.min(self.received_at)
    }
}

/// A record that does not hold what its topic promises.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Not protobuf of the expected shape.
    #[error("cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    /// Decoded, but a field holds what it must not.
    #[error("field `{0}` holds an impossible value")]
    Field(&'static str),
}

impl From<AcceptedTrace> for wire::AcceptedTrace {
    fn from(accepted: AcceptedTrace) -> Self {
        let AcceptedTrace { trace, received_at, late, place } = accepted;
        Self {
            event_id: bytes::Bytes::copy_from_slice(trace.event_id.0.as_bytes()),
            client_id: trace.client_id.into(),
            user_sub: trace.user_sub,
            tool: trace.tool,
            scope_used: trace.scope_used,
            status: trace.status.code(),
            started_at: trace.started_at.micros(),
            duration_ms: trace.duration_ms,
            session_id: trace.session_id,
            agent: trace.agent,
            source_ip: trace.source_ip,
            error_code: trace.error_code,
            attributes: trace.attributes.into_iter().collect(),
            received_at: received_at.micros(),
            late,
            place: place.map(Into::into),
        }
    }
}

impl TryFrom<wire::AcceptedTrace> for AcceptedTrace {
    type Error = WireError;
    fn try_from(wire: wire::AcceptedTrace) -> Result<Self, Self::Error> {
        Ok(Self {
            trace: Trace {
                event_id: EventId(
                    Uuid::from_slice(&wire.event_id).map_err(|_| WireError::Field("event_id"))?,
                ),
                client_id: ClientId::new(&wire.client_id).map_err(|_| WireError::Field("client_id"))?,
                user_sub: wire.user_sub,
                tool: wire.tool,
                scope_used: wire.scope_used,
                status: match wire.status {
                    1 => Status::Ok,
                    2 => Status::Error,
                    3 => Status::Denied,
                    _ => return Err(WireError::Field("status")),
                },
                started_at: Time::from_micros(wire.started_at),
                duration_ms: wire.duration_ms,
                session_id: wire.session_id,
                agent: wire.agent,
                source_ip: wire.source_ip,
                error_code: wire.error_code,
                attributes: wire.attributes.into_iter().collect(),
            },
            received_at: Time::from_micros(wire.received_at),
            late: wire.late,
            place: wire.place.map(Into::into),
        })
    }
}

/// Encodes an envelope: the value of one record of `traces.raw` or `traces`.
pub fn encode_envelope(traces: impl IntoIterator<Item = AcceptedTrace>) -> bytes::Bytes {
    wire::Envelope { traces: traces.into_iter().map(Into::into).collect() }.encode_to_vec().into()
}

/// Decodes what [`encode_envelope`] wrote.
pub fn decode_envelope(bytes: &[u8]) -> Result<Vec<AcceptedTrace>, WireError> {
    wire::Envelope::decode(bytes)?.traces.into_iter().map(TryInto::try_into).collect()
}
