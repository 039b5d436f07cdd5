//! A receiver of webhooks on this machine, for trying them out.

use std::{future::IntoFuture as _, net::Ipv4Addr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    routing::post,
};
use clap::Args;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, StatusCode};
use panopticon_core::{
    ids::ClientId,
    time::{Clock as _, SystemClock, Time},
};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{Session, cell, webhook};
use crate::{
    called::command,
    control::path,
    failure::{Failure, Outcome, shell_word},
    output::{plain, shown},
};

/// The most bytes of a message.
const MAX_BODY_BYTES: usize = 1024 * 1024;
/// How old a signature may be, and how far ahead, in seconds (Standard Webhooks).
const SIGNATURE_AGE_SECS: i64 = 300;
/// How many messages may wait to be printed; a sender is then told to come again.
const WAITING_MESSAGES: usize = 256;

/// How long the answers to the last messages may take to leave.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Receive an app's webhooks on this machine: register, verify, print
#[derive(Debug, Args)]
#[command(after_help = "\
A receiver is started on a free loopback port and registered as an endpoint of the app; Ctrl-C ends it with \
status 0 and removes the endpoint. Both signatures of every message are verified: a message that fails is \
answered 401 and reported on stderr. The server must be on this machine and allow webhooks to loopback \
(`webhooks.allow_loopback`, the default where it listens on loopback itself).

Examples:
  logi panopticon webhook listen my-app
  logi panopticon webhook listen my-app --port 9000 --json | jq .data.explanation
  logi panopticon webhook listen my-app --count 1     # ends after the first message")]
pub(crate) struct Listen {
    /// The app
    client_id: ClientId,
    /// The port to listen on [default: a free one]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// A type of message that is wanted; may be given more than once
    #[arg(long = "type", value_name = "TYPE", value_parser = webhook::TYPES)]
    types: Vec<String>,
    /// End after this many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// A message as it came.
struct Message {
    headers: HeaderMap,
    body: Bytes,
    answer: tokio::sync::oneshot::Sender<StatusCode>,
}

impl Listen {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        // Heeded from here on, so that an endpoint that is registered is also removed.
        let mut stop = Stop::new()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port))
            .await
            .map_err(|error| Failure::new(format!("cannot listen on 127.0.0.1:{}: {error}", self.port)))?;
        let url = format!("http://{}/", listener.local_addr()?);
        let (to_printer, mut messages) = mpsc::channel(WAITING_MESSAGES);
        let receiver = Router::new()
            .route("/", post(receive))
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(Arc::new(to_printer));
        let (close, closed) = tokio::sync::oneshot::channel::<()>();
        let closing = async move {
            // Also when the other half is dropped.
            let _ = closed.await;
        };
        let serving =
            tokio::spawn(axum::serve(listener, receiver).with_graceful_shutdown(closing).into_future());

        let app = self.client_id.as_str();
        let (_, endpoint) = webhook::add(s, app, url.clone(), self.types).await?;
        let outcome = match Verifier::new(endpoint.secret.as_deref().unwrap_or_default()) {
            Ok(verifier) => {
                s.out.note(format!(
                    "listening on {url} as endpoint {}; try: {}",
                    plain(&endpoint.id),
                    command(format_args!("webhook test {}", shell_word(app)))
                ));
                tokio::select! {
                    ended = print(s, &mut messages, &verifier, self.count) => ended,
                    () = stop.asked() => Ok(()),
                }
            }
            Err(failure) => Err(failure),
        };
        drop((messages, close));
        // The last answers may leave.
        let _ = tokio::time::timeout(LAST_ANSWERS, serving).await;
        let removed = s.control.delete(&path(&["apps", app, "webhooks", &endpoint.id])).await;
        outcome?;
        match removed {
            Ok(_) => s.out.note(format!("endpoint {} is removed", plain(&endpoint.id))),
            Err(failure) => {
                let (app, id) = (shell_word(app), shell_word(&endpoint.id));
                let again = command(format_args!("webhook remove {app} {id}"));
                return Err(failure.hint(format!("remove it with: {again}")));
            }
        }
        Ok(())
    }
}

/// Ctrl-C or SIGTERM.
struct Stop(tokio::signal::unix::Signal, tokio::signal::unix::Signal);

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self(signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    }

    async fn asked(&mut self) {
        tokio::select! { _ = self.0.recv() => {} _ = self.1.recv() => {} }
    }
}

