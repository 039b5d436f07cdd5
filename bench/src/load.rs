//! Load: gRPC batches and single HTTP traces, as fast as they are answered.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use panopticon_proto::v1::{
    IngestBatchRequest, Outcome, Status, Trace, trace_service_client::TraceServiceClient,
};
use tokio::task::JoinSet;
use tonic::metadata::MetadataValue;
use uuid::Uuid;

use crate::server::{CLIENT_ID, PAK};

const USERS: u64 = 500;
const TOOLS: [&str; 8] = [
    "calendar.read",
    "calendar.write",
    "mail.search",
    "mail.send",
    "files.read",
    "files.write",
    "crm.lookup",
    "web.search",
];

/// What a load achieved.
#[derive(Debug, Clone, Copy)]
pub struct Achieved {
    /// Traces accepted.
    pub accepted: u64,
    /// For how long.
    pub took: Duration,
}

impl Achieved {
    /// Traces a second.
    pub fn per_second(&self) -> f64 {
        self.accepted as f64 / self.took.as_secs_f64()
    }
}

fn trace(n: u64, now: jiff::Timestamp) -> Trace {
    Trace {
        event_id: Uuid::now_v7().to_string(),
        client_id: CLIENT_ID.to_owned(),
        user_sub: format!("user_{}", n % USERS),
        tool: TOOLS[(n / USERS % TOOLS.len() as u64) as usize].to_owned(),
        scope_used: "calendar:read".to_owned(),
        status: Status::Ok.into(),
        started_at: Some(prost_types::Timestamp { seconds: now.as_second(), nanos: now.subsec_nanosecond() }),
        duration_ms: Some(100 + (n % 400) as u32),
        session_id: format!("session-{}", n % (USERS * 4)),
        agent: "bench-agent".to_owned(),
        ..Trace::default()
    }
}

/// gRPC `IngestBatch` of `batch` traces on `connections` connections for `span`.
pub async fn grpc(
    address: SocketAddr,
    batch: usize,
    connections: usize,
    span: Duration,
) -> anyhow::Result<Achieved> {
    let (accepted, numbers) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let bearer: MetadataValue<_> = format!("Bearer {PAK}").parse()?;
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let channel = tonic::transport::Endpoint::new(format!("http://{address}"))?.connect().await?;
        let (accepted, numbers, bearer) = (accepted.clone(), numbers.clone(), bearer.clone());
        tasks.spawn(async move {
            let mut client = TraceServiceClient::new(channel);
            while began.elapsed() < span {
                let now = jiff::Timestamp::now();
                let first = numbers.fetch_add(batch as u64, Ordering::Relaxed);
                let traces = (first..first + batch as u64).map(|n| trace(n, now)).collect();
                let mut request = tonic::Request::new(IngestBatchRequest { traces });
                request.metadata_mut().insert("authorization", bearer.clone());
                let answer = client.ingest_batch(request).await?.into_inner();
                let taken = answer.results.iter().filter(|r| r.outcome() == Outcome::Accepted).count();
                accepted.fetch_add(taken as u64, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(Achieved { accepted: accepted.load(Ordering::Relaxed), took: began.elapsed() })
}

/// Single traces over HTTP on `connections` keep-alive connections for `span`.
pub async fn http(
    address: SocketAddr,
    path: &'static str,
    connections: usize,
    span: Duration,
) -> anyhow::Result<Achieved> {
    let (accepted, numbers) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        let stream = tokio::net::TcpStream::connect(address).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let (accepted, numbers) = (accepted.clone(), numbers.clone());
        tasks.spawn(async move {
            while began.elapsed() < span {
                let n = numbers.fetch_add(1, Ordering::Relaxed);
                let body = format!(
                    r#"{{"event_id":"{}","client_id":"{CLIENT_ID}","user_sub":"user_{}","tool":"{}","status":"ok","started_at":"{:.3}","duration_ms":120,"session_id":"session-{}","agent":"bench-agent"}}"#,
                    Uuid::now_v7(), n % USERS, TOOLS[(n % TOOLS.len() as u64) as usize], jiff::Timestamp::now(), n % 64,
                );
                let request = Request::post(path)
                    .header(header::HOST, "localhost")
                    .header(header::AUTHORIZATION, format!("Bearer {PAK}"))
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(Full::new(Bytes::from(body)))?;
                sender.ready().await?;
                let answer = sender.send_request(request).await?;
                let status = answer.status();
                answer.into_body().collect().await?;
                if status.is_success() {
                    accepted.fetch_add(1, Ordering::Relaxed);
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(Achieved { accepted: accepted.load(Ordering::Relaxed), took: began.elapsed() })
}
