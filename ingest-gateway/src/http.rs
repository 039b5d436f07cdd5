//! HTTP ingestion: `POST /panopticon/trace` and `POST /panopticon/traces`.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, DefaultBodyLimit, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use panopticon_core::{
    admission::{Admitted, Refusal, Seen, admit_json},
    api::{GUARD_HEADER, REQUEST_ID_HEADER},
    control::Guard,
    time::Time,
};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    Gateway,
    auth::{Sender, Signature},
    body::{self, Format},
    error::{GatewayError, Kind},
    verdict::Verdict,
};

/// How much of an unknown path is repeated in the answer.
const MAX_SHOWN_PATH_CHARS: usize = 200;

/// The HTTP interface.
pub fn router(gateway: Gateway) -> Router {
    Router::new()
        .route("/panopticon/trace", post(one).fallback(method_not_allowed))
        .route("/panopticon/traces", post(many).fallback(method_not_allowed))
        // The limits differ by path and are kept while reading.
        .layer(DefaultBodyLimit::disable())
        .with_state(gateway)
}

/// What became of one trace, as JSON.
#[derive(Debug, Serialize)]
struct TraceAnswer {
    event_id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guard: Option<&'static str>,
}

impl TraceAnswer {
    fn of(event_id: String, verdict: Verdict, guard: Option<Guard>) -> Self {
        let (status, error) = match verdict {
            Verdict::Accepted => ("accepted", None),
            Verdict::Duplicate => ("duplicate", None),
            Verdict::Unavailable => ("rejected", Some("unavailable")),
        };
        let error_description = error.map(|_| NOT_CONFIRMED.to_owned());
        Self { event_id, status, error, field: None, error_description, guard: guard.map(Guard::header) }
    }

    fn rejected(event_id: String, error: GatewayError) -> Self {
        Self {
            event_id,
            status: "rejected",
            error: Some(error.kind.code()),
            field: (!error.field.is_empty()).then_some(error.field),
            error_description: Some(error.description),
            guard: None,
        }
    }
}

/// What is said of a trace that could not be confirmed.
pub(crate) const NOT_CONFIRMED: &str = "not confirmed; send it again with the same event_id";

/// One HTTP request on its way.
struct Asked {
    gateway: Gateway,
    request_id: Uuid,
    from: Option<IpAddr>,
    headers: HeaderMap,
    body: Body,
}

