//! One request to one gateway, in any form that the product takes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use panopticon_proto::v1::{
    self, IngestBatchRequest, IngestRequest, Outcome, trace_service_client::TraceServiceClient,
};
use rand::RngExt as _;
use serde_json::Value;
use tonic::{Code, metadata::MetadataValue, transport::Channel};

use crate::{
    call::{App, Call},
    ledger::Answer,
};

/// How traces are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `POST /panopticon/trace`; one trace only.
    HttpOne,
    /// `POST /panopticon/traces` with an array.
    HttpBatch,
    /// `Ingest`; one trace only.
    GrpcOne,
    /// `IngestBatch`.
    GrpcBatch,
    /// `IngestStream` with one batch.
    GrpcStream,
}

impl Form {
    /// Any form that carries so many traces.
    pub fn any(traces: usize, rng: &mut impl rand::Rng) -> Self {
        const MANY: [Form; 3] = [Form::HttpBatch, Form::GrpcBatch, Form::GrpcStream];
        const ONE: [Form; 5] =
            [Form::HttpOne, Form::GrpcOne, Form::HttpBatch, Form::GrpcBatch, Form::GrpcStream];
        if traces == 1 { ONE[rng.random_range(0..ONE.len())] } else { MANY[rng.random_range(0..MANY.len())] }
    }
}

/// A client of one gateway.
#[derive(Clone)]
pub struct Gateway {
    url: String,
    http: reqwest::Client,
    grpc: TraceServiceClient<Channel>,
}

impl Gateway {
    /// A client that connects when it first sends.
    pub fn new(address: SocketAddr) -> anyhow::Result<Self> {
        let url = format!("http://{address}");
        let http = reqwest::Client::builder().no_proxy().build().context("cannot make an HTTP client")?;
        let channel =
            Channel::from_shared(url.clone())?.connect_timeout(Duration::from_secs(2)).connect_lazy();
        Ok(Self { url, http, grpc: TraceServiceClient::new(channel) })
    }

    /// Sends traces of one app and answers what became of each, in order.
    pub async fn send(&self, form: Form, calls: &[Arc<Call>], patience: Duration) -> Vec<Answer> {
        let Some(app) = calls.first().map(|call| call.app) else { return Vec::new() };
        let sent = async {
            match form {
                Form::HttpOne => self.http_one(&app.pak(), &calls[0].to_json()).await.map(|one| vec![one]),
                Form::HttpBatch => self.http_batch(app, calls).await,
                Form::GrpcOne => self.grpc_one(app, &calls[0]).await.map(|one| vec![one]),
                Form::GrpcBatch => self.grpc_batch(app, calls).await,
                Form::GrpcStream => self.grpc_stream(app, calls).await,
            }
        };
        let answers =
            tokio::time::timeout(patience, sent).await.unwrap_or_else(|_| Err("no answer in time".into()));
        match answers {
            Ok(answers) if answers.len() == calls.len() => answers,
            Ok(answers) => {
                let why = format!("{} answers to {} traces", answers.len(), calls.len());
                vec![Answer::Unconfirmed(why); calls.len()]
            }
            Err(why) => vec![Answer::Unconfirmed(why); calls.len()],
        }
    }

    /// `POST /panopticon/trace` with any body; for invalid traces too.
    pub async fn http_one(&self, pak: &str, body: &Value) -> Result<Answer, String> {
        let sent = self.http.post(format!("{}/panopticon/trace", self.url)).bearer_auth(pak).json(body);
        let answer = sent.send().await.map_err(lost)?;
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap_or_default();
        Ok(match status {
            202 => Answer::Accepted,
            200 => Answer::Duplicate,
            400..500 => Answer::Rejected(format!("{status} {}", body["error"].as_str().unwrap_or_default())),
            _ => Answer::Unconfirmed(format!("HTTP {status}")),
        })
    }

