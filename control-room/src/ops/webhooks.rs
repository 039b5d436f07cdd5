//! Webhook endpoints and their secrets.

use std::time::Duration;

use panopticon_core::{
    api::{TestAnswer, WebhookAnswer, WebhookRequest},
    config::{Secret, WebhooksConfig},
    control::{Change, ControlState, key},
    ids::ClientId,
    proto::{
        control::{WebhookEndpoint, WebhookSecret},
        log::{GuardAction, TestMessage},
    },
    secrets::{Sealer, random_webhook_secret},
    time::Time,
};
use serde_json::json;
use uuid::Uuid;

use super::{Decision, Refusal, RefusalKind};

/// The types that are sent.
pub const TYPES: &[&str] = &[
    "panopticon.anomaly_detected",
    "panopticon.anomaly_resolved",
    "panopticon.kill_switch",
    "panopticon.test",
];
/// The most bytes of a URL.
pub const MAX_URL_BYTES: usize = 2048;
/// The most secrets of an endpoint that sign at the same time.
pub const MAX_SECRETS: usize = 5;

/// Whether messages may be sent to a URL; the error says why not.
pub type CheckUrl = dyn Fn(&str) -> Result<(), String> + Send + Sync;

/// What the sealed secret of an endpoint is bound to.
pub fn sealed_about(endpoint_id: &str) -> String {
    format!("webhook/{endpoint_id}")
}

/// An endpoint as the API shows it.
pub fn show(endpoint: &WebhookEndpoint, secret: Option<&Secret>) -> WebhookAnswer {
    WebhookAnswer {
        id: endpoint.endpoint_id.clone(),
        client_id: endpoint.client_id.clone(),
        url: endpoint.url.clone(),
        types: endpoint.types.clone(),
        disabled: endpoint.disabled,
        disabled_reason: endpoint.disabled_reason.clone(),
        created_at: Time::from_micros(endpoint.created_at),
        secret: secret.map(|secret| secret.expose().to_owned()),
        // Secrets are appended, so the newest is the last.
        kid: endpoint.secrets.last().map(|secret| secret.kid.clone()).unwrap_or_default(),
    }
}

/// The app's endpoint of that id.
pub fn find<'a>(
    state: &'a ControlState,
    client_id: &ClientId,
    endpoint_id: &str,
) -> Result<&'a WebhookEndpoint, Refusal> {
    if state.app_of(client_id).is_none() {
        return Err(Refusal::no_app(client_id.as_str()));
    }
    state
        .webhook(endpoint_id)
        .filter(|endpoint| endpoint.client_id == client_id.as_str())
        .map(|endpoint| &**endpoint)
        .ok_or_else(|| {
            let shown: String = endpoint_id.chars().take(64).collect();
            Refusal::new(RefusalKind::NotFound, format!("the app has no webhook endpoint `{shown}`"))
        })
}

/// Adds an endpoint.
pub fn add(
    state: &ControlState,
    now: Time,
    (sealer, check_url, limits): (&Sealer, &CheckUrl, &WebhooksConfig),
    client_id: &ClientId,
    request: &WebhookRequest,
) -> Decision<WebhookAnswer> {
    if state.app_of(client_id).is_none() {
        return Err(Refusal::no_app(client_id.as_str()));
    }
    let Some(url) = &request.url else {
        return Err(Refusal::invalid("url", "is required: where messages go"));
    };
    let mut endpoint = WebhookEndpoint {
        endpoint_id: Uuid::now_v7().to_string(),
        client_id: client_id.to_string(),
        created_at: now.micros(),
        updated_at: now.micros(),
        disabled: request.disabled.unwrap_or(false),
        url: checked_url(url, check_url)?,
        types: checked_types(request.types.as_deref().unwrap_or_default())?,
        ..WebhookEndpoint::default()
    };
    if state.webhooks(client_id.as_str()).len() >= limits.max_endpoints_per_app {
        return Err(Refusal::new(
            RefusalKind::LimitReached,
            format!(
                "the app has {} webhook endpoints (`webhooks.max_endpoints_per_app`); remove one first",
                limits.max_endpoints_per_app
            ),
        ));
    }
    let secret = new_secret(&mut endpoint, sealer, now);
    let answer = show(&endpoint, Some(&secret));
    Ok((Some(change("webhook.add", &endpoint)), answer))
}

/// Changes what the request names. Switching an endpoint on again forgets why it was off.
pub fn update(
    state: &ControlState,
    now: Time,
    check_url: &CheckUrl,
    (client_id, endpoint_id): (&ClientId, &str),
    request: &WebhookRequest,
) -> Decision<WebhookAnswer> {
    let old = find(state, client_id, endpoint_id)?;
    let mut endpoint = old.clone();
    if let Some(url) = &request.url {
        endpoint.url = checked_url(url, check_url)?;
    }
    if let Some(types) = &request.types {
        endpoint.types = checked_types(types)?;
    }
    if let Some(disabled) = request.disabled {
        endpoint.disabled = disabled;
        if !disabled {
            endpoint.disabled_reason.clear();
        }
    }
    if endpoint == *old {
        return Ok((None, show(old, None)));
    }
    endpoint.updated_at = now.micros();
    let answer = show(&endpoint, None);
    Ok((Some(change("webhook.update", &endpoint)), answer))
}

