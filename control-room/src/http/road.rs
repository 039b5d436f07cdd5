//! `/traces/{event_id}`: the road of one trace.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use panopticon_core::{
    api::{RoadAnswer, RoadStep},
    ids::{ClientId, EventId},
    log::LogError,
    proto::log::{Delivery, Detection, GuardAction},
    store::EventQuery,
    time::Time,
    topic::Topic,
    trace::{AcceptedTrace, TakenRef, entries},
};

use crate::{
    access::{Caller, Need},
    answer::ApiError,
    input::{MAX_LIMIT, Params},
    room::Room,
};

/// How much of what the stages have still to do is searched for a trace that is not stored yet.
const SEARCHED_BYTES: usize = 32 << 20;
const READ_BYTES: usize = 4 << 20;

pub(super) async fn get(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(event_id): Path<String>,
    mut params: Params,
) -> Result<Json<RoadAnswer>, ApiError> {
    let event_id = EventId::parse(&event_id)
        .ok_or_else(|| ApiError::invalid("event_id", "must be a hyphenated UUID"))?;
    let client_id = match params.text("client_id") {
        Some(client_id) => Some(caller.on_app(&client_id, Need::Read)?),
        None => None,
    };
    params.done()?;
    let shown = |app: &str| caller.sees(app) && client_id.as_ref().is_none_or(|id| id.as_str() == app);

    let mut traces = room.store.find(event_id).await?;
    traces.retain(|trace| shown(trace.trace.client_id.as_str()));
    let mut steps = Vec::new();
    match traces.first() {
        Some(trace) => steps.extend(steps_of(&room, trace, event_id).await?),
        None => steps.extend(in_the_log(&room, event_id, shown).await?),
    }
    if let Some(other) = traces.get(1) {
        steps.push(hint(format!(
            "App `{}` has a trace with this id too; `?client_id=` chooses one.",
            other.trace.client_id
        )));
    }
    let trace = (!traces.is_empty()).then(|| traces.swap_remove(0));
    Ok(Json(RoadAnswer { event_id: event_id.to_string(), steps, trace }))
}

fn step(step: &str, at: Option<i64>, id: &str, summary: String) -> RoadStep {
    let at = at.filter(|at| *at != 0).map(Time::from_micros);
    RoadStep { step: step.to_owned(), at, summary, id: id.to_owned() }
}

fn hint(summary: String) -> RoadStep {
    step("hint", None, "", summary)
}

/// What became of a trace that is stored.
async fn steps_of(room: &Room, trace: &AcceptedTrace, event_id: EventId) -> Result<Vec<RoadStep>, ApiError> {
    let client_id = &trace.trace.client_id;
    let mut steps = vec![accepted(trace)];
    steps.push(step("stored", None, "", "is in the trace store and shows in the timeline".to_owned()));
    let query = EventQuery {
        client_id: Some(client_id.clone()),
        deciding_event_id: Some(event_id),
        limit: MAX_LIMIT,
        ..EventQuery::default()
    };
    steps.extend(room.store.detections(&query).await?.items.iter().map(detected));
    // The store lists the newest first, a road begins with the oldest.
    for action in room.store.actions(&query).await?.items.iter().rev() {
        steps.push(acted(action));
        steps.extend(deliveries_of(room, client_id, action).await?.iter().map(delivered));
    }
    Ok(steps)
}

fn accepted(trace: &AcceptedTrace) -> RoadStep {
    let place = trace.place.map_or_else(String::new, |place| {
        format!(
            " at partition {}, offset {}, index {} of log {}",
            place.partition, place.offset, place.index, place.log_id
        )
    });
    let late = if trace.late { "; late: it raises no alarm" } else { "" };
    let summary = format!("the gateway had it for app `{}`{place}{late}", trace.trace.client_id);
    step("accepted", Some(trace.received_at.micros()), "", summary)
}