    async fn http_batch(&self, app: App, calls: &[Arc<Call>]) -> Result<Vec<Answer>, String> {
        let traces: Vec<Value> = calls.iter().map(|call| call.to_json()).collect();
        let sent =
            self.http.post(format!("{}/panopticon/traces", self.url)).bearer_auth(app.pak()).json(&traces);
        let answer = sent.send().await.map_err(lost)?;
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.map_err(lost)?;
        match status {
            200 => {}
            400..500 => return Ok(vec![Answer::Rejected(format!("{status} {body}")); calls.len()]),
            _ => return Err(format!("HTTP {status}")),
        }
        let results = body["results"].as_array().cloned().unwrap_or_default();
        let of = |result: &Value| match result["status"].as_str() {
            Some("accepted") => Answer::Accepted,
            Some("duplicate") => Answer::Duplicate,
            _ if result["error"] == "unavailable" => Answer::Unconfirmed("unavailable in a batch".to_owned()),
            _ => Answer::Rejected(result.to_string()),
        };
        Ok(results.iter().map(of).collect())
    }

    async fn grpc_one(&self, app: App, call: &Call) -> Result<Answer, String> {
        let request = with_pak(app, IngestRequest { trace: Some(call.to_proto()) });
        match self.grpc.clone().ingest(request).await {
            Ok(answer) => Ok(answer
                .into_inner()
                .result
                .as_ref()
                .map_or_else(|| Answer::Unconfirmed("an answer without a result".to_owned()), verdict)),
            Err(status) => refused(&status),
        }
    }

    async fn grpc_batch(&self, app: App, calls: &[Arc<Call>]) -> Result<Vec<Answer>, String> {
        let request = with_pak(app, batch(calls));
        match self.grpc.clone().ingest_batch(request).await {
            Ok(answer) => Ok(answer.into_inner().results.iter().map(verdict).collect()),
            Err(status) => refused(&status).map(|answer| vec![answer; calls.len()]),
        }
    }

    async fn grpc_stream(&self, app: App, calls: &[Arc<Call>]) -> Result<Vec<Answer>, String> {
        let request = with_pak(app, futures::stream::iter([batch(calls)]));
        let answers = async { self.grpc.clone().ingest_stream(request).await?.into_inner().message().await };
        match answers.await {
            Ok(answer) => Ok(answer.unwrap_or_default().results.iter().map(verdict).collect()),
            Err(status) => refused(&status).map(|answer| vec![answer; calls.len()]),
        }
    }
}

fn batch(calls: &[Arc<Call>]) -> IngestBatchRequest {
    IngestBatchRequest { traces: calls.iter().map(|call| call.to_proto()).collect() }
}

fn with_pak<T>(app: App, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Ok(bearer) = MetadataValue::try_from(format!("Bearer {}", app.pak())) {
        request.metadata_mut().insert("authorization", bearer);
    }
    request
}

fn verdict(result: &v1::TraceResult) -> Answer {
    match result.outcome() {
        Outcome::Accepted => Answer::Accepted,
        Outcome::Duplicate => Answer::Duplicate,
        Outcome::Rejected => Answer::Rejected(format!("{} {}", result.error, result.field)),
        Outcome::Unavailable | Outcome::Unspecified => {
            Answer::Unconfirmed("unavailable in a batch".to_owned())
        }
    }
}

/// What a status says of the traces: refused for good, or not confirmed.
fn refused(status: &tonic::Status) -> Result<Answer, String> {
    match status.code() {
        Code::InvalidArgument | Code::Unauthenticated | Code::PermissionDenied => {
            Ok(Answer::Rejected(format!("{:?} {}", status.code(), status.message())))
        }
        code => Err(format!("gRPC {code:?}")),
    }
}

fn lost(error: reqwest::Error) -> String {
    if error.is_connect() {
        "no connection".to_owned()
    } else if error.is_timeout() {
        "no answer in time".to_owned()
    } else {
        "connection lost".to_owned()
    }
}