async fn receive(
    State(to_printer): State<Arc<mpsc::Sender<Message>>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let (answer, answered) = tokio::sync::oneshot::channel();
    match to_printer.try_send(Message { headers, body, answer }) {
        Ok(()) => answered.await.unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn print(
    s: &Session,
    messages: &mut mpsc::Receiver<Message>,
    verifier: &Verifier,
    count: Option<u64>,
) -> Outcome {
    let mut printed = 0;
    while count.is_none_or(|count| printed < count) {
        let Some(Message { headers, body, answer }) = messages.recv().await else { break };
        let now = SystemClock.now();
        if let Err(why) = verifier.verify(&headers, &body, now) {
            s.out.note(format!("refused a message: {why}"));
            // A sender that has gone does not need the answer.
            let _ = answer.send(StatusCode::UNAUTHORIZED);
            continue;
        }
        let message: Value =
            serde_json::from_slice(&body).unwrap_or_else(|_| json!({"data": String::from_utf8_lossy(&body)}));
        let id = headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
        show(s, now, id, &message)?;
        printed += 1;
        let _ = answer.send(StatusCode::NO_CONTENT);
    }
    Ok(())
}

fn show(s: &Session, now: Time, id: &str, message: &Value) -> Outcome {
    let (kind, data) = (&message["type"], &message["data"]);
    if s.out.json {
        return s.out.json(&json!({
            "received_at": now, "webhook_id": id, "verified": true,
            "type": kind, "timestamp": message["timestamp"], "data": data,
        }));
    }
    s.out.line(format!("{}  {}  verified  {}", shown(now), plain(&cell(message, "type")), plain(id)))?;
    let said = match data["explanation"].as_str() {
        Some(explanation) => {
            format!("{} {}: {explanation}", cell(data, "severity"), cell(data, "rule"))
        }
        None if data["state"].is_string() => {
            let user = data["user_sub"].as_str().filter(|user| !user.is_empty());
            let user = user.map(|user| format!(" of user `{user}`")).unwrap_or_default();
            format!("{}{user} by {}: {}", cell(data, "state"), cell(data, "actor"), cell(data, "reason"))
        }
        None => data.to_string(),
    };
    s.out.line(format!("    {}", plain(&said)))
}

/// Checks both signatures of a message.
struct Verifier {
    standard: standardwebhooks::Webhook,
    key: Vec<u8>,
}

impl Verifier {
    fn new(secret: &str) -> Outcome<Self> {
        let bad = || Failure::new("the server gave the endpoint a secret that is not `whsec_` and base64");
        let standard = standardwebhooks::Webhook::new(secret).map_err(|_| bad())?;
        let key = key_of(secret).map_err(|_| bad())?;
        Ok(Self { standard, key })
    }

    fn verify(&self, headers: &HeaderMap, body: &[u8], now: Time) -> Result<(), String> {
        self.standard.verify(body, headers).map_err(|error| format!("webhook-signature: {error}"))?;
        self.verify_logi(headers, body, now).map_err(|why| format!("X-Logi-Signature: {why}"))
    }

    /// `t=<unix>,kid=<key id>,v1=<hex HMAC-SHA256 of "<t>.<body>">`.
    fn verify_logi(&self, headers: &HeaderMap, body: &[u8], now: Time) -> Result<(), &'static str> {
        let header = headers.get("x-logi-signature").ok_or("missing header")?;
        let header = header.to_str().map_err(|_| "invalid header")?;
        let parts = || header.split(',').filter_map(|part| part.trim().split_once('='));
        let at = parts().find(|(name, _)| *name == "t").ok_or("no time")?.1;
        let secs: i64 = at.parse().map_err(|_| "no time")?;
        if now.secs().abs_diff(secs) > SIGNATURE_AGE_SECS.unsigned_abs() {
            return Err("signature time too far from now");
        }
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).map_err(|_| "no key")?;
        mac.update(format!("{at}.").as_bytes());
        mac.update(body);
        let matches =
            |hex: &str| hex::decode(hex).is_ok_and(|given| mac.clone().verify_slice(&given).is_ok());
        if parts().any(|(name, value)| name == "v1" && matches(value)) {
            Ok(())
        } else {
            Err("signature invalid")
        }
    }
}

fn key_of(secret: &str) -> Result<Vec<u8>, base64::DecodeError> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn signed(body: &[u8], at: i64) -> HeaderMap {
        let mut mac = Hmac::<Sha256>::new_from_slice(&key_of(SECRET).unwrap()).unwrap();
        mac.update(format!("{at}.").as_bytes());
        mac.update(body);
        let v1 = hex::encode(mac.finalize().into_bytes());
        let standard = standardwebhooks::Webhook::new(SECRET).unwrap().sign("msg_1", at, body).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "msg_1".parse().unwrap());
        headers.insert("webhook-timestamp", at.to_string().parse().unwrap());
        headers.insert("webhook-signature", standard.parse().unwrap());
        headers.insert("x-logi-signature", format!("t={at},kid=k1,v1={v1}").parse().unwrap());
        headers
    }

    #[test]
    fn a_message_counts_as_verified_only_by_both_signatures() {
        let now = SystemClock.now();
        let verifier = Verifier::new(SECRET).unwrap();
        let good = signed(b"{}", now.secs());
        assert_eq!(verifier.verify(&good, b"{}", now), Ok(()));
        assert!(verifier.verify(&good, b"{ }", now).is_err());
        for name in ["webhook-signature", "x-logi-signature"] {
            let mut headers = good.clone();
            headers.remove(name);
            assert!(verifier.verify(&headers, b"{}", now).is_err(), "{name} missing");
            let mut headers = good.clone();
            let mixed = signed(b"other", now.secs())[name].clone();
            headers.insert(name, mixed);
            assert!(verifier.verify(&headers, b"{}", now).is_err(), "{name} wrong");
        }
        let old = now.secs() - SIGNATURE_AGE_SECS - 5;
        assert!(verifier.verify_logi(&signed(b"{}", old), b"{}", now).is_err());
    }
}