/// Takes an endpoint away; what is under way to it is cancelled by the dispatcher.
pub fn remove(state: &ControlState, client_id: &ClientId, endpoint_id: &str) -> Decision<()> {
    let old = find(state, client_id, endpoint_id)?;
    let mut change = change("webhook.remove", old);
    change.entries = vec![(key("webhook", &[endpoint_id]), None)];
    Ok((Some(change), ()))
}

/// Makes a new secret; the older ones sign on for the grace period.
pub fn rotate(
    state: &ControlState,
    now: Time,
    (sealer, limits): (&Sealer, &WebhooksConfig),
    (client_id, endpoint_id): (&ClientId, &str),
) -> Decision<WebhookAnswer> {
    let mut endpoint = find(state, client_id, endpoint_id)?.clone();
    let end = now.plus(Duration::from_secs(limits.secret_grace_secs)).micros();
    for secret in &mut endpoint.secrets {
        if secret.expires_at == 0 || secret.expires_at > end {
            secret.expires_at = end;
        }
    }
    endpoint.secrets.retain(|secret| secret.expires_at > now.micros());
    if endpoint.secrets.len() >= MAX_SECRETS {
        return Err(Refusal::new(
            RefusalKind::LimitReached,
            format!("{MAX_SECRETS} secrets of the endpoint still sign; wait until one ends"),
        ));
    }
    let secret = new_secret(&mut endpoint, sealer, now);
    endpoint.updated_at = now.micros();
    let answer = show(&endpoint, Some(&secret));
    Ok((Some(change("webhook.rotate", &endpoint)), answer))
}

/// Sends a test message to this endpoint alone.
pub fn test(
    state: &ControlState,
    now: Time,
    actor: &str,
    client_id: &ClientId,
    endpoint_id: &str,
) -> Decision<TestAnswer> {
    let endpoint = find(state, client_id, endpoint_id)?;
    if endpoint.disabled {
        return Err(Refusal::new(
            RefusalKind::Conflict,
            "the endpoint is disabled, so nothing is sent to it; enable it with PATCH {\"disabled\": false} first",
        ));
    }
    let webhook_id = Uuid::now_v7().to_string();
    let change = Change {
        actions: vec![GuardAction {
            action_id: webhook_id.clone(),
            r#type: "panopticon.test".to_owned(),
            client_id: client_id.to_string(),
            created_at: now.micros(),
            test: Some(TestMessage {
                endpoint_id: endpoint_id.to_owned(),
                note: format!("Asked for by {actor}."),
            }),
            ..GuardAction::default()
        }],
        action: "webhook.test",
        client_id: client_id.to_string(),
        target: endpoint_id.to_owned(),
        detail: json!({"webhook_id": webhook_id}),
        ..Change::default()
    };
    Ok((Some(change), TestAnswer { webhook_id }))
}

fn new_secret(endpoint: &mut WebhookEndpoint, sealer: &Sealer, now: Time) -> Secret {
    let secret = random_webhook_secret();
    endpoint.secrets.push(WebhookSecret {
        kid: format!("k_{}", &Uuid::new_v4().simple().to_string()[..12]),
        sealed: sealer.seal(&sealed_about(&endpoint.endpoint_id), &secret),
        created_at: now.micros(),
        expires_at: 0,
    });
    secret
}

fn change(action: &'static str, endpoint: &WebhookEndpoint) -> Change {
    let id = &endpoint.endpoint_id;
    let mut change = Change::put(action, &endpoint.client_id, key("webhook", &[id]), Some(endpoint));
    change.target.clone_from(id);
    change.detail = json!({
        "url": endpoint.url, "types": endpoint.types, "disabled": endpoint.disabled,
        "kid": endpoint.secrets.last().map(|secret| &secret.kid),
    });
    change
}

fn checked_url(url: &str, check_url: &CheckUrl) -> Result<String, Refusal> {
    if url.len() > MAX_URL_BYTES {
        return Err(Refusal::invalid("url", format!("has {} bytes; at most {MAX_URL_BYTES}", url.len())));
    }
    check_url(url).map_err(|why| Refusal::invalid("url", why))?;
    Ok(url.to_owned())
}

fn checked_types(types: &[String]) -> Result<Vec<String>, Refusal> {
    let mut checked = Vec::new();
    for (i, name) in types.iter().enumerate() {
        if !TYPES.contains(&name.as_str()) {
            return Err(Refusal::invalid(
                &format!("types[{i}]"),
                format!("is no type of message; there are {}", TYPES.join(", ")),
            ));
        }
        if !checked.contains(name) {
            checked.push(name.clone());
        }
    }
    Ok(checked)
}
