//! API tokens: only their digests are kept.

use std::time::Duration;

use panopticon_core::{
    api::{TokenAnswer, TokenRequest},
    config::Secret,
    control::{Change, ControlState, key},
    ids::ClientId,
    proto::control::Token,
    secrets::{TOKEN_PREFIX, digest, random_key},
    time::Time,
};
use serde_json::json;
use uuid::Uuid;

use super::{Decision, MAX_TEXT_BYTES, Refusal, RefusalKind, checked_text};

/// The most tokens that are valid at the same time.
pub const MAX_TOKENS: usize = 1_000;
/// The most apps of a token.
pub const MAX_APPS: usize = 1_000;
/// How long a token is valid unless its request says otherwise.
pub const DEFAULT_DAYS: u32 = 90;
/// How long a token can be valid: ten years.
pub const MAX_DAYS: u32 = 3_650;

/// A token as the API shows it.
pub fn show(token: &Token, text: Option<&Secret>) -> TokenAnswer {
    TokenAnswer {
        id: token.token_id.clone(),
        name: token.name.clone(),
        role: token.role.clone(),
        apps: token.apps.clone(),
        created_at: Time::from_micros(token.created_at),
        expires_at: (token.expires_at != 0).then(|| Time::from_micros(token.expires_at)),
        token: text.map(|text| text.expose().to_owned()),
    }
}

/// Makes a token.
pub fn create(state: &ControlState, now: Time, request: &TokenRequest) -> Decision<TokenAnswer> {
    if request.name.is_empty() {
        return Err(Refusal::invalid("name", "must not be empty; it is what the audit record shows"));
    }
    checked_text("name", &request.name, MAX_TEXT_BYTES)?;
    match (request.role.as_str(), request.apps.is_empty()) {
        ("admin", true) | ("owner", false) | ("read", _) => {}
        ("admin", false) => return Err(Refusal::invalid("apps", "must be empty: an admin is for all apps")),
        ("owner", true) => return Err(Refusal::invalid("apps", "must name the apps of the owner")),
        _ => return Err(Refusal::invalid("role", "must be `admin`, `owner` or `read`")),
    }
    if request.apps.len() > MAX_APPS {
        return Err(Refusal::invalid(
            "apps",
            format!("has {} entries; at most {MAX_APPS}", request.apps.len()),
        ));
    }
    for (i, app) in request.apps.iter().enumerate() {
        ClientId::new(app).map_err(|why| Refusal::invalid(&format!("apps[{i}]"), why))?;
    }
    let days = request.expires_in_days.unwrap_or(DEFAULT_DAYS);
    if !(1..=MAX_DAYS).contains(&days) {
        return Err(Refusal::invalid("expires_in_days", format!("must be from 1 to {MAX_DAYS}")));
    }
    let live = |token: &&std::sync::Arc<Token>| token.expires_at == 0 || token.expires_at > now.micros();
    if state.tokens().iter().filter(live).count() >= MAX_TOKENS {
        return Err(Refusal::new(
            RefusalKind::LimitReached,
            format!("{MAX_TOKENS} tokens are valid; revoke one first"),
        ));
    }
    let text = random_key(TOKEN_PREFIX);
    let token = Token {
        token_id: Uuid::now_v7().to_string(),
        name: request.name.clone(),
        sha256: digest(text.expose()).to_vec(),
        role: request.role.clone(),
        apps: request.apps.clone(),
        created_at: now.micros(),
        expires_at: now.plus(Duration::from_secs(u64::from(days) * 86_400)).micros(),
    };
    let answer = show(&token, Some(&text));
    Ok((Some(change("token.create", &token, Some(&token))), answer))
}

/// Ends a token at once.
pub fn revoke(state: &ControlState, token_id: &str) -> Decision<()> {
    let Some(token) = state.token(token_id) else {
        let shown: String = token_id.chars().take(64).collect();
        return Err(Refusal::new(RefusalKind::NotFound, format!("there is no token `{shown}`")));
    };
    Ok((Some(change("token.revoke", token, None)), ()))
}

fn change(action: &'static str, token: &Token, entry: Option<&Token>) -> Change {
    let mut change = Change::put(action, "", key("token", &[&token.token_id]), entry);
    change.target.clone_from(&token.token_id);
    change.detail = json!({
        "name": token.name, "role": token.role, "apps": token.apps,
        "expires_at": Time::from_micros(token.expires_at),
    });
    change
}
