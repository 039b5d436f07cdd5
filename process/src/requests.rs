//! A span for each request, in a process that exports spans.

use axum::{
    Router,
    extract::{MatchedPath, Request},
    middleware::{Next, from_fn},
    response::Response,
};
use panopticon_core::telemetry::SPANS;
use tracing::{Instrument as _, field::Empty, trace_span};

use crate::export;

/// Asked for by machines, every few seconds.
const CONDITION: [&str; 2] = ["/healthz", "/readyz"];

/// The same router, with spans where they are exported.
pub(crate) fn traced(router: Router) -> Router {
    if export::is_on() { router.layer(from_fn(trace)) } else { router }
}

async fn trace(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("nothing", MatchedPath::as_str);
    if CONDITION.contains(&route) {
        return next.run(request).await;
    }
    let method = request.method().as_str();
    let span = trace_span!(
        target: SPANS,
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
    );
    export::go_on_with(&span, request.headers());
    let response = next.run(request).instrument(span.clone()).await;
    span.record("http.response.status_code", response.status().as_u16());
    if response.status().is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    response
}
