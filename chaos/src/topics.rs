//! What the topics hold, read without the product: every committed record from the beginning.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    producer::{BaseProducer, BaseRecord, Producer as _},
};

use crate::bed::TOPIC_PREFIX;

const ASK_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// A record and where it is.
#[derive(Debug, Clone)]
pub struct Record {
    /// In which partition.
    pub partition: i32,
    /// At which offset.
    pub offset: i64,
    /// The message; empty for a tombstone.
    pub payload: Vec<u8>,
}

/// All committed records of a topic, partition by partition. Blocks.
pub fn read(brokers: &str, topic: &str) -> anyhow::Result<Vec<Record>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", format!("{TOPIC_PREFIX}reader"))
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .create()?;
    let name = format!("{TOPIC_PREFIX}{topic}");
    let metadata = consumer.fetch_metadata(Some(&name), ASK_TIMEOUT).context("no metadata")?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    ensure!(partitions > 0, "there is no topic {name}");
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(&name, i32::try_from(partition)?, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let (mut records, mut ends, began) = (Vec::new(), 0, Instant::now());
    while ends < partitions {
        ensure!(began.elapsed() < READ_TIMEOUT, "{name} cannot be read within {READ_TIMEOUT:?}");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => records.push(Record {
                partition: message.partition(),
                offset: message.offset(),
                payload: message.payload().unwrap_or_default().to_vec(),
            }),
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => ends += 1,
            Some(Err(error)) => return Err(error).context(name),
            None => {}
        }
    }
    Ok(records)
}

/// Appends a record to the first partition of a topic. Blocks.
pub fn append(brokers: &str, topic: &str, payload: &[u8]) -> anyhow::Result<()> {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("acks", "all").create()?;
    let name = format!("{TOPIC_PREFIX}{topic}");
    let record = BaseRecord::<[u8], [u8]>::to(&name).partition(0).key(b"poison".as_slice()).payload(payload);
    producer.send(record).map_err(|(error, _)| error)?;
    producer.flush(ASK_TIMEOUT).context(name)
}
