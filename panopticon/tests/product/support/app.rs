//! An app of a system, as its RP has it: an id, a PAK, and an address of its own to send from.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicU32, Ordering},
};

use jiff::Timestamp;
use panopticon_proto::v1::{self, trace_service_client::TraceServiceClient};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tonic::{
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

use super::{Answer, eventually, http_client};

#[derive(Debug, Clone)]
pub struct App {
    pub id: String,
    pub pak: String,
    /// In HMAC mode; else empty.
    pub secret: String,
    pub ingest: String,
    /// What it sends from: the gateway's patience with bad credentials is for each address.
    pub address: IpAddr,
    http: Client,
}

impl App {
    /// An app that has no PAK yet.
    pub fn new(ingest: &str, id: &str) -> Self {
        let address = own_address();
        let http = http_client(Some(address));
        let (pak, secret) = (String::new(), String::new());
        Self { id: id.to_owned(), pak, secret, ingest: ingest.to_owned(), address, http }
    }

    /// Its id as a segment of a path.
    pub fn in_path(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        self.id
            .chars()
            .map(|c| if plain(c) { c.to_string() } else { format!("%{:02X}", u32::from(c)) })
            .collect()
    }

    /// The same app from an address that the gateway has not seen yet.
    pub fn elsewhere(&self) -> Self {
        Self::new(&self.ingest, &self.id).with_keys(&self.pak, &self.secret)
    }

    /// The same with another PAK.
    pub fn with_pak(&self, pak: &str) -> Self {
        self.clone().with_keys(pak, &self.secret)
    }

    /// The same with this PAK and its secret.
    pub fn with_keys(self, pak: &str, secret: &str) -> Self {
        Self { pak: pak.to_owned(), secret: secret.to_owned(), ..self }
    }

    /// Until the gateway knows the PAK.
    pub async fn until_admitted(&self) {
        eventually("the gateway knows the app", async || {
            // From another address each time: that it is not known yet is no bad credential of this one.
            let answer = self.elsewhere().post("/panopticon/traces").json(&json!([])).send().await.unwrap();
            let answer = Answer::read(answer).await;
            let unsigned = !self.secret.is_empty() && answer.json()["error"] == "invalid_signature";
            if answer.status == 200 || unsigned { Ok(()) } else { Err(answer.text) }
        })
        .await;
    }

    /// A good trace of it that began now.
    pub fn trace(&self) -> Value {
        json!({
            "event_id": Uuid::new_v4().to_string(),
            "client_id": self.id,
            "user_sub": "user_1",
            "tool": "calendar.read",
            "status": "ok",
            "started_at": Timestamp::now().to_string(),
            "duration_ms": 5,
        })
    }

    /// The same with other values.
    pub fn trace_with(&self, values: Value) -> Value {
        let mut trace = self.trace();
        for (name, value) in values.as_object().unwrap() {
            trace[name] = value.clone();
        }
        trace
    }

    /// A request to the gateway with the app's PAK.
    pub fn post(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("{}{path}", self.ingest)).bearer_auth(&self.pak)
    }

    /// A request to the gateway without a PAK.
    pub fn request(&self, method: http::Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.ingest))
    }

    /// `POST /panopticon/trace`.
    pub async fn send(&self, trace: &Value) -> Answer {
        Answer::read(self.post("/panopticon/trace").json(trace).send().await.unwrap()).await
    }

    /// Sends a trace that must be new.
    #[track_caller]
    pub fn accepted(&self, trace: &Value) -> impl Future<Output = Answer> {
        let sent = self.send(trace);
        let caller = std::panic::Location::caller();
        async move {
            let answer = sent.await;
            assert_eq!(answer.status, 202, "{caller}: {}", answer.text);
            answer
        }
    }

    /// `POST /panopticon/traces` with a JSON array.
    pub async fn send_batch(&self, traces: &[Value]) -> Answer {
        Answer::read(self.post("/panopticon/traces").json(&traces).send().await.unwrap()).await
    }

    /// A gRPC client without credentials.
    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.ingest.clone()).unwrap();
        endpoint.local_address(Some(self.address)).connect().await.unwrap()
    }

    pub async fn grpc(&self) -> TraceServiceClient<Channel> {
        TraceServiceClient::new(self.channel().await)
    }

    /// A gRPC request with the app's PAK.
    pub fn ask<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let bearer = MetadataValue::try_from(format!("Bearer {}", self.pak)).unwrap();
        request.metadata_mut().insert("authorization", bearer);
        request
    }
}

/// A trace in the form of gRPC.
pub fn proto_trace(trace: &Value) -> v1::Trace {
    let text = |name: &str| trace[name].as_str().unwrap_or_default().to_owned();
    let status = match trace["status"].as_str() {
        Some("ok") => v1::Status::Ok,
        Some("error") => v1::Status::Error,
        Some("denied") => v1::Status::Denied,
        _ => v1::Status::Unspecified,
    };
    let started_at = trace["started_at"].as_str().map(|text| {
        let time: Timestamp = text.parse().unwrap();
        prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
    });
    let attributes = trace["attributes"].as_object().into_iter().flatten();
    v1::Trace {
        event_id: text("event_id"),
        client_id: text("client_id"),
        user_sub: text("user_sub"),
        tool: text("tool"),
        scope_used: text("scope_used"),
        status: status.into(),
        started_at,
        duration_ms: trace["duration_ms"].as_u64().map(|ms| ms as u32),
        session_id: text("session_id"),
        agent: text("agent"),
        source_ip: text("source_ip"),
        error_code: text("error_code"),
        attributes: attributes
            .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
            .collect(),
    }
}

/// A loopback address that nobody else sends from.
fn own_address() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // 127.16.0.1 and on: the whole network is loopback.
    IpAddr::V4(Ipv4Addr::from(0x7f10_0001 + number))
}
