//! A webhook receiver, as an RP would have one.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use serde_json::Value;
use standardwebhooks::Webhook;

/// A message that came.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its body.
    pub body: Value,
    /// Whether its signature verifies.
    pub valid: bool,
}

#[derive(Default)]
struct Inbox {
    key: Option<Webhook>,
    messages: Vec<Received>,
}

/// A receiver on a loopback port.
pub struct Receiver {
    /// Where it listens.
    pub url: String,
    inbox: Arc<Mutex<Inbox>>,
}

impl Receiver {
    /// Starts it.
    pub async fn start() -> anyhow::Result<Self> {
        let listener =
            tokio::net::TcpListener::bind("127.0.0.1:0").await.context("no port for the receiver")?;
        let url = format!("http://{}/webhooks", listener.local_addr()?);
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let router = Router::new().route("/webhooks", post(take)).with_state(inbox.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { url, inbox })
    }

    /// Verifies with this secret from now on.
    pub fn trust(&self, secret: &str) -> anyhow::Result<()> {
        let key = Webhook::new(secret).map_err(|error| anyhow::anyhow!("the secret is unusable: {error}"))?;
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).key = Some(key);
        Ok(())
    }

    /// Everything that came, in order.
    pub fn received(&self) -> Vec<Received> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).messages.clone()
    }
}

async fn take(State(inbox): State<Arc<Mutex<Inbox>>>, headers: HeaderMap, body: Bytes) {
    let mut inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner);
    let valid = inbox.key.as_ref().is_some_and(|key| key.verify(&body, &headers).is_ok());
    let body = serde_json::from_slice(&body).unwrap_or_default();
    inbox.messages.push(Received { body, valid });
}
