//! `/tokens`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use panopticon_core::{
    api::{ListAnswer, TokenAnswer, TokenRequest},
    time::Time,
};

use crate::{
    access::Caller,
    answer::ApiError,
    input::{AfterTime, JsonBody, Params, page_of},
    ops,
    room::Room,
};

pub(super) async fn list(
    State(room): State<Arc<Room>>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<ListAnswer<TokenAnswer>>, ApiError> {
    caller.admin()?;
    let (limit, after) = params.page::<AfterTime>()?;
    params.done()?;
    let page = page_of(
        room.view.state().tokens(),
        limit,
        after.map(|after| (after.0.micros(), after.1)),
        |token| (token.created_at, token.token_id.clone()),
        |token| AfterTime(Time::from_micros(token.created_at), token.token_id.clone()),
    );
    let items = page.items.iter().map(|token| ops::tokens::show(token, None)).collect();
    Ok(Json(ListAnswer { items, next_cursor: page.next_cursor }))
}

pub(super) async fn create(
    State(room): State<Arc<Room>>,
    caller: Caller,
    JsonBody(request): JsonBody<TokenRequest>,
) -> Result<(StatusCode, Json<TokenAnswer>), ApiError> {
    caller.admin()?;
    let decide = move |_: &Room, state: &_, now| ops::tokens::create(state, now, &request);
    Ok((StatusCode::CREATED, Json(room.change(&caller, decide).await?)))
}

pub(super) async fn revoke(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(token_id): Path<String>,
) -> Result<StatusCode, ApiError> {
    caller.admin()?;
    room.change(&caller, move |_, state, _| ops::tokens::revoke(state, &token_id)).await?;
    Ok(StatusCode::NO_CONTENT)
}
