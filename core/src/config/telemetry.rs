//! What a process tells of its own work, beside logs and metrics.

use serde::{Deserialize, Serialize};

/// Export of the process's own spans.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// The collector that is sent spans by OTLP over HTTP, without `/v1/traces`; empty: none is made.
    pub otlp_endpoint: String,
    /// The share of traces that begin here and are sent, 0 to 1. Where a request brings a `traceparent`, its flag
    /// decides.
    pub otlp_sample: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { otlp_endpoint: String::new(), otlp_sample: 1.0 }
    }
}

impl TelemetryConfig {
    pub(super) fn check(&self) -> Result<(), String> {
        let endpoint = &self.otlp_endpoint;
        if !(endpoint.is_empty() || endpoint.starts_with("http://") || endpoint.starts_with("https://")) {
            return Err("`telemetry.otlp_endpoint` must be http://host:port or https://host:port".to_owned());
        }
        match (0.0..=1.0).contains(&self.otlp_sample) {
            true => Ok(()),
            false => Err("`telemetry.otlp_sample` must be between 0 and 1".to_owned()),
        }
    }
}
