//! HTTP as `logi` speaks it.

use std::{error::Error, time::Duration};

use panopticon_core::api::ErrorBody;
use reqwest::{Client, Response, StatusCode, redirect};

use crate::{
    failure::{Failure, Outcome},
    servers::is_loopback,
};

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one request may take, unless it is a stream.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a stream may be silent; servers ping more often than that.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of an answer that is not ours is shown.
const SHOWN_CHARS: usize = 120;

/// Makes `ring` the process's TLS provider. Calling it again does nothing.
pub fn install_tls() {
    // Fails only where one was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client for the server at `url`. Loopback is never asked of a proxy, and redirects are not followed:
/// a server that redirects has another URL than the one given.
pub(crate) fn client(url: &str) -> reqwest::Result<Client> {
    install_tls();
    let builder = Client::builder()
        .user_agent(concat!("logi/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE_TIMEOUT)
        .redirect(redirect::Policy::none());
    if is_loopback(url) { builder.no_proxy() } else { builder }.build()
}

/// The innermost cause, which says it best: `Connection refused`, `certificate has expired`.
pub(crate) fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut innermost: &dyn Error = error;
    while let Some(next) = innermost.source() {
        innermost = next;
    }
    innermost.to_string()
}

/// A server that gave no answer.
pub(crate) fn unreachable(url: &str, error: &reqwest::Error) -> Failure {
    if error.is_builder() {
        return Failure::new(format!("`{url}` is not a URL such as http://127.0.0.1:7420"));
    }
    Failure::new(format!("cannot reach {url}: {}", cause(error)))
        .hint("start it with `panopticon serve`, or set LOGI_URL")
}

/// The body of a successful answer, or what the server says is wrong.
pub(crate) async fn text_of(url: &str, answer: Response) -> Outcome<String> {
    let status = answer.status();
    let text = answer.text().await.map_err(|error| unreachable(url, &error))?;
    if status.is_success() { Ok(text) } else { Err(refused(url, status, &text)) }
}

/// What an error answer says.
pub(crate) fn refused(url: &str, status: StatusCode, text: &str) -> Failure {
    match serde_json::from_str::<ErrorBody>(text) {
        Ok(error) => Failure::answered(error),
        Err(_) => {
            let shown: String = text.trim().chars().take(SHOWN_CHARS).collect();
            let shown = if shown.is_empty() { String::new() } else { format!(": {shown}") };
            Failure::new(format!("{url} answered {status}, but not as Panopticon does{shown}"))
                .hint("is LOGI_URL right?")
        }
    }
}
