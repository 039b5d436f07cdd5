//! The servers that the environment names, as `cargo xtask stack env` prints it.

use std::time::Duration;

use anyhow::Context as _;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
};

use crate::{process::Process, sql::Sql};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Kafka, Redis and ClickHouse on this machine.
#[derive(Clone)]
pub struct Servers {
    /// Kafka's address.
    pub brokers: String,
    /// Redis' URL.
    pub redis_url: String,
    /// ClickHouse.
    pub sql: Sql,
    /// Kafka's process.
    pub kafka: Process,
    /// Redis' process.
    pub redis: Process,
    /// ClickHouse's process.
    pub clickhouse: Process,
}

impl Servers {
    /// Those of the environment.
    pub fn from_environment() -> anyhow::Result<Self> {
        let named = |name: &str| {
            std::env::var(name).with_context(|| format!("{name} is not set; see `cargo xtask stack env`"))
        };
        let brokers = named("PANOPTICON_KAFKA__BROKERS")?;
        let redis_url = named("PANOPTICON_REDIS__URL")?;
        let clickhouse_url = named("PANOPTICON_CLICKHOUSE__URL")?;
        Ok(Self {
            kafka: Process::listening_on(&brokers)?,
            redis: Process::listening_on(&redis_url)?,
            clickhouse: Process::listening_on(&clickhouse_url)?,
            sql: Sql::new(&clickhouse_url)?,
            brokers,
            redis_url,
        })
    }

    /// Their processes by name.
    pub fn processes(&self) -> Vec<(String, Process)> {
        let all = [("Kafka", self.kafka), ("Redis", self.redis), ("ClickHouse", self.clickhouse)];
        all.map(|(name, process)| (name.to_owned(), process)).to_vec()
    }

    /// Creates a topic without copies.
    pub async fn create_topic(&self, name: &str, partitions: i32) -> anyhow::Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.client().create()?;
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1))
            .set("max.message.bytes", "4194304")
            .set("message.timestamp.type", "LogAppendTime");
        for outcome in admin.create_topics([&topic], &AdminOptions::new()).await? {
            outcome.map_err(|(name, code)| anyhow::anyhow!("cannot create {name}: {code}"))?;
        }
        Ok(())
    }

    /// How many records a topic has, and for how many of them a group has committed.
    pub fn progress(&self, group: &str, topic: &str, partitions: i32) -> anyhow::Result<Progress> {
        let consumer: BaseConsumer = self.client().set("group.id", group).create()?;
        let (mut list, mut records) = (TopicPartitionList::new(), 0);
        for partition in 0..partitions {
            records += consumer.fetch_watermarks(topic, partition, TIMEOUT)?.1;
            list.add_partition(topic, partition);
        }
        Ok(Progress { consumer, list, records })
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }
}

/// How far a group is, asked of the broker without joining the group.
pub struct Progress {
    consumer: BaseConsumer,
    list: TopicPartitionList,
    /// All records when this was made.
    pub records: i64,
}

impl Progress {
    /// Records that are behind the group.
    pub fn done(&self) -> anyhow::Result<i64> {
        let committed = self.consumer.committed_offsets(self.list.clone(), TIMEOUT)?;
        let offsets = committed.elements();
        Ok(offsets
            .iter()
            .filter_map(|at| if let Offset::Offset(n) = at.offset() { Some(n) } else { None })
            .sum())
    }
}
