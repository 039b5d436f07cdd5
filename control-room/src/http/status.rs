//! `/apps/{client_id}/status`: I sent it, where is it?

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use panopticon_core::{
    api::{GatewayCounts, RefusalCount, StageLag, StatusAnswer, WebhookHealth},
    ids::ClientId,
    log::LogError,
    proto::control::{App, WebhookEndpoint},
    store::{EventQuery, StoreError, TimelineQuery},
    time::Time,
    topic::Topic,
};

use crate::{
    access::{Caller, Need},
    answer::ApiError,
    ops,
    room::Room,
};

/// How many of an endpoint's newest deliveries are looked at.
const LOOKED_AT_DELIVERIES: u32 = 100;
/// How many of the newest traces are looked at where no gateway counts.
const LOOKED_AT_TRACES: u32 = 50;
/// Fewer traces say nothing about a clock.
const ENOUGH_TRACES: u64 = 10;
/// A stage that is further behind than this is worth a word.
const LAG_WORTH_A_WORD: u64 = 1_000;

pub(super) async fn get(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
) -> Result<Json<StatusAnswer>, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Read)?;
    let (app, kills, endpoints) = {
        let state = room.view.state();
        let app = state.app_of(&client_id).ok_or_else(|| ops::Refusal::no_app(client_id.as_str()))?;
        (app.clone(), state.kills(client_id.as_str()), state.webhooks(client_id.as_str()))
    };
    // What cannot be learnt becomes a hint: this answer is for when something is wrong.
    let mut hints = Vec::new();
    let stored = stored_facts(&room, &client_id).await.unwrap_or_else(|error| {
        hints.push(format!("The trace store does not answer ({error}); what is stored is not known."));
        Stored::default()
    });
    let (stages, idle) = stage_lags(&room).await.unwrap_or_else(|error| {
        hints.push(format!("The event log does not answer ({error}); the lag of the stages is not known."));
        Default::default()
    });
    let mut webhooks = Vec::new();
    for endpoint in &endpoints {
        webhooks.push(webhook_health(&room, &client_id, endpoint).await.unwrap_or_else(|error| {
            hints.push(format!("The deliveries to {} are not known: {error}.", endpoint.url));
            unknown_health(endpoint)
        }));
    }
    let gateway = room.gateway_counts.as_ref().map(|counts| counts(client_id.as_str()).unwrap_or_default());
    let answer = StatusAnswer {
        client_id: client_id.to_string(),
        disabled: app.disabled,
        kills: kills.iter().map(|kill| ops::kills::show(kill)).collect(),
        last_received_at: stored.last_received_at,
        gateway,
        stages,
        webhooks,
        hints: Vec::new(),
    };
    let seen =
        Seen { app: &app, stored: &stored, idle: &idle, url: room.config.url(), now: room.clock.now() };
    hints.extend(hints_of(&answer, &seen));
    Ok(Json(StatusAnswer { hints, ..answer }))
}

/// What the store knows of an app's traces.
#[derive(Debug, Clone, Default)]
struct Stored {
    /// Whether the store answered.
    known: bool,
    last_received_at: Option<Time>,
    /// Of the newest traces: how many, and how many of them were late.
    newest: (u64, u64),
}

async fn stored_facts(room: &Room, client_id: &ClientId) -> Result<Stored, StoreError> {
    let last_received_at = room.store.last_received(client_id).await?;
    let query = TimelineQuery { limit: LOOKED_AT_TRACES, ..TimelineQuery::default() };
    let newest = match last_received_at {
        Some(_) => room.store.timeline(client_id, &query).await?.items,
        None => Vec::new(),
    };
    let late = newest.iter().filter(|trace| trace.late).count();
    Ok(Stored { known: true, last_received_at, newest: (newest.len() as u64, late as u64) })
}

