//! Logs, metrics and spans of a process.

use std::io::IsTerminal as _;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, Layer, Registry, filter::Targets, fmt, prelude::*};

use crate::config::{Config, ConfigError, LogFormat};

const LATENCY_BUCKETS_SECS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const SIZE_BUCKETS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0];

/// Target of the spans that are exported; all of them have the level TRACE. Where nothing exports them, none is made:
/// all that is left of them is a look at the level.
pub const SPANS: &str = "panopticon_spans";

/// What makes spans of those.
pub type SpanLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts logging to stderr as `config` says; the environment variable RUST_LOG has the last word. `spans` gets the
/// spans for export, and nothing else.
pub fn start_logging(config: &Config, spans: Option<SpanLayer>) -> Result<(), ConfigError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => filter,
        _ => config.log.clone(),
    };
    let filter = EnvFilter::try_new(&filter)
        .map_err(|error| ConfigError::Invalid(format!("`log`: `{filter}` is not a filter: {error}")))?;
    let not_logged = format!("{SPANS}=off").parse();
    let filter = filter.add_directive(not_logged.map_err(|error| ConfigError::Invalid(format!("{error}")))?);
    let exported = Targets::new().with_target(SPANS, LevelFilter::TRACE);
    let registry = tracing_subscriber::registry().with(spans.map(|spans| spans.with_filter(exported)));
    let started = match config.log_format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let lines = fmt::layer().with_ansi(colours).with_writer(std::io::stderr);
            registry.with(lines.with_filter(filter)).try_init()
        }
        LogFormat::Json => {
            registry.with(fmt::layer().json().with_writer(std::io::stderr).with_filter(filter)).try_init()
        }
    };
    started.map_err(|error| ConfigError::Invalid(format!("logging was started before: {error}")))
}

/// Starts collecting metrics; the handle renders them in the Prometheus text format.
pub fn start_metrics() -> Result<PrometheusHandle, ConfigError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), LATENCY_BUCKETS_SECS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("_records".to_owned()), SIZE_BUCKETS)
        })
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("_traces".to_owned()), SIZE_BUCKETS)
        })
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| ConfigError::Invalid(format!("metrics: {error}")))
}
