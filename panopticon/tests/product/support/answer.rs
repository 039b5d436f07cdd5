//! An HTTP answer, and the form that every refusal has.

use http::HeaderMap;
use serde_json::Value;
use uuid::Uuid;

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub async fn read(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, text: response.text().await.unwrap() }
    }

    /// The body; null where it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn guard(&self) -> Option<&str> {
        self.headers.get("x-panopticon-guard").map(|value| value.to_str().unwrap())
    }

    /// The body of an answer that must have this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }
}

/// Checks a refusal as a whole: status, code, field, request id, and what belongs to the status.
#[track_caller]
pub fn refused(answer: &Answer, status: u16, error: &str, field: Option<&str>) {
    let body = answer.json();
    let seen = (answer.status, body["error"].as_str().unwrap_or("-"), body["field"].as_str());
    assert_eq!(seen, (status, error, field), "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/json");
    let request_id = body["request_id"].as_str().unwrap();
    assert_eq!(request_id, answer.header("x-logi-request-id"));
    assert!(Uuid::parse_str(request_id).is_ok(), "{request_id}");
    assert!(body["error_description"].as_str().unwrap().len() > 3, "{body}");
    let uri = body["error_uri"].as_str().unwrap();
    assert!(uri.starts_with("http://") && uri.ends_with(&format!("/docs/errors#{error}")), "{uri}");
    let known = ["error", "error_description", "error_uri", "request_id", "field"];
    assert!(body.as_object().unwrap().keys().all(|key| known.contains(&key.as_str())), "{body}");
    match status {
        401 => assert!(answer.header("www-authenticate").starts_with("Bearer "), "{answer:?}"),
        405 => assert!(!answer.header("allow").is_empty(), "{answer:?}"),
        429 | 503 => assert!(answer.header("retry-after").parse::<u64>().unwrap() > 0, "{answer:?}"),
        _ => {}
    }
}
