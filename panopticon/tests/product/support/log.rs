//! The event log of a system, for laying records there that no client can send.

use std::sync::Arc;

use panopticon_core::{config::Config, log::EventLog, time::SystemClock};
use panopticon_distributed::kafka::KafkaLog;
use panopticon_embedded::Embedded;

use super::{Engine, System};

/// An open log; the embedded engine's must be closed before the system starts again.
pub struct OpenLog {
    pub log: Arc<dyn EventLog>,
    embedded: Option<Embedded>,
}

impl OpenLog {
    /// Opens the log of a system that does not run.
    pub async fn of(s: &System) -> Self {
        let mut config = Config::default();
        if s.engine == Engine::Embedded {
            config.data_dir = s.data_dir();
            let embedded = Embedded::open(&config, Arc::new(SystemClock)).unwrap();
            return Self { log: embedded.log.clone(), embedded: Some(embedded) };
        }
        let settings = &s.program("dedupe").settings;
        let setting = |name: &str| {
            let found = settings.iter().find(|(known, _)| *known == format!("PANOPTICON_KAFKA__{name}"));
            found.unwrap().1.clone()
        };
        config.kafka.brokers = setting("BROKERS");
        config.kafka.topic_prefix = setting("TOPIC_PREFIX");
        config.kafka.allow_unreplicated = true;
        Self { log: Arc::new(KafkaLog::connect(&config).await.unwrap()), embedded: None }
    }

    pub async fn close(self) {
        if let Some(embedded) = self.embedded {
            embedded.close().await;
        }
    }
}
