//! A trace: one call of one tool by an agent, checked.

mod envelope;
mod taken;
mod wire;

use std::{collections::BTreeMap, fmt};

use panopticon_proto::log;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::{
    envelope::{EnvelopeWriter, decode_envelope, encode_envelope, entries},
    taken::TakenBytes,
    wire::{Facts, Malformed, Moment, TakenRef, TraceRef},
};
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

    /// Its number in protobuf.
    pub(crate) const fn code(self) -> u32 {
        match self {
            Self::Ok => 1,
            Self::Error => 2,
            Self::Denied => 3,
        }
    }

    /// The status of that number.
    pub(crate) fn of_code(code: u32) -> Option<Self> {
        [Self::Ok, Self::Error, Self::Denied].into_iter().find(|status| status.code() == code)
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

/// Whether a call that began at `started_at` arrives, at `received_at`, too late to raise an alarm.
pub fn is_late(started_at: Time, duration_ms: u32, received_at: Time) -> bool {
    let ended_at = started_at.micros() + i64::from(duration_ms) * 1_000;
    received_at.micros() - ended_at > LATE_AFTER_US
}

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
    /// Takes in `trace` at `received_at`.
    pub fn new(trace: Trace, received_at: Time) -> Self {
        let late = is_late(trace.started_at, trace.duration_ms, received_at);
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
    /// Not a trace in protobuf.
    #[error("cannot be decoded: {0}")]
    Malformed(#[from] Malformed),
    /// Decoded, but a field holds what it must not.
    #[error("field `{0}` holds an impossible value")]
    Field(&'static str),
}

impl TryFrom<log::AcceptedTrace> for AcceptedTrace {
    type Error = WireError;
    fn try_from(older: log::AcceptedTrace) -> Result<Self, Self::Error> {
        Ok(Self {
            trace: Trace {
                event_id: EventId(
                    Uuid::from_slice(&older.event_id).map_err(|_| WireError::Field("event_id"))?,
                ),
                client_id: ClientId::new(&older.client_id).map_err(|_| WireError::Field("client_id"))?,
                user_sub: older.user_sub,
                tool: older.tool,
                scope_used: older.scope_used,
                status: Status::of_code(older.status).ok_or(WireError::Field("status"))?,
                started_at: Time::from_micros(older.started_at),
                duration_ms: older.duration_ms,
                session_id: older.session_id,
                agent: older.agent,
                source_ip: older.source_ip,
                error_code: older.error_code,
                attributes: older.attributes.into_iter().collect(),
            },
            received_at: Time::from_micros(older.received_at),
            late: older.late,
            place: older.place.map(Into::into),
        })
    }
}
