//! The export of the processes' own spans to a collector.

use std::sync::{Arc, Mutex};

use axum::{Router, body::Bytes, extract::State, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, trace::v1::Span,
};
use prost::Message as _;
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::support::{Answer, Engine, System, alone_on_both_engines, eventually};

alone_on_both_engines!(
    a_request_goes_on_with_the_trace_of_its_sender,
    nothing_waits_for_a_collector_that_is_away
);

/// Spans, each with the service that sent it.
type Received = Arc<Mutex<Vec<(String, Span)>>>;

/// A collector of the test's own.
struct Collector {
    url: String,
    received: Received,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received = Received::default();
        let router = Router::new().route("/v1/traces", post(receive)).with_state(received.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, received }
    }

    /// The span with this name, of this service, which `is_it`; once it is there.
    async fn span(&self, service: &str, name: &str, is_it: impl Fn(&Span) -> bool) -> Span {
        eventually(&format!("the span `{name}` of {service}"), async || {
            let received = self.received.lock().unwrap();
            let found = received.iter().find(|(of, span)| of == service && span.name == name && is_it(span));
            let all = || received.iter().map(|(of, span)| format!("{of}: {}", span.name)).collect::<Vec<_>>();
            found.map(|(_, span)| span.clone()).ok_or_else(all)
        })
        .await
    }
}

async fn receive(State(received): State<Received>, body: Bytes) {
    for spans in ExportTraceServiceRequest::decode(body).unwrap().resource_spans {
        let attributes = spans.resource.unwrap().attributes;
        let service = attributes.into_iter().find(|attribute| attribute.key == "service.name").unwrap();
        let Some(Value::StringValue(service)) = service.value.unwrap().value else { panic!("no name") };
        let spans = spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
        received.lock().unwrap().extend(spans.map(|span| (service.clone(), span)));
    }
}

async fn a_request_goes_on_with_the_trace_of_its_sender(engine: Engine) {
    let collector = Collector::start().await;
    let s = System::start(engine, &[("PANOPTICON_TELEMETRY__OTLP_ENDPOINT", &collector.url)]).await;
    let app = s.app().await;
    let (trace_id, parent) = (Uuid::new_v4(), &Uuid::new_v4().simple().to_string()[..16]);
    let request = app
        .post("/panopticon/trace")
        .header("traceparent", format!("00-{}-{parent}-01", trace_id.simple()))
        .json(&app.trace());
    assert_eq!(Answer::read(request.send().await.unwrap()).await.status, 202);

    let of = |role| match engine {
        Engine::Embedded => "panopticon-serve".to_owned(),
        Engine::Distributed => format!("panopticon-{role}"),
    };
    let gateway = of("ingest-gateway");
    let is_ours = |span: &Span| span.trace_id == trace_id.as_bytes();
    let request = collector.span(&gateway, "POST /panopticon/trace", is_ours).await;
    assert_eq!(hex::encode(&request.parent_span_id), parent);
    for name in ["append", "mark"] {
        let part = collector.span(&gateway, name, is_ours).await;
        assert_eq!(part.parent_span_id, request.span_id, "{name}");
    }
    s.timeline(&app, 1).await;
    let workers = of("stream-workers");
    let batch = collector.span(&workers, "dedupe batch", |_| true).await;
    for name in ["process", "commit"] {
        collector.span(&workers, name, |span| span.parent_span_id == batch.span_id).await;
    }
    collector.span(&workers, "insert traces", |_| true).await;
    collector
        .span(&of("control-room"), "GET /api/v1/panopticon/apps/{client_id}/timeline", |span| {
            span.parent_span_id.is_empty()
        })
        .await;
    assert!(s.stop().await.iter().all(|(_, status)| status.success()));
}

async fn nothing_waits_for_a_collector_that_is_away(engine: Engine) {
    // Connections are taken by the system, and nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let s = System::start(engine, &[("PANOPTICON_TELEMETRY__OTLP_ENDPOINT", &url)]).await;
    let app = s.app().await;
    for _ in 0..20 {
        app.accepted(&app.trace()).await;
    }
    s.timeline(&app, 20).await;
    assert!(s.stop().await.iter().all(|(_, status)| status.success()), "it ends in order");
}
