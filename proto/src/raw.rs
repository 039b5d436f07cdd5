//! The public gRPC interface once more, for a server that does not take traces apart: on the wire these
//! messages are those of [`crate::v1`].

use bytes::Bytes;

/// [`crate::v1::IngestRequest`], its trace as sent.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct IngestRequest {
    /// A serialized [`crate::v1::Trace`].
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub trace: Option<Bytes>,
}

/// [`crate::v1::IngestBatchRequest`], its traces as sent.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct IngestBatchRequest {
    /// Serialized [`crate::v1::Trace`]s.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub traces: Vec<Bytes>,
}

/// [`crate::v1::TraceResult`], its id a piece of the request where that had it in lower case.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TraceResult {
    /// UTF-8.
    #[prost(bytes = "bytes", tag = "1")]
    pub event_id: Bytes,
    /// What became of the trace.
    #[prost(enumeration = "crate::v1::Outcome", tag = "2")]
    pub outcome: i32,
    /// The error's code.
    #[prost(string, tag = "3")]
    pub error: String,
    /// The field at fault.
    #[prost(string, tag = "4")]
    pub field: String,
    /// What is wrong.
    #[prost(string, tag = "5")]
    pub error_description: String,
    /// `killed` or `killed; scope=user` while the app or the user is under a kill.
    #[prost(string, tag = "6")]
    pub guard: String,
}

/// [`crate::v1::IngestResponse`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct IngestResponse {
    /// What became of the trace.
    #[prost(message, optional, tag = "1")]
    pub result: Option<TraceResult>,
}

/// [`crate::v1::IngestBatchResponse`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct IngestBatchResponse {
    /// What became of the traces, in their order.
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<TraceResult>,
}

pub use crate::v1::SignedBatch;

/// The service `panopticon.v1.TraceService` over these messages.
#[allow(missing_docs, clippy::all)]
mod service {
    include!(concat!(env!("OUT_DIR"), "/panopticon.v1.TraceService.rs"));
}
pub use service::trace_service_server;
