//! A webhook receiver, as an RP has one.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{App, System, eventually, sign};

/// A message as it came.
#[derive(Debug, Clone)]
pub struct Message {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Message {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn id(&self) -> &str {
        self.header("webhook-id")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn kind(&self) -> String {
        self.json()["type"].as_str().unwrap().to_owned()
    }

    /// Checks both signatures, and what belongs to every message.
    #[track_caller]
    pub fn verify(&self, secret: &str) {
        let standard = standardwebhooks::Webhook::new(secret).unwrap();
        standard.verify(&self.body, &self.headers).unwrap();
        assert!(self.header("webhook-signature").starts_with("v1,"));
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let logi = self.header("x-logi-signature");
        let part = |name: &str| {
            let mut parts = logi.split(',').filter_map(|part| part.split_once('='));
            parts.find(|(found, _)| *found == name).unwrap_or_else(|| panic!("no {name} in {logi}")).1
        };
        assert_eq!(part("v1"), sign::hmac_hex(&key, part("t"), &self.body));
        assert_eq!(part("t"), self.header("webhook-timestamp"));
        assert!(!part("kid").is_empty());
        assert_eq!(self.header("content-type"), "application/json");
        let body = self.json();
        let mut keys: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["data", "timestamp", "type"]);
        assert!(body["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    }

    /// Whether the first signature, or any of them, is made with this secret.
    pub fn is_signed_with(&self, secret: &str) -> bool {
        standardwebhooks::Webhook::new(secret).unwrap().verify(&self.body, &self.headers).is_ok()
    }
}

#[derive(Default)]
struct Inbox {
    messages: Vec<Message>,
    /// What the next messages are answered with, the first one first; afterwards 204.
    answers: Vec<Response>,
}

/// A receiver on a loopback port, which goes with the tests.
#[derive(Clone)]
pub struct Receiver {
    pub url: String,
    inbox: Arc<Mutex<Inbox>>,
}

/// An endpoint of an app that leads to a receiver.
#[derive(Debug, Clone)]
pub struct Hook {
    pub id: String,
    pub secret: String,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let router = Router::new().route("/{*path}", any(take)).with_state(inbox.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, inbox }
    }

    /// A receiver that the app's messages go to.
    pub async fn of(s: &System, app: &App) -> (Self, Hook) {
        let receiver = Self::start().await;
        let hook = receiver.register(s, app, json!({})).await;
        (receiver, hook)
    }

    /// Makes it an endpoint of the app.
    pub async fn register(&self, s: &System, app: &App, mut settings: Value) -> Hook {
        settings["url"] = self.url.clone().into();
        let made = s.post(&format!("/apps/{}/webhooks", app.in_path()), settings).await.expect(201);
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        Hook { id: text("id"), secret: text("secret") }
    }

    /// Answers the next messages with these statuses.
    pub fn answer_with(&self, statuses: &[u16]) {
        let answers = statuses.iter().map(|status| StatusCode::from_u16(*status).unwrap().into_response());
        self.inbox.lock().unwrap().answers.extend(answers);
    }

    /// Sends the next message on to another place.
    pub fn redirect_to(&self, url: &str) {
        let answer = (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, url.to_owned())]).into_response();
        self.inbox.lock().unwrap().answers.push(answer);
    }

    pub fn messages(&self) -> Vec<Message> {
        self.inbox.lock().unwrap().messages.clone()
    }

    /// All messages, once there are so many.
    pub async fn until(&self, messages: usize) -> Vec<Message> {
        eventually(&format!("{messages} webhooks"), async || {
            let all = self.messages();
            if all.len() >= messages {
                Ok(all)
            } else {
                Err(all.iter().map(Message::kind).collect::<Vec<_>>())
            }
        })
        .await
    }
}

async fn take(
    State(inbox): State<Arc<Mutex<Inbox>>>,
    uri: axum::http::Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut inbox = inbox.lock().unwrap();
    inbox.messages.push(Message { path: uri.path().to_owned(), headers, body });
    if inbox.answers.is_empty() { StatusCode::NO_CONTENT.into_response() } else { inbox.answers.remove(0) }
}
