//! The ingest gateway over gRPC, as a client.

use std::{error::Error as _, time::Duration};

use panopticon_core::time::{Clock as _, SystemClock};
use panopticon_proto::v1::{
    self, IngestBatchRequest, Outcome, SignedBatch, trace_service_client::TraceServiceClient,
};
use prost::Message as _;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use super::rewrite::{Outgoing, Payload};
use crate::{
    connection::REQUEST_TIMEOUT,
    gateway::{BatchOutcome, Credentials, SendError, TraceOutcome, error_body, heeded, signature},
    servers::tidy_url,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A gateway and an app's credentials for it.
pub(super) struct GrpcGateway {
    client: TraceServiceClient<Channel>,
    authorization: MetadataValue<Ascii>,
    pak_secret: Option<String>,
}

impl GrpcGateway {
    /// A client that connects when it is first used, and again when the connection breaks.
    pub(super) fn new(url: &str, credentials: &Credentials) -> Result<Self, String> {
        if !url.starts_with("http://") {
            return Err(format!(
                "`{url}`: gRPC over TLS is not in this build; leave out --grpc, or use http://"
            ));
        }
        let endpoint = Endpoint::from_shared(tidy_url(url)).map_err(|error| format!("`{url}`: {error}"))?;
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect_lazy();
        let authorization = MetadataValue::try_from(format!("Bearer {}", credentials.pak))
            .map_err(|_| "the PAK has characters that no PAK has".to_owned())?;
        let client = TraceServiceClient::new(channel);
        Ok(Self { client, authorization, pak_secret: credentials.pak_secret.clone() })
    }

    /// Sends traces, signed where the app wants that.
    pub(super) async fn send(&self, traces: &[Outgoing]) -> Result<BatchOutcome, SendError> {
        let traces = traces.iter().filter_map(|trace| match &trace.payload {
            Payload::Proto(trace) => Some((**trace).clone()),
            Payload::Json(_) => None,
        });
        let batch = IngestBatchRequest { traces: traces.collect() };
        let mut client = self.client.clone();
        let answer = match &self.pak_secret {
            None => client.ingest_batch(self.request(batch)).await,
            Some(secret) => {
                let (timestamp, payload) = (SystemClock.now().secs(), batch.encode_to_vec());
                let signature = signature(secret, timestamp, &payload);
                let signed = SignedBatch { timestamp, signature, payload: payload.into() };
                client.ingest_signed(self.request(signed)).await
            }
        };
        let results = answer.map_err(not_taken)?.into_inner().results;
        let guard = results.iter().map(|result| result.guard.clone()).find(|guard| !guard.is_empty());
        Ok(BatchOutcome { results: results.into_iter().map(outcome).collect(), guard })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(REQUEST_TIMEOUT);
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request
    }
}

fn outcome(result: v1::TraceResult) -> TraceOutcome {
    let status = match result.outcome() {
        Outcome::Accepted => "accepted",
        Outcome::Duplicate => "duplicate",
        Outcome::Rejected => "rejected",
        // What is not said is not confirmed.
        Outcome::Unavailable | Outcome::Unspecified => "unavailable",
    };
    let some = |text: String| (!text.is_empty()).then_some(text);
    TraceOutcome {
        event_id: result.event_id,
        status: status.to_owned(),
        error: some(result.error),
        field: some(result.field),
        error_description: some(result.error_description),
        guard: some(result.guard),
    }
}

fn not_taken(status: Status) -> SendError {
    let (code, description) = match status.message().split_once(": ") {
        Some((code, rest)) if code.bytes().all(|c| c.is_ascii_lowercase() || c == b'_') => (code, rest),
        _ => ("", status.message()),
    };
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::NotFound => {
            SendError::Refused(error_body(code, description))
        }
        Code::InvalidArgument | Code::OutOfRange => SendError::Divide(error_body(code, description)),
        _ => {
            // A cause below the status means that the connection failed, not that the server said so.
            let mut why = description.to_owned();
            let mut cause = status.source();
            let answered = cause.is_none();
            while let Some(next) = cause {
                why = next.to_string();
                cause = next.source();
            }
            let after = status.get_details_retry_info().and_then(|info| info.retry_delay).map(heeded);
            SendError::Again { why, after, answered }
        }
    }
}
