//! `/apps/{client_id}/policy`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, header},
};
use panopticon_core::{api::PolicyAnswer, control::ControlState, time::Time};
use serde_json::{Map, Value};

use crate::{
    access::{Caller, Need},
    answer::ApiError,
    input::JsonBody,
    ops::{self, policy::PolicyPatch},
    room::Room,
};

type Tagged = ([(HeaderName, String); 1], Json<PolicyAnswer>);

fn tagged(answer: PolicyAnswer) -> Tagged {
    ([(header::ETAG, format!("\"{}\"", answer.version))], Json(answer))
}

pub(super) async fn get(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
) -> Result<Tagged, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Read)?;
    room.known(&client_id)?;
    Ok(tagged(ops::policy::show(&room.view.state(), &client_id)))
}

pub(super) async fn patch(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<Map<String, Value>>,
) -> Result<Tagged, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Change)?;
    let patch = PolicyPatch::parse(&body, &client_id)?;
    let wanted = if_match(&headers)?;
    let decide = move |_: &Room, state: &ControlState, now: Time| {
        let may_change = |version| wanted.as_ref().is_none_or(|wanted| wanted.contains(&version));
        ops::policy::patch(state, now, &client_id, &patch, may_change)
    };
    Ok(tagged(room.change(&caller, decide).await?))
}

/// The versions that `If-Match` names (RFC 9110 §13.1.1); none: any. A tag that is not one of ours, weak
/// ones among them, never matches.
fn if_match(headers: &HeaderMap) -> Result<Option<Vec<u64>>, ApiError> {
    let mut versions = None;
    for value in headers.get_all(header::IF_MATCH) {
        let text = value.to_str().map_err(|_| ApiError::invalid("If-Match", "must be an ETag"))?;
        for tag in text.split(',').map(str::trim) {
            if tag == "*" {
                return Ok(None);
            }
            let version = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
            let version = version.and_then(|version| version.parse::<u64>().ok());
            versions.get_or_insert_with(Vec::new).extend(version);
        }
    }
    Ok(versions)
}
