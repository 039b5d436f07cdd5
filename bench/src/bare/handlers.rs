//! Servers that answer every trace at once.

use std::pin::Pin;

use axum::{Router, body::Bytes, http::StatusCode, routing::post};
use futures::Stream;
use panopticon_proto::v1::{
    IngestBatchRequest, IngestBatchResponse, IngestRequest, IngestResponse, Outcome, SignedBatch, Trace,
    TraceResult,
    trace_service_server::{TraceService, TraceServiceServer},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

/// Answers `POST /panopticon/trace` until it is killed.
pub async fn axum() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    super::say(&listener.local_addr()?)?;
    let answer = |_body: Bytes| async { (StatusCode::ACCEPTED, r#"{"status":"accepted"}"#) };
    Ok(axum::serve(listener, Router::new().route("/panopticon/trace", post(answer))).await?)
}

/// Answers the product's gRPC methods until it is killed.
pub async fn tonic() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    super::say(&listener.local_addr()?)?;
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(AtOnce));
    Ok(server.serve_with_incoming(TcpListenerStream::new(listener)).await?)
}

struct AtOnce;

#[tonic::async_trait]
impl TraceService for AtOnce {
    type IngestStreamStream = Pin<Box<dyn Stream<Item = Result<IngestBatchResponse, Status>> + Send>>;

    async fn ingest(&self, request: Request<IngestRequest>) -> Result<Response<IngestResponse>, Status> {
        Ok(Response::new(IngestResponse { result: request.into_inner().trace.map(accepted) }))
    }

    async fn ingest_batch(
        &self,
        request: Request<IngestBatchRequest>,
    ) -> Result<Response<IngestBatchResponse>, Status> {
        let results = request.into_inner().traces.into_iter().map(accepted).collect();
        Ok(Response::new(IngestBatchResponse { results }))
    }

    async fn ingest_stream(
        &self,
        _request: Request<Streaming<IngestBatchRequest>>,
    ) -> Result<Response<Self::IngestStreamStream>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn ingest_signed(
        &self,
        _request: Request<SignedBatch>,
    ) -> Result<Response<IngestBatchResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}

fn accepted(trace: Trace) -> TraceResult {
    TraceResult { event_id: trace.event_id, outcome: Outcome::Accepted.into(), ..TraceResult::default() }
}
