//! The control API, as a client.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use panopticon_core::{
    api::{BASE, ListAnswer},
    config::Secret,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, RequestBuilder, Response};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    connection::{self, REQUEST_TIMEOUT, client, text_of, unreachable},
    failure::{Failure, Outcome},
    servers::{self, tidy_url},
};

/// The most rows that the server gives at once.
const PAGE_ROWS: usize = 1_000;
/// What a path segment must not contain as it is: everything but RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~').remove(b'.');

/// A path below [`BASE`] from its segments.
pub(crate) fn path(segments: &[&str]) -> String {
    segments.iter().map(|segment| format!("/{}", utf8_percent_encode(segment, SEGMENT))).collect()
}

/// Adds a query of those pairs that have a value.
pub(crate) fn with_query(path: String, pairs: &[(&str, Option<String>)]) -> String {
    let mut whole = path;
    for (name, value) in pairs {
        if let Some(value) = value {
            whole.push(if whole.contains('?') { '&' } else { '?' });
            whole.push_str(&format!("{name}={}", utf8_percent_encode(value, SEGMENT)));
        }
    }
    whole
}

/// A successful answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The body; empty where there is none.
    pub(crate) text: String,
    /// The ETag, with its quotes.
    pub(crate) etag: Option<HeaderValue>,
}

impl Answer {
    /// The body as a value.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Outcome<T> {
        serde_json::from_str(&self.text).map_err(|error| not_understood(&error))
    }
}

/// A row of a list as a value.
pub(crate) fn row<T: DeserializeOwned>(raw: &RawValue) -> Outcome<T> {
    serde_json::from_str(raw.get()).map_err(|error| not_understood(&error))
}

fn not_understood(error: &serde_json::Error) -> Failure {
    Failure::new(format!("the server's answer is not understood: {error}"))
        .hint("are logi and the server of the same version?")
}

/// A server's control API with a token for it.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    http: Client,
    /// The server, without a slash at its end.
    pub(crate) url: String,
    token: HeaderValue,
    token_from: String,
}

impl Control {
    /// Finds the server and the token; says what to do where there is no token.
    pub(crate) fn find(url: Option<&str>) -> Outcome<Self> {
        let token = std::env::var("LOGI_TOKEN").ok().filter(|token| !token.is_empty()).map(Secret::new);
        let found = servers::find(url, token).map_err(|error| Failure::new(error.to_string()))?;
        let url = tidy_url(&found.url);
        let Some(token) = found.token else {
            return Err(Failure::new(format!("no API token for {url} ({})", found.token_from)).hint(
                "set LOGI_TOKEN, or start the server as this user with `panopticon serve`, which records it",
            ));
        };
        let http = client(&url).map_err(|error| unreachable(&url, &error))?;
        let mut token = HeaderValue::try_from(format!("Bearer {}", token.expose())).map_err(|_| {
            Failure::new(format!("the token from {} has characters that no token has", found.token_from))
        })?;
        token.set_sensitive(true);
        Ok(Self { http, url, token, token_from: found.token_from })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{BASE}{path}", self.url))
            .header(header::AUTHORIZATION, self.token.clone())
    }

    async fn answer(&self, request: RequestBuilder) -> Outcome<Answer> {
        self.answer_within(REQUEST_TIMEOUT, request).await
    }

    async fn answer_within(&self, timeout: Duration, request: RequestBuilder) -> Outcome<Answer> {
        let sent = request.timeout(timeout).send().await;
        let answer = sent.map_err(|error| unreachable(&self.url, &error))?;
        let etag = answer.headers().get(header::ETAG).cloned();
        let text = text_of(&self.url, answer).await.map_err(|failure| self.about_token(failure))?;
        Ok(Answer { text, etag })
    }

    fn about_token(&self, failure: Failure) -> Failure {
        match failure.code.as_str() {
            "invalid_token" => failure.hint(format!("the token came from {}", self.token_from)),
            _ => failure,
        }
    }

    /// GET.
    pub(crate) async fn get(&self, path: &str) -> Outcome<Answer> {
        self.answer(self.request(Method::GET, path)).await
    }

    /// POST without a body.
    pub(crate) async fn post(&self, path: &str) -> Outcome<Answer> {
        self.answer(self.request(Method::POST, path)).await
    }

    /// Any method, with a JSON body.
    pub(crate) async fn send<T: Serialize>(&self, method: Method, path: &str, body: &T) -> Outcome<Answer> {
        self.answer(self.request(method, path).json(body)).await
    }

    /// The same for what takes long.
    pub(crate) async fn send_within<T: Serialize>(
        &self,
        timeout: Duration,
        method: Method,
        path: &str,
        body: &T,
    ) -> Outcome<Answer> {
        self.answer_within(timeout, self.request(method, path).json(body)).await
    }

    /// The same, only if the resource still is as `etag` says.
    pub(crate) async fn send_if_match<T: Serialize>(
        &self,
        method: Method,
        path: &str,
        etag: HeaderValue,
        body: &T,
    ) -> Outcome<Answer> {
        self.answer(self.request(method, path).header(header::IF_MATCH, etag).json(body)).await
    }

    /// DELETE without a body.
    pub(crate) async fn delete(&self, path: &str) -> Outcome<Answer> {
        self.answer(self.request(Method::DELETE, path)).await
    }

    /// The first `limit` rows of a list, over as many pages as that takes.
    pub(crate) async fn list(
        &self,
        base: &str,
        query: &[(&str, Option<String>)],
        limit: usize,
    ) -> Outcome<Vec<Box<RawValue>>> {
        let mut rows = Vec::new();
        let mut cursor = None;
        while rows.len() < limit {
            let wanted = (limit - rows.len()).min(PAGE_ROWS);
            let paging = [("limit", Some(wanted.to_string())), ("cursor", cursor.take())];
            let page = with_query(with_query(base.to_owned(), query), &paging);
            let page: ListAnswer<Box<RawValue>> = self.get(&page).await?.read()?;
            let empty = page.items.is_empty();
            rows.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() || empty {
                break;
            }
        }
        rows.truncate(limit);
        Ok(rows)
    }

    /// Every row of a list that has no pages.
    pub(crate) async fn whole_list(
        &self,
        path: &str,
        query: &[(&str, Option<String>)],
    ) -> Outcome<Vec<Box<RawValue>>> {
        let page = with_query(path.to_owned(), query);
        let page: ListAnswer<Box<RawValue>> = self.get(&page).await?.read()?;
        Ok(page.items)
    }

    /// Opens a stream of Server-Sent Events, after `last_event_id` where there was one before.
    pub(crate) async fn stream(&self, path: &str, last_event_id: Option<&str>) -> Outcome<Response> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(id) = last_event_id.and_then(|id| HeaderValue::from_str(id).ok()) {
            headers.insert(HeaderName::from_static("last-event-id"), id);
        }
        let sent = self.request(Method::GET, path).headers(headers).send().await;
        let answer = sent.map_err(|error| unreachable(&self.url, &error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let text = answer.text().await.unwrap_or_default();
        Err(self.about_token(connection::refused(&self.url, status, &text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_client_id_is_one_segment_of_the_path() {
        assert_eq!(
            path(&["apps", "https://rp.example/c?x=1#y z", "kill"]),
            "/apps/https%3A%2F%2Frp.example%2Fc%3Fx%3D1%23y%20z/kill"
        );
        assert_eq!(
            with_query(
                "/a".into(),
                &[("user_sub", Some("a&b+c".into())), ("tool", None), ("limit", Some("5".into()))]
            ),
            "/a?user_sub=a%26b%2Bc&limit=5"
        );
    }
}
