//! `/apps/{client_id}/webhooks` and the deliveries.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use panopticon_core::{
    api::{ListAnswer, TestAnswer, WebhookAnswer, WebhookRequest},
    control::ControlState,
    ids::ClientId,
    proto::log::Delivery,
    store::EventQuery,
    time::Time,
};
use serde_json::Value;

use super::queries::answer;
use crate::{
    access::{Caller, Need},
    answer::ApiError,
    input::{AfterTime, JsonBody, MAX_LIMIT, Params, page_of},
    ops,
    room::Room,
};

/// How many of the newest deliveries are searched for one that is to be made again.
const SEARCHED_DELIVERIES: u32 = 20_000;

pub(super) async fn list(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
    mut params: Params,
) -> Result<Json<ListAnswer<WebhookAnswer>>, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Read)?;
    room.known(&client_id)?;
    let (limit, after) = params.page::<AfterTime>()?;
    params.done()?;
    let page = page_of(
        room.view.state().webhooks(client_id.as_str()),
        limit,
        after.map(|after| (after.0.micros(), after.1)),
        |endpoint| (endpoint.created_at, endpoint.endpoint_id.clone()),
        |endpoint| AfterTime(Time::from_micros(endpoint.created_at), endpoint.endpoint_id.clone()),
    );
    let items = page.items.iter().map(|endpoint| ops::webhooks::show(endpoint, None)).collect();
    Ok(Json(ListAnswer { items, next_cursor: page.next_cursor }))
}

pub(super) async fn get(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path((client_id, endpoint_id)): Path<(String, String)>,
) -> Result<Json<WebhookAnswer>, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Read)?;
    let state = room.view.state();
    Ok(Json(ops::webhooks::show(ops::webhooks::find(&state, &client_id, &endpoint_id)?, None)))
}

pub(super) async fn add(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
    JsonBody(request): JsonBody<WebhookRequest>,
) -> Result<(StatusCode, Json<WebhookAnswer>), ApiError> {
    let client_id = caller.on_app(&client_id, Need::Change)?;
    let decide = move |room: &Room, state: &ControlState, now: Time| {
        let with = (&room.sealer, &*room.check_url, &room.config.webhooks);
        ops::webhooks::add(state, now, with, &client_id, &request)
    };
    Ok((StatusCode::CREATED, Json(room.change(&caller, decide).await?)))
}

pub(super) async fn update(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path((client_id, endpoint_id)): Path<(String, String)>,
    JsonBody(request): JsonBody<WebhookRequest>,
) -> Result<Json<WebhookAnswer>, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Change)?;
    let decide = move |room: &Room, state: &ControlState, now: Time| {
        ops::webhooks::update(state, now, &*room.check_url, (&client_id, &endpoint_id), &request)
    };
    Ok(Json(room.change(&caller, decide).await?))
}

pub(super) async fn remove(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path((client_id, endpoint_id)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Change)?;
    let decide =
        move |_: &Room, state: &ControlState, _| ops::webhooks::remove(state, &client_id, &endpoint_id);
    room.change(&caller, decide).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn rotate(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path((client_id, endpoint_id)): Path<(String, String)>,
) -> Result<Json<WebhookAnswer>, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Change)?;
    let decide = move |room: &Room, state: &ControlState, now: Time| {
        let with = (&room.sealer, &room.config.webhooks);
        ops::webhooks::rotate(state, now, with, (&client_id, &endpoint_id))
    };
    Ok(Json(room.change(&caller, decide).await?))
}

pub(super) async fn test(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path((client_id, endpoint_id)): Path<(String, String)>,
) -> Result<(StatusCode, Json<TestAnswer>), ApiError> {
    let client_id = caller.on_app(&client_id, Need::Change)?;
    let actor = caller.actor().name;
    let decide = move |_: &Room, state: &ControlState, now: Time| {
        ops::webhooks::test(state, now, &actor, &client_id, &endpoint_id)
    };
    Ok((StatusCode::ACCEPTED, Json(room.change(&caller, decide).await?)))
}

