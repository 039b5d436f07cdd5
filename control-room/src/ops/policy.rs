//! An app's policy: what the guard enforcer and the anomaly rules go by.

mod detection;

use panopticon_core::{
    api::{PolicyAnswer, RateLimitBody},
    control::{Change, ControlState, key},
    detection::DetectionSettings,
    ids::ClientId,
    proto::control::{Policy, RateLimit},
    time::Time,
};
use serde_json::{Map, Value, json};

use super::{Decision, Refusal, RefusalKind};

/// What a PATCH says about the rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Nothing.
    Keep,
    /// Back to the default.
    Reset,
    /// These limits; what is left out stays as it is.
    Set { per_minute: Option<u32>, per_tool_per_minute: Option<u32> },
}

/// A checked PATCH.
#[derive(Debug)]
pub struct PolicyPatch {
    rate_limit: Wish,
    detection: detection::Wish,
}

impl PolicyPatch {
    /// Reads the body of a PATCH for `client_id`.
    pub fn parse(body: &Map<String, Value>, client_id: &ClientId) -> Result<Self, Refusal> {
        let (mut rate_limit, mut detection) = (Wish::Keep, detection::Wish::Keep);
        for (name, value) in body {
            match name.as_str() {
                "rate_limit" => rate_limit = parse_rate_limit(value)?,
                "detection" => detection = detection::parse(value)?,
                "client_id" if value.as_str() == Some(client_id.as_str()) => {}
                "client_id" => return Err(Refusal::invalid("client_id", "is another app than the path's")),
                "version" | "updated_at" => {
                    return Err(Refusal::invalid(
                        name,
                        "cannot be set; send the version as `If-Match` to change only what you have read",
                    ));
                }
                other => {
                    let shown: String = other.chars().take(64).collect();
                    return Err(Refusal {
                        kind: RefusalKind::NotSupported,
                        description: format!(
                            "this version enforces no setting `{shown}`, so it is not saved either; it knows `rate_limit` \
                             and `detection`"
                        ),
                        field: Some(shown),
                    });
                }
            }
        }
        Ok(Self { rate_limit, detection })
    }
}

fn parse_rate_limit(value: &Value) -> Result<Wish, Refusal> {
    let fields = match value {
        Value::Null => return Ok(Wish::Reset),
        Value::Object(fields) => fields,
        _ => return Err(Refusal::invalid("rate_limit", "must be an object, or null for the default")),
    };
    let (mut per_minute, mut per_tool_per_minute) = (None, None);
    for (name, value) in fields {
        let field = format!("rate_limit.{name}");
        let limit = match name.as_str() {
            "per_minute" => &mut per_minute,
            "per_tool_per_minute" => &mut per_tool_per_minute,
            _ => {
                return Err(Refusal::invalid(
                    &field,
                    "unknown field; expected `per_minute` or `per_tool_per_minute`",
                ));
            }
        };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        *limit = Some(number.filter(|number| *number <= RateLimitBody::MAX).ok_or_else(|| {
            let most = RateLimitBody::MAX;
            Refusal::invalid(&field, format!("must be a whole number from 0 (not limited) to {most}"))
        })?);
    }
    Ok(Wish::Set { per_minute, per_tool_per_minute })
}

/// The policy in force.
pub fn show(state: &ControlState, client_id: &ClientId) -> PolicyAnswer {
    answer(client_id, &own(state, client_id))
}

/// What was set for the app; version 0 where nothing ever was.
fn own(state: &ControlState, client_id: &ClientId) -> Policy {
    state.policy(client_id.as_str()).map(|policy| Policy::clone(policy)).unwrap_or_default()
}

fn answer(client_id: &ClientId, own: &Policy) -> PolicyAnswer {
    PolicyAnswer {
        client_id: client_id.to_string(),
        rate_limit: own.rate_limit.map_or_else(RateLimitBody::default, |limit| RateLimitBody {
            per_minute: limit.per_minute,
            per_tool_per_minute: limit.per_tool_per_minute,
        }),
        detection: own.detection.as_ref().map_or_else(DetectionSettings::default, Into::into),
        version: own.version,
        updated_at: (own.version > 0).then(|| Time::from_micros(own.updated_at)),
    }
}

/// Changes the policy, if its version is one that `may_change` accepts.
pub fn patch(
    state: &ControlState,
    now: Time,
    client_id: &ClientId,
    patch: &PolicyPatch,
    may_change: impl Fn(u64) -> bool,
) -> Decision<PolicyAnswer> {
    if state.app_of(client_id).is_none() {
        return Err(Refusal::no_app(client_id.as_str()));
    }
    let old = own(state, client_id);
    if !may_change(old.version) {
        return Err(Refusal::new(
            RefusalKind::PreconditionFailed,
            format!(
                "the policy is at version {} and not at the one named by `If-Match`; read it again and decide anew",
                old.version
            ),
        ));
    }
    let in_force = answer(client_id, &old).rate_limit;
    let rate_limit = match patch.rate_limit {
        Wish::Keep => old.rate_limit,
        Wish::Reset => None,
        Wish::Set { per_minute, per_tool_per_minute } => Some(RateLimit {
            per_minute: per_minute.unwrap_or(in_force.per_minute),
            per_tool_per_minute: per_tool_per_minute.unwrap_or(in_force.per_tool_per_minute),
        }),
    };
    let detection = patch.detection.onto(old.detection.as_ref());
    if rate_limit == old.rate_limit && detection == old.detection {
        return Ok((None, answer(client_id, &old)));
    }
    let policy = Policy {
        client_id: client_id.to_string(),
        version: old.version + 1,
        rate_limit,
        updated_at: now.micros(),
        detection,
    };
    let mut change =
        Change::put("policy.update", client_id.as_str(), key("policy", &[client_id.as_str()]), Some(&policy));
    change.detail = json!({
        "version": policy.version,
        "rate_limit": policy.rate_limit,
        "detection": detection::for_audit(policy.detection.as_ref()),
    });
    Ok((Some(change), answer(client_id, &policy)))
}
