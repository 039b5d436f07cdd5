//! A call of a tool as an RP reports it, and the apps that report.

use std::collections::HashMap;

use jiff::Timestamp;
use panopticon_proto::v1;
use serde_json::{Value, json};
use uuid::Uuid;

/// An app of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum App {
    /// Ordinary load.
    Alpha,
    /// Ordinary load.
    Beta,
    /// Ordinary load.
    Gamma,
    /// Rate limits in force: loops, bursts and denials.
    Watched,
    /// Traces that tell when the road is free again.
    Canary,
}

impl App {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Alpha, Self::Beta, Self::Gamma, Self::Watched, Self::Canary];
    /// Those with ordinary load.
    pub const LOADED: [Self; 3] = [Self::Alpha, Self::Beta, Self::Gamma];

    /// Its client_id.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Alpha => "chaos-alpha",
            Self::Beta => "chaos-beta",
            Self::Gamma => "chaos-gamma",
            Self::Watched => "chaos-watched",
            Self::Canary => "chaos-canary",
        }
    }

    /// The app with this client_id.
    pub fn of(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|app| app.id() == id)
    }

    /// Its PAK, as configured.
    pub fn pak(self) -> String {
        let letters: String = self.id().chars().filter(char::is_ascii_alphabetic).cycle().take(43).collect();
        format!("pano_pak_{letters}")
    }
}

/// How the call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Well.
    Ok,
    /// The tool failed.
    Error,
    /// It was refused.
    Denied,
}

impl Status {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Denied => "denied",
        }
    }
}

/// A call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Who reports it.
    pub app: App,
    /// Its identity.
    pub event_id: Uuid,
    /// Whose data.
    pub user: String,
    /// Which tool.
    pub tool: &'static str,
    /// How it ended.
    pub status: Status,
    /// When it began.
    pub started_at: Timestamp,
    /// Empty: not told.
    pub source_ip: String,
}

/// How long every call took.
const DURATION_MS: u32 = 5;

impl Call {
    /// A call that begins now and ends well.
    pub fn now(app: App, user: impl Into<String>, tool: &'static str) -> Self {
        Self {
            app,
            event_id: Uuid::new_v4(),
            user: user.into(),
            tool,
            status: Status::Ok,
            started_at: Timestamp::now(),
            source_ip: String::new(),
        }
    }

    /// The same, refused, from an address.
    pub fn denied(self, source_ip: impl Into<String>) -> Self {
        Self { status: Status::Denied, source_ip: source_ip.into(), ..self }
    }

    /// As HTTP takes it.
    pub fn to_json(&self) -> Value {
        let mut trace = json!({
            "event_id": self.event_id,
            "client_id": self.app.id(),
            "user_sub": self.user,
            "tool": self.tool,
            "scope_used": scope_of(self.tool),
            "status": self.status.word(),
            "started_at": self.started_at.to_string(),
            "duration_ms": DURATION_MS,
        });
        if !self.source_ip.is_empty() {
            trace["source_ip"] = self.source_ip.clone().into();
        }
        trace
    }

    /// As gRPC takes it.
    pub fn to_proto(&self) -> v1::Trace {
        let status = match self.status {
            Status::Ok => v1::Status::Ok,
            Status::Error => v1::Status::Error,
            Status::Denied => v1::Status::Denied,
        };
        v1::Trace {
            event_id: self.event_id.to_string(),
            client_id: self.app.id().to_owned(),
            user_sub: self.user.clone(),
            tool: self.tool.to_owned(),
            scope_used: scope_of(self.tool).to_owned(),
            status: status.into(),
            started_at: Some(prost_types::Timestamp {
                seconds: self.started_at.as_second(),
                nanos: self.started_at.subsec_nanosecond(),
            }),
            duration_ms: Some(DURATION_MS),
            session_id: String::new(),
            agent: String::new(),
            source_ip: self.source_ip.clone(),
            error_code: String::new(),
            attributes: HashMap::new(),
        }
    }
}

/// Tools of ordinary load.
pub const TOOLS: [&str; 5] = ["calendar.read", "mail.search", "mail.send", "files.write", "crm.lookup"];

fn scope_of(tool: &str) -> &str {
    tool.split_once('.').map_or(tool, |(scope, _)| scope)
}