/// How far each stage is behind, and which of them have work and never did any.
async fn stage_lags(room: &Room) -> Result<(Vec<StageLag>, Vec<(&'static str, Topic)>), LogError> {
    let (mut lags, mut idle) = (Vec::new(), Vec::new());
    for (stage, topic) in room.stages.iter().copied() {
        let partitions = room.log.lag(stage, topic).await?;
        let lag_of = |from: Option<u64>, low: u64, high: u64| high.saturating_sub(from.unwrap_or(low));
        let lag_records =
            partitions.iter().map(|p| lag_of(p.committed.offset, p.bounds.low, p.bounds.high)).sum();
        if lag_records > 0 && partitions.iter().all(|p| p.committed.offset.is_none()) {
            idle.push((stage, topic));
        }
        lags.push(StageLag { stage: stage.to_owned(), topic: topic.name().to_owned(), lag_records });
    }
    Ok((lags, idle))
}

async fn webhook_health(
    room: &Room,
    client_id: &ClientId,
    endpoint: &WebhookEndpoint,
) -> Result<WebhookHealth, StoreError> {
    let query = EventQuery {
        client_id: Some(client_id.clone()),
        endpoint_id: Some(endpoint.endpoint_id.clone()),
        limit: LOOKED_AT_DELIVERIES,
        ..EventQuery::default()
    };
    let newest = room.store.deliveries(&query).await?.items;
    let pending = newest.iter().filter(|delivery| delivery.state == "pending").count() as u64;
    let mut health = WebhookHealth { pending, ..unknown_health(endpoint) };
    if let Some(last) = newest.first() {
        health.last_state.clone_from(&last.state);
        health.last_status = last.last_status;
        health.last_error.clone_from(&last.last_error);
    }
    Ok(health)
}

fn unknown_health(endpoint: &WebhookEndpoint) -> WebhookHealth {
    WebhookHealth {
        id: endpoint.endpoint_id.clone(),
        url: endpoint.url.clone(),
        disabled: endpoint.disabled,
        disabled_reason: endpoint.disabled_reason.clone(),
        pending: 0,
        last_state: String::new(),
        last_status: 0,
        last_error: String::new(),
    }
}

/// What the hints go by beside the answer itself.
struct Seen<'a> {
    app: &'a App,
    stored: &'a Stored,
    idle: &'a [(&'static str, Topic)],
    url: String,
    now: Time,
}

/// What to look at, the most likely cause first.
fn hints_of(answer: &StatusAnswer, seen: &Seen<'_>) -> Vec<String> {
    let mut hints = Vec::new();
    let gateway = answer.gateway.as_ref();
    if answer.disabled {
        hints.push("The app is disabled: its traces are refused with 403 `app_disabled`. PUT {\"disabled\": false} enables it again.".to_owned());
    }
    if !seen.app.paks.iter().any(|pak| ops::apps::is_valid(pak, seen.now)) {
        hints.push("No PAK of the app is valid; rotate it to get a new one.".to_owned());
    }
    hints.extend(answer.kills.iter().map(|kill| match &kill.user_sub {
        None => format!("The app is under a kill since {}, by {}.", kill.at, kill.actor),
        Some(user) => format!("User `{user}` is under a kill since {}, by {}.", kill.at, kill.actor),
    }));
    hints.extend(gateway.and_then(refusals_hint));
    let accepted = gateway.is_some_and(|counts| counts.accepted + counts.duplicate > 0);
    if seen.stored.known && answer.last_received_at.is_none() {
        hints.push(if accepted {
            "Traces were accepted and none is stored yet: that takes about a second; if it lasts, look at the lag of `dedupe` and `store`.".to_owned()
        } else {
            never_received_hint(answer, seen)
        });
    }
    hints.extend(late_hint(gateway, seen.stored));
    if let Some(counts) = gateway.filter(|counts| counts.unavailable > 0) {
        hints.push(format!(
            "{} traces could not be confirmed and were answered `unavailable`; sending them again with the same event_id is safe.",
            counts.unavailable
        ));
    }
    for (stage, topic) in seen.idle {
        hints.push(format!(
            "Stage `{stage}` has never worked on topic `{topic}`, and there is work: is it running?"
        ));
    }
    for lag in answer.stages.iter().filter(|lag| lag.lag_records > LAG_WORTH_A_WORD) {
        hints.push(format!(
            "Stage `{}` is {} records behind on topic `{}`.",
            lag.stage, lag.lag_records, lag.topic
        ));
    }
    hints.extend(answer.webhooks.iter().filter_map(webhook_hint));
    hints
}

/// What most refusals were for.
fn refusals_hint(counts: &GatewayCounts) -> Option<String> {
    let refused: u64 = counts.refused.iter().map(|refusal| refusal.count).sum();
    let most: &RefusalCount = counts.refused.iter().max_by_key(|refusal| refusal.count)?;
    let field = if most.field.is_empty() { String::new() } else { format!(" (field `{}`)", most.field) };
    let what_to_do = match most.error.as_str() {
        "invalid_request" => "the answer's `error_description` says what the field must be",
        "invalid_token" => {
            "send the PAK as `Authorization: Bearer pano_pak_…`; a rotated one ends after its grace period"
        }
        "invalid_signature" => {
            "sign \"<timestamp>.<raw body>\" with the pak_secret, and check the sender's clock"
        }
        "client_mismatch" => "`client_id` must be the app that the PAK belongs to",
        "app_disabled" => "the app has to be enabled again",
        _ => "docs/api.md explains the error",
    };
    Some(format!(
        "{refused} traces were refused since the gateway started, most of them ({}) with `{}`{field}, last at {}: {what_to_do}.",
        most.count, most.error, most.last_at
    ))
}

fn late_hint(gateway: Option<&GatewayCounts>, stored: &Stored) -> Option<String> {
    let (all, late) = match gateway {
        Some(counts) if counts.accepted >= ENOUGH_TRACES => (counts.accepted, counts.late),
        _ => stored.newest,
    };
    (all >= ENOUGH_TRACES && late * 2 > all).then(|| {
        format!(
            "{late} of {all} traces arrived more than a minute after they ended and raise no alarm: is the sender's clock wrong, or does it send old traces?"
        )
    })
}

