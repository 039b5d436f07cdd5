//! What is refused, in the words of HTTP and of gRPC.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use panopticon_core::{
    admission::Refusal,
    api::{ErrorBody, REQUEST_ID_HEADER},
};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

/// Why a request is not answered with a verdict.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{description}")]
pub struct GatewayError {
    /// Which kind.
    pub kind: Kind,
    /// The field at fault; empty where there is none.
    pub field: String,
    /// What is wrong and what to do.
    pub description: String,
}

/// The kinds of error, each with its code and status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Malformed, unknown field, bad value.
    InvalidRequest,
    /// No PAK, or an unknown or expired one.
    InvalidToken,
    /// The HMAC signature is missing or wrong, or its time is off.
    InvalidSignature,
    /// The trace is of another app than the PAK.
    ClientMismatch,
    /// The app is disabled.
    AppDisabled,
    /// The body did not come in time.
    RequestTimeout,
    /// The body or the batch is too large.
    TooLarge,
    /// Content type or encoding is not one that is read here.
    UnsupportedMediaType,
    /// Too many bad credentials from one address.
    TooManyRequests,
    /// Not confirmed: send again.
    Unavailable {
        /// After this many seconds.
        retry_after_secs: u64,
    },
    /// No such path.
    NotFound,
    /// No such method on this path.
    MethodNotAllowed,
}

impl Kind {
    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidToken => "invalid_token",
            Self::InvalidSignature => "invalid_signature",
            Self::ClientMismatch => "client_mismatch",
            Self::AppDisabled => "app_disabled",
            Self::RequestTimeout => "request_timeout",
            Self::TooLarge => "request_too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::TooManyRequests => "too_many_requests",
            Self::Unavailable { .. } => "unavailable",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::InvalidToken | Self::InvalidSignature => StatusCode::UNAUTHORIZED,
            Self::ClientMismatch | Self::AppDisabled => StatusCode::FORBIDDEN,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        }
    }
}

/// Seconds after which repeated bad credentials are looked at again.
const BAD_CREDENTIALS_RETRY_SECS: u64 = 60;

impl GatewayError {
    /// An error of this kind.
    pub fn new(kind: Kind, description: impl Into<String>) -> Self {
        Self { kind, field: String::new(), description: description.into() }
    }

    /// An error about a field.
    pub fn field(kind: Kind, field: &str, description: impl Into<String>) -> Self {
        Self { kind, field: field.to_owned(), description: description.into() }
    }

    /// The HTTP answer.
    pub fn into_http(self, base_url: &str, request_id: &Uuid) -> Response {
        let code = self.kind.code();
        let body = ErrorBody {
            error: code.to_owned(),
            error_description: self.description,
            error_uri: format!("{base_url}/docs/errors#{code}"),
            request_id: request_id.to_string(),
            field: (!self.field.is_empty()).then_some(self.field),
        };
        let mut response = (self.kind.status(), Json(body)).into_response();
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::try_from(request_id.to_string()) {
            headers.insert(REQUEST_ID_HEADER, id);
        }
        match self.kind {
            Kind::InvalidToken => {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static(r#"Bearer realm="panopticon", error="invalid_token""#),
                );
            }
            Kind::InvalidSignature => {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static(r#"Bearer realm="panopticon", error="invalid_signature""#),
                );
            }
            Kind::Unavailable { retry_after_secs } => {
                headers.insert(header::RETRY_AFTER, retry_after_secs.into());
            }
            Kind::TooManyRequests => {
                headers.insert(header::RETRY_AFTER, BAD_CREDENTIALS_RETRY_SECS.into());
            }
            _ => {}
        }
        response
    }

    /// The gRPC status.
    pub fn into_grpc(self) -> tonic::Status {
        use tonic::Code;
        let text = format!("{}: {}", self.kind.code(), self.description);
        match self.kind {
            Kind::InvalidToken | Kind::InvalidSignature => tonic::Status::unauthenticated(text),
            Kind::ClientMismatch | Kind::AppDisabled => tonic::Status::permission_denied(text),
            Kind::Unavailable { retry_after_secs } => tonic::Status::with_error_details(
                Code::Unavailable,
                text,
                ErrorDetails::with_retry_info(Some(Duration::from_secs(retry_after_secs))),
            ),
            Kind::TooManyRequests => tonic::Status::with_error_details(
                Code::ResourceExhausted,
                text,
                ErrorDetails::with_retry_info(Some(Duration::from_secs(BAD_CREDENTIALS_RETRY_SECS))),
            ),
            Kind::TooLarge => tonic::Status::resource_exhausted(text),
            Kind::RequestTimeout => tonic::Status::deadline_exceeded(text),
            Kind::InvalidRequest | Kind::UnsupportedMediaType => tonic::Status::with_error_details(
                Code::InvalidArgument,
                text,
                ErrorDetails::with_bad_request_violation(self.field, self.description),
            ),
            Kind::NotFound | Kind::MethodNotAllowed => tonic::Status::unimplemented(text),
        }
    }
}

impl From<Refusal> for GatewayError {
    fn from(refusal: Refusal) -> Self {
        Self { kind: Kind::InvalidRequest, description: refusal.to_string(), field: refusal.field }
    }
}
