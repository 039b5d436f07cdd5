//! The routes. Each file holds those of one kind of thing.

mod apps;
mod dead_letters;
mod erase;
pub(crate) mod errors;
mod kills;
mod live;
mod policy;
mod queries;
mod road;
mod status;
mod tokens;
mod usage;
mod webhooks;

use std::sync::Arc;

use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware::from_fn_with_state,
    routing::{any, delete, get, post, put},
};
use panopticon_core::api::BASE;

use crate::{
    answer::{ApiError, finish},
    room::Room,
};

/// Reserved for the interface of end users.
const ME: &str = "/api/v1/me/panopticon";

/// All routes below the base path; `docs` is the address where errors are explained.
pub(crate) fn routes(room: Arc<Room>, docs: Arc<str>) -> Router {
    let api = Router::new()
        .route("/apps", get(apps::list))
        .route("/apps/{client_id}", put(apps::put).get(apps::get).delete(apps::disable))
        .route("/apps/{client_id}/pak", post(apps::rotate))
        .route("/apps/{client_id}/policy", get(policy::get).patch(policy::patch))
        .route("/apps/{client_id}/kill", post(kills::kill).delete(kills::lift))
        .route("/apps/{client_id}/erase", post(erase::post))
        .route("/apps/{client_id}/usage", get(usage::get))
        .route("/apps/{client_id}/timeline", get(queries::timeline))
        .route("/apps/{client_id}/live", get(live::get))
        .route("/apps/{client_id}/detections", get(queries::detections))
        .route("/apps/{client_id}/actions", get(queries::actions))
        .route("/apps/{client_id}/status", get(status::get))
        .route("/apps/{client_id}/webhooks", get(webhooks::list).post(webhooks::add))
        .route(
            "/apps/{client_id}/webhooks/{endpoint_id}",
            get(webhooks::get).patch(webhooks::update).delete(webhooks::remove),
        )
        .route("/apps/{client_id}/webhooks/{endpoint_id}/secret", post(webhooks::rotate))
        .route("/apps/{client_id}/webhooks/{endpoint_id}/test", post(webhooks::test))
        .route("/apps/{client_id}/webhooks/{endpoint_id}/deliveries", get(webhooks::deliveries))
        // The endpoint and the delivery know their app.
        .route("/webhooks/{endpoint_id}/deliveries", get(webhooks::deliveries_of_endpoint))
        .route("/deliveries/{delivery_id}/replay", post(webhooks::replay))
        .route("/traces/{event_id}", get(road::get))
        .route("/tokens", get(tokens::list).post(tokens::create))
        .route("/tokens/{token_id}", delete(tokens::revoke))
        .route("/audit", get(queries::audit))
        .route("/dead-letters", get(dead_letters::list))
        .route("/dead-letters/{dead_letter_id}/replay", post(dead_letters::replay))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(docs.clone(), finish))
        .with_state(room);
    let beside = Router::new()
        // Nesting leaves out the base path with a slash at its end.
        .route(&format!("{BASE}/"), any(unknown))
        .route(errors::PATH, get(errors::page))
        .route(ME, any(reserved))
        .route(&format!("{ME}/{{*rest}}"), any(reserved))
        .layer(from_fn_with_state(docs, finish));
    Router::new().nest(BASE, api).merge(beside)
}

async fn unknown(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::not_found(format!(
        "there is nothing at `{path}`; docs/api.md lists the paths of the control API"
    ))
}

async fn wrong_method(method: Method) -> ApiError {
    let text = format!("{method} is not possible here; the header `Allow` lists what is");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
}

async fn reserved() -> ApiError {
    ApiError::not_found("this path is reserved for end users; nothing is there yet")
}