fn never_received_hint(answer: &StatusAnswer, seen: &Seen<'_>) -> String {
    let body = serde_json::json!({
        "event_id": uuid::Uuid::now_v7(), "client_id": answer.client_id, "tool": "example.search",
        "status": "ok", "started_at": seen.now, "duration_ms": 12,
    });
    // The client id may hold what a shell would take for its own.
    let body = body.to_string().replace('\'', "'\\''");
    format!(
        "No trace of the app was ever stored. Send one: curl -sS {}/panopticon/trace -H 'Authorization: Bearer <PAK>' -H 'Content-Type: application/json' -d '{body}'",
        seen.url
    )
}

fn webhook_hint(webhook: &WebhookHealth) -> Option<String> {
    let url = &webhook.url;
    if webhook.disabled && !webhook.disabled_reason.is_empty() {
        return Some(format!(
            "Webhook endpoint {url} was disabled ({}); enable it again with PATCH {{\"disabled\": false}}.",
            webhook.disabled_reason
        ));
    }
    let failed =
        webhook.last_state == "dead" || (webhook.last_state == "pending" && !webhook.last_error.is_empty());
    failed.then(|| {
        let cause = match (webhook.last_error.as_str(), webhook.last_status) {
            ("", status) => format!("HTTP status {status}"),
            (error, 0) => error.to_owned(),
            (error, status) => format!("HTTP status {status}: {error}"),
        };
        format!(
            "The last message to {url} is {} ({cause}); {} are under way.",
            webhook.last_state, webhook.pending
        )
    })
}

#[cfg(test)]
mod tests {
    use panopticon_core::proto::control::Pak;

    use super::*;

    fn answer(gateway: Option<GatewayCounts>) -> StatusAnswer {
        StatusAnswer {
            client_id: "it's".to_owned(),
            disabled: false,
            kills: Vec::new(),
            last_received_at: Some(Time::from_secs(1)),
            gateway,
            stages: Vec::new(),
            webhooks: Vec::new(),
            hints: Vec::new(),
        }
    }

    fn hints(answer: &StatusAnswer, newest: (u64, u64)) -> Vec<String> {
        let app = App { paks: vec![Pak::default()], ..App::default() };
        let stored = Stored { known: true, last_received_at: answer.last_received_at, newest };
        let url = "http://rp.example".to_owned();
        hints_of(answer, &Seen { app: &app, stored: &stored, idle: &[], url, now: Time::from_secs(9) })
    }

    #[test]
    fn when_all_is_well_there_is_no_hint() {
        let counts = GatewayCounts { accepted: 100, late: 50, ..GatewayCounts::default() };
        assert_eq!(hints(&answer(Some(counts)), (0, 0)), Vec::<String>::new());
    }

    #[test]
    fn an_app_without_traces_is_told_how_to_send_one_that_a_shell_takes_as_it_is() {
        let hints = hints(&StatusAnswer { last_received_at: None, ..answer(None) }, (0, 0));
        assert!(hints[0].contains("curl -sS http://rp.example/panopticon/trace"), "{hints:?}");
        assert!(hints[0].contains(r#""client_id":"it'\''s""#), "{hints:?}");
    }

    #[test]
    fn the_most_frequent_refusal_and_a_wrong_clock_are_named() {
        let refusal = |error: &str, field: &str, count| RefusalCount {
            error: error.to_owned(),
            field: field.to_owned(),
            count,
            last_at: Time::from_secs(5),
        };
        let refused = vec![refusal("invalid_token", "", 2), refusal("invalid_request", "started_at", 9)];
        let counts = GatewayCounts { accepted: 20, late: 11, refused, ..GatewayCounts::default() };
        let hints = hints(&answer(Some(counts)), (0, 0));
        assert!(
            hints[0].starts_with("11 traces were refused") && hints[0].contains("`started_at`"),
            "{hints:?}"
        );
        assert!(hints[1].starts_with("11 of 20 traces arrived more than a minute"), "{hints:?}");
    }

    #[test]
    fn a_lagging_stage_and_a_failing_webhook_are_named() {
        let mut answer = answer(None);
        answer.stages.push(StageLag {
            stage: "store".to_owned(),
            topic: "traces".to_owned(),
            lag_records: 2_000,
        });
        let endpoint = WebhookEndpoint { url: "https://rp.example/hook".to_owned(), ..Default::default() };
        answer.webhooks.push(WebhookHealth {
            last_state: "pending".to_owned(),
            last_error: "connection refused".to_owned(),
            pending: 3,
            ..unknown_health(&endpoint)
        });
        let hints = hints(&answer, (10, 6));
        assert!(hints[0].contains("6 of 10") && hints[1].contains("2000 records behind"), "{hints:?}");
        assert!(hints[2].contains("pending (connection refused)"), "{hints:?}");
    }
}
