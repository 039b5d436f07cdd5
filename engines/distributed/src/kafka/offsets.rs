//! Questions about offsets: how far partitions reach, and how far groups have come.
//!
//! Everything here blocks.

use std::{
    collections::HashMap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use panopticon_core::{
    log::{Bounds, Committed, LogError},
    topic::Topic,
};
use parking_lot::Mutex;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode as Code},
};

use super::{
    client::{Clients, QUESTION_TIMEOUT},
    context::Voice,
    error::{OpenError, failed, is_missing, is_moving},
    keeper::{Idle, dispose, drain},
    record::{offset_number, partition_number},
    security,
};

/// How long records that are written may wait for the end of their transaction before those who ask for the
/// end of a partition are told where it was without them.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(250);
const SETTLE_PAUSE: Duration = Duration::from_millis(1);

/// How long a partition that is new, or moves to another broker, may be without a leader that answers.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(3);
const ELECTION_PAUSE: Duration = Duration::from_millis(30);
/// A client whose questions fail is replaced when it is this old: not at every question while no broker answers.
const REPLACE_AFTER: Duration = Duration::from_secs(10);

/// A client that asks, and never has partitions assigned.
pub(super) struct Inquirer(BaseConsumer<Voice>);

impl Idle for Inquirer {
    fn drain(&self) {
        // Without an assignment there are no records to lose.
        drain(|time| drop(self.0.poll(time)));
    }
}

/// A client that is replaced when its questions fail. After it was told that a partition has no leader, or
/// the cluster no broker, the driver may never believe otherwise; a new client asks anew.
struct Inquiry {
    settings: ClientConfig,
    client: Mutex<(Arc<Inquirer>, Instant)>,
}

impl Inquiry {
    fn open(clients: &Clients, settings: ClientConfig) -> Result<Self, OpenError> {
        let client = Mutex::new((inquirer(clients, settings.clone())?, Instant::now()));
        Ok(Self { settings, client })
    }

    fn client(&self) -> Arc<Inquirer> {
        Arc::clone(&self.client.lock().0)
    }

    /// After a question to `asked` has failed.
    fn doubt(&self, clients: &Clients, asked: &Arc<Inquirer>) {
        let mut client = self.client.lock();
        if !Arc::ptr_eq(&client.0, asked) || client.1.elapsed() < REPLACE_AFTER {
            return;
        }
        match inquirer(clients, self.settings.clone()) {
            Ok(fresh) => dispose(std::mem::replace(&mut *client, (fresh, Instant::now()))),
            Err(error) => tracing::warn!(%error, "a client that asks for offsets cannot be replaced yet"),
        }
    }
}

/// Asks the brokers about offsets.
pub(super) struct Offsets {
    clients: Arc<Clients>,
    any: Inquiry,
    /// Sees records of transactions whose end is not known yet.
    uncommitted: Inquiry,
    /// One client for each group whose offsets were asked for.
    groups: Mutex<HashMap<String, Arc<Inquirer>>>,
}

impl Offsets {
    pub(super) fn open(clients: &Arc<Clients>) -> Result<Self, OpenError> {
        let reader = clients.id("reader");
        let any = Inquiry::open(clients, clients.consumer("offsets", &reader))?;
        let mut settings = clients.consumer("offsets", &reader);
        settings.set("isolation.level", "read_uncommitted");
        let uncommitted = Inquiry::open(clients, settings)?;
        Ok(Self { clients: Arc::clone(clients), any, uncommitted, groups: Mutex::default() })
    }

    /// The partitions of the topic called `name`; `None` when there is no such topic.
    pub(super) fn partitions(&self, name: &str, timeout: Duration) -> Result<Option<u32>, LogError> {
        let asked = self.any.client();
        let metadata = match asked.0.fetch_metadata(Some(name), timeout) {
            Ok(metadata) => metadata,
            Err(error) if error.rdkafka_error_code().is_some_and(is_missing) => return Ok(None),
            Err(error) => {
                self.any.doubt(&self.clients, &asked);
                return Err(failed(&format!("look up topic `{name}`"), &error));
            }
        };
        let topic = metadata.topics().iter().find(|topic| topic.name() == name);
        let topic = topic.filter(|topic| topic.error().is_none() && !topic.partitions().is_empty());
        Ok(topic.and_then(|topic| u32::try_from(topic.partitions().len()).ok()))
    }

