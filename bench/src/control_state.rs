//! What a million apps cost a gateway when it starts.

use std::time::{Duration, Instant};

use panopticon_proto::control::{App, Pak};
use prost::Message as _;
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer},
};

use crate::{
    Bench,
    report::{Report, Row},
    servers::Servers,
    system::Installation,
};

const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// 2026-01-01.
const CREATED_AT_MICROS: i64 = 1_767_225_600_000_000;

/// Measures a gateway with the control state of `apps` apps, beside one that has a single app.
pub async fn measure(report: &mut Report, bench: &Bench, apps: u64) -> anyhow::Result<()> {
    let servers = Servers::from_environment()?;
    let installation = Installation::new(&bench.bin);
    installation.start(&["control-room"]).await?.stop().await?;
    let (mut with_one, mut times, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.repeat {
        let gateway = installation.start(&["ingest-gateway"]).await?;
        with_one.push((gateway.started_in.as_secs_f64(), gateway.process.resident_mib()));
        gateway.stop().await?;
    }
    let topic = format!("{}control", installation.topic_prefix);
    let (brokers, began) = (servers.brokers, Instant::now());
    tokio::task::spawn_blocking(move || fill(&brokers, &topic, apps)).await??;
    eprintln!("  {apps} apps written after {:.1} s", began.elapsed().as_secs_f64());
    let mut peak = 0.0_f64;
    for (time, mib) in with_one {
        let gateway = installation.start(&["ingest-gateway"]).await?;
        times.push((gateway.started_in.as_secs_f64(), time));
        memory.push((gateway.process.resident_mib(), mib));
        peak = peak.max(gateway.process.peak_mib());
        gateway.stop().await?;
    }
    let what = format!("gateway with {apps} apps");
    report.add(Row::pairs(format!("{what}: start to ready"), "with one app", "s", &times));
    let bytes: Vec<f64> = memory.iter().map(|(many, one)| (many - one) * 1_048_576.0 / apps as f64).collect();
    let bytes = crate::samples::Spread::of(bytes).median;
    report.add(
        Row::pairs(format!("{what}: memory when ready"), "with one app", "MiB", &memory)
            .peak(peak)
            .note(format!("{bytes:.0} bytes an app")),
    );
    Ok(())
}

/// Apps with a PAK each, as the control room writes them.
fn fill(brokers: &str, topic: &str, apps: u64) -> anyhow::Result<()> {
    let producer: ThreadedProducer<DefaultProducerContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).set("enable.idempotence", "true").create()?;
    for n in 0..apps {
        let client_id = format!("app-{n}");
        // A digest that no PAK has.
        let sha256 = [0xff; 24].into_iter().chain(n.to_be_bytes()).collect();
        let pak = Pak { sha256, created_at: CREATED_AT_MICROS, ..Pak::default() };
        let app = App {
            client_id: client_id.clone(),
            name: format!("App number {n}"),
            paks: vec![pak],
            created_at: CREATED_AT_MICROS,
            updated_at: CREATED_AT_MICROS,
            ..App::default()
        };
        let (key, value) = (format!("app/{client_id}"), app.encode_to_vec());
        let mut next = BaseRecord::to(topic).partition(0).key(&key).payload(&value);
        while let Err((error, again)) = producer.send(next) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            anyhow::ensure!(error == full, "cannot write apps: {error}");
            std::thread::sleep(FULL_PAUSE);
            next = again;
        }
    }
    Ok(producer.flush(FLUSH_TIMEOUT)?)
}
