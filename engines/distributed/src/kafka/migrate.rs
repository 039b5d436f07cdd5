//! Creates the topics and gives each its identity. Safe to run again, and by many processes at once.
//!
//! Whoever changes anything first takes the transactional id `migrate`, which fences everyone else who
//! was about to, and only then looks what there is. The identity of a topic that is missing is taken back
//! before the topic is created, so a topic with an identity always has its own.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use panopticon_core::{
    config::Config,
    ids::LogId,
    log::{LogError, Record},
    proto::control::{LogIdentity, SchemaVersion},
    time::{Clock, SystemClock},
    topic::Topic,
};
use prost::Message;
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    error::RDKafkaErrorCode as Code,
};

use super::{
    blocking,
    client::{Clients, QUESTION_TIMEOUT},
    context::Voice,
    definitions::{Definition, SAFE_REPLICATION, definitions},
    error::{OpenError, failed},
    offsets::Offsets,
    reader::Readers,
    topics::{identities, identity_key},
    txn::{Target, TxnProducer},
};

/// The version of what `migrate` sets up.
const SCHEMA_VERSION: u32 = 1;
const SCHEMA_KEY: &str = "schema";
/// How long the creation of topics may take.
const CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a migration that was overtaken by another begins again.
const ATTEMPTS: u32 = 20;
/// Pause before that, and between looks for new topics.
const PAUSE: Duration = Duration::from_millis(100);

/// What [`migrate`] has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MigrateReport {
    /// Topics that it created, in order.
    pub created: Vec<Topic>,
    /// Identities that it gave.
    pub identified: Vec<(Topic, LogId)>,
    /// How many replicas new topics have.
    pub replication: u16,
}

/// A migration that failed.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Kafka is away, or a setting is refused.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What was acknowledged would be lost with one machine.
    #[error(
        "`kafka.replication` is {0}: fewer than {SAFE_REPLICATION} replicas lose acknowledged traces with a machine; \
         set `kafka.allow_unreplicated` where that does not matter"
    )]
    Unreplicated(u16),
    /// The definitions are unusable.
    #[error("{0}")]
    Definitions(String),
    /// The broker refused a topic.
    #[error("cannot create topic `{topic}`: {reason}")]
    Refused {
        /// Its full name.
        topic: String,
        /// The broker's reason.
        reason: String,
    },
    /// Reading or writing `control` failed.
    #[error("cannot give the topics their identities: {0}")]
    Log(#[from] LogError),
    /// Other migrations kept getting in between.
    #[error("overtaken by other migrations {ATTEMPTS} times")]
    Overtaken,
}

/// Creates what is missing.
pub async fn migrate(config: &Config) -> Result<MigrateReport, MigrateError> {
    let clients = Arc::new(Clients::new(config)?);
    let offsets = Arc::new(Offsets::open(&clients)?);
    let (asker, timeout) = (Arc::clone(&offsets), QUESTION_TIMEOUT);
    let brokers = blocking(move || asker.brokers(timeout).map_err(LogError::from)).await?;
    let replication = replication(config, brokers)?;
    let migration = Migration {
        admin: admin(&clients).await?,
        readers: Arc::new(Readers::new(&clients, &offsets)),
        definitions: definitions(config, replication).map_err(MigrateError::Definitions)?,
        offsets,
        clients,
    };
    let mut report = MigrateReport { replication, ..MigrateReport::default() };
    migration.run(&mut report).await?;
    Ok(report)
}

/// The client that creates topics.
async fn admin(clients: &Arc<Clients>) -> Result<AdminClient<Voice>, MigrateError> {
    let admin: AdminClient<Voice> = clients.create(clients.base("migrate"), clients.voice("migrate"))?;
    let Some(tokens) = clients.tokens.clone() else { return Ok(admin) };
    // Nobody takes its events, so it cannot ask.
    blocking(move || match tokens.give(admin.inner()) {
        Ok(()) => Ok(admin),
        Err(error) => Err(LogError::Unavailable(error.to_string())),
    })
    .await
    .map_err(MigrateError::from)
}

