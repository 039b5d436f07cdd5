//! gRPC ingestion: the service `panopticon.v1.TraceService`, with health and reflection.

use std::{net::IpAddr, pin::Pin};

use axum::Router;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use panopticon_core::admission::{Seen, admit_proto};
use panopticon_proto::{
    DESCRIPTORS,
    raw::{
        IngestBatchRequest, IngestBatchResponse, IngestRequest, IngestResponse, SignedBatch, TraceResult,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    v1::Outcome,
};
use prost::Message as _;
use tonic::{Request, Response, Status, Streaming, codec::CompressionEncoding, service::Routes};
use tracing::error;

use crate::{
    Gateway,
    auth::{Sender, Signature},
    error::{GatewayError, Kind},
    http::{NOT_CONFIRMED, own},
    verdict::Verdict,
};

/// The gRPC interface.
pub fn router(gateway: Gateway) -> Router {
    let limit = gateway.config.gateway.max_batch_bytes;
    let service = TraceServiceServer::new(Service { gateway })
        .max_decoding_message_size(limit)
        .accept_compressed(CompressionEncoding::Gzip);
    // Serving is what this process is for: once the service answers, it is healthy.
    let (health_reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(async move {
        health_reporter.set_serving::<TraceServiceServer<Service>>().await;
    });
    let mut routes = Routes::new(service).add_service(health);
    match tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
    {
        Ok(reflection) => routes = routes.add_service(reflection),
        Err(error) => error!(%error, "gRPC reflection is off"),
    }
    routes.into_axum_router()
}

#[derive(Clone)]
struct Service {
    gateway: Gateway,
}

/// Who calls, from the metadata.
struct Caller {
    authorization: Option<String>,
    from: Option<IpAddr>,
}

impl Caller {
    fn of<T>(request: &Request<T>) -> Self {
        let authorization = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        Self {
            authorization: authorization.map(str::to_owned),
            from: request
                .extensions()
                .get::<axum::extract::ConnectInfo<std::net::SocketAddr>>()
                .map(|info| info.0.ip()),
        }
    }
}

impl Service {
    /// The app that may call the methods without a signature.
    fn admit(&self, caller: &Caller) -> Result<Sender, GatewayError> {
        let sender = self.gateway.gate.admit(caller.authorization.as_deref(), caller.from)?;
        if sender.app.hmac {
            return Err(GatewayError::new(
                Kind::InvalidSignature,
                "the app is in HMAC mode: call IngestSigned, whose payload is a serialized IngestBatchRequest",
            ));
        }
        Ok(sender)
    }

    /// Takes in a batch: a result for each trace, in order.
    async fn take_in(&self, sender: &Sender, traces: Vec<Bytes>) -> Result<Vec<TraceResult>, GatewayError> {
        let now = self.gateway.clock.now();
        let app = sender.app.client_id.as_str();
        let counts = &self.gateway.intake.counts;
        let limit = self.gateway.config.gateway.max_batch_traces;
        if traces.len() > limit {
            let description = format!("the batch has {} traces; at most {limit}", traces.len());
            counts.refused(app, Kind::TooLarge.code(), "traces", now);
            return Err(GatewayError::field(Kind::TooLarge, "traces", description));
        }
        let mut results = Vec::with_capacity(traces.len());
        let mut valid = Vec::with_capacity(traces.len());
        let mut places = Vec::with_capacity(traces.len());
        for sent in traces {
            let looked = admit_proto(&sent, now, |seen| {
                own(seen, sender)?;
                let guard = self.gateway.gate.guard(app, seen.trace.user_sub);
                Ok((answered_id(&sent, seen), guard))
            });
            let checked = looked
                .map_err(|refusal| (refusal.event_id.clone(), GatewayError::from(refusal)))
                .and_then(|(admitted, looked)| Ok((admitted, looked?)));
            match checked {
                Ok((admitted, (event_id, guard))) => {
                    places.push(results.len());
                    valid.push(admitted);
                    let guard = guard.map_or_else(String::new, |guard| guard.header().to_owned());
                    results.push(TraceResult { event_id, guard, ..TraceResult::default() });
                }
                Err((event_id, error)) => {
                    counts.refused(app, error.kind.code(), &error.field, now);
                    results.push(TraceResult {
                        event_id: event_id.into(),
                        outcome: Outcome::Rejected.into(),
                        error: error.kind.code().to_owned(),
                        field: error.field,
                        error_description: error.description,
                        guard: String::new(),
                    });
                }
            }
        }
        let verdicts = self.gateway.intake.take_in(app, valid).await;
        for (i, verdict) in places.into_iter().zip(verdicts) {
            let result = &mut results[i];
            result.outcome = match verdict {
                Verdict::Accepted => Outcome::Accepted,
                Verdict::Duplicate => Outcome::Duplicate,
                Verdict::Unavailable => Outcome::Unavailable,
            }
            .into();
            if verdict == Verdict::Unavailable {
                result.error = "unavailable".to_owned();
                result.error_description = NOT_CONFIRMED.to_owned();
            }
        }
        Ok(results)
    }

    fn retry_after_secs(&self) -> u64 {
        self.gateway.config.gateway.retry_after_secs
    }
}

/// The id as it is answered: a piece of the request where that has it in lower case.
fn answered_id(sent: &Bytes, seen: &Seen<'_>) -> Bytes {
    let id = seen.trace.event_id;
    if id.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return seen.event_id().to_string().into();
    }
    sent.slice_ref(id.as_bytes())
}

type BatchStream = Pin<Box<dyn Stream<Item = Result<IngestBatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl TraceService for Service {
    async fn ingest(&self, request: Request<IngestRequest>) -> Result<Response<IngestResponse>, Status> {
        let sender = self.admit(&Caller::of(&request)).map_err(GatewayError::into_grpc)?;
        let Some(trace) = request.into_inner().trace else {
            let error = GatewayError::field(Kind::InvalidRequest, "trace", "is required");
            return Err(error.into_grpc());
        };
        let mut results = self.take_in(&sender, vec![trace]).await.map_err(GatewayError::into_grpc)?;
        let Some(result) = results.pop() else {
            return Err(Status::internal("no result"));
        };
        match result.outcome() {
            Outcome::Rejected => {
                let kind = if result.error == Kind::ClientMismatch.code() {
                    Kind::ClientMismatch
                } else {
                    Kind::InvalidRequest
                };
                Err(GatewayError::field(kind, &result.field, result.error_description).into_grpc())
            }
            Outcome::Unavailable => {
                let kind = Kind::Unavailable { retry_after_secs: self.retry_after_secs() };
                Err(GatewayError::new(kind, NOT_CONFIRMED).into_grpc())
            }
            _ => Ok(Response::new(IngestResponse { result: Some(result) })),
        }
    }

    async fn ingest_batch(
        &self,
        request: Request<IngestBatchRequest>,
    ) -> Result<Response<IngestBatchResponse>, Status> {
        let sender = self.admit(&Caller::of(&request)).map_err(GatewayError::into_grpc)?;
        let results =
            self.take_in(&sender, request.into_inner().traces).await.map_err(GatewayError::into_grpc)?;
        Ok(Response::new(IngestBatchResponse { results }))
    }

    type IngestStreamStream = BatchStream;

    async fn ingest_stream(
        &self,
        request: Request<Streaming<IngestBatchRequest>>,
    ) -> Result<Response<BatchStream>, Status> {
        let caller = Caller::of(&request);
        self.admit(&caller).map_err(GatewayError::into_grpc)?;
        let (service, window) = (self.clone(), self.gateway.config.gateway.stream_window);
        let answers = request
            .into_inner()
            .map(move |batch| {
                let service = service.clone();
                // A PAK may end while the stream goes on, so each batch is admitted anew.
                let sender = service.admit(&caller);
                async move {
                    let results =
                        service.take_in(&sender.map_err(GatewayError::into_grpc)?, batch?.traces).await;
                    results.map(|results| IngestBatchResponse { results }).map_err(GatewayError::into_grpc)
                }
            })
            .buffered(window);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn ingest_signed(
        &self,
        request: Request<SignedBatch>,
    ) -> Result<Response<IngestBatchResponse>, Status> {
        let caller = Caller::of(&request);
        let sender = self
            .gateway
            .gate
            .admit(caller.authorization.as_deref(), caller.from)
            .map_err(GatewayError::into_grpc)?;
        let signed = request.into_inner();
        let timestamp = signed.timestamp.to_string();
        let claim = Signature { timestamp: Some(&timestamp), signature: Some(&signed.signature) };
        self.gateway
            .gate
            .check_signature(&sender, claim, &signed.payload, caller.from)
            .map_err(GatewayError::into_grpc)?;
        let batch = IngestBatchRequest::decode(signed.payload).map_err(|error| {
            let description = format!("is not a serialized IngestBatchRequest: {error}");
            GatewayError::field(Kind::InvalidRequest, "payload", description).into_grpc()
        })?;
        let results = self.take_in(&sender, batch.traces).await.map_err(GatewayError::into_grpc)?;
        Ok(Response::new(IngestBatchResponse { results }))
    }
}
