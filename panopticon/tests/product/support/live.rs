//! A viewer of live trace: server-sent events.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _};
use http::Method;
use serde_json::Value;

use super::{App, System};

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    pub name: String,
    pub id: Option<String>,
    pub data: Value,
}

/// An open stream.
pub struct Live {
    bytes: Pin<Box<dyn Stream<Item = Vec<u8>> + Send>>,
    buffer: String,
}

impl Live {
    /// Opens the app's stream, after an event where one is named, and reads up to the first ping: nothing
    /// after it is missed.
    pub async fn open(s: &System, app: &App) -> (Self, Event) {
        let mut live = Self::open_after(s, app, None).await;
        let first = live.next().await;
        assert_eq!(first.name, "ping");
        (live, first)
    }

    pub async fn open_after(s: &System, app: &App, id: Option<&str>) -> Self {
        let mut request = s.request(Method::GET, &format!("/apps/{}/live", app.in_path()));
        if let Some(id) = id {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let bytes = response.bytes_stream().map(|chunk| chunk.unwrap().to_vec()).boxed();
        Self { bytes, buffer: String::new() }
    }

    /// The next event.
    pub async fn next(&mut self) -> Event {
        loop {
            if let Some((frame, rest)) = self.buffer.split_once("\n\n") {
                let event = parse(frame);
                self.buffer = rest.to_owned();
                return event;
            }
            let chunk = tokio::time::timeout(Duration::from_secs(60), self.bytes.next()).await;
            let chunk = chunk.expect("the live stream was silent").expect("the live stream ended");
            self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next event that is a trace.
    pub async fn next_trace(&mut self) -> Event {
        loop {
            let event = self.next().await;
            match event.name.as_str() {
                "trace" => return event,
                "ping" => {}
                other => panic!("{other}: {}", event.data),
            }
        }
    }
}

fn parse(frame: &str) -> Event {
    let mut event = Event { name: String::new(), id: None, data: Value::Null };
    for line in frame.lines() {
        match line.split_once(": ") {
            Some(("event", name)) => event.name = name.to_owned(),
            Some(("id", id)) => event.id = Some(id.to_owned()),
            Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
            other => panic!("not an event: {other:?}"),
        }
    }
    event
}
