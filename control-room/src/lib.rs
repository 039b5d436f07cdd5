//! The control room: the control API, the queries of people and programs, and the live trace.
//!
//! [`router`] answers below [`panopticon_core::api::BASE`]. What a request changes is decided in [`ops`]
//! by pure functions on the control table and committed through the one control writer; the rest are
//! questions to the trace store and the log. It accepts no traces and delivers no webhooks, knows no engine,
//! and serves neither `/healthz` nor `/metrics`: the process that it runs in does.

mod access;
mod answer;
mod http;
mod input;
mod live;
pub mod ops;
mod room;

use std::sync::Arc;

use axum::Router;

pub use self::room::{ControlRoom, GatewayCountsOf};

/// The control API, ready to be merged with other routers: it has no fallback of its own outside its base
/// path. Begins to follow the log for the live trace, so call it within a runtime.
pub fn router(parts: ControlRoom) -> Router {
    let docs = format!("{}{}", parts.config.url(), http::errors::PATH);
    http::routes(Arc::new(room::Room::open(parts)), docs.into())
}
