//! `/apps/{client_id}/live`: server-sent events.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use futures::StreamExt as _;

use crate::{
    access::{Caller, Need},
    answer::{ApiError, RETRY_AFTER_SECS},
    input::Params,
    live::{Position, Resume},
    room::Room,
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// For proxies that would hold events back.
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Clients that cannot set the header resume with `?last_event_id=`.
pub(super) async fn get(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
    headers: HeaderMap,
    mut params: Params,
) -> Result<Response, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Read)?;
    room.known(&client_id)?;
    let query = params.text("last_event_id");
    params.done()?;
    let header = headers.get(&LAST_EVENT_ID).map(|value| value.to_str().unwrap_or("?").to_owned());
    let after = header.or(query).filter(|text| !text.is_empty());
    let after = after.map(|text| Position::decode(&text).map_or(Resume::Unreadable, Resume::At));

    let (watched_in, app) = (room.clone(), client_id.clone());
    let may_watch = Box::new(move || caller.still_sees(&watched_in, app.as_str()));
    let stream = room
        .live
        .watch(&client_id, after, may_watch)
        .await
        .map_err(|why| ApiError::unavailable(why.to_string(), RETRY_AFTER_SECS))?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store")),
        (NO_BUFFERING, HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(stream.map(Ok::<_, Infallible>))).into_response())
}
