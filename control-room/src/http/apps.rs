//! `/apps`, `/apps/{client_id}` and `/apps/{client_id}/pak`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use panopticon_core::{
    api::{AppAnswer, AppRequest, ListAnswer, RotateAnswer, RotateRequest},
    control::ControlState,
    proto::control::App,
    time::Time,
};

use crate::{
    access::{Caller, Need},
    answer::ApiError,
    input::{AfterName, JsonBody, Params, page_of},
    ops,
    room::Room,
};

fn show(state: &ControlState, app: &App, now: Time, pak: Option<ops::apps::NewPak>) -> AppAnswer {
    let kills = state.kills(&app.client_id).iter().map(|kill| ops::kills::show(kill)).collect();
    let (pak, secret) = pak.map(|new| (new.pak, new.secret)).unzip();
    AppAnswer {
        client_id: app.client_id.clone(),
        name: app.name.clone(),
        scopes: app.scopes.clone(),
        hmac: app.hmac,
        disabled: app.disabled,
        kills,
        paks: app.paks.iter().filter(|pak| ops::apps::is_valid(pak, now)).count(),
        created_at: Time::from_micros(app.created_at),
        updated_at: Time::from_micros(app.updated_at),
        pak: pak.map(|pak| pak.expose().to_owned()),
        pak_secret: secret.flatten().map(|secret| secret.expose().to_owned()),
    }
}

pub(super) async fn list(
    State(room): State<Arc<Room>>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<ListAnswer<AppAnswer>>, ApiError> {
    let (limit, after) = params.page::<AfterName>()?;
    params.done()?;
    let (state, now) = (room.view.state(), room.clock.now());
    let mut apps = state.apps();
    apps.retain(|app| caller.sees(&app.client_id));
    let page = page_of(
        apps,
        limit,
        after.map(|after| after.0),
        |app| app.client_id.clone(),
        |app| AfterName(app.client_id.clone()),
    );
    let items = page.items.iter().map(|app| show(&state, app, now, None)).collect();
    Ok(Json(ListAnswer { items, next_cursor: page.next_cursor }))
}

pub(super) async fn get(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
) -> Result<Json<AppAnswer>, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Read)?;
    let state = room.view.state();
    let app = state.app_of(&client_id).ok_or_else(|| ops::Refusal::no_app(client_id.as_str()))?;
    Ok(Json(show(&state, app, room.clock.now(), None)))
}

pub(super) async fn put(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
    JsonBody(request): JsonBody<AppRequest>,
) -> Result<(StatusCode, Json<AppAnswer>), ApiError> {
    let client_id = caller.on_app(&client_id, Need::Change)?;
    let decide = move |room: &Room, state: &ControlState, now: Time| {
        let (change, put) = ops::apps::put(state, now, &room.sealer, &client_id, &request)?;
        let status = if put.created { StatusCode::CREATED } else { StatusCode::OK };
        Ok((change, (status, show(state, &put.app, now, put.pak))))
    };
    let (status, answer) = room.change(&caller, decide).await?;
    Ok((status, Json(answer)))
}

pub(super) async fn disable(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Change)?;
    room.change(&caller, move |_, state, now| ops::apps::disable(state, now, &client_id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn rotate(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
    JsonBody(request): JsonBody<RotateRequest>,
) -> Result<Json<RotateAnswer>, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Change)?;
    let grace_secs = request.grace_secs.unwrap_or(room.config.gateway.pak_grace_secs);
    let app = client_id.clone();
    let decide = move |room: &Room, state: &ControlState, now: Time| {
        ops::apps::rotate(state, now, &room.sealer, &app, grace_secs)
    };
    let (new, previous_valid_until) = room.change(&caller, decide).await?;
    Ok(Json(RotateAnswer {
        client_id: client_id.to_string(),
        pak: new.pak.expose().to_owned(),
        pak_secret: new.secret.map(|secret| secret.expose().to_owned()),
        previous_valid_until,
    }))
}