fn detected(detection: &Detection) -> RoadStep {
    let ended = if detection.phase == "ended" { " (ended)" } else { "" };
    let summary = format!("{}, {}{ended}: {}", detection.rule, detection.severity, detection.explanation);
    step("detection", Some(detection.detected_at), &detection.detection_id, summary)
}

fn acted(action: &GuardAction) -> RoadStep {
    let summary = format!("the RP is told by webhook: {}", action.r#type);
    step("action", Some(action.created_at), &action.action_id, summary)
}

async fn deliveries_of(
    room: &Room,
    client_id: &ClientId,
    action: &GuardAction,
) -> Result<Vec<Delivery>, ApiError> {
    let query = EventQuery {
        client_id: Some(client_id.clone()),
        id: Some(action.action_id.clone()),
        limit: MAX_LIMIT,
        ..EventQuery::default()
    };
    Ok(room.store.deliveries(&query).await?.items)
}

fn delivered(delivery: &Delivery) -> RoadStep {
    let status = match delivery.last_status {
        0 => String::new(),
        status => format!(", HTTP status {status}"),
    };
    let error =
        if delivery.last_error.is_empty() { String::new() } else { format!(", {}", delivery.last_error) };
    let summary = format!(
        "{} to endpoint {} after {} attempts{status}{error}",
        delivery.state, delivery.endpoint_id, delivery.attempts
    );
    step("delivery", Some(delivery.updated_at), &delivery.delivery_id, summary)
}

/// Looks for a trace among what the stages have still to do.
async fn in_the_log(
    room: &Room,
    event_id: EventId,
    shown: impl Fn(&str) -> bool,
) -> Result<Vec<RoadStep>, ApiError> {
    let mut budget = SEARCHED_BYTES;
    let roads = room.stages.iter().filter(|(_, topic)| matches!(topic, Topic::Traces | Topic::TracesRaw));
    for (stage, topic) in roads.filter(|(stage, _)| matches!(*stage, "dedupe" | "store")).copied() {
        if let Some(trace) = search(room, stage, topic, event_id, &mut budget, &shown).await? {
            let waits = format!(
                "it is in the log and waits for stage `{stage}`; if that lasts, look at the stage's lag in the app's status"
            );
            return Ok(vec![accepted(&trace), hint(waits)]);
        }
    }
    let unsearched =
        if budget == 0 { " and a part of what waits in the log could not be searched" } else { "" };
    Ok(vec![hint(format!(
        "No trace with this id is stored or on its way{unsearched}. Was it answered 202, to this installation? The app's status counts what was refused."
    ))])
}

/// Looks through what `stage` has not committed yet, while the budget lasts.
async fn search(
    room: &Room,
    stage: &'static str,
    topic: Topic,
    event_id: EventId,
    budget: &mut usize,
    shown: &impl Fn(&str) -> bool,
) -> Result<Option<AcceptedTrace>, LogError> {
    for lag in room.log.lag(stage, topic).await? {
        let mut from = lag.committed.offset.unwrap_or(lag.bounds.low).max(lag.bounds.low);
        while from < lag.bounds.high && *budget > 0 {
            let limit = READ_BYTES.min(*budget);
            let records = room.log.read(topic, lag.partition, from, lag.bounds.high, limit).await?;
            let Some(last) = records.last() else { break };
            from = last.offset + 1;
            for stored in &records {
                *budget = budget.saturating_sub(stored.record.size());
                // A record that cannot be read becomes a dead letter, of which `status` tells.
                let traces = entries(stored.record.bytes()).unwrap_or_default();
                let mut traces = traces.iter().filter_map(|bytes| TakenRef::read(bytes).ok());
                let found = traces.find(|taken| {
                    EventId::parse(taken.trace.event_id) == Some(event_id) && shown(taken.trace.client_id)
                });
                if let Some(Ok(trace)) = found.map(|taken| taken.to_owned()) {
                    return Ok(Some(trace));
                }
            }
        }
    }
    Ok(None)
}
