//! What the tests share: a log on topics of their own.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use panopticon_core::{
    config::Config,
    log::{Commit, EventLog, Lease, LogError, Output, Poll, PollLimits, Record, Stored, Subscription},
    topic::Topic,
};
use panopticon_distributed::kafka::{KafkaLog, migrate};

pub const STAGE: &str = "stage";
pub const PATIENCE: Duration = Duration::from_secs(40);

pub struct Bed {
    pub config: Config,
    pub log: Arc<KafkaLog>,
}

impl Bed {
    /// A migrated log with `partitions` partitions; `None` without a broker to test on.
    pub async fn new(partitions: u32) -> Option<Self> {
        let config = config(partitions)?;
        migrate(&config).await.expect("migrate");
        let log = Arc::new(KafkaLog::connect(&config).await.expect("connect"));
        Some(Self { config, log })
    }

    /// Another process on the same topics.
    pub async fn another(&self) -> Arc<KafkaLog> {
        Arc::new(KafkaLog::connect(&self.config).await.expect("connect"))
    }

    pub async fn append(&self, topic: Topic, partition: u32, text: &str) -> u64 {
        let offset = self.log.append(topic, partition, message(text)).await.expect("append");
        offset.expect("an offset")
    }

    /// A lease on a broker that comes and goes. One that has just come back may not know the topic for a
    /// moment, which ends a membership; then this joins again, as every stage does.
    pub async fn lease_again(&self, subscription: &mut Box<dyn Subscription>) -> Box<dyn Lease> {
        let joins = async {
            loop {
                let error = match subscription.next_lease().await {
                    Ok(lease) => return lease,
                    Err(error) => error,
                };
                println!("joins again: {error}");
                assert!(error.is_transient() || matches!(error, LogError::NoTopic(_)), "{error}");
                *subscription = loop {
                    match self.log.subscribe(STAGE, Topic::TracesRaw).await {
                        Ok(joined) => break joined,
                        Err(error) => println!("cannot join yet: {error}"),
                    }
                };
            }
        };
        within(joins).await
    }

    /// Everything that is committed in a partition, as text.
    pub async fn texts(&self, topic: Topic, partition: u32) -> Vec<String> {
        texts(&read_all(&*self.log, topic, partition).await)
    }
}

pub fn config(partitions: u32) -> Option<Config> {
    let Ok(brokers) = std::env::var("PANOPTICON_TEST_KAFKA_BROKERS") else {
        eprintln!("skipped: PANOPTICON_TEST_KAFKA_BROKERS is not set");
        return None;
    };
    if let Ok(filter) = std::env::var("RUST_LOG") {
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    }
    let mut config = Config::default();
    config.kafka.brokers = brokers;
    config.kafka.topic_prefix = format!("test-{}.", uuid::Uuid::new_v4().simple());
    config.kafka.partitions = partitions;
    config.kafka.allow_unreplicated = true;
    config.kafka.session_timeout_ms = 6_000;
    Some(config)
}

pub fn message(text: &str) -> Record {
    Record::message(text.to_owned().into_bytes())
}

pub fn text(record: &Record) -> String {
    String::from_utf8(record.bytes().to_vec()).expect("text")
}

pub fn texts(records: &[Stored]) -> Vec<String> {
    records.iter().map(|stored| text(&stored.record)).collect()
}

pub fn output(topic: Topic, partition: u32, text: &str) -> Output {
    Output { topic, partition, record: message(text) }
}

pub fn limits(records: usize, wait: Duration) -> PollLimits {
    PollLimits { records, bytes: 1 << 20, wait }
}

pub async fn read_all(log: &dyn EventLog, topic: Topic, partition: u32) -> Vec<Stored> {
    let bounds = log.bounds(topic, partition).await.expect("bounds");
    let (mut all, mut from) = (Vec::new(), bounds.low);
    loop {
        let records = log.read(topic, partition, from, bounds.high, 1 << 20).await.expect("read");
        let Some(last) = records.last() else { return all };
        from = last.offset + 1;
        all.extend(records);
    }
}

/// The leases of all `partitions`, in order.
pub async fn leases(subscription: &mut Box<dyn Subscription>, partitions: u32) -> Vec<Box<dyn Lease>> {
    let mut leases: Vec<Box<dyn Lease>> = Vec::new();
    while leases.len() < partitions as usize {
        let lease = within(subscription.next_lease()).await.expect("a lease");
        leases.push(lease);
    }
    leases.sort_by_key(|lease| lease.partition());
    let distinct: BTreeSet<u32> = leases.iter().map(|lease| lease.partition()).collect();
    assert_eq!(distinct.len(), leases.len());
    leases
}

pub async fn lease(subscription: &mut Box<dyn Subscription>) -> Box<dyn Lease> {
    within(subscription.next_lease()).await.expect("a lease")
}

/// The next `count` records.
pub async fn take(lease: &mut dyn Lease, count: usize) -> Vec<Stored> {
    let mut taken = Vec::new();
    while taken.len() < count {
        match within(lease.poll(limits(count - taken.len(), PATIENCE))).await.expect("poll") {
            Poll::Records(records) => taken.extend(records),
            Poll::Revoked => panic!("revoked while {count} records were wanted"),
        }
    }
    taken
}

pub async fn commit_next(lease: &mut dyn Lease, next: u64, outputs: Vec<Output>) -> Result<(), LogError> {
    within(lease.commit(Commit { outputs, next: Some(next), metadata: format!("up to {next}") })).await
}

/// The outcome, unless it takes too long.
pub async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("took too long")
}
