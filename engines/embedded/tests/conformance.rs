//! The promises of every engine, held by this one.

// Tests may, and so may what they share.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use panopticon_conformance::{EngineUnderTest, Ports, ShiftedClock};
use panopticon_core::{config::Config, time::Clock as _, topic::Topic};
use panopticon_embedded::Embedded;
use tempfile::TempDir;

struct Engine {
    directory: TempDir,
    config: Config,
    clock: Arc<ShiftedClock>,
    embedded: Embedded,
}

#[async_trait::async_trait]
impl EngineUnderTest for Engine {
    const SEEN_WINDOW: Duration = Duration::from_secs(24 * 3_600);

    async fn fresh() -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let config = Config { data_dir: directory.path().join("data"), ..Config::default() };
        let clock = Arc::new(ShiftedClock::default());
        let embedded = Embedded::open(&config, clock.clone()).unwrap();
        Some(Self { directory, config, clock, embedded })
    }

    fn ports(&self) -> Ports {
        let Embedded { log, seen, store, .. } = &self.embedded;
        Ports { log: log.clone(), seen: seen.clone(), store: store.clone(), clock: self.clock.clone() }
    }

    async fn reopen(self) -> Self {
        self.embedded.close().await;
        let embedded = Embedded::open(&self.config, self.clock.clone()).unwrap();
        Self { embedded, directory: self.directory, ..self }
    }

    async fn take_leases(&self, stage: &'static str, topic: Topic) -> bool {
        self.embedded.take_leases(stage, topic);
        true
    }

    async fn delete_before(&self, topic: Topic, partition: u32, offset: u64) -> bool {
        let ports = self.ports();
        ports.store.expire(self.clock.now()).await.unwrap();
        assert_eq!(ports.log.bounds(topic, partition).await.unwrap().low, offset);
        true
    }
}

panopticon_conformance::run_all!(Engine);
