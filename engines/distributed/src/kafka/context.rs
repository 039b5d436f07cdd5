//! Where the driver's log lines and errors go.

use std::{error::Error, sync::Arc};

use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Statistics,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
};

use super::oauth::Tokens;

/// Sends what a client says to `tracing`, remembers its last complaint for error messages, and has its tokens.
#[derive(Clone)]
pub(super) struct Voice {
    /// What the client is for.
    client: Arc<str>,
    last: Arc<Mutex<Option<String>>>,
    /// With OAUTHBEARER.
    tokens: Option<Arc<Tokens>>,
}

impl Voice {
    pub(super) fn new(client: &str, tokens: Option<Arc<Tokens>>) -> Self {
        Self { client: client.into(), last: Arc::default(), tokens }
    }

    /// What every context of the driver answers when a client needs a token.
    pub(super) fn token(&self) -> Result<OAuthToken, Box<dyn Error>> {
        match &self.tokens {
            Some(tokens) => Ok(tokens.take()?),
            None => {
                Err("OAUTHBEARER is asked for by `kafka.sasl_mechanism` and `kafka.oauth_token_url`".into())
            }
        }
    }

    /// The last error, in the driver's words.
    pub(super) fn last_error(&self) -> Option<String> {
        self.last.lock().clone()
    }
}

impl ClientContext for Voice {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.token()
    }

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
