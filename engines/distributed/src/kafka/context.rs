//! Where the driver's log lines and errors go.

use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Statistics,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
};

/// Sends what a client says to `tracing`, and remembers its last complaint for error messages.
#[derive(Debug, Clone)]
pub(super) struct Voice {
    /// What the client is for.
    client: Arc<str>,
    last: Arc<Mutex<Option<String>>>,
}

impl Voice {
    pub(super) fn new(client: &str) -> Self {
        Self { client: client.into(), last: Arc::default() }
    }

    /// The last error, in the driver's words.
    pub(super) fn last_error(&self) -> Option<String> {
        self.last.lock().clone()
    }
}

impl ClientContext for Voice {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let client = &*self.client;
        match level {
            // Settings of producers given to consumers and the other way round: one map serves both.
            _ if facility == "CONFWARN" => tracing::debug!(client, "{message}"),
            // The driver retries; whoever loses something by it says so.
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::warn!(client, facility, "{message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(client, facility, "{message}"),
            RDKafkaLogLevel::Debug => tracing::debug!(client, facility, "{message}"),
        }
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(client = &*self.client, %error, "{reason}");
        // That all are down says less than why each is.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        *self.last.lock() = Some(if reason.is_empty() { error.to_string() } else { reason.to_owned() });
    }
}

impl ConsumerContext for Voice {}