    /// Whether any broker answers within `timeout`; the number of brokers.
    pub(super) fn brokers(&self, timeout: Duration) -> Result<usize, OpenError> {
        let unreachable =
            |reason| OpenError::Unreachable { brokers: self.clients.kafka.brokers.clone(), reason };
        if let Some(tokens) = &self.clients.tokens {
            tokens.take().map_err(|error| unreachable(error.to_string()))?;
        }
        let asked = self.any.client();
        match asked.0.fetch_metadata(None, timeout) {
            Ok(metadata) => Ok(metadata.brokers().len()),
            Err(error) => {
                asked.drain();
                let mut reason = asked.0.context().last_error().unwrap_or_else(|| error.to_string());
                reason.push_str(security::advice(&self.clients.kafka, &reason));
                Err(unreachable(reason))
            }
        }
    }

    /// What can be read of a partition now. The upper end is the last stable offset.
    pub(super) fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        self.watermarks(&self.any, topic, partition)
    }

    /// What can be read of a partition, with all that was committed before: a commit returns when it is
    /// certain, a few milliseconds before the broker has marked its records as readable.
    pub(super) fn settled_bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        let written = self.watermarks(&self.uncommitted, topic, partition)?.high;
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            let bounds = self.bounds(topic, partition)?;
            // Beyond the deadline somebody's transaction is open, not committed.
            if bounds.high >= written || Instant::now() >= deadline {
                return Ok(bounds);
            }
            thread::sleep(SETTLE_PAUSE);
        }
    }

    fn watermarks(&self, inquiry: &Inquiry, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        let asked = inquiry.client();
        let outcome = self.watermarks_from(&asked, topic, partition);
        if outcome.is_err() {
            inquiry.doubt(&self.clients, &asked);
        }
        outcome
    }

    fn watermarks_from(&self, asked: &Inquirer, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        let name = self.clients.topic(topic);
        let deadline = Instant::now() + ELECTION_TIMEOUT;
        loop {
            let answer = asked.0.fetch_watermarks(&name, partition_number(partition), QUESTION_TIMEOUT);
            let code = answer.as_ref().err().and_then(KafkaError::rdkafka_error_code);
            return match (answer, code) {
                (Ok((low, high)), _) => {
                    let low = offset_number(low).unwrap_or(0);
                    Ok(Bounds { low, high: offset_number(high).unwrap_or(low).max(low) })
                }
                (Err(_), Some(code))
                    if Instant::now() < deadline && (is_moving(code) || is_missing(code)) =>
                {
                    thread::sleep(ELECTION_PAUSE);
                    continue;
                }
                (Err(_), Some(code)) if is_missing(code) => Err(LogError::NoTopic(topic)),
                (Err(error), _) => Err(failed(&format!("look up the bounds of {topic}-{partition}"), &error)),
            };
        }
    }

    /// How far the group of `stage` has come in each of `partitions`, once no commit is under way.
    pub(super) fn committed(
        &self,
        stage: &str,
        topic: Topic,
        partitions: &[u32],
    ) -> Result<Vec<Committed>, LogError> {
        let (group, name) = (self.clients.id(stage), self.clients.topic(topic));
        let inquirer = self.of_group(&group)?;
        let mut wanted = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            wanted.add_partition(&name, partition_number(*partition));
        }
        let what = format!("look up the offsets of group `{group}`");
        let found = inquirer.0.committed_offsets(wanted, QUESTION_TIMEOUT).map_err(|error| {
            // The next question gets a new client.
            self.groups.lock().remove(&group);
            failed(&what, &error)
        })?;
        let committed_in = |partition: &u32| {
            let Some(entry) = found.find_partition(&name, partition_number(*partition)) else {
                return Ok(Committed::default());
            };
            entry.error().map_err(|error| match error.rdkafka_error_code() {
                Some(Code::NoError) | None => failed(&what, &error),
                Some(code) if is_missing(code) => LogError::NoTopic(topic),
                Some(_) => failed(&what, &error),
            })?;
            Ok(match entry.offset() {
                Offset::Offset(offset) => {
                    Committed { offset: offset_number(offset), metadata: entry.metadata().to_owned() }
                }
                _ => Committed::default(),
            })
        };
        partitions.iter().map(committed_in).collect()
    }

    fn of_group(&self, group: &str) -> Result<Arc<Inquirer>, LogError> {
        if let Some(inquirer) = self.groups.lock().get(group) {
            return Ok(Arc::clone(inquirer));
        }
        let fresh = inquirer(&self.clients, self.clients.consumer("offsets", group))?;
        Ok(Arc::clone(self.groups.lock().entry(group.to_owned()).or_insert(fresh)))
    }
}

fn inquirer(clients: &Clients, settings: ClientConfig) -> Result<Arc<Inquirer>, OpenError> {
    let inquirer = Arc::new(Inquirer(clients.create(settings, clients.voice("offsets"))?));
    let as_idle: Arc<dyn Idle> = Arc::<Inquirer>::clone(&inquirer);
    clients.keeper.keep(Arc::downgrade(&as_idle));
    Ok(inquirer)
}
