//! A control room on the real embedded engine, driven through its router.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use panopticon_control_room::ControlRoom;
use panopticon_core::{
    config::{Config, Secret},
    control::{ControlView, ControlWriter},
    health::Health,
    ids::{ClientId, EventId, partition_of},
    log::{EventLog, Output, Record},
    proto::log::{AuditEntry, Delivery, Detection, GuardAction},
    secrets::{Sealer, digest, random_seal_key},
    store::{Attempt, BatchRange, Row, Rows, TraceStore},
    time::{Clock, SharedClock, Time},
    topic::Topic,
    trace::{AcceptedTrace, Status, Trace, decode_envelope, encode_envelope},
};
use panopticon_embedded::Embedded;
use parking_lot::Mutex;
use prost::Message;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use uuid::Uuid;

/// A clock that tests move.
pub struct TestClock(pub Mutex<Time>);

impl Clock for TestClock {
    fn now(&self) -> Time {
        *self.0.lock()
    }
}

/// The token with the role admin.
pub const ADMIN: &str = "the-admin-token";
/// Now, for all tests.
pub const NOW: &str = "2026-06-30T12:00:00Z";

/// An answer.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub json: Value,
}

impl Answer {
    pub fn text(&self, name: &str) -> &str {
        self.json[name].as_str().unwrap_or_else(|| panic!("no text `{name}` in {}", self.json))
    }

    /// The status, the error code and the field.
    pub fn refusal(&self) -> (u16, &str, &str) {
        (self.status.as_u16(), self.text("error"), self.json["field"].as_str().unwrap_or_default())
    }

    pub fn items(&self) -> &[Value] {
        self.json["items"].as_array().map(Vec::as_slice).unwrap_or_default()
    }
}

pub struct House {
    pub router: Router,
    pub log: Arc<dyn EventLog>,
    pub store: Arc<dyn TraceStore>,
    pub writer: Arc<ControlWriter>,
    pub view: ControlView,
    pub sealer: Sealer,
    pub config: Arc<Config>,
    pub clock: Arc<TestClock>,
    pub shutdown: CancellationToken,
    engine: Embedded,
    stored: Mutex<std::collections::HashMap<(Topic, u32), u64>>,
    _dir: tempfile::TempDir,
}

impl Drop for House {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl House {
    pub async fn open() -> Self {
        Self::open_with(|_| {}).await
    }

    pub async fn open_with(adjust: impl FnOnce(&mut Config)) -> Self {
        Self::open_on(adjust, |log| log).await
    }

    /// With the log as `wrap` makes it.
    pub async fn open_on(
        adjust: impl FnOnce(&mut Config),
        wrap: impl FnOnce(Arc<dyn EventLog>) -> Arc<dyn EventLog>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: dir.path().join("data"), ..Config::default() };
        adjust(&mut config);
        let config = Arc::new(config);
        let clock = Arc::new(TestClock(Mutex::new(NOW.parse().unwrap())));
        let shared: SharedClock = clock.clone();
        let engine = Embedded::open(&config, shared.clone()).unwrap();
        let (log, store) = (wrap(engine.log.clone()), engine.store.clone());
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        let view = ControlView::open(log.clone(), &health, shutdown.clone()).await.unwrap();
        let writer = Arc::new(ControlWriter::new(log.clone(), view.clone(), shared.clone()));
        let sealer = Sealer::new(&random_seal_key()).unwrap();
        let router = panopticon_control_room::router(ControlRoom {
            log: log.clone(),
            store: store.clone(),
            view: view.clone(),
            writer: writer.clone(),
            sealer: sealer.clone(),
            config: config.clone(),
            clock: shared,
            health,
            admin_digests: vec![digest(ADMIN)],
            stages: vec![("dedupe", Topic::TracesRaw), ("store", Topic::Traces)],
            gateway_counts: None,
            check_url: Arc::new(|url: &str| {
                if url.starts_with("https://") { Ok(()) } else { Err("ssrf_blocked: only https".to_owned()) }
            }),
            shutdown: shutdown.clone(),
        });
        let stored = Mutex::default();
        Self { router, log, store, writer, view, sealer, config, clock, shutdown, engine, stored, _dir: dir }
    }

    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// Lets time pass.
    pub fn pass_secs(&self, secs: u64) {
        let mut now = self.clock.0.lock();
        *now = now.plus(std::time::Duration::from_secs(secs));
    }

