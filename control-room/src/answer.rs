//! Answers: errors of one form, a request id on everything.
//!
//! An error is made where it happens, without knowledge of the request; [`finish`] then gives it the
//! request's id and the address where it is explained.

use std::sync::Arc;

use axum::{
    Json,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use panopticon_core::{
    api::{ErrorBody, REQUEST_ID_HEADER},
    control::ChangeError,
    log::LogError,
    store::StoreError,
};
use tracing::{error, warn};
use uuid::Uuid;

use crate::ops::{Refusal, RefusalKind};

/// What `Retry-After` says where the system is away, in seconds.
pub const RETRY_AFTER_SECS: u64 = 1;

/// An error on its way out.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    description: String,
    field: Option<String>,
    retry_after_secs: Option<u64>,
}

impl ApiError {
    /// An error with a stable code.
    pub fn new(status: StatusCode, code: &'static str, description: impl Into<String>) -> Self {
        Self { status, code, description: description.into(), field: None, retry_after_secs: None }
    }

    /// 400 `invalid_request`, naming the field at fault.
    pub fn invalid(field: &str, description: impl Into<String>) -> Self {
        let field = (!field.is_empty()).then(|| field.to_owned());
        Self { field, ..Self::new(StatusCode::BAD_REQUEST, "invalid_request", description) }
    }

    /// 404 `not_found`.
    pub fn not_found(description: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", description)
    }

    /// 403 `insufficient_scope`.
    pub fn forbidden(description: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "insufficient_scope", description)
    }

    /// 503 `unavailable`, to be tried again after `retry_after_secs`.
    pub fn unavailable(description: impl Into<String>, retry_after_secs: u64) -> Self {
        Self {
            retry_after_secs: Some(retry_after_secs),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", description)
        }
    }

    fn internal() -> Self {
        let text = "something is broken on the server; its log has the cause under this request id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", text)
    }

    /// Whether the same request may succeed later.
    pub fn is_unavailable(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE
    }

    /// The value of `WWW-Authenticate` (RFC 6750 §3), where the error is about credentials.
    fn challenge(&self) -> Option<HeaderValue> {
        match self.code {
            "invalid_token" | "insufficient_scope" => {
                let text = format!("Bearer realm=\"panopticon\", error=\"{}\"", self.code);
                HeaderValue::from_str(&text).ok()
            }
            _ => None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if let Some(challenge) = self.challenge() {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(secs) = self.retry_after_secs {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let (status, code) = match refusal.kind {
            RefusalKind::Invalid => (StatusCode::BAD_REQUEST, "invalid_request"),
            RefusalKind::NotSupported => (StatusCode::BAD_REQUEST, "not_supported"),
            RefusalKind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            RefusalKind::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, "precondition_failed"),
            RefusalKind::LimitReached => (StatusCode::CONFLICT, "limit_reached"),
            RefusalKind::Conflict => (StatusCode::CONFLICT, "conflict"),
        };
        Self { field: refusal.field, ..Self::new(status, code, refusal.description) }
    }
}

impl From<LogError> for ApiError {
    fn from(cause: LogError) -> Self {
        match cause {
            LogError::Unavailable(_) | LogError::Full(_) | LogError::Fenced(_) | LogError::Aborted(_) => {
                warn!(error = %cause, "a request could not be done for now");
                let text = "the event log does not answer; whether a change was made is not confirmed: look, then try again";
                Self::unavailable(text, RETRY_AFTER_SECS)
            }
            LogError::TooLarge { .. }
            | LogError::Hole { .. }
            | LogError::NoTopic(_)
            | LogError::Broken(_) => {
                error!(error = %cause, "a request failed on the event log");
                Self::internal()
            }
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(cause: StoreError) -> Self {
        match cause {
            StoreError::Unavailable(_) => {
                warn!(error = %cause, "a request could not be done for now");
                Self::unavailable("the trace store does not answer; try again", RETRY_AFTER_SECS)
            }
            StoreError::Broken(_) => {
                error!(error = %cause, "a request failed on the trace store");
                Self::internal()
            }
        }
    }
}

impl From<ChangeError<Refusal>> for ApiError {
    fn from(cause: ChangeError<Refusal>) -> Self {
        match cause {
            ChangeError::Refused(refusal) => refusal.into(),
            ChangeError::Log(error) => error.into(),
        }
    }
}

/// The id of a request, for its answer and the audit record.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

/// Gives every request an id, and every answer that id; completes and counts errors. `docs` is the address
/// below which error codes are explained.
pub async fn finish(State(docs): State<Arc<str>>, mut request: Request, next: Next) -> Response {
    let id: Arc<str> = Uuid::now_v7().to_string().into();
    request.extensions_mut().insert(RequestId(id.clone()));
    let method = request.method().as_str().to_owned();
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();

    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        metrics::counter!("panopticon_control_refused_total", "error" => error.code).increment(1);
        let body = ErrorBody {
            error: error.code.to_owned(),
            error_uri: format!("{docs}#{}", error.code),
            error_description: error.description,
            request_id: id.to_string(),
            field: error.field,
        };
        let (parts, _) = response.into_parts();
        let mut headers = parts.headers;
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::CONTENT_TYPE);
        response = (parts.status, Json(body)).into_response();
        response.headers_mut().extend(headers);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
    // Answers carry secrets and personal data: no cache may keep them.
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let status = response.status().as_u16().to_string();
    metrics::counter!("panopticon_control_requests_total", "method" => method, "route" => route, "status" => status)
        .increment(1);
    response
}
