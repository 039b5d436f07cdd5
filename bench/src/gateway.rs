//! The gateway, as a process of its own, before the real log and the real seen set.

use std::{net::SocketAddr, time::Duration};

use crate::{
    Bench,
    bare::{self, Done, Handler},
    load::{self, Achieved, Shape},
    meter::{self, Meter, Shares, share},
    process::Process,
    report::{Reach, Report, Row},
    samples::Spread,
    server::Server,
    servers::Servers,
    system::Installation,
};

const CONNECTIONS: usize = 16;
const IN_FLIGHT: usize = 64;
/// By the size of the batch, how much CPU the gateway may use by the bare producer's.
const BATCHES: [(usize, f64); 3] = [(500, 1.0), (100, 1.5), (10, 4.0)];
const SINGLE: f64 = 0.6;
/// Code that runs for the first time says nothing of what it costs.
const WARM_UP: Duration = Duration::from_secs(2);

/// Measures batches, then single traces.
pub async fn measure(report: &mut Report, bench: &Bench) -> anyhow::Result<()> {
    let servers = Servers::from_environment()?;
    let installation = Installation::with_partitions(&bench.bin, bench.partitions);
    // It makes the app; while the gateway is measured nobody else is there.
    installation.start(&["control-room"]).await?.stop().await?;
    let gateway = installation.start(&["ingest-gateway"]).await?;
    let topic = format!("{}bare", installation.topic_prefix);
    servers.create_topic(&topic, bench.partitions.try_into()?).await?;
    let setting = Setting { servers, gateway, topic };
    setting.ours(Shape::Batches(100, CONNECTIONS), WARM_UP).await?;
    setting.flood(WARM_UP).await?;
    for (batch, reach) in BATCHES {
        batches(report, bench, &setting, batch, reach).await?;
    }
    singles(report, bench, &setting, "gRPC", "tonic", Shape::Single(IN_FLIGHT)).await?;
    singles(report, bench, &setting, "HTTP", "axum", Shape::Http(IN_FLIGHT)).await?;
    setting.gateway.stop().await
}

/// What the measurements share.
struct Setting {
    servers: Servers,
    gateway: Server,
    /// Where the bare producer writes.
    topic: String,
}

impl Setting {
    async fn ours(&self, shape: Shape, span: Duration) -> anyhow::Result<(Achieved, Shares)> {
        load_on(self.gateway.address, "gateway", self.gateway.process, &self.servers, shape, span).await
    }

    /// The bare producer, as fast as it goes.
    async fn flood(&self, span: Duration) -> anyhow::Result<Done> {
        bare::run(&self.producer(span, &[])).await
    }

    /// The bare producer with as many traces in flight as the gateway has, and 1 ms to gather them.
    async fn lingering(&self, span: Duration) -> anyhow::Result<(Done, Shares)> {
        let meter = Meter::start(self.servers.processes());
        let in_flight = IN_FLIGHT.to_string();
        let done = bare::run(&self.producer(span, &["--linger-ms", "1", "--in-flight", &in_flight])).await?;
        let shares = meter.per_million(done.traces);
        Ok((done, shares))
    }

    fn producer(&self, span: Duration, more: &[&str]) -> Vec<String> {
        let secs = span.as_secs_f64().to_string();
        let first = ["producer", "--brokers", &self.servers.brokers, "--topic", &self.topic, "--secs", &secs];
        first.iter().chain(more).map(|word| (*word).to_owned()).collect()
    }
}

async fn batches(
    report: &mut Report,
    bench: &Bench,
    setting: &Setting,
    batch: usize,
    reach: f64,
) -> anyhow::Result<()> {
    let (mut pairs, mut shares, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.repeat {
        let (load, cpu) = setting.ours(Shape::Batches(batch, CONNECTIONS), bench.span).await?;
        let bare = setting.flood(bench.span).await?;
        pairs.push((share(&cpu, "gateway"), bare.cpu_per_million()));
        rates.push((load.per_second(), bare.per_second()));
        shares.push(cpu);
    }
    report.add(
        Row::pairs(
            format!("gateway CPU, gRPC IngestBatch of {batch}, durable"),
            "rdkafka producer, acks=all, one record a trace",
            "CPU s / million",
            &pairs,
        )
        .reach(Reach::AtMost(reach))
        .cpu(meter::medians(&shares))
        .peak(setting.gateway.process.peak_mib())
        .note(both_rates(&rates)),
    );
    Ok(())
}

async fn singles(
    report: &mut Report,
    bench: &Bench,
    setting: &Setting,
    protocol: &str,
    handler: &str,
    shape: Shape,
) -> anyhow::Result<()> {
    let bare = Handler::start(handler).await?;
    let (mut rates, mut costs, mut shares, mut broker) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.repeat {
        let (load, cpu) = setting.ours(shape, bench.span).await?;
        let (at_once, bare_cpu) =
            load_on(bare.address, "bare", bare.process, &setting.servers, shape, bench.span).await?;
        let (_, lingering) = setting.lingering(bench.span).await?;
        rates.push((load.per_second(), at_once.per_second()));
        costs.push((share(&cpu, "gateway"), share(&bare_cpu, "bare")));
        broker.push((share(&cpu, "Kafka"), share(&lingering, "Kafka")));
        shares.push(cpu);
    }
    let against = format!("{handler} handler that answers at once");
    let what = format!("single {protocol} traces, {IN_FLIGHT} in flight, durable");
    report.add(
        Row::pairs(&what, &against, "requests/s", &rates)
            .reach(Reach::AtLeast(SINGLE))
            .cpu(meter::medians(&shares))
            .peak(setting.gateway.process.peak_mib()),
    );
    report.add(Row::pairs(format!("{what}: gateway CPU"), against, "CPU s / million", &costs));
    report.add(
        Row::pairs(
            format!("broker CPU, single {protocol} traces"),
            format!("rdkafka producer, linger 1 ms, {IN_FLIGHT} in flight"),
            "CPU s / million",
            &broker,
        )
        .reach(Reach::AtMost(1.0)),
    );
    Ok(())
}

/// Load on one process, with the CPU time of all that take part.
async fn load_on(
    address: SocketAddr,
    name: &str,
    process: Process,
    servers: &Servers,
    shape: Shape,
    span: Duration,
) -> anyhow::Result<(Achieved, Shares)> {
    let mut processes = vec![(name.to_owned(), process), meter::own()];
    processes.extend(servers.processes());
    let meter = Meter::start(processes);
    let load = load::run(address, shape, span).await?;
    anyhow::ensure!(load.accepted > 0, "nothing was accepted at {address}");
    Ok((load, meter.per_million(load.accepted)))
}

fn both_rates(rates: &[(f64, f64)]) -> String {
    let (ours, bare): (Vec<f64>, Vec<f64>) = rates.iter().copied().unzip();
    let [ours, bare] = [ours, bare].map(|rates| Spread::of(rates).median);
    format!("{ours:.0} traces/s; bare {bare:.0}/s")
}
