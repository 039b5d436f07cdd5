//! A server that answers as it is told and remembers what it was asked, and `logi` run against it.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    response::Response,
};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `GET /path?query`.
    pub line: String,
    /// Its headers.
    pub headers: axum::http::HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Asked {
    /// A header's text, empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The body as lines of JSON.
    pub fn traces(&self) -> Vec<serde_json::Value> {
        let lines = self.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }
}

type Answer = dyn Fn(&Asked, usize) -> Response + Send + Sync;

/// A running stub.
#[derive(Clone)]
pub struct Stub {
    /// Its URL.
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    answer: Arc<Answer>,
}

impl Stub {
    /// Answers each request by `answer`, which also gets the number of requests before it.
    pub async fn start(answer: impl Fn(&Asked, usize) -> Response + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stub = Self { url, asked: Arc::default(), answer: Arc::new(answer) };
        let router = Router::new().fallback(take).with_state(stub.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        stub
    }

    /// Answers every request alike.
    pub async fn always(status: u16, body: &str) -> Self {
        let body = body.to_owned();
        Self::start(move |_, _| json(status, &body)).await
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until it was asked something that `is_it`.
    pub async fn wait_for(&self, is_it: impl Fn(&Asked) -> bool) -> Asked {
        for _ in 0..500 {
            if let Some(asked) = self.asked().into_iter().find(|asked| is_it(asked)) {
                return asked;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("never asked; only {:#?}", self.asked().iter().map(|asked| &asked.line).collect::<Vec<_>>());
    }

    /// `logi` with these words, to run against this stub with the configuration folder `config`.
    pub fn command(&self, config: &Path, words: &[&str]) -> Command {
        let mut logi = logi(config, words);
        logi.env("LOGI_URL", &self.url).env("LOGI_TOKEN", "pano_tok_test");
        logi
    }

    /// Runs `logi` to its end.
    pub async fn logi(&self, config: &Path, words: &[&str]) -> Ran {
        ran(self.command(config, words)).await
    }
}

/// `logi` with these words and a clean environment.
pub fn logi(config: &Path, words: &[&str]) -> Command {
    let mut logi = Command::new(env!("CARGO_BIN_EXE_logi"));
    logi.args(words).stdin(Stdio::null()).current_dir(config).env_clear().env("XDG_CONFIG_HOME", config);
    // A proxy must never be asked for loopback.
    logi.env("HTTP_PROXY", "http://127.0.0.1:9").env("http_proxy", "http://127.0.0.1:9");
    logi
}

/// What a run of `logi` came to.
#[derive(Debug)]
pub struct Ran {
    /// Exit status.
    pub status: i32,
    /// What it printed.
    pub out: String,
    /// What it said on stderr.
    pub err: String,
}

/// Runs a command to its end without holding up the stub.
pub async fn ran(mut command: Command) -> Ran {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    came_to(output)
}

/// What an output says.
pub fn came_to(output: Output) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { status: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

async fn take(State(stub): State<Stub>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let line = format!("{} {}", parts.method, parts.uri);
    let asked = Asked { line, headers: parts.headers, body };
    let before = {
        let mut all = stub.asked.lock().unwrap();
        all.push(asked.clone());
        all.len() - 1
    };
    (stub.answer)(&asked, before)
}

/// A JSON answer.
pub fn json(status: u16, body: &str) -> Response {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Body::from(body.to_owned()))
        .unwrap()
}

/// An error as Panopticon answers it.
pub fn error(status: u16, code: &str, description: &str) -> Response {
    let body = serde_json::json!({
        "error": code, "error_description": description, "error_uri": "", "request_id": "0190-r",
    });
    json(status, &body.to_string())
}

/// Every trace of a batch accepted.
pub fn all_accepted(asked: &Asked) -> Response {
    results(asked, |_| "accepted")
}

/// Each trace of a batch with the status that `status` gives it.
pub fn results(asked: &Asked, status: impl Fn(&serde_json::Value) -> &'static str) -> Response {
    let results: Vec<_> = asked
        .traces()
        .iter()
        .map(|trace| match status(trace) {
            "unavailable" => {
                serde_json::json!({"event_id": trace["event_id"], "status": "rejected", "error": "unavailable"})
            }
            "rejected" => serde_json::json!({"event_id": trace["event_id"], "status": "rejected",
                "error": "invalid_request", "field": "tool", "error_description": "is required"}),
            status => serde_json::json!({"event_id": trace["event_id"], "status": status}),
        })
        .collect();
    json(200, &serde_json::json!({"results": results}).to_string())
}
