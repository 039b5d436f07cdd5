//! gRPC ingestion: `panopticon.v1.TraceService`, with health and reflection.

use futures::StreamExt as _;
use panopticon_proto::{
    log::{Place, TakenTrace},
    raw,
    v1::{
        IngestBatchRequest, IngestBatchResponse, IngestRequest, Outcome, SignedBatch, TraceResult,
        trace_service_client::TraceServiceClient,
    },
};
use prost::Message as _;
use serde_json::{Value, json};
use tonic::{Code, codec::CompressionEncoding};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::support::{App, System, app::proto_trace, eventually, on_both_engines};

on_both_engines!(
    a_trace_is_accepted_and_sent_again_a_duplicate,
    grpc_and_http_know_each_others_traces,
    a_batch_has_a_result_for_each_trace_in_order,
    a_trace_that_is_no_protobuf_hurts_no_neighbour,
    what_is_no_field_of_a_trace_does_not_travel_on,
    a_stream_answers_each_batch_in_order,
    a_stream_ends_when_its_pak_does,
    compressed_messages_are_read,
    a_batch_has_at_most_a_thousand_traces,
    who_may_not_send_is_told_by_status,
    a_killed_user_is_told_in_the_result,
    health_and_reflection_are_there,
);

fn batch(traces: &[Value]) -> IngestBatchRequest {
    IngestBatchRequest { traces: traces.iter().map(proto_trace).collect() }
}

fn one(trace: &Value) -> IngestRequest {
    IngestRequest { trace: Some(proto_trace(trace)) }
}

fn outcomes(results: &[TraceResult]) -> Vec<Outcome> {
    results.iter().map(TraceResult::outcome).collect()
}

async fn a_trace_is_accepted_and_sent_again_a_duplicate(s: &System) {
    let app = s.app().await;
    let mut client = app.grpc().await;
    let id = Uuid::new_v4().to_string();
    let trace = app.trace_with(
        json!({"event_id": id.to_uppercase(), "attributes": {"a": "b"}, "source_ip": "10.0.0.1"}),
    );
    for outcome in [Outcome::Accepted, Outcome::Duplicate] {
        let result = client.ingest(app.ask(one(&trace))).await.unwrap().into_inner().result.unwrap();
        let expected =
            TraceResult { event_id: id.clone(), outcome: outcome.into(), ..TraceResult::default() };
        assert_eq!(result, expected);
    }
    let stored = s.timeline(&app, 1).await.remove(0);
    for (name, value) in trace.as_object().unwrap() {
        match name.as_str() {
            "event_id" => assert_eq!(stored["event_id"], id),
            "started_at" => {
                let micros = |text: &Value| {
                    text.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_microsecond()
                };
                assert_eq!(micros(&stored["started_at"]), micros(value));
            }
            _ => assert_eq!(stored[name], *value, "{name}"),
        }
    }
}

async fn grpc_and_http_know_each_others_traces(s: &System) {
    let app = s.app().await;
    let mut client = app.grpc().await;
    let (first, second) = (app.trace(), app.trace());
    app.accepted(&first).await;
    let result = client.ingest(app.ask(one(&first))).await.unwrap().into_inner().result.unwrap();
    assert_eq!(result.outcome(), Outcome::Duplicate);
    client.ingest(app.ask(one(&second))).await.unwrap();
    assert_eq!(app.send(&second).await.status, 200);
    s.timeline(&app, 2).await;
    s.until_at_rest(&app).await;
    assert_eq!(s.timeline(&app, 2).await.len(), 2);
}

async fn a_batch_has_a_result_for_each_trace_in_order(s: &System) {
    let app = s.app().await;
    let known = app.trace();
    app.accepted(&known).await;
    let traces = [
        app.trace(),
        known,
        app.trace_with(json!({"tool": ""})),
        app.trace_with(json!({"client_id": "another-app"})),
        app.trace_with(json!({"user_sub": "user_2"})),
    ];
    let answer = app.grpc().await.ingest_batch(app.ask(batch(&traces))).await.unwrap().into_inner();
    let expected =
        [Outcome::Accepted, Outcome::Duplicate, Outcome::Rejected, Outcome::Rejected, Outcome::Accepted];
    assert_eq!(outcomes(&answer.results), expected);
    for (result, trace) in answer.results.iter().zip(&traces) {
        assert_eq!(result.event_id, trace["event_id"].as_str().unwrap());
    }
    let told = |i: usize| (answer.results[i].error.as_str(), answer.results[i].field.as_str());
    assert_eq!((told(2), told(3)), (("invalid_request", "tool"), ("client_mismatch", "client_id")));
    assert!(!answer.results[2].error_description.is_empty());
    let empty = app.grpc().await.ingest_batch(app.ask(batch(&[]))).await.unwrap().into_inner();
    assert!(empty.results.is_empty());
}

