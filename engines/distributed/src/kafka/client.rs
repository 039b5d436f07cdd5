//! What every client of the brokers is made with: addresses, limits, reconnection.

use std::{sync::Arc, time::Duration};

use panopticon_core::{
    config::{Config, KafkaConfig, SaslMechanism},
    topic::Topic,
};
use rdkafka::{
    ClientConfig, ClientContext,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
};

use super::{
    context::Voice,
    error::{OpenError, setting},
    keeper::Keeper,
    oauth::Tokens,
    security,
    token_endpoint::Endpoint,
};

/// How long a single question to the brokers (metadata, offsets) may take.
pub(super) const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request may stay unanswered before the connection is given up.
const SOCKET_TIMEOUT_MS: u64 = 9_000;
/// First and longest pause before a broker is connected to again: a restarted one is found quickly.
const RECONNECT_MS: (u64, u64) = (50, 1_000);
/// First and longest pause before a refused request is tried again.
const RETRY_MS: (u64, u64) = (20, 1_000);
/// The same for steps of a transaction, which are refused while the markers of the one before are written.
const TRANSACTION_RETRY_MS: u64 = 3;
/// What a producer buffers: beyond it an append is refused as [`panopticon_core::log::LogError::Full`].
const PRODUCER_QUEUE_RECORDS: u64 = 100_000;
const PRODUCER_QUEUE_KBYTES: u64 = 128 << 10;
/// What a consumer fetches ahead.
const FETCH_AHEAD_RECORDS: u64 = 1_000;
const FETCH_AHEAD_KBYTES: u64 = 4 << 10;
/// How long the broker holds a fetch that has nothing to bring. A partition that is added or moved waits
/// for the fetch under way, so it is short; every quiet consumer asks that often, so it is not shorter.
const FETCH_WAIT_MS: u64 = 250;
/// The same where gateways append, hundreds of times a second and partition: who reads there commits far less
/// often, so the records of some 20 ms, or this many bytes, come in one answer.
const RAW_WAIT_MS: u64 = 20;
const RAW_FETCH_BYTES: u64 = 64 << 10;
/// The same for single reads, which find the end of a partition by it.
const READ_WAIT_MS: u64 = 10;
/// Pause before fetching on, after the look-ahead was full or a fetch failed.
const FETCH_BACKOFF_MS: u64 = 10;
const FETCH_ERROR_BACKOFF_MS: u64 = 50;
/// A member whose thread does not poll for this long leaves the group.
const MAX_POLL_INTERVAL_MS: u64 = 60_000;
/// What a record takes beyond key and payload, at most: headers and the batch around it.
pub(super) const RECORD_OVERHEAD_BYTES: usize = 16 << 10;

/// Settings on which the promises of the log rest.
const RESERVED: &[&str] = &[
    "acks",
    "request.required.acks",
    "allow.auto.create.topics",
    "auto.commit.enable",
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "isolation.level",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "transactional.id",
];

/// Makes clients.
pub(super) struct Clients {
    pub(super) kafka: KafkaConfig,
    /// How many records of a partition wait in memory for its lease.
    queue_records: usize,
    pub(super) keeper: Keeper,
    /// With OAUTHBEARER.
    pub(super) tokens: Option<Arc<Tokens>>,
}