    /// Sends any request; `path` is below the base path unless it begins with `/api`.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, 64 << 20).await.unwrap();
        let json = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
        Answer { status: parts.status, headers: parts.headers, json }
    }

    pub async fn call(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        let mut request = Request::builder().method(method).uri(url(path));
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        self.send(request.body(body).unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(ADMIN, "GET", path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(ADMIN, "POST", path, Some(body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(ADMIN, "PUT", path, Some(body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.call(ADMIN, "PATCH", path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call(ADMIN, "DELETE", path, None).await
    }

    /// Enables an app and answers its PAK.
    pub async fn enable(&self, client_id: &str) -> String {
        let answer = self.put(&format!("/apps/{client_id}"), serde_json::json!({})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.json);
        answer.text("pak").to_owned()
    }

    /// Makes a token and answers its text.
    pub async fn token(&self, name: &str, role: &str, apps: &[&str]) -> String {
        let body = serde_json::json!({"name": name, "role": role, "apps": apps});
        let answer = self.post("/tokens", body).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.json);
        answer.text("token").to_owned()
    }

    /// All messages of a topic.
    pub async fn messages<M: Message + Default>(&self, topic: Topic) -> Vec<M> {
        let mut found = Vec::new();
        for partition in 0..self.log.topic(topic).await.unwrap().partitions {
            for stored in self.records(topic, partition, 0).await {
                found.push(M::decode(stored.record.bytes()).unwrap());
            }
        }
        found
    }

    async fn records(&self, topic: Topic, partition: u32, from: u64) -> Vec<panopticon_core::log::Stored> {
        let bounds = self.log.bounds(topic, partition).await.unwrap();
        let (mut found, mut from) = (Vec::new(), from.max(bounds.low));
        while from < bounds.high {
            let records = self.log.read(topic, partition, from, bounds.high, 1 << 20).await.unwrap();
            let Some(last) = records.last() else { break };
            from = last.offset + 1;
            found.extend(records);
        }
        found
    }

    /// Puts everything that is in the log into the store, as the store stages do.
    pub async fn settle(&self) {
        for topic in
            [Topic::Traces, Topic::Detections, Topic::GuardActions, Topic::WebhookDeliveries, Topic::Audit]
        {
            let info = self.log.topic(topic).await.unwrap();
            for partition in 0..info.partitions {
                let from = self.stored.lock().get(&(topic, partition)).copied().unwrap_or(0);
                let records = self.records(topic, partition, from).await;
                let Some(last) = records.last() else { continue };
                let to = last.offset + 1;
                let range = BatchRange { topic, log_id: info.log_id, partition, from, to };
                let rows = rows_of(topic, &records);
                assert_eq!(self.store.insert(range, rows, Attempt::First).await.unwrap(), Vec::new());
                self.stored.lock().insert((topic, partition), to);
            }
        }
    }

    /// Appends a message as a stage would.
    pub async fn append<M: Message>(&self, topic: Topic, about: &[&str], message: &M) {
        let partitions = self.log.topic(topic).await.unwrap().partitions;
        let record = Record::message(message.encode_to_vec());
        self.log.append(topic, partition_of(about, partitions), record).await.unwrap();
    }

    /// Writes the state of a delivery, as the dispatcher does.
    pub async fn deliver(&self, delivery: &Delivery) {
        let partitions = self.log.topic(Topic::WebhookDeliveries).await.unwrap().partitions;
        let output = Output {
            topic: Topic::WebhookDeliveries,
            partition: partition_of(&[&delivery.client_id, &delivery.user_sub], partitions),
            record: Record::keyed(delivery.delivery_id.clone(), delivery.encode_to_vec()),
        };
        self.log.append(output.topic, output.partition, output.record).await.unwrap();
    }

    /// Appends one envelope to `traces`.
    pub async fn trace_all(&self, traces: Vec<AcceptedTrace>) {
        let first = &traces[0].trace;
        let partitions = self.log.topic(Topic::Traces).await.unwrap().partitions;
        let partition = partition_of(&[first.client_id.as_str(), &first.user_sub], partitions);
        self.log.append(Topic::Traces, partition, Record::message(encode_envelope(traces))).await.unwrap();
    }

    /// A trace of `client_id` by `user`, numbered.
    pub fn a_trace(&self, client_id: &str, user: &str, number: u128) -> AcceptedTrace {
        let trace = Trace {
            event_id: EventId(Uuid::from_u128(number)),
            client_id: ClientId::new(client_id).unwrap(),
            user_sub: user.to_owned(),
            tool: "search".to_owned(),
            scope_used: String::new(),
            status: Status::Ok,
            started_at: self.now(),
            duration_ms: 5,
            session_id: String::new(),
            agent: String::new(),
            source_ip: String::new(),
            error_code: String::new(),
            attributes: Default::default(),
        };
        AcceptedTrace::new(trace, self.now())
    }
}

pub fn url(path: &str) -> String {
    if path.starts_with("/api") { path.to_owned() } else { format!("/api/v1/panopticon{path}") }
}

fn rows_of(topic: Topic, records: &[panopticon_core::log::Stored]) -> Rows {
    fn each<M: Message + Default>(records: &[panopticon_core::log::Stored]) -> Vec<Row<M>> {
        let row = |stored: &panopticon_core::log::Stored| Row {
            offset: stored.offset,
            index: 0,
            value: M::decode(stored.record.bytes()).unwrap(),
        };
        records.iter().map(row).collect()
    }
    match topic {
        Topic::Detections => Rows::Detections(each::<Detection>(records)),
        Topic::GuardActions => Rows::GuardActions(each::<GuardAction>(records)),
        Topic::WebhookDeliveries => Rows::Deliveries(each::<Delivery>(records)),
        Topic::Audit => Rows::Audit(each::<AuditEntry>(records)),
        _ => {
            let mut rows = Vec::new();
            for stored in records {
                let traces = decode_envelope(stored.record.bytes()).unwrap();
                rows.extend((0..).zip(traces).map(|(index, value)| Row {
                    offset: stored.offset,
                    index,
                    value,
                }));
            }
            Rows::of_traces(rows)
        }
    }
}

/// A secret of a configuration.
pub fn secret(text: &str) -> Secret {
    Secret::new(text)
}