/// Sends serialized traces as they are.
async fn send_bytes(app: &App, traces: Vec<Vec<u8>>) -> Vec<TraceResult> {
    let batch = raw::IngestBatchRequest { traces: traces.into_iter().map(Into::into).collect() };
    let channel = app.channel().await;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/panopticon.v1.TraceService/IngestBatch");
    let codec: ProstCodec<_, IngestBatchResponse> = ProstCodec::default();
    client.unary(app.ask(batch), path, codec).await.unwrap().into_inner().results
}

async fn a_trace_that_is_no_protobuf_hurts_no_neighbour(s: &System) {
    let app = s.app().await;
    let good = proto_trace(&app.trace()).encode_to_vec();
    let mut no_text = proto_trace(&app.trace()).encode_to_vec();
    let tool = no_text.windows(2).rposition(|pair| pair[0] == 4 << 3 | 2).unwrap();
    no_text[tool + 2] = 0xff;
    let cut_off = good[..good.len() - 1].to_vec();
    let results = send_bytes(&app, vec![cut_off, good, no_text]).await;
    assert_eq!(outcomes(&results), [Outcome::Rejected, Outcome::Accepted, Outcome::Rejected]);
    assert_eq!((results[0].field.as_str(), results[2].field.as_str()), ("", "tool"));
    assert_eq!(s.timeline(&app, 1).await.len(), 1);
}

async fn what_is_no_field_of_a_trace_does_not_travel_on(s: &System) {
    let app = s.app().await;
    let trace = app.trace();
    let mut bytes = proto_trace(&trace).encode_to_vec();
    // What the gateway itself would add: received long ago, late, at a place of its own.
    let forged =
        TakenTrace { received_at: 1, late: true, place: Some(Place::default()), ..TakenTrace::default() };
    bytes.extend(forged.encode_to_vec());
    assert_eq!(outcomes(&send_bytes(&app, vec![bytes]).await), [Outcome::Accepted]);
    let stored = s.timeline(&app, 1).await.remove(0);
    assert!(stored["received_at"].as_str().unwrap() >= "2020", "{stored}");
    assert_eq!((&stored["event_id"], &stored["late"]), (&trace["event_id"], &json!(false)));
}

async fn a_stream_answers_each_batch_in_order(s: &System) {
    let app = s.app().await;
    let batches: Vec<Vec<Value>> = (0..30).map(|i| (0..=i).map(|_| app.trace()).collect()).collect();
    let sent: Vec<IngestBatchRequest> = batches.iter().map(|traces| batch(traces)).collect();
    let mut answers =
        app.grpc().await.ingest_stream(app.ask(futures::stream::iter(sent))).await.unwrap().into_inner();
    for traces in &batches {
        let results = answers.message().await.unwrap().unwrap().results;
        let ids: Vec<&str> = results.iter().map(|result| &*result.event_id).collect();
        let expected: Vec<&str> = traces.iter().map(|trace| trace["event_id"].as_str().unwrap()).collect();
        assert_eq!(ids, expected);
        assert!(outcomes(&results).iter().all(|outcome| *outcome == Outcome::Accepted));
    }
    assert!(answers.message().await.unwrap().is_none());
    assert_eq!(s.timeline(&app, 465).await.len(), 465);
}

async fn a_stream_ends_when_its_pak_does(s: &System) {
    let app = s.app().await;
    let (to_send, sent) = tokio::sync::mpsc::channel::<IngestBatchRequest>(1);
    let sent = futures::stream::unfold(sent, async |mut sent| sent.recv().await.map(|batch| (batch, sent)));
    to_send.send(batch(&[app.trace()])).await.unwrap();
    let mut answers = app.grpc().await.ingest_stream(app.ask(sent.boxed())).await.unwrap().into_inner();
    assert_eq!(outcomes(&answers.message().await.unwrap().unwrap().results), [Outcome::Accepted]);
    s.post(&format!("/apps/{}/pak", app.id), json!({"grace_secs": 0})).await.expect(200);
    let status = eventually("the end of the stream", async || {
        to_send.send(batch(&[app.trace()])).await.unwrap();
        match answers.message().await {
            Err(status) => Ok(status),
            Ok(answer) => Err(answer),
        }
    })
    .await;
    assert_eq!(status.code(), Code::Unauthenticated);
}

async fn compressed_messages_are_read(s: &System) {
    let app = s.app().await;
    let mut client = app.grpc().await.send_compressed(CompressionEncoding::Gzip);
    let traces: Vec<Value> = (0..300).map(|_| app.trace()).collect();
    let answer = client.ingest_batch(app.ask(batch(&traces))).await.unwrap().into_inner();
    assert!(outcomes(&answer.results).iter().all(|outcome| *outcome == Outcome::Accepted));
}

