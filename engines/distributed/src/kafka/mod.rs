//! The event log on Apache Kafka.
//!
//! | promise of the port | what keeps it |
//! |---|---|
//! | an append is durable | idempotent producer, acks of all in-sync replicas (`append`) |
//! | outputs and position are one | transactions (`txn`) |
//! | one lease of a partition can commit | a transactional id for each stage and partition, taken over before the position is read (`group`); the member's generation from when the batch began (`lease`) |
//! | committed records only | `read_committed` everywhere (`client`) |
//! | no jump over what retention took | `auto.offset.reset=error` (`reader`, `tail`, `group`) |
//! | memory is bounded, a slow partition holds up no other | a bounded queue for each (`slot`) |

mod append;
mod client;
mod context;
mod definitions;
mod error;
mod group;
mod keeper;
mod lease;
mod member;
mod migrate;
mod oauth;
mod offsets;
mod reader;
mod rebalance;
mod record;
mod security;
mod slot;
mod tail;
mod takeover;
mod token_endpoint;
mod topics;
mod txn;
mod writer;

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use panopticon_core::{
    config::Config,
    log::{
        Bounds, EventLog, ExclusiveWriter, LogError, PartitionLag, Record, Stored, Subscription, Tail,
        TailFrom, TopicInfo,
    },
    topic::Topic,
};
use parking_lot::Mutex;

use self::{
    append::Appender,
    client::Clients,
    member::Member,
    offsets::Offsets,
    reader::{Range, Readers},
    topics::Topics,
    writer::Writer,
};
pub use self::{
    error::OpenError,
    migrate::{MigrateError, MigrateReport, migrate},
};

/// Whether the configuration is one to connect with.
pub(crate) fn check(config: &Config) -> Result<(), OpenError> {
    let clients = Clients::new(config)?;
    // The driver looks at what it is given when a client is made.
    Offsets::open(&Arc::new(clients)).map(|_| ())
}

/// How long [`KafkaLog::connect`] waits for a broker.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a log that is dropped waits for dropped memberships to leave their groups: a member that
/// leaves is replaced at once, one that vanishes only after the session timeout.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// The event log on Apache Kafka.
pub struct KafkaLog {
    clients: Arc<Clients>,
    offsets: Arc<Offsets>,
    readers: Arc<Readers>,
    topics: Arc<Topics>,
    appender: Appender,
    members: Mutex<Vec<JoinHandle<()>>>,
}

impl KafkaLog {
    /// Connects to the brokers. Tries once, for a few seconds.
    pub async fn connect(config: &Config) -> Result<Self, OpenError> {
        let clients = Arc::new(Clients::new(config)?);
        let offsets = Arc::new(Offsets::open(&clients)?);
        let asker = Arc::clone(&offsets);
        let unreachable = |reason| OpenError::Unreachable { brokers: config.kafka.brokers.clone(), reason };
        tokio::task::spawn_blocking(move || asker.brokers(CONNECT_TIMEOUT))
            .await
            .map_err(|error| unreachable(error.to_string()))??;
        let readers = Arc::new(Readers::new(&clients, &offsets));
        let topics = Arc::new(Topics::new(&clients, &offsets, &readers));
        let appender = Appender::open(&clients)?;
        Ok(Self { clients, offsets, readers, topics, appender, members: Mutex::default() })
    }
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        // Memberships that were dropped before are on their way out; others are not waited for.
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        let mut leaving = std::mem::take(&mut *self.members.lock());
        while !leaving.is_empty() && Instant::now() < deadline {
            leaving.retain(|member| !member.is_finished());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[async_trait]
impl EventLog for KafkaLog {
    async fn topic(&self, topic: Topic) -> Result<TopicInfo, LogError> {
        self.topics.info(topic).await
    }

    async fn append(&self, topic: Topic, partition: u32, record: Record) -> Result<Option<u64>, LogError> {
        let name = self.topics.name(topic, partition).await?;
        self.appender.append(&name, partition, &record).await
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        self.topics.name(topic, partition).await?;
        let offsets = Arc::clone(&self.offsets);
        blocking(move || offsets.settled_bounds(topic, partition)).await
    }

    async fn read(
        &self,
        topic: Topic,
        partition: u32,
        from: u64,
        to: u64,
        max_bytes: usize,
    ) -> Result<Vec<Stored>, LogError> {
        self.topics.name(topic, partition).await?;
        let readers = Arc::clone(&self.readers);
        blocking(move || readers.read(Range { topic, partition, from, to }, max_bytes)).await
    }

    async fn table(&self, topic: Topic, partition: u32) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        self.topics.name(topic, partition).await?;
        let readers = Arc::clone(&self.readers);
        blocking(move || readers.table(topic, partition)).await
    }

    async fn tail(&self, topic: Topic, from: TailFrom) -> Result<Tail, LogError> {
        let partitions = self.topics.info(topic).await?.partitions;
        let (clients, offsets) = (Arc::clone(&self.clients), Arc::clone(&self.offsets));
        blocking(move || tail::follow(&clients, &offsets, topic, partitions, &from)).await
    }

    async fn subscribe(&self, stage: &'static str, topic: Topic) -> Result<Box<dyn Subscription>, LogError> {
        self.topics.info(topic).await?;
        let (clients, offsets) = (Arc::clone(&self.clients), Arc::clone(&self.offsets));
        let topics = Arc::clone(&self.topics);
        let (member, thread) =
            blocking(move || Member::join(&clients, &offsets, &topics, stage, topic)).await?;
        let mut members = self.members.lock();
        members.retain(|member| !member.is_finished());
        members.push(thread);
        Ok(Box::new(member))
    }

    async fn writer(&self, id: &'static str) -> Result<Box<dyn ExclusiveWriter>, LogError> {
        Ok(Box::new(Writer::open(&self.clients, &self.topics, id).await?))
    }

    async fn lag(&self, stage: &'static str, topic: Topic) -> Result<Vec<PartitionLag>, LogError> {
        let partitions = self.topics.info(topic).await?.partitions;
        let (offsets, readers) = (Arc::clone(&self.offsets), Arc::clone(&self.readers));
        blocking(move || {
            let all: Vec<u32> = (0..partitions).collect();
            let committed = offsets.committed(stage, topic, &all)?;
            let lag = |(partition, committed): (u32, panopticon_core::log::Committed)| {
                let mut bounds = offsets.bounds(topic, partition)?;
                let from = committed.offset.unwrap_or(bounds.low).max(bounds.low);
                // A transaction ends with a marker, which takes an offset but is no record: what looks like
                // a little to read may be nothing.
                if from < bounds.high && bounds.high - from <= MOST_MARKERS {
                    let range = reader::Range { topic, partition, from, to: bounds.high };
                    if readers.read(range, 1)?.is_empty() {
                        bounds.high = from;
                    }
                }
                Ok(PartitionLag { partition, committed, bounds })
            };
            all.into_iter().zip(committed).map(lag).collect()
        })
        .await
    }
}

/// A lag of at most this many offsets is looked at, since it may be transaction markers alone.
const MOST_MARKERS: u64 = 64;

/// Runs `work`, which blocks, where that holds up nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(LogError::Broken(format!("a call to Kafka did not end well: {error}"))),
    }
}