/// How many replicas new topics get.
fn replication(config: &Config, brokers: usize) -> Result<u16, MigrateError> {
    let wanted = config.kafka.replication.max(1);
    if !config.kafka.allow_unreplicated {
        return if wanted < SAFE_REPLICATION { Err(MigrateError::Unreplicated(wanted)) } else { Ok(wanted) };
    }
    // For development, as many as there are.
    Ok(wanted.min(u16::try_from(brokers.max(1)).unwrap_or(u16::MAX)))
}

struct Migration {
    clients: Arc<Clients>,
    offsets: Arc<Offsets>,
    readers: Arc<Readers>,
    admin: AdminClient<Voice>,
    definitions: Vec<Definition>,
}

/// What `control` says.
struct Known {
    identities: HashMap<Topic, LogIdentity>,
    schema: u32,
}

impl Migration {
    async fn run(&self, report: &mut MigrateReport) -> Result<(), MigrateError> {
        let control: Vec<&Definition> = self.of(|topic| topic == Topic::Control);
        report.created.extend(self.create(&control).await?);
        self.wait_for(&control).await?;
        if self.is_done().await? {
            return Ok(());
        }
        for _ in 0..ATTEMPTS {
            match self.attempt(report).await {
                Err(MigrateError::Log(LogError::Fenced(_) | LogError::Aborted(_))) => {
                    tokio::time::sleep(PAUSE).await
                }
                outcome => return outcome,
            }
        }
        Err(MigrateError::Overtaken)
    }

    /// Whether nothing needs to be changed, so that nobody needs to be fenced.
    async fn is_done(&self) -> Result<bool, MigrateError> {
        let known = self.known().await?;
        Ok(known.schema >= SCHEMA_VERSION
            && known.identities.len() == self.definitions.len()
            && self.missing().await?.is_empty())
    }

    async fn attempt(&self, report: &mut MigrateReport) -> Result<(), MigrateError> {
        let (clients, id) = (Arc::clone(&self.clients), self.clients.id("migrate"));
        let mut producer = blocking(move || TxnProducer::open(&clients, &id)).await?;
        let known = self.known().await?;
        let missing: HashSet<Topic> = self.missing().await?.into_iter().collect();
        let stale: Vec<Record> = missing
            .iter()
            .filter(|topic| known.identities.contains_key(topic))
            .map(|topic| Record::tombstone(identity_key(*topic)))
            .collect();
        producer = self.write(producer, stale).await?;

        let wanted = self.of(|topic| missing.contains(&topic));
        let created = self.create(&wanted).await?;
        report.created.extend(created);
        self.wait_for(&self.of(|_| true)).await?;

        let nameless = self.of(|topic| missing.contains(&topic) || !known.identities.contains_key(&topic));
        let given = self.identify(&nameless).await?;
        let mut records: Vec<Record> = given.iter().map(|(_, record)| record.clone()).collect();
        if known.schema < SCHEMA_VERSION {
            let schema = SchemaVersion { version: SCHEMA_VERSION, migrated_at: SystemClock.now().micros() };
            records.push(Record::keyed(SCHEMA_KEY, schema.encode_to_vec()));
        }
        self.write(producer, records).await?;
        report.identified.extend(given.into_iter().map(|(identified, _)| identified));
        Ok(())
    }

    /// A new identity for each of `topics`, with the partitions that they really have.
    async fn identify(&self, topics: &[&Definition]) -> Result<Vec<((Topic, LogId), Record)>, MigrateError> {
        let mut given = Vec::with_capacity(topics.len());
        for definition in topics {
            let partitions = self.partitions(definition).await?.unwrap_or(definition.partitions);
            let log_id = LogId::random();
            let identity = LogIdentity {
                topic: definition.topic.name().to_owned(),
                log_id: log_id.0,
                partitions,
                created_at: SystemClock.now().micros(),
            };
            let record = Record::keyed(identity_key(definition.topic), identity.encode_to_vec());
            given.push(((definition.topic, log_id), record));
        }
        Ok(given)
    }

