//! `/apps/{client_id}/kill`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::{Path, State},
};
use panopticon_core::{
    api::{KillAnswer, KillRequest},
    control::ControlState,
    ids::ClientId,
    time::Time,
};

use crate::{
    access::{Caller, Need},
    answer::ApiError,
    input::{JsonBody, Params},
    ops::{self, Decision},
    room::Room,
};

/// How long a kill is tried while the log does not answer.
const TRY_FOR: Duration = Duration::from_secs(10);
const TRY_PAUSE: Duration = Duration::from_millis(250);

type Decide = fn(&ControlState, Time, &str, &ClientId, &KillRequest) -> Decision<KillAnswer>;

pub(super) async fn kill(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
    params: Params,
    JsonBody(request): JsonBody<KillRequest>,
) -> Result<Json<KillAnswer>, ApiError> {
    params.done()?;
    change(&room, &caller, &client_id, request, ops::kills::kill).await
}

/// Clients that send no body with DELETE name the user in the query.
pub(super) async fn lift(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
    mut params: Params,
    JsonBody(mut request): JsonBody<KillRequest>,
) -> Result<Json<KillAnswer>, ApiError> {
    let (user, reason) = (params.text("user_sub"), params.text("reason"));
    params.done()?;
    if user.is_some() && request.user_sub.is_some() && user != request.user_sub {
        return Err(ApiError::invalid("user_sub", "differs between the query and the body"));
    }
    request.user_sub = request.user_sub.or(user);
    request.reason = request.reason.or(reason);
    change(&room, &caller, &client_id, request, ops::kills::lift).await
}

/// Tries until it is in: both decisions may be made again, since the second finds the first.
async fn change(
    room: &Arc<Room>,
    caller: &Caller,
    client_id: &str,
    request: KillRequest,
    decide: Decide,
) -> Result<Json<KillAnswer>, ApiError> {
    let client_id = caller.on_app(client_id, Need::Change)?;
    let begun = Instant::now();
    loop {
        let (actor, client_id, request) = (caller.actor().name, client_id.clone(), request.clone());
        let done = room.change(caller, move |_, state, now| decide(state, now, &actor, &client_id, &request));
        match done.await {
            Ok(answer) => return Ok(Json(answer)),
            Err(error) if error.is_unavailable() && begun.elapsed() < TRY_FOR => {
                tokio::time::sleep(TRY_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}
