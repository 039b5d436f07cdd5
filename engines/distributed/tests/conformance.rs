//! The promises of every engine, held by this one: set `PANOPTICON_TEST_KAFKA_BROKERS`,
//! `PANOPTICON_TEST_REDIS_URL` and `PANOPTICON_TEST_CLICKHOUSE_URL`.

// Everything here runs in tests only.
#![allow(clippy::unwrap_used)]

use std::{env, sync::Arc, time::Duration};

use panopticon_conformance::{EngineUnderTest, Ports, ShiftedClock};
use panopticon_core::{
    config::{Config, Secret},
    ids::LogId,
};
use panopticon_distributed::{clickhouse, kafka, redis};

const PARTITIONS: u32 = 2;

struct Engine {
    config: Config,
    ports: Ports,
}

impl Engine {
    async fn open(config: Config, clock: Arc<ShiftedClock>) -> Self {
        let log = Arc::new(kafka::KafkaLog::connect(&config).await.unwrap());
        let seen = Arc::new(redis::RedisSeen::connect(&config, clock.clone()).await.unwrap());
        let store = Arc::new(clickhouse::ClickhouseStore::connect(&config, clock.clone()).await.unwrap());
        Self { config, ports: Ports { log, seen, store, clock } }
    }
}

#[async_trait::async_trait]
impl EngineUnderTest for Engine {
    const SEEN_WINDOW: Duration = Duration::from_secs(24 * 3_600);

    async fn fresh() -> Option<Self> {
        let mut config = Config::default();
        let name = LogId::random();
        config.kafka.brokers = env::var("PANOPTICON_TEST_KAFKA_BROKERS").ok()?;
        config.kafka.topic_prefix = format!("test-{name}.");
        config.kafka.partitions = PARTITIONS;
        config.kafka.allow_unreplicated = true;
        config.kafka.session_timeout_ms = 6_000;
        config.redis.url = Secret::new(env::var("PANOPTICON_TEST_REDIS_URL").ok()?);
        config.redis.key_prefix = format!("test:{name}:");
        config.redis.timeout_ms = 30_000;
        config.clickhouse.url = env::var("PANOPTICON_TEST_CLICKHOUSE_URL").ok()?;
        config.clickhouse.database = format!("test_{name}");
        kafka::migrate(&config).await.unwrap();
        clickhouse::migrate(&config).await.unwrap();
        Some(Self::open(config, Arc::default()).await)
    }

    fn ports(&self) -> Ports {
        self.ports.clone()
    }

    async fn reopen(self) -> Self {
        let Self { config, ports } = self;
        let clock = ports.clock.clone();
        drop(ports);
        Self::open(config, clock).await
    }
}

panopticon_conformance::run_all!(Engine);
