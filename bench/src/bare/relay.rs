//! A loop that consumes, transforms and produces in transactions, as it stands in every textbook.

use std::time::{Duration, Instant};

use panopticon_proto::log::{Envelope, Place};
use prost::Message as _;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    producer::{BaseProducer, BaseRecord, Producer as _},
};

use super::Done;
use crate::process::Process;

/// A transaction ends with so many envelopes,
const BATCH_ENVELOPES: usize = 500;
/// or traces by themselves,
const BATCH_TRACES: usize = 20_000;
/// or so many bytes, as the product's do by default, or when nothing has come for this long.
const BATCH_BYTES: usize = 4 << 20;
const NOTHING_COMES: Duration = Duration::from_millis(5);
const TIMEOUT: Duration = Duration::from_secs(30);

/// From where to where.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    from: String,
    #[arg(long)]
    to: String,
    #[arg(long)]
    partitions: i32,
    /// Records are traces by themselves; otherwise they are envelopes, which are read, given the places of
    /// their traces, and written.
    #[arg(long)]
    single: bool,
}

/// Moves what is in the topic when it starts.
pub fn run(args: &Args) -> anyhow::Result<Done> {
    let group = format!("{}-relay-{}", args.to, std::process::id());
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &args.brokers)
        .set("group.id", &group)
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .create()?;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &args.brokers)
        .set("transactional.id", &group)
        .set("compression.type", "lz4")
        .create()?;
    producer.init_transactions(TIMEOUT)?;
    let (mut list, mut left) = (TopicPartitionList::new(), 0);
    for partition in 0..args.partitions {
        let (first, end) = consumer.fetch_watermarks(&args.from, partition, TIMEOUT)?;
        list.add_partition_offset(&args.from, partition, Offset::Beginning)?;
        left += usize::try_from(end - first)?;
    }
    consumer.assign(&list)?;
    let metadata = consumer.group_metadata().ok_or_else(|| anyhow::anyhow!("no group"))?;
    let mut first =
        consumer.poll(TIMEOUT).ok_or_else(|| anyhow::anyhow!("{} is empty", args.from))?.map(Some)?;

    // As with the product: what it takes to start is not counted.
    let (mut traces, before, began) = (0, Process::own().cpu_seconds(), Instant::now());
    let most = if args.single { BATCH_TRACES } else { BATCH_ENVELOPES };
    while left > 0 {
        producer.begin_transaction()?;
        let (mut records, mut bytes, mut ends) = (0, 0, TopicPartitionList::new());
        while records < most.min(left) && bytes < BATCH_BYTES {
            let next = first.take().map(Ok).or_else(|| consumer.poll(NOTHING_COMES)).transpose()?;
            let Some(message) = next else { break };
            let payload = message.payload().unwrap_or_default();
            let (out, count) = transform(args.single, message.partition(), message.offset(), payload)?;
            let mut record = BaseRecord::to(&args.to).partition(message.partition()).payload(&out);
            if let Some(key) = message.key() {
                record = record.key(key);
            }
            producer.send(record).map_err(|(error, _)| error)?;
            put(&mut ends, &args.from, message.partition(), message.offset() + 1)?;
            (records, bytes, traces) = (records + 1, bytes + payload.len(), traces + count);
        }
        // The commit takes 100 ms more if records are still on their way.
        while producer.in_flight_count() > 0 {
            producer.poll(Duration::from_millis(1));
        }
        producer.send_offsets_to_transaction(&ends, &metadata, TIMEOUT)?;
        producer.commit_transaction(TIMEOUT)?;
        left -= records;
    }
    Ok(Done {
        traces,
        seconds: began.elapsed().as_secs_f64(),
        cpu_seconds: Process::own().cpu_seconds() - before,
        peak_mib: Process::own().peak_mib(),
    })
}

fn transform(single: bool, partition: i32, offset: i64, payload: &[u8]) -> anyhow::Result<(Vec<u8>, u64)> {
    if single {
        return Ok((payload.to_vec(), 1));
    }
    let mut envelope = Envelope::decode(payload)?;
    for (index, trace) in (0..).zip(&mut envelope.taken) {
        let (partition, offset) = (u32::try_from(partition)?, u64::try_from(offset)?);
        trace.place = Some(Place { log_id: 1, partition, offset, index });
    }
    Ok((envelope.encode_to_vec(), envelope.taken.len() as u64))
}

fn put(ends: &mut TopicPartitionList, topic: &str, partition: i32, end: i64) -> anyhow::Result<()> {
    match ends.find_partition(topic, partition) {
        Some(mut found) => found.set_offset(Offset::Offset(end))?,
        None => ends.add_partition_offset(topic, partition, Offset::Offset(end))?,
    }
    Ok(())
}