pub(super) async fn deliveries(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path((client_id, endpoint_id)): Path<(String, String)>,
    params: Params,
) -> Result<Json<ListAnswer<Value>>, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Read)?;
    ops::webhooks::find(&room.view.state(), &client_id, &endpoint_id)?;
    deliveries_to(&room, client_id, endpoint_id, params).await
}

pub(super) async fn deliveries_of_endpoint(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(endpoint_id): Path<String>,
    params: Params,
) -> Result<Json<ListAnswer<Value>>, ApiError> {
    let owner = room.view.state().webhook(&endpoint_id).map(|endpoint| endpoint.client_id.clone());
    let Some(owner) = owner else {
        return Err(ApiError::not_found("there is no such webhook endpoint"));
    };
    let client_id = caller.on_app(&owner, Need::Read)?;
    deliveries_to(&room, client_id, endpoint_id, params).await
}

async fn deliveries_to(
    room: &Room,
    client_id: ClientId,
    endpoint_id: String,
    mut params: Params,
) -> Result<Json<ListAnswer<Value>>, ApiError> {
    let (limit, after) = params.page::<AfterTime>()?;
    let query = EventQuery {
        client_id: Some(client_id),
        endpoint_id: Some(endpoint_id),
        since: params.time("since", false)?,
        before: after.map(|after| (after.0, after.1)),
        limit,
        ..EventQuery::default()
    };
    params.done()?;
    let page = room.store.deliveries(&query).await?;
    let Json(ListAnswer { items, next_cursor }) =
        answer(page, |last| AfterTime(Time::from_micros(last.created_at), last.delivery_id.clone()));
    Ok(Json(ListAnswer { items: items.into_iter().map(show_delivery).collect(), next_cursor }))
}

/// The JSON of the message, its body as the text that it is.
fn show_delivery(delivery: Delivery) -> Value {
    let body = String::from_utf8_lossy(&delivery.body).into_owned();
    let mut shown =
        serde_json::to_value(Delivery { body: bytes::Bytes::new(), ..delivery }).unwrap_or_default();
    shown["body"] = Value::String(body);
    shown
}

pub(super) async fn replay(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(delivery_id): Path<String>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let delivery = match caller.apps() {
        None => search(&room, None, &delivery_id).await?,
        Some(apps) => {
            let mut found = None;
            for app in apps.iter().filter_map(|app| ClientId::new(app).ok()) {
                found = search(&room, Some(&app), &delivery_id).await?;
                if found.is_some() {
                    break;
                }
            }
            found
        }
    };
    let Some(delivery) = delivery else {
        let shown: String = delivery_id.chars().take(128).collect();
        let text = format!("there is no delivery `{shown}` among the newest {SEARCHED_DELIVERIES}");
        return Err(ApiError::not_found(text));
    };
    caller.on_app(&delivery.client_id, Need::Change)?;
    let answer = serde_json::json!({"delivery_id": delivery_id, "webhook_id": delivery.webhook_id});
    room.change(&caller, move |_, state, now| ops::deliveries::replay(state, now, &delivery)).await?;
    Ok((StatusCode::ACCEPTED, Json(answer)))
}

/// The store has no index by delivery, and replays are rare: looks through the newest.
async fn search(
    room: &Room,
    client_id: Option<&ClientId>,
    delivery_id: &str,
) -> Result<Option<Delivery>, ApiError> {
    let mut query = EventQuery { client_id: client_id.cloned(), limit: MAX_LIMIT, ..EventQuery::default() };
    for _ in 0..SEARCHED_DELIVERIES / MAX_LIMIT {
        let page = room.store.deliveries(&query).await?;
        query.before =
            page.items.last().map(|last| (Time::from_micros(last.created_at), last.delivery_id.clone()));
        let found = page.items.into_iter().find(|delivery| delivery.delivery_id == delivery_id);
        if found.is_some() || !page.more {
            return Ok(found);
        }
    }
    Ok(None)
}