impl Clients {
    pub(super) fn new(config: &Config) -> Result<Self, OpenError> {
        let kafka = config.kafka.clone();
        if let Some(name) = kafka.properties.keys().find(|name| RESERVED.contains(&name.as_str())) {
            return Err(OpenError::Reserved(name.clone()));
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if !kafka.topic_prefix.chars().all(legal) {
            return Err(OpenError::Prefix(kafka.topic_prefix));
        }
        security::check(&kafka)?;
        let queue_records = config.stages.queue_records.max(1);
        let no_thread = |error: std::io::Error| OpenError::Setting(error.to_string());
        let keeper = Keeper::start().map_err(no_thread)?;
        let tokens = match kafka.sasl_mechanism {
            Some(SaslMechanism::OauthBearer) => {
                Some(Arc::new(Tokens::new(Endpoint::new(&kafka)?).map_err(no_thread)?))
            }
            _ => None,
        };
        Ok(Self { kafka, queue_records, keeper, tokens })
    }

    /// The context of the client called `client`.
    pub(super) fn voice(&self, client: &str) -> Voice {
        Voice::new(client, self.tokens.clone())
    }

    /// The name of a topic on the brokers.
    pub(super) fn topic(&self, topic: Topic) -> String {
        format!("{}{topic}", self.kafka.topic_prefix)
    }

    /// The id of the group of `stage`; also that of a transactional producer of that name.
    pub(super) fn id(&self, name: &str) -> String {
        format!("{}{name}", self.kafka.topic_prefix)
    }

    /// How long a transaction may take as a whole.
    pub(super) fn transaction_timeout(&self) -> Duration {
        Duration::from_millis(self.kafka.transaction_timeout_ms.max(1_000))
    }

    /// Makes the client, the operator's properties last.
    pub(super) fn create<C: ClientContext, T: FromClientConfigAndContext<C>>(
        &self,
        mut settings: ClientConfig,
        context: C,
    ) -> Result<T, OpenError> {
        security::apply(&self.kafka, &mut settings);
        for (name, value) in &self.kafka.properties {
            settings.set(name, value.expose());
        }
        if self.kafka.properties.contains_key("debug") {
            settings.set_log_level(RDKafkaLogLevel::Debug);
        }
        settings.create_with_context(context).map_err(|error| setting(&error))
    }

    /// What any client needs.
    pub(super) fn base(&self, role: &str) -> ClientConfig {
        let mut settings = ClientConfig::new();
        settings
            .set("bootstrap.servers", &self.kafka.brokers)
            .set("client.id", format!("panopticon-{role}"))
            .set("socket.keepalive.enable", "true")
            .set("socket.nagle.disable", "true")
            .set("socket.timeout.ms", SOCKET_TIMEOUT_MS.to_string())
            .set("reconnect.backoff.ms", RECONNECT_MS.0.to_string())
            .set("reconnect.backoff.max.ms", RECONNECT_MS.1.to_string())
            .set("retry.backoff.ms", RETRY_MS.0.to_string())
            .set("retry.backoff.max.ms", RETRY_MS.1.to_string())
            .set("message.max.bytes", (self.kafka.max_record_bytes + RECORD_OVERHEAD_BYTES).to_string())
            .set_log_level(RDKafkaLogLevel::Info);
        settings
    }

    /// A producer whose acknowledged records are durable and written once.
    pub(super) fn producer(&self, role: &str) -> ClientConfig {
        let timeout = self.kafka.message_timeout_ms;
        let mut settings = self.base(role);
        settings
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("compression.type", "lz4")
            .set("linger.ms", "0")
            .set("message.timeout.ms", timeout.to_string())
            .set("queue.buffering.max.messages", PRODUCER_QUEUE_RECORDS.to_string())
            .set("queue.buffering.max.kbytes", PRODUCER_QUEUE_KBYTES.to_string());
        settings
    }

    /// A producer that fences whoever else has the transactional `id`.
    pub(super) fn transactional(&self, id: &str) -> ClientConfig {
        let transaction = u64::try_from(self.transaction_timeout().as_millis()).unwrap_or(u64::MAX);
        let mut settings = self.producer(id);
        settings
            .set("transactional.id", id)
            .set("retry.backoff.ms", TRANSACTION_RETRY_MS.to_string())
            .set("transaction.timeout.ms", transaction.to_string())
            .set("message.timeout.ms", self.kafka.message_timeout_ms.min(transaction).to_string())
            .set("socket.timeout.ms", SOCKET_TIMEOUT_MS.min(transaction.saturating_sub(100)).to_string());
        settings
    }

    /// A consumer that sees what is committed and never jumps over a hole. `group` names whose offsets it
    /// can ask for; it is no member of it.
    pub(super) fn consumer(&self, role: &str, group: &str) -> ClientConfig {
        let mut settings = self.base(role);
        settings
            .set("group.id", group)
            .set("allow.auto.create.topics", "false")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("fetch.min.bytes", "1")
            .set("fetch.wait.max.ms", FETCH_WAIT_MS.to_string())
            .set("fetch.queue.backoff.ms", FETCH_BACKOFF_MS.to_string())
            .set("fetch.error.backoff.ms", FETCH_ERROR_BACKOFF_MS.to_string())
            .set("queued.min.messages", FETCH_AHEAD_RECORDS.to_string())
            .set("queued.max.messages.kbytes", FETCH_AHEAD_KBYTES.to_string());
        settings
    }

    /// A consumer for single reads that says where a partition ends. The driver wants a group to assign
    /// partitions by hand; nobody joins this one or commits to it.
    pub(super) fn reader(&self, role: &str) -> ClientConfig {
        let mut settings = self.consumer(role, &self.id("reader"));
        settings.set("enable.partition.eof", "true").set("fetch.wait.max.ms", READ_WAIT_MS.to_string());
        settings
    }

    /// A member of the group of `stage`, which reads `topic`.
    pub(super) fn member(&self, stage: &str, topic: Topic) -> ClientConfig {
        let session = self.kafka.session_timeout_ms.max(1_000);
        let mut settings = self.consumer(stage, &self.id(stage));
        settings
            .set("partition.assignment.strategy", "cooperative-sticky")
            // For each partition, since each has a queue of its own.
            .set("queued.min.messages", self.queue_records.to_string())
            .set("session.timeout.ms", session.to_string())
            // Members learn of a rebalance by their heartbeat.
            .set("heartbeat.interval.ms", (session / 20).clamp(100, 3_000).to_string())
            .set("max.poll.interval.ms", MAX_POLL_INTERVAL_MS.max(session).to_string());
        if topic == Topic::TracesRaw {
            settings
                .set("fetch.min.bytes", RAW_FETCH_BYTES.to_string())
                .set("fetch.wait.max.ms", RAW_WAIT_MS.to_string());
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use panopticon_core::config::Secret;

    use super::*;

    #[test]
    fn a_setting_that_a_promise_rests_on_is_refused_by_name() {
        let mut config = Config::default();
        config.kafka.properties.insert("acks".to_owned(), Secret::new("1"));
        let error = Clients::new(&config).err().expect("acks may not be lowered").to_string();
        assert!(error.contains("`kafka.properties.acks`"), "{error}");
    }

    #[test]
    fn a_prefix_that_no_topic_name_can_have_is_refused() {
        let mut config = Config::default();
        config.kafka.topic_prefix = "a b/".to_owned();
        assert!(matches!(Clients::new(&config), Err(OpenError::Prefix(_))));
    }
}
