//! Makes one attempt: waits for its turn, signs with the secrets of the moment, sends, reads the answer.

use std::time::{Duration, Instant};

use http::StatusCode;
use panopticon_core::{
    control::ControlView,
    secrets::Sealer,
    telemetry::SPANS,
    time::{SharedClock, Time},
};
use panopticon_proto::{control::WebhookEndpoint, log::Delivery};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, field::Empty, trace_span, warn};
use uuid::Uuid;

use crate::{
    client::{Answer, SendError, WebhookClient},
    delivery::{Attempt, Outcome},
    permits::Permits,
    retry::read_retry_after,
    signature,
};

/// Makes attempts, for all partitions of a process.
pub struct Courier {
    /// The table with the endpoints.
    pub control: ControlView,
    /// Opens their secrets.
    pub sealer: Sealer,
    /// Sends.
    pub client: WebhookClient,
    /// Whose turn it is.
    pub permits: Permits,
}

/// What came of sending.
struct Sent {
    outcome: Outcome,
    /// For the metric.
    kind: &'static str,
    status: u32,
    error: String,
}

impl Sent {
    fn failed(kind: &'static str, error: impl ToString) -> Self {
        Self { outcome: Outcome::Failed(None), kind, status: 0, error: error.to_string() }
    }
}

impl Courier {
    /// Makes an attempt at a delivery, unless `closing` is cancelled before its turn comes.
    pub async fn attempt(
        &self,
        id: Uuid,
        delivery: Delivery,
        clock: SharedClock,
        closing: CancellationToken,
    ) -> Attempt {
        let unsent = |outcome, error: &str| Attempt {
            id,
            at: clock.now(),
            outcome,
            status: 0,
            error: error.to_owned(),
            took: Duration::ZERO,
        };
        let permit = tokio::select! {
            biased;
            () = closing.cancelled() => None,
            permit = self.permits.acquire(&delivery.endpoint_id) => permit,
        };
        let Some(_permit) = permit else { return unsent(Outcome::NotTried, "") };
        let endpoint = self.control.state().webhook(&delivery.endpoint_id).cloned();
        let endpoint = match endpoint {
            None => return unsent(Outcome::Withdrawn, "the endpoint was removed"),
            Some(endpoint) if endpoint.disabled => {
                return unsent(Outcome::Withdrawn, "the endpoint is disabled");
            }
            Some(endpoint) => endpoint,
        };
        let begun = Instant::now();
        let span = trace_span!(
            target: SPANS,
            parent: None,
            "webhook delivery",
            otel.kind = "client",
            otel.status_code = Empty,
            delivery_id = %id,
            endpoint_id = delivery.endpoint_id,
            outcome = Empty,
            http.response.status_code = Empty,
        );
        let sent = self.send(&endpoint, &delivery, clock.now()).instrument(span.clone()).await;
        span.record("outcome", sent.kind).record("http.response.status_code", sent.status);
        if sent.outcome != Outcome::Delivered {
            span.record("otel.status_code", "ERROR");
        }
        let took = begun.elapsed();
        let at = clock.now();
        metrics::counter!("panopticon_webhook_attempts_total", "outcome" => sent.kind).increment(1);
        metrics::histogram!("panopticon_webhook_attempt_seconds").record(took.as_secs_f64());
        if sent.outcome == Outcome::Delivered {
            let age = at.since(Time::from_micros(delivery.created_at));
            metrics::histogram!("panopticon_webhook_delivered_after_seconds").record(age.as_secs_f64());
        }
        debug!(delivery_id = %id, endpoint_id = delivery.endpoint_id, outcome = sent.kind, error = sent.error, "tried");
        Attempt { id, at, outcome: sent.outcome, status: sent.status, error: sent.error, took }
    }

    async fn send(&self, endpoint: &WebhookEndpoint, delivery: &Delivery, now: Time) -> Sent {
        let signed = signature::headers(endpoint, &self.sealer, &delivery.webhook_id, &delivery.body, now);
        let headers = match signed {
            Ok(headers) => headers,
            Err(error) => {
                warn!(endpoint_id = endpoint.endpoint_id, %error, "a webhook cannot be signed; it is tried again later");
                return Sent::failed("unsigned", error);
            }
        };
        match self.client.post(&endpoint.url, headers, delivery.body.clone()).await {
            Ok(answer) => judge(&answer, now),
            Err(SendError::Egress(refused)) if refused.is_blocked() => {
                metrics::counter!("panopticon_webhook_ssrf_blocked_total").increment(1);
                warn!(endpoint_id = endpoint.endpoint_id, client_id = endpoint.client_id, error = %refused, "a webhook was not sent");
                let text = refused.to_string();
                let marked = text.strip_prefix("ssrf_blocked: ").unwrap_or(&text);
                Sent::failed("ssrf_blocked", format_args!("ssrf_blocked: {marked}"))
            }
            Err(error) => {
                let kind = match &error {
                    SendError::Egress(_) => "bad_url",
                    SendError::Timeout(_) => "timeout",
                    SendError::Connect(_) => "connect",
                    SendError::Broken(_) => "broken",
                };
                Sent::failed(kind, error)
            }
        }
    }
}

/// What an answer means.
fn judge(answer: &Answer, now: Time) -> Sent {
    let status = answer.status;
    let asks_for_a_pause = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let asked = answer
        .retry_after
        .as_deref()
        .filter(|_| asks_for_a_pause)
        .and_then(|text| read_retry_after(text, now));
    let (outcome, kind) = match status {
        _ if status.is_success() => (Outcome::Delivered, "delivered"),
        StatusCode::GONE => (Outcome::Gone, "gone"),
        _ if status.is_redirection() => (Outcome::Failed(None), "redirect"),
        _ if status.is_client_error() => (Outcome::Failed(asked), "4xx"),
        _ => (Outcome::Failed(asked), "5xx"),
    };
    let error = match kind {
        "delivered" => String::new(),
        "redirect" => format!("status {}: redirects are not followed", status.as_u16()),
        _ => format!("status {status}"),
    };
    Sent { outcome, kind, status: u32::from(status.as_u16()), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, retry_after: Option<&str>) -> Outcome {
        let status = StatusCode::from_u16(status).unwrap();
        judge(&Answer { status, retry_after: retry_after.map(str::to_owned) }, Time::EPOCH).outcome
    }

    #[test]
    fn any_2xx_is_delivered_410_is_gone_and_all_else_is_tried_again() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(outcome(status, None), Outcome::Delivered);
        }
        assert_eq!(outcome(410, None), Outcome::Gone);
        for status in [301, 302, 307, 400, 401, 404, 408, 500, 502, 504] {
            assert_eq!(outcome(status, Some("9")), Outcome::Failed(None), "{status}");
        }
        for status in [429, 503] {
            assert_eq!(outcome(status, Some("9")), Outcome::Failed(Some(Duration::from_secs(9))), "{status}");
        }
    }
}