impl Asked {
    fn new(gateway: Gateway, request: Request) -> Self {
        let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
        let (parts, body) = request.into_parts();
        Self { gateway, request_id: Uuid::now_v7(), from, headers: parts.headers, body }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Checks who sends and reads what they sent, at most `limit` bytes as sent and as unpacked.
    async fn admit(&mut self, limit: usize) -> Result<(Sender, Format, bytes::Bytes), GatewayError> {
        let sender = self.gateway.gate.admit(self.header(header::AUTHORIZATION.as_str()), self.from)?;
        let read = self.read(&sender, limit).await;
        if let Err(error) = &read {
            let now = self.gateway.clock.now();
            self.gateway.intake.counts.refused(&sender.app.client_id, error.kind.code(), &error.field, now);
        }
        read.map(|(format, plain)| (sender, format, plain))
    }

    async fn read(&mut self, sender: &Sender, limit: usize) -> Result<(Format, bytes::Bytes), GatewayError> {
        let format = body::format(&self.headers)?;
        let patience = Duration::from_millis(self.gateway.config.gateway.body_timeout_ms);
        let sent = body::read(std::mem::take(&mut self.body), limit, patience).await?;
        let claim = Signature {
            timestamp: self.header("x-panopticon-timestamp"),
            signature: self.header("x-panopticon-signature"),
        };
        self.gateway.gate.check_signature(sender, claim, &sent, self.from)?;
        Ok((format, body::decompress(&self.headers, sent, limit)?))
    }

    fn answer(&self, status: StatusCode, body: impl Serialize, guard: Option<Guard>) -> Response {
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::try_from(self.request_id.to_string()) {
            headers.insert(REQUEST_ID_HEADER, id);
        }
        if let Some(guard) = guard {
            headers.insert(GUARD_HEADER, HeaderValue::from_static(guard.header()));
        }
        response
    }

    fn refuse(&self, error: GatewayError) -> Response {
        error.into_http(&self.gateway.config.url(), &self.request_id)
    }

    fn unavailable(&self) -> GatewayError {
        GatewayError::new(
            Kind::Unavailable { retry_after_secs: self.gateway.config.gateway.retry_after_secs },
            NOT_CONFIRMED,
        )
    }
}

/// Admits one trace of `sender`'s app; also what AI Guard says about its user.
fn check(
    gateway: &Gateway,
    text: &[u8],
    sender: &Sender,
    now: Time,
) -> Result<(Admitted, Option<Guard>), (String, GatewayError)> {
    let looked = admit_json(text, now, |seen| {
        own(seen, sender)?;
        Ok(gateway.gate.guard(&sender.app.client_id, seen.trace.user_sub))
    });
    let (admitted, guard) = looked.map_err(|refusal: Refusal| (refusal.event_id.clone(), refusal.into()))?;
    Ok((admitted, guard?))
}

/// A trace must be of the app that the PAK belongs to.
pub(crate) fn own(seen: &Seen<'_>, sender: &Sender) -> Result<(), (String, GatewayError)> {
    let client_id = seen.trace.client_id;
    if client_id == sender.app.client_id {
        return Ok(());
    }
    let description = format!("the PAK belongs to `{}`, the trace to `{client_id}`", sender.app.client_id);
    Err((seen.event_id().to_string(), GatewayError::field(Kind::ClientMismatch, "client_id", description)))
}

/// `POST /panopticon/trace`.
async fn one(State(gateway): State<Gateway>, request: Request) -> Response {
    let mut asked = Asked::new(gateway, request);
    let (limit, now) = (asked.gateway.config.gateway.max_trace_bytes, asked.gateway.clock.now());
    let (sender, format, text) = match asked.admit(limit).await {
        Ok(admitted) => admitted,
        Err(error) => return asked.refuse(error),
    };
    if format != Format::Json {
        return asked.refuse(GatewayError::new(
            Kind::UnsupportedMediaType,
            "a single trace is application/json; send NDJSON to /panopticon/traces",
        ));
    }
    let (trace, guard) = match check(&asked.gateway, &text, &sender, now) {
        Ok(checked) => checked,
        Err((_, error)) => {
            asked.gateway.intake.counts.refused(&sender.app.client_id, error.kind.code(), &error.field, now);
            return asked.refuse(error);
        }
    };
    let (event_id, app) = (trace.event_id.to_string(), &sender.app.client_id);
    let verdict = asked.gateway.intake.take_in(app, vec![trace]).await.pop().unwrap_or(Verdict::Unavailable);
    let status = match verdict {
        Verdict::Accepted => StatusCode::ACCEPTED,
        Verdict::Duplicate => StatusCode::OK,
        Verdict::Unavailable => return asked.refuse(asked.unavailable()),
    };
    // The guard goes into the header alone: the body stays as it is.
    asked.answer(status, TraceAnswer::of(event_id, verdict, None), guard)
}

#[derive(Serialize)]
struct BatchAnswer {
    results: Vec<TraceAnswer>,
}

/// `POST /panopticon/traces`.
async fn many(State(gateway): State<Gateway>, request: Request) -> Response {
    let mut asked = Asked::new(gateway, request);
    let limits = &asked.gateway.config.gateway;
    let (max_bytes, max_traces, now) =
        (limits.max_batch_bytes, limits.max_batch_traces, asked.gateway.clock.now());
    let (sender, format, plain) = match asked.admit(max_bytes).await {
        Ok(admitted) => admitted,
        Err(error) => return asked.refuse(error),
    };
    let counts = &asked.gateway.intake.counts;
    let texts = match body::cut(format, &plain, max_traces) {
        Ok(texts) => texts,
        Err(error) => {
            counts.refused(&sender.app.client_id, error.kind.code(), &error.field, now);
            return asked.refuse(error);
        }
    };
    let mut results: Vec<Option<TraceAnswer>> = Vec::with_capacity(texts.len());
    let mut valid = Vec::with_capacity(texts.len());
    let mut places = Vec::with_capacity(texts.len());
    for text in texts {
        match check(&asked.gateway, text, &sender, now) {
            Ok((trace, guard)) => {
                places.push((results.len(), trace.event_id.to_string(), guard));
                valid.push(trace);
                results.push(None);
            }
            Err((event_id, error)) => {
                counts.refused(&sender.app.client_id, error.kind.code(), &error.field, now);
                results.push(Some(TraceAnswer::rejected(event_id, error)));
            }
        }
    }
    let verdicts = asked.gateway.intake.take_in(&sender.app.client_id, valid).await;
    if !verdicts.is_empty() && verdicts.iter().all(|verdict| *verdict == Verdict::Unavailable) {
        return asked.refuse(asked.unavailable());
    }
    for ((i, event_id, guard), verdict) in places.into_iter().zip(verdicts) {
        results[i] = Some(TraceAnswer::of(event_id, verdict, guard));
    }
    let guard = asked.gateway.gate.guard(&sender.app.client_id, "");
    asked.answer(StatusCode::OK, BatchAnswer { results: results.into_iter().flatten().collect() }, guard)
}

async fn method_not_allowed(State(gateway): State<Gateway>) -> Response {
    let mut response = GatewayError::new(Kind::MethodNotAllowed, "use POST")
        .into_http(&gateway.config.url(), &Uuid::now_v7());
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
    response
}

/// A path that is on neither interface. Without this the gRPC library would answer plain HTTP clients as if
/// they spoke gRPC: with status 200.
pub(crate) async fn nothing_there(gateway: Gateway, request: Request) -> Response {
    let path: String = request.uri().path().chars().take(MAX_SHOWN_PATH_CHARS).collect();
    let error = GatewayError::new(
        Kind::NotFound,
        format!("there is nothing at `{path}`; traces go to /panopticon/trace and /panopticon/traces"),
    );
    let content_type = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if content_type.is_some_and(|kind| kind.starts_with(b"application/grpc")) {
        return error.into_grpc().into_http::<Body>();
    }
    error.into_http(&gateway.config.url(), &Uuid::now_v7())
}
