//! Load in a closed loop: each connection or slot sends again as soon as it was answered.

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
    IngestBatchRequest, IngestRequest, Outcome, trace_service_client::TraceServiceClient,
};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::{server::PAK, traces};

/// Connections that single gRPC traces share.
const SHARED_CONNECTIONS: usize = 4;

/// How traces are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// gRPC `IngestBatch` of so many, on so many connections.
    Batches(usize, usize),
    /// gRPC `Ingest`, so many in flight on few connections.
    Single(usize),
    /// `POST /panopticon/trace` on so many keep-alive connections.
    Http(usize),
}

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

    /// CPU seconds for each million of the traces.
    pub fn per_million(&self, cpu_seconds: f64) -> f64 {
        cpu_seconds * 1e6 / self.accepted as f64
    }
}

/// When a load ends.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// After this time.
    After(Duration),
    /// With so many traces, or a few more.
    With(u64),
}

/// The number of the next trace, whichever load sends it: each goes on with the users whose turn it is, and those of
/// one that was short do not come again at once in the next.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// Numbers traces and counts those that were accepted, until the end.
#[derive(Clone)]
struct Tally {
    first: u64,
    accepted: Arc<AtomicU64>,
    began: Instant,
    end: End,
}

impl Tally {
    fn goes_on(&self) -> bool {
        match self.end {
            End::After(span) => self.began.elapsed() < span,
            End::With(traces) => NUMBERS.load(Ordering::Relaxed) - self.first < traces,
        }
    }

    /// The first of so many numbers.
    fn next(count: usize) -> u64 {
        NUMBERS.fetch_add(count as u64, Ordering::Relaxed)
    }

    fn count(&self, accepted: usize) {
        self.accepted.fetch_add(accepted as u64, Ordering::Relaxed);
    }
}

/// Sends for `span`.
pub async fn run(address: SocketAddr, shape: Shape, span: Duration) -> anyhow::Result<Achieved> {
    send(address, shape, End::After(span)).await
}

/// Sends in this shape to the end.
pub async fn send(address: SocketAddr, shape: Shape, end: End) -> anyhow::Result<Achieved> {
    let connections = match shape {
        Shape::Batches(_, connections) => connections,
        Shape::Single(_) => SHARED_CONNECTIONS,
        Shape::Http(_) => 0,
    };
    let channels = channels(address, connections).await?;
    let first = NUMBERS.load(Ordering::Relaxed);
    let tally = Tally { first, accepted: Arc::default(), began: Instant::now(), end };
    let mut tasks = JoinSet::new();
    match shape {
        Shape::Batches(batch, _) => {
            for channel in channels {
                tasks.spawn(batches(channel, batch, tally.clone()));
            }
        }
        Shape::Single(in_flight) => {
            for channel in channels.iter().cycle().take(in_flight) {
                tasks.spawn(singles(channel.clone(), tally.clone()));
            }
        }
        Shape::Http(connections) => {
            for _ in 0..connections {
                tasks.spawn(http(address, tally.clone()));
            }
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(Achieved { accepted: tally.accepted.load(Ordering::Relaxed), took: tally.began.elapsed() })
}

/// Connections of their own to a gRPC server.
pub async fn channels(address: SocketAddr, count: usize) -> anyhow::Result<Vec<Channel>> {
    let endpoint = tonic::transport::Endpoint::new(format!("http://{address}"))?;
    let mut channels = Vec::new();
    for _ in 0..count {
        channels.push(endpoint.connect().await?);
    }
    Ok(channels)
}

async fn batches(channel: Channel, batch: usize, tally: Tally) -> anyhow::Result<()> {
    let mut client = TraceServiceClient::new(channel);
    while tally.goes_on() {
        let now = jiff::Timestamp::now();
        let first = Tally::next(batch);
        let traces = (first..first + batch as u64).map(|n| traces::trace(n, now)).collect();
        let answer = client.ingest_batch(traces::request(IngestBatchRequest { traces })?).await?.into_inner();
        tally.count(answer.results.iter().filter(|result| result.outcome() == Outcome::Accepted).count());
    }
    Ok(())
}

async fn singles(channel: Channel, tally: Tally) -> anyhow::Result<()> {
    let mut client = TraceServiceClient::new(channel);
    while tally.goes_on() {
        let trace = traces::trace(Tally::next(1), jiff::Timestamp::now());
        let answer =
            client.ingest(traces::request(IngestRequest { trace: Some(trace) })?).await?.into_inner();
        tally.count(usize::from(answer.result.is_some_and(|result| result.outcome() == Outcome::Accepted)));
    }
    Ok(())
}

async fn http(address: SocketAddr, tally: Tally) -> anyhow::Result<()> {
    let stream = tokio::net::TcpStream::connect(address).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    while tally.goes_on() {
        let request = Request::post("/panopticon/trace")
            .header(header::HOST, "localhost")
            .header(header::AUTHORIZATION, format!("Bearer {PAK}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(traces::json(Tally::next(1)))))?;
        sender.ready().await?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        answer.into_body().collect().await?;
        tally.count(usize::from(status.as_u16() == 202));
    }
    Ok(())
}