    async fn write(&self, mut producer: TxnProducer, records: Vec<Record>) -> Result<TxnProducer, LogError> {
        if records.is_empty() {
            return Ok(producer);
        }
        let control = self.clients.topic(Topic::Control);
        blocking(move || {
            let target = |record| Target { topic: &control, partition: 0, record };
            let targets: Vec<Target<'_>> = records.iter().map(target).collect();
            producer.commit(&targets, None).map(|_| producer)
        })
        .await
    }

    async fn known(&self) -> Result<Known, LogError> {
        let readers = Arc::clone(&self.readers);
        let rows = blocking(move || readers.table(Topic::Control, 0)).await?;
        let schema = rows.iter().find(|(key, _)| key == SCHEMA_KEY.as_bytes());
        let schema = schema.and_then(|(_, payload)| SchemaVersion::decode(&payload[..]).ok());
        Ok(Known { identities: identities(&rows), schema: schema.unwrap_or_default().version })
    }

    /// The topics that are not there. The controller is asked, by a creation that is only checked: what a
    /// broker says of topics may be old.
    async fn missing(&self) -> Result<Vec<Topic>, MigrateError> {
        self.ask_for(&self.of(|_| true), true).await
    }

    /// Creates `topics`; those that it was this call that created.
    async fn create(&self, topics: &[&Definition]) -> Result<Vec<Topic>, MigrateError> {
        self.ask_for(topics, false).await
    }

    async fn ask_for(&self, topics: &[&Definition], only_check: bool) -> Result<Vec<Topic>, MigrateError> {
        if topics.is_empty() {
            return Ok(Vec::new());
        }
        let options = AdminOptions::new()
            .validate_only(only_check)
            .request_timeout(Some(CREATION_TIMEOUT))
            .operation_timeout(Some(CREATION_TIMEOUT));
        let wanted: Vec<NewTopic<'_>> = topics.iter().map(|definition| new_topic(definition)).collect();
        let answers = self
            .admin
            .create_topics(&wanted, &options)
            .await
            .map_err(|error| failed("create topics", &error))?;
        let mut fresh = Vec::new();
        for (definition, answer) in topics.iter().zip(answers) {
            match answer {
                Ok(_) => fresh.push(definition.topic),
                Err((_, Code::TopicAlreadyExists)) => {}
                Err((topic, code)) => {
                    return Err(MigrateError::Refused { topic, reason: code.to_string() });
                }
            }
        }
        Ok(fresh)
    }

    /// Waits until the brokers know `topics`.
    async fn wait_for(&self, topics: &[&Definition]) -> Result<(), MigrateError> {
        let deadline = Instant::now() + CREATION_TIMEOUT;
        for definition in topics {
            while self.partitions(definition).await?.is_none() {
                if Instant::now() >= deadline {
                    return Err(LogError::NoTopic(definition.topic).into());
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    async fn partitions(&self, definition: &Definition) -> Result<Option<u32>, LogError> {
        let (offsets, name) = (Arc::clone(&self.offsets), definition.name.clone());
        blocking(move || offsets.partitions(&name, QUESTION_TIMEOUT)).await
    }

    fn of(&self, wanted: impl Fn(Topic) -> bool) -> Vec<&Definition> {
        self.definitions.iter().filter(|definition| wanted(definition.topic)).collect()
    }
}

fn new_topic(definition: &Definition) -> NewTopic<'_> {
    let partitions = i32::try_from(definition.partitions).unwrap_or(i32::MAX);
    let replicas = TopicReplication::Fixed(i32::from(definition.replication));
    let topic = NewTopic::new(&definition.name, partitions, replicas);
    definition.settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_than_three_replicas_are_refused_unless_allowed() {
        let mut config = Config::default();
        config.kafka.replication = 1;
        assert!(matches!(replication(&config, 3), Err(MigrateError::Unreplicated(1))));
        config.kafka.allow_unreplicated = true;
        assert_eq!(replication(&config, 3).unwrap(), 1);
        config.kafka.replication = 3;
        assert_eq!(replication(&config, 1).unwrap(), 1);
    }
}
