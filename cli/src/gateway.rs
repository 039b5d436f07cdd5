//! The ingest gateway over HTTP, as a client.

use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use panopticon_core::{
    api::{ErrorBody, GUARD_HEADER},
    time::{Clock as _, SystemClock},
};
use reqwest::Client;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::{
    connection::{self, REQUEST_TIMEOUT},
    servers::tidy_url,
};

/// The most bytes of a batch that is sent: below the gateway's 4 MiB.
pub(crate) const MAX_BODY_BYTES: usize = 3_500_000;
/// The longest that a server's Retry-After is heeded.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// What identifies an app to the gateway.
#[derive(Clone)]
pub(crate) struct Credentials {
    /// `pano_pak_…`.
    pub(crate) pak: String,
    /// `pano_sec_…`, where requests are signed.
    pub(crate) pak_secret: Option<String>,
}

/// What became of one trace of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TraceOutcome {
    /// The trace's id, in lower case.
    #[serde(default)]
    pub(crate) event_id: String,
    /// `accepted`, `duplicate` or `rejected`.
    pub(crate) status: String,
    /// Why it was rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The field at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error_description: Option<String>,
    /// What AI Guard says about its user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) guard: Option<String>,
}

impl TraceOutcome {
    /// Valid, but not confirmed: to be sent again.
    pub(crate) fn is_unavailable(&self) -> bool {
        self.status == "unavailable" || self.error.as_deref() == Some("unavailable")
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(crate) struct BatchOutcome {
    /// In the order of the traces.
    pub(crate) results: Vec<TraceOutcome>,
    /// What AI Guard says, where it says something.
    pub(crate) guard: Option<String>,
}

/// Why a batch has no results.
#[derive(Debug, Clone)]
pub(crate) enum SendError {
    /// Passes by itself: send the same again.
    Again {
        /// What the server, or the network, said.
        why: String,
        /// The server asks not to be asked before that.
        after: Option<Duration>,
        /// There is a server: it has answered.
        answered: bool,
    },
    /// More than the gateway takes at once, or one thing in it spoils all: send it in parts.
    Divide(ErrorBody),
    /// Nothing of it will ever be taken.
    Refused(ErrorBody),
}

/// An error body of our own making, where a server gave none.
pub(crate) fn error_body(error: &str, description: impl Into<String>) -> ErrorBody {
    ErrorBody {
        error: error.to_owned(),
        error_description: description.into(),
        error_uri: String::new(),
        request_id: String::new(),
        field: None,
    }
}

/// Lower-case hex of HMAC-SHA256(pak_secret, "<timestamp>.<payload>").
pub(crate) fn signature(pak_secret: &str, timestamp: i64, payload: &[u8]) -> String {
    // Keys of every length are taken.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(pak_secret.as_bytes()) else { return String::new() };
    mac.update(format!("{timestamp}.").as_bytes());
    mac.update(payload);
    hex::encode(mac.finalize().into_bytes())
}

/// A gateway and an app's credentials for it.
#[derive(Clone)]
pub(crate) struct Gateway {
    http: Client,
    url: String,
    credentials: Credentials,
}

impl Gateway {
    /// A client for the gateway at `url`.
    pub(crate) fn new(url: &str, credentials: Credentials) -> reqwest::Result<Self> {
        Ok(Self { http: connection::client(url)?, url: tidy_url(url), credentials })
    }

    /// Sends traces, one JSON object a line.
    pub(crate) async fn send_lines(&self, body: Bytes) -> Result<BatchOutcome, SendError> {
        let mut request = self
            .http
            .post(format!("{}/panopticon/traces", self.url))
            .timeout(REQUEST_TIMEOUT)
            .bearer_auth(&self.credentials.pak)
            .header(header::CONTENT_TYPE, "application/x-ndjson");
        if let Some(secret) = &self.credentials.pak_secret {
            let timestamp = SystemClock.now().secs();
            request = request
                .header("x-panopticon-timestamp", timestamp)
                .header("x-panopticon-signature", signature(secret, timestamp, &body));
        }
        let again = |error: &reqwest::Error| SendError::Again {
            why: connection::cause(error),
            after: None,
            answered: false,
        };
        let answer = match request.body(body).send().await {
            Ok(answer) => answer,
            Err(error) if error.is_builder() => {
                return Err(SendError::Refused(error_body("", format!("`{}` is not a URL", self.url))));
            }
            Err(error) => return Err(again(&error)),
        };
        let (status, headers) = (answer.status(), answer.headers().clone());
        let text = answer.text().await.map_err(|error| again(&error))?;
        if status != StatusCode::OK && status != StatusCode::ACCEPTED {
            return Err(self.not_taken(status, &headers, &text));
        }
        #[derive(Deserialize)]
        struct Results {
            results: Vec<TraceOutcome>,
        }
        match serde_json::from_str::<Results>(&text) {
            Ok(Results { results }) => {
                let of_a_user = || results.iter().find_map(|result| result.guard.clone());
                Ok(BatchOutcome { guard: guard(&headers).or_else(of_a_user), results })
            }
            Err(error) => Err(SendError::Refused(error_body(
                "",
                format!("the answer of {} is not understood: {error}", self.url),
            ))),
        }
    }

    fn not_taken(&self, status: StatusCode, headers: &HeaderMap, text: &str) -> SendError {
        let body = serde_json::from_str::<ErrorBody>(text).unwrap_or_else(|_| {
            error_body("", format!("{} answered {status}, but not as Panopticon does", self.url))
        });
        match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => again(body, headers),
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::BAD_REQUEST => SendError::Divide(body),
            // A proxy in between may well answer in its own way while the server restarts.
            _ if status.is_server_error() => again(body, headers),
            _ => SendError::Refused(body),
        }
    }
}

fn again(body: ErrorBody, headers: &HeaderMap) -> SendError {
    SendError::Again { why: body.error_description, after: retry_after(headers), answered: true }
}

fn guard(headers: &HeaderMap) -> Option<String> {
    headers.get(GUARD_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// Retry-After in seconds, the form that Panopticon uses.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER).map(HeaderValue::to_str)?.ok()?.trim().parse().ok()?;
    Some(heeded(Duration::from_secs(seconds)))
}

/// A wait that a server asked for, within reason.
pub(crate) fn heeded(wait: Duration) -> Duration {
    wait.min(LONGEST_RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_covers_the_time_and_the_bytes() {
        // printf '1751284800.{"a":1}' | openssl dgst -sha256 -hmac pano_sec_x
        assert_eq!(
            signature("pano_sec_x", 1_751_284_800, b"{\"a\":1}"),
            "190621d99a135fa931ced4048dbd20d335c87f097a1c129e21724c4c492fc153"
        );
    }
}