async fn a_batch_has_at_most_a_thousand_traces(s: &System) {
    let app = s.app().await;
    let mut client = app.grpc().await;
    let mut traces: Vec<Value> = (0..1_001).map(|_| app.trace()).collect();
    let status = client.ingest_batch(app.ask(batch(&traces))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().starts_with("request_too_large"), "{}", status.message());
    assert!(status.get_details_retry_info().is_none(), "sending it again would not help");
    traces.pop();
    let answer = client.ingest_batch(app.ask(batch(&traces))).await.unwrap().into_inner();
    assert_eq!(answer.results.len(), 1_000);
    // The size of a message is limited as that of a body.
    let long = app.trace_with(json!({"attributes": {"a": "x".repeat(8_000)}}));
    let too_large = batch(&vec![long; 600]);
    let status = client.ingest_batch(app.ask(too_large)).await.unwrap_err();
    assert!([Code::ResourceExhausted, Code::OutOfRange].contains(&status.code()), "{status:?}");
}

/// The status that each of the four methods refuses the app with.
async fn refusals(app: &App) -> [Option<Code>; 4] {
    let mut client = app.grpc().await;
    let trace = app.trace();
    let signed = SignedBatch { timestamp: 0, signature: String::new(), payload: Default::default() };
    let stream = match client
        .ingest_stream(app.ask(futures::stream::iter([batch(std::slice::from_ref(&trace))])))
        .await
    {
        Err(status) => Some(status),
        Ok(mut answers) => answers.get_mut().message().await.err(),
    };
    let single = client.ingest(app.ask(one(&trace))).await.err();
    let whole = client.ingest_batch(app.ask(batch(&[trace]))).await.err();
    let signed = client.ingest_signed(app.ask(signed)).await.err();
    [single, whole, stream, signed].map(|status| status.map(|status| status.code()))
}

async fn who_may_not_send_is_told_by_status(s: &System) {
    let app = s.app().await;
    assert_eq!(refusals(&app.with_pak("pano_pak_unknown")).await, [Some(Code::Unauthenticated); 4]);
    let mut client: TraceServiceClient<_> = app.grpc().await;
    let bare = client.ingest(tonic::Request::new(one(&app.trace()))).await.unwrap_err();
    assert_eq!(bare.code(), Code::Unauthenticated);
    assert!(bare.message().starts_with("invalid_token"), "{}", bare.message());

    let foreign = app.trace_with(json!({"client_id": "another-app"}));
    let status = client.ingest(app.ask(one(&foreign))).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().starts_with("client_mismatch"), "{}", status.message());

    assert_eq!(s.delete(&format!("/apps/{}", app.id)).await.status, 204);
    eventually("the gateway knows that the app is disabled", async || {
        let codes = refusals(&app).await;
        if codes == [Some(Code::PermissionDenied); 4] { Ok(()) } else { Err(codes) }
    })
    .await;
}

async fn a_killed_user_is_told_in_the_result(s: &System) {
    let app = s.app().await;
    s.post(&format!("/apps/{}/kill", app.id), json!({"user_sub": "bad"})).await.expect(200);
    let mut client = app.grpc().await;
    eventually("the guard in the result", async || {
        let bad = app.trace_with(json!({"user_sub": "bad"}));
        let result = client.ingest(app.ask(one(&bad))).await.unwrap().into_inner().result.unwrap();
        assert_eq!(result.outcome(), Outcome::Accepted);
        if result.guard == "killed; scope=user" { Ok(()) } else { Err(result.guard) }
    })
    .await;
    let traces = [app.trace_with(json!({"user_sub": "bad"})), app.trace_with(json!({"user_sub": "good"}))];
    let results = client.ingest_batch(app.ask(batch(&traces))).await.unwrap().into_inner().results;
    assert_eq!([&*results[0].guard, &*results[1].guard], ["killed; scope=user", ""]);
}

async fn health_and_reflection_are_there(s: &System) {
    let app = s.app().await;
    let mut health = HealthClient::new(app.channel().await);
    for service in ["", "panopticon.v1.TraceService"] {
        let answer =
            health.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap().into_inner();
        assert_eq!(answer.status, 1, "SERVING: {service}");
    }
    let unknown =
        health.check(HealthCheckRequest { service: "no.such.Service".to_owned() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let mut reflection = ServerReflectionClient::new(app.channel().await);
    let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let asked = futures::stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("panopticon.v1.TraceService".to_owned())),
    ]);
    let mut answers = reflection.server_reflection_info(asked).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services")
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["panopticon.v1.TraceService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
    let described = answers.message().await.unwrap().unwrap().message_response;
    assert!(matches!(described, Some(MessageResponse::FileDescriptorResponse(_))), "{described:?}");
    let internal = names.iter().any(|name| name.contains("log.v1"));
    assert!(!internal, "the messages between stages are no interface: {names:?}");
}
