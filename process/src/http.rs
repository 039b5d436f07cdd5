//! Taking an address, and the process's own condition: `/healthz`, `/readyz`, `/metrics`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Json, Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use panopticon_core::health::{Health, PartReport};
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::Process;

/// Where the condition is told unless the configuration says otherwise.
const METRICS_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7421);

/// Takes an address; the error says which setting to change.
pub async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: another process has it? choose another with `{setting}`")
    })
}

/// `/healthz` and `/readyz` for `health`.
pub fn condition(health: Health, stuck_after: Duration) -> Router {
    let live = get(|| async { Json(serde_json::json!({"status": "alive"})) });
    let ready = get(move || {
        let health = health.clone();
        async move {
            let parts = health.report(stuck_after);
            let ready = is_ready(&parts);
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let word = if ready { "ready" } else { "not_ready" };
            (status, Json(serde_json::json!({"status": word, "parts": parts}))).into_response()
        }
    });
    Router::new().route("/healthz", live).route("/readyz", ready)
}

/// None at all: it has only just started.
fn is_ready(parts: &[PartReport]) -> bool {
    !parts.is_empty() && parts.iter().all(|part| part.ready)
}

/// Serves the condition and the metrics on the address that is for them.
pub(crate) async fn serve_condition(process: &Process) -> anyhow::Result<()> {
    let listener = match process.config.metrics_listen {
        Some(address) => bind(address, "metrics_listen").await?,
        // Several processes on one machine without configuration: the first has the well-known port.
        None => match TcpListener::bind(METRICS_LISTEN).await {
            Ok(listener) => listener,
            Err(_) => bind(SocketAddr::new(METRICS_LISTEN.ip(), 0), "metrics_listen").await?,
        },
    };
    info!(address = %listener.local_addr()?, "telling health and metrics");
    let handle = process.metrics.clone();
    let stuck_after = Duration::from_millis(process.config.stages.stuck_after_ms);
    let health = process.health.clone();
    let metrics = get(move || {
        let (handle, health) = (handle.clone(), health.clone());
        async move {
            let ready = is_ready(&health.report(stuck_after));
            metrics::gauge!("panopticon_ready").set(if ready { 1.0 } else { 0.0 });
            prometheus_text(handle.render())
        }
    });
    let router = condition(process.health.clone(), stuck_after).route("/metrics", metrics);
    // Until the very end, so that a drain can be watched.
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            warn!(%error, "health and metrics are no longer told");
        }
    });
    let handle = process.metrics.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(5));
        loop {
            tick.tick().await;
            handle.run_upkeep();
        }
    });
    Ok(())
}

fn prometheus_text(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    use super::*;

    async fn readiness(health: &Health) -> StatusCode {
        let request = Request::get("/readyz").body(Body::empty()).expect("a request");
        let answer = condition(health.clone(), Duration::from_secs(60)).oneshot(request).await;
        answer.expect("an answer").status()
    }

    #[tokio::test]
    async fn a_process_is_ready_once_it_has_parts_and_all_of_them_run() {
        let health = Health::default();
        assert_eq!(readiness(&health).await, StatusCode::SERVICE_UNAVAILABLE, "before anything is open");
        let part = health.part("http");
        assert_eq!(readiness(&health).await, StatusCode::SERVICE_UNAVAILABLE, "while it starts");
        part.running();
        assert_eq!(readiness(&health).await, StatusCode::OK);
    }
}
