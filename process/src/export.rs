//! Export of the process's own spans by OTLP over HTTP, where `telemetry.otlp_endpoint` is set.
//!
//! What waits is bounded: a collector that is slow or away costs spans, which are counted, and nothing else.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use async_trait::async_trait;
use axum::http::HeaderMap;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry::{Context, propagation::TextMapPropagator as _, trace::TracerProvider as _};
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span as OtelSpan, SpanData,
        SpanExporter, SpanProcessor,
    },
};
use panopticon_core::{config::TelemetryConfig, telemetry::SpanLayer};
use tokio::runtime::Handle;
use tracing::{Span, info, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer as _;

/// Spans that may wait for the collector, those on their way included. What comes beyond is dropped.
const MAX_WAITING: usize = 4_096;
/// How many go in one request.
const BATCH: usize = 512;
/// How often those that wait are sent.
const EVERY: Duration = Duration::from_secs(1);
/// How long the collector may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of the process waits for the last ones.
const LAST_TIMEOUT: Duration = Duration::from_secs(2);
/// More than this no collector has to answer.
const MAX_ANSWER_BYTES: usize = 64 << 10;

static IS_ON: OnceLock<()> = OnceLock::new();

/// The export of a process, on or off.
#[derive(Clone)]
pub(crate) struct Export(Option<SdkTracerProvider>);

impl Export {
    /// Starts it as configured; the layer makes the spans.
    pub(crate) fn start(config: &TelemetryConfig, worker: &str) -> anyhow::Result<(Self, Option<SpanLayer>)> {
        if config.otlp_endpoint.is_empty() {
            return Ok((Self(None), None));
        }
        let url = format!("{}/v1/traces", config.otlp_endpoint.trim_end_matches('/'));
        let exporter = Otlp::builder()
            .with_http()
            .with_http_client(Collector::new()?)
            .with_endpoint(&url)
            .with_timeout(TIMEOUT)
            .build()
            .context("configuration: `telemetry.otlp_endpoint`")?;
        let waiting = Arc::<AtomicUsize>::default();
        let exporter = Counted { exporter, waiting: waiting.clone(), is_failing: AtomicBool::new(false) };
        let limits = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_WAITING)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(EVERY);
        let batches = BatchSpanProcessor::builder(exporter).with_batch_config(limits.build()).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Bounded { batches, waiting })
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.otlp_sample))))
            .with_resource(Resource::builder().with_service_name(format!("panopticon-{worker}")).build())
            .build();
        // Where in the code a span is made says nothing to operators.
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("panopticon"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false);
        let _ = IS_ON.set(());
        Ok((Self(Some(provider)), Some(layer.boxed())))
    }

    /// Sends what waits, for a moment at most.
    pub(crate) async fn end(&self) {
        let Some(provider) = self.0.clone() else { return };
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_TIMEOUT));
        if let Ok(Err(error)) = ended.await {
            info!(%error, "the last spans were not sent");
        }
    }
}

/// Whether this process makes spans.
pub(crate) fn is_on() -> bool {
    IS_ON.get().is_some()
}

/// Makes `span` part of the trace that a request's `traceparent` names, if it names one.
pub(crate) fn go_on_with(span: &Span, headers: &HeaderMap) {
    if headers.contains_key("traceparent") {
        let context =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        // It fails where no layer makes spans, and then there is nothing to go on with.
        let _ = span.set_parent(context);
    }
}

/// Keeps what waits within its bound.
#[derive(Debug)]
struct Bounded {
    batches: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut OtelSpan, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            metrics::counter!("panopticon_spans_total", "outcome" => "dropped").increment(1);
            return;
        }
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Counts what becomes of spans.
#[derive(Debug)]
struct Counted {
    exporter: Otlp,
    waiting: Arc<AtomicUsize>,
    /// So that a collector that is away is told once.
    is_failing: AtomicBool,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let outcome = self.exporter.export(batch).await;
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        let was_failing = self.is_failing.swap(outcome.is_err(), Ordering::Relaxed);
        let word = match &outcome {
            Ok(()) => "sent",
            Err(error) => {
                if !was_failing {
                    warn!(%error, "`telemetry.otlp_endpoint` takes no spans; they are lost until it does");
                }
                "lost"
            }
        };
        metrics::counter!("panopticon_spans_total", "outcome" => word).increment(count as u64);
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// The way to the collector. Batches are sent from a thread of their own, which is none of the runtime's.
struct Collector {
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
}

impl Collector {
    fn new() -> anyhow::Result<Self> {
        let mut authorities = rustls::RootCertStore::empty();
        authorities.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(authorities)
            .with_no_client_auth();
        let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        Ok(Self { http: Client::builder(TokioExecutor::new()).build(https), runtime: Handle::current() })
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let http = self.http.clone();
        let exchange = async move {
            let (parts, body) = http.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?.to_bytes();
            Ok(Response::from_parts(parts, body))
        };
        self.runtime.spawn(async { tokio::time::timeout(TIMEOUT, exchange).await }).await??
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use panopticon_core::telemetry::SPANS;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_collector_that_never_answers_costs_spans_and_neither_time_nor_memory() {
        // Connections are taken by the system, and nobody ever answers.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let otlp_endpoint = format!("http://{}", silent.local_addr().expect("an address"));
        let config = TelemetryConfig { otlp_endpoint, ..TelemetryConfig::default() };
        let (export, layer) = Export::start(&config, "test").expect("an export");
        let subscriber = tracing_subscriber::registry().with(layer);
        let recorder = PrometheusBuilder::new().build_recorder();
        let begun = Instant::now();
        metrics::with_local_recorder(&recorder, || {
            tracing::subscriber::with_default(subscriber, || {
                for _ in 0..MAX_WAITING + 100 {
                    let _span = tracing::trace_span!(target: SPANS, "work").entered();
                }
            });
        });
        assert!(begun.elapsed() < TIMEOUT, "{:?}", begun.elapsed());
        let told = recorder.handle().render();
        assert!(told.contains("panopticon_spans_total{outcome=\"dropped\"} 100"), "{told}");
        let asked = tokio::time::timeout(TIMEOUT, silent.accept()).await;
        assert!(matches!(asked, Ok(Ok(_))), "the collector was asked: {asked:?}");
        let begun = Instant::now();
        export.end().await;
        assert!(begun.elapsed() < LAST_TIMEOUT + Duration::from_secs(1), "{:?}", begun.elapsed());
    }
}
