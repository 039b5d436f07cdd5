//! A Kafka producer with acks=all and idempotence, one record a trace.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prost::Message as _;
use rdkafka::{
    ClientConfig, ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{
        BaseRecord, DeliveryResult, FutureProducer, FutureRecord, Producer as _, ProducerContext,
        ThreadedProducer,
    },
    util::Timeout,
};
use tokio::task::JoinSet;

use super::Done;
use crate::{process::Process, traces};

/// Different records that are sent again and again: making them is no part of what is measured.
const RECORDS: u64 = 10_000;
/// How long to wait when the driver's queue is full.
const FULL_PAUSE: Duration = Duration::from_millis(1);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// Where to, how, how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    topic: String,
    /// Ends after this time,
    #[arg(long, required_unless_present = "traces")]
    secs: Option<f64>,
    /// or with so many traces.
    #[arg(long)]
    traces: Option<usize>,
    /// So many senders, each waiting for its record's ack; without it, as many as the driver takes.
    #[arg(long)]
    in_flight: Option<usize>,
    /// How long the driver waits for more records.
    #[arg(long)]
    linger_ms: Option<u32>,
}

struct Record {
    key: String,
    payload: Vec<u8>,
}

/// Produces; counts what was acknowledged.
pub async fn run(args: Args) -> anyhow::Result<Done> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &args.brokers).set("acks", "all").set("enable.idempotence", "true");
    if let Some(linger) = args.linger_ms {
        config.set("linger.ms", linger.to_string());
    }
    let now = jiff::Timestamp::now();
    let records: Arc<Vec<Record>> = Arc::new(
        (0..RECORDS)
            .map(|n| traces::trace(n, now))
            .map(|trace| Record { key: trace.user_sub.clone(), payload: trace.encode_to_vec() })
            .collect(),
    );
    let (before, began) = (Process::own().cpu_seconds(), Instant::now());
    let until = args.secs.map(|secs| began + Duration::from_secs_f64(secs));
    let traces = match (args.in_flight, until) {
        (Some(senders), Some(until)) => one_by_one(&config, &args.topic, &records, senders, until).await?,
        _ => {
            let most = args.traces.unwrap_or(usize::MAX);
            let flood = move || flood(&config, &args.topic, &records, most, until);
            tokio::task::spawn_blocking(flood).await??
        }
    };
    Ok(Done {
        traces,
        seconds: began.elapsed().as_secs_f64(),
        cpu_seconds: Process::own().cpu_seconds() - before,
        peak_mib: Process::own().peak_mib(),
    })
}

/// Counts acks.
#[derive(Clone, Default)]
struct Acks(Arc<AtomicU64>);

impl ClientContext for Acks {}

impl ProducerContext for Acks {
    type DeliveryOpaque = ();

    fn delivery(&self, report: &DeliveryResult<'_>, (): ()) {
        self.0.fetch_add(u64::from(report.is_ok()), Ordering::Relaxed);
    }
}

fn flood(
    config: &ClientConfig,
    topic: &str,
    records: &[Record],
    most: usize,
    until: Option<Instant>,
) -> anyhow::Result<u64> {
    let acks = Acks::default();
    let producer: ThreadedProducer<Acks> = config.create_with_context(acks.clone())?;
    for record in records.iter().cycle().take(most) {
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        let mut next = BaseRecord::to(topic).key(&record.key).payload(&record.payload);
        while let Err((error, again)) = producer.send(next) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            anyhow::ensure!(error == full, "the bare producer: {error}");
            std::thread::sleep(FULL_PAUSE);
            next = again;
        }
    }
    producer.flush(FLUSH_TIMEOUT)?;
    Ok(acks.0.load(Ordering::Relaxed))
}

async fn one_by_one(
    config: &ClientConfig,
    topic: &str,
    records: &Arc<Vec<Record>>,
    senders: usize,
    until: Instant,
) -> anyhow::Result<u64> {
    let producer: FutureProducer = config.create()?;
    let mut tasks = JoinSet::new();
    for sender in 0..senders {
        let (producer, records, topic) = (producer.clone(), records.clone(), topic.to_owned());
        tasks.spawn(async move {
            let mut acked = 0;
            for record in records.iter().cycle().skip(sender * records.len() / senders) {
                if Instant::now() >= until {
                    break;
                }
                let next = FutureRecord::to(&topic).key(&record.key).payload(&record.payload);
                producer.send(next, Timeout::Never).await.map_err(|(error, _)| error)?;
                acked += 1;
            }
            anyhow::Ok(acked)
        });
    }
    let mut acked = 0;
    while let Some(ended) = tasks.join_next().await {
        acked += ended??;
    }
    Ok(acked)
}
