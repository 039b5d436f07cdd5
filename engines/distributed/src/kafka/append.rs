//! Appends outside transactions: one idempotent producer for the whole process.

use std::{
    collections::HashMap,
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use panopticon_core::log::{LogError, Record};
use parking_lot::{Mutex, RwLock};
use rdkafka::{
    ClientContext,
    client::OAuthToken,
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::Message,
    producer::{DeliveryResult, Producer, ProducerContext, ThreadedProducer},
};
use tokio::sync::oneshot;

use super::{
    client::Clients,
    context::Voice,
    error::{OpenError, failed},
    keeper::dispose,
    record::{check_size, offset_number, outgoing},
};

/// Where the outcome of one append goes: the offset, where the ack had one.
type Answer = oneshot::Sender<Result<Option<u64>, KafkaError>>;

/// Hands each delivery report to whoever waits for it.
struct Deliveries(Voice);

impl ClientContext for Deliveries {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.0.token()
    }

    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Answer>;

    fn delivery(&self, report: &DeliveryResult<'_>, answer: Box<Answer>) {
        let outcome = match report {
            // A retry whose first attempt had arrived is acknowledged without an offset.
            Ok(message) => Ok(offset_number(message.offset())),
            Err((error, _)) => Err(error.clone()),
        };
        // The caller may have given up waiting.
        let _ = answer.send(outcome);
    }
}

type Sender = ThreadedProducer<Deliveries>;

/// After this long without an acknowledgement from a partition the producer is replaced: after the partition
/// was without a leader for a moment, the driver may never send to it again.
const REPLACE_AFTER: Duration = Duration::from_secs(10);

/// Appends single records.
pub(super) struct Appender {
    clients: Arc<Clients>,
    sender: RwLock<Arc<Sender>>,
    /// By topic and partition, since when appends have only timed out.
    silent: Mutex<HashMap<(String, u32), Instant>>,
}

impl Appender {
    pub(super) fn open(clients: &Arc<Clients>) -> Result<Self, OpenError> {
        let sender = RwLock::new(Arc::new(new_sender(clients)?));
        Ok(Self { clients: Arc::clone(clients), sender, silent: Mutex::default() })
    }

    /// Appends; returns once the record is on all in-sync replicas.
    pub(super) async fn append(
        &self,
        topic: &str,
        partition: u32,
        record: &Record,
    ) -> Result<Option<u64>, LogError> {
        let limit = self.clients.kafka.max_record_bytes;
        check_size(record, limit)?;
        let sender = Arc::clone(&self.sender.read());
        let outcome = match send(&sender, topic, partition, record) {
            Ok(answer) => match answer.await {
                Ok(outcome) => outcome,
                Err(_) => Err(KafkaError::Canceled),
            },
            Err(error) => Err(error),
        };
        let stuck = self.is_stuck(topic, partition, &outcome);
        outcome.map_err(|error| {
            if stuck || sender.client().fatal_error().is_some() {
                self.replace(&sender);
            }
            match error.rdkafka_error_code() {
                Some(Code::MessageSizeTooLarge) => LogError::TooLarge { bytes: record.size(), limit },
                _ => failed(&format!("append to {topic}-{partition}"), &error),
            }
        })
    }

    /// Takes note of an outcome; whether the partition has been silent for too long.
    fn is_stuck(&self, topic: &str, partition: u32, outcome: &Result<Option<u64>, KafkaError>) -> bool {
        let mut silent = self.silent.lock();
        match outcome.as_ref().map_err(KafkaError::rdkafka_error_code) {
            Err(Some(Code::MessageTimedOut)) => {
                let since = silent.entry((topic.to_owned(), partition)).or_insert_with(Instant::now);
                since.elapsed() > REPLACE_AFTER
            }
            Ok(_) if !silent.is_empty() => {
                silent.remove(&(topic.to_owned(), partition));
                false
            }
            _ => false,
        }
    }

    /// Puts a new producer in the place of one that has given up for good (its sequence numbers are lost), or
    /// reaches a partition no more.
    fn replace(&self, broken: &Arc<Sender>) {
        let mut sender = self.sender.write();
        if !Arc::ptr_eq(&sender, broken) {
            return;
        }
        match new_sender(&self.clients) {
            Ok(fresh) => {
                tracing::warn!("the producer of appends went no further and was replaced");
                self.silent.lock().clear();
                dispose(std::mem::replace(&mut *sender, Arc::new(fresh)));
            }
            Err(error) => tracing::warn!(%error, "the producer of appends cannot be replaced yet"),
        }
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        dispose(Arc::clone(&self.sender.read()));
    }
}

fn new_sender(clients: &Clients) -> Result<Sender, OpenError> {
    clients.create(clients.producer("append"), Deliveries(clients.voice("append")))
}

/// Not async: what the driver is given must not live across an await.
fn send(
    sender: &Sender,
    topic: &str,
    partition: u32,
    record: &Record,
) -> Result<oneshot::Receiver<Result<Option<u64>, KafkaError>>, KafkaError> {
    let (answer, outcome) = oneshot::channel();
    match sender.send(outgoing(topic, partition, record, Box::new(answer))) {
        Ok(()) => Ok(outcome),
        Err((error, _)) => Err(error),
    }
}
