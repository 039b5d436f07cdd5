//! The JSON of the control API, shared by the control room that answers and `logi` that asks.
//!
//! Base path `/api/v1/panopticon`. Client ids, user names and ids are percent-encoded in paths. Lists are
//! [`ListAnswer`]; errors are [`ErrorBody`]. Detections, guard actions, deliveries and audit entries are
//! the JSON of their messages (`panopticon/v1/log.proto`).

use serde::{Deserialize, Serialize};

use crate::{
    detection::DetectionSettings, erasure::ErasedCounts, store::UsageCounts, time::Time, trace::AcceptedTrace,
};

/// The base path of the control API.
pub const BASE: &str = "/api/v1/panopticon";
/// The name of the response header that carries the request id.
pub const REQUEST_ID_HEADER: &str = "x-logi-request-id";
/// The name of the response header that carries what AI Guard says.
pub const GUARD_HEADER: &str = "x-panopticon-guard";

/// An error, on every HTTP interface.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A stable code such as `invalid_request`.
    pub error: String,
    /// What is wrong and what to do, for people.
    pub error_description: String,
    /// Where it is explained.
    pub error_uri: String,
    /// The same as in `X-Logi-Request-Id`.
    pub request_id: String,
    /// The field at fault, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// One page of a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListAnswer<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Goes into `cursor=` for the next page; null on the last.
    pub next_cursor: Option<String>,
}

/// `PUT /apps/{client_id}`: creates the app or changes it. Fields left out stay as they are.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppRequest {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The OAuth scopes that it may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    /// Whether every request must be signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hmac: Option<bool>,
    /// Whether its traces are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
}

/// An app. `GET /apps`, `GET|PUT /apps/{client_id}`; `DELETE` disables it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AppAnswer {
    /// Its OAuth client identifier.
    pub client_id: String,
    /// For people.
    pub name: String,
    /// The OAuth scopes that it may use.
    pub scopes: Vec<String>,
    /// Whether every request must be signed.
    pub hmac: bool,
    /// Whether its traces are refused.
    pub disabled: bool,
    /// Its kills, the whole app's first.
    pub kills: Vec<KillAnswer>,
    /// How many of its PAKs are valid.
    pub paks: usize,
    /// When it was enabled.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
    /// A new PAK, shown this once: in the answer that created the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pak: Option<String>,
    /// The HMAC secret of the new PAK, shown this once, for an app in HMAC mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pak_secret: Option<String>,
}

/// `POST /apps/{client_id}/pak`: issues a new PAK; the old ones end after the grace period.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// Seconds for which older PAKs stay valid; default `gateway.pak_grace_secs`, at most 604,800 (a week).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_secs: Option<u64>,
}

/// The new PAK, shown this once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RotateAnswer {
    /// The app.
    pub client_id: String,
    /// `pano_pak_…`.
    pub pak: String,
    /// `pano_sec_…`, for an app in HMAC mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pak_secret: Option<String>,
    /// When the older PAKs end.
    pub previous_valid_until: Time,
}

/// The limits of the rule `rate_limit`, per app × user in any 60 seconds; 0: not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimitBody {
    /// All calls.
    pub per_minute: u32,
    /// Calls of one tool.
    pub per_tool_per_minute: u32,
}

impl RateLimitBody {
    /// The largest limit that is enforced: as many calls and more are kept for each user.
    pub const MAX: u32 = 100_000;
}

impl Default for RateLimitBody {
    /// What holds for an app without a policy of its own.
    fn default() -> Self {
        Self { per_minute: 60, per_tool_per_minute: 20 }
    }
}

/// `GET /apps/{client_id}/policy`, with the ETag; `PATCH` takes the same fields but the last two, `null`
/// for back to the default.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyAnswer {
    /// The app.
    pub client_id: String,
    /// In force, be it the app's own or the default.
    pub rate_limit: RateLimitBody,
    /// The same for the anomaly rules.
    #[serde(default)]
    pub detection: DetectionSettings,
    /// Grows by one with every change; in quotes, the ETag. 0: everything is as by default.
    pub version: u64,
    /// When it was last changed.
    pub updated_at: Option<Time>,
}

/// `POST|DELETE /apps/{client_id}/kill`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillRequest {
    /// Only this user of the app; absent: the whole app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_sub: Option<String>,
    /// Why, for the RP and the audit record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A kill, or the end of one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KillAnswer {
    /// The app.
    pub client_id: String,
    /// The user; null: the whole app.
    pub user_sub: Option<String>,
    /// `killed` or `lifted`.
    pub state: String,
    /// Why.
    pub reason: String,
    /// Who did it.
    pub actor: String,
    /// When.
    pub at: Time,
}

/// One date of `GET /apps/{client_id}/usage?since&until&tz`; dates without any figure are left out. The
/// list has no cursor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UsageRow {
    /// `2026-06-30`.
    pub date: String,
    /// The figures.
    #[serde(flatten)]
    pub counts: UsageCounts,
}

/// `POST /apps/{client_id}/webhooks`; `PATCH /apps/{client_id}/webhooks/{id}` takes the same, all optional.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookRequest {
    /// Where messages go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Which types; absent or empty: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub types: Option<Vec<String>>,
    /// Whether messages are held back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
}

/// A webhook endpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WebhookAnswer {
    /// Its id.
    pub id: String,
    /// The app.
    pub client_id: String,
    /// Where messages go.
    pub url: String,
    /// Which types; empty: all.
    pub types: Vec<String>,
    /// Whether messages are held back.
    pub disabled: bool,
    /// Why, where it was not asked for.
    pub disabled_reason: String,
    /// When it was added.
    pub created_at: Time,
    /// `whsec_…`, shown this once: when added (`POST …/webhooks`) or rotated (`POST …/webhooks/{id}/secret`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Names the newest secret in `X-Logi-Signature`.
    pub kid: String,
}

/// `POST /apps/{client_id}/webhooks/{id}/test`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TestAnswer {
    /// The message's `webhook-id`.
    pub webhook_id: String,
}

/// `POST /tokens`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// For people and the audit record.
    pub name: String,
    /// `admin`, `owner` or `read`.
    pub role: String,
    /// The apps of an owner; with `read`, empty means all.
    #[serde(default)]
    pub apps: Vec<String>,
    /// Days until it expires; absent: 90.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_days: Option<u32>,
}

/// `POST /apps/{client_id}/erase`: takes a person out of the app's records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EraseRequest {
    /// Who.
    pub user_sub: String,
}

/// What was erased, and what runs out when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EraseAnswer {
    /// The app.
    pub client_id: String,
    /// Under which the audit record knows it.
    pub erasure_id: String,
    /// Whether nothing is left to do; else `notes` say what.
    pub complete: bool,
    /// How much was removed or given to a pseudonym.
    pub erased: ErasedCounts,
    /// When the copies in the event log have run out.
    pub log_copies_gone_by: Time,
    /// When the copies of webhook deliveries in the event log have run out.
    pub delivery_copies_gone_by: Time,
    /// What was kept and why, in sentences.
    pub notes: Vec<String>,
}

/// `POST /dead-letters/{id}/replay`: the record was appended again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterReplayAnswer {
    /// The dead letter.
    pub dead_letter_id: String,
    /// Where its record lay and lies again.
    pub topic: String,
    /// In which partition.
    pub partition: u32,
    /// The stage that takes it up; the others skip it.
    pub stage: String,
    /// When it was appended again, at the first time of asking.
    pub replayed_at: Time,
}

/// An API token. `GET|POST /tokens`, `DELETE /tokens/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenAnswer {
    /// Its id.
    pub id: String,
    /// For people.
    pub name: String,
    /// `admin`, `owner` or `read`.
    pub role: String,
    /// The apps that it is for.
    pub apps: Vec<String>,
    /// When it was made.
    pub created_at: Time,
    /// When it ends; null: never.
    pub expires_at: Option<Time>,
    /// `pano_tok_…`, shown this once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// `GET /apps/{client_id}/status`: I sent it, where is it?
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusAnswer {
    /// The app.
    pub client_id: String,
    /// Whether its traces are refused.
    pub disabled: bool,
    /// Its kills.
    pub kills: Vec<KillAnswer>,
    /// When the latest stored trace was received.
    pub last_received_at: Option<Time>,
    /// What this process's gateway did with the app's requests since it started; absent where the control
    /// room runs without a gateway.
    pub gateway: Option<GatewayCounts>,
    /// How far each stage is behind.
    pub stages: Vec<StageLag>,
    /// The app's endpoints with their last answers.
    pub webhooks: Vec<WebhookHealth>,
    /// What to look at, in sentences; empty when all is well.
    pub hints: Vec<String>,
}

/// What a gateway did with the requests of an app since it started.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct GatewayCounts {
    /// Traces accepted.
    pub accepted: u64,
    /// Traces that had come before.
    pub duplicate: u64,
    /// Traces that could not be confirmed.
    pub unavailable: u64,
    /// Of the accepted: those that came more than a minute after they ended.
    pub late: u64,
    /// When the last one was accepted.
    pub last_accepted_at: Option<Time>,
    /// Refusals by error and field.
    pub refused: Vec<RefusalCount>,
}

/// Refusals of one kind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefusalCount {
    /// The error code.
    pub error: String,
    /// The field at fault; empty where there is none.
    pub field: String,
    /// How many.
    pub count: u64,
    /// When the last one was.
    pub last_at: Time,
}

/// How far a stage is behind, over all partitions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StageLag {
    /// The stage.
    pub stage: String,
    /// What it reads.
    pub topic: String,
    /// Offsets between its position and the end.
    pub lag_records: u64,
}

/// What became of the last messages to an endpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WebhookHealth {
    /// The endpoint.
    pub id: String,
    /// Where messages go.
    pub url: String,
    /// Whether messages are held back, and why.
    pub disabled: bool,
    /// Why it is disabled.
    pub disabled_reason: String,
    /// Messages under way.
    pub pending: u64,
    /// The state of the latest delivery; empty before the first.
    pub last_state: String,
    /// Its HTTP status; 0 where there was no answer.
    pub last_status: u32,
    /// Its error.
    pub last_error: String,
}

/// `GET /traces/{event_id}`: the road of one trace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoadAnswer {
    /// The id asked for.
    pub event_id: String,
    /// The steps that it has taken, in order.
    pub steps: Vec<RoadStep>,
    /// The trace, where it is stored.
    pub trace: Option<AcceptedTrace>,
}

/// One step of a trace on its road.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoadStep {
    /// `accepted`, `stored`, `detection`, `action` or `delivery`.
    pub step: String,
    /// When, where that is known.
    pub at: Option<Time>,
    /// What happened, for people.
    pub summary: String,
    /// The id of the detection, action or delivery.
    pub id: String,
}
