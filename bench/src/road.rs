//! The whole road, gRPC to rows: how fast, with whose CPU time, and how that grows.

use std::time::{Duration, Instant};

use crate::{
    Bench,
    load::{self, Shape},
    meter::{self, Meter, Shares},
    report::{Reach, Report, Row},
    servers::Servers,
    system::{Installation, System},
};

const CONNECTIONS: usize = 16;
const REACH: f64 = 60_000.0;
const BATCHES: [usize; 3] = [500, 100, 10];
/// Partitions, and processes of each worker.
const GROWTH: [u32; 3] = [1, 2, 4];
/// A broker compiles its code while it runs, and costs more until it has: small batches get it through all of it
/// soonest.
const WARM_UP: [(usize, Duration); 2] = [(10, Duration::from_secs(12)), (500, Duration::from_secs(2))];

/// Measures the road by the size of the batches, one process of each worker.
pub async fn measure(report: &mut Report, bench: &Bench) -> anyhow::Result<()> {
    let mut road = Road::start(bench, bench.partitions, 1).await?;
    for batch in BATCHES {
        let what = format!("whole road, gRPC IngestBatch of {batch} to rows, {}", said(bench.partitions));
        let row = road.measure(bench, what, batch).await?;
        // What is asked for leaves the size of the batches open.
        report.add(if batch == BATCHES[0] { row.reach(Reach::AtLeast(REACH)) } else { row });
    }
    for (name, process) in road.system.processes() {
        report.add(Row::alone(format!("peak memory of {name} on the road"), "MiB", [process.peak_mib()]));
    }
    road.system.stop().await
}

/// Measures the road with more and more partitions and processes.
pub async fn growth(report: &mut Report, bench: &Bench) -> anyhow::Result<()> {
    for partitions in GROWTH {
        let mut road = Road::start(bench, partitions, partitions).await?;
        let what = format!("whole road, {}, as many processes of each worker", said(partitions));
        report.add(road.measure(bench, what, BATCHES[0]).await?);
        road.system.stop().await?;
    }
    Ok(())
}

fn said(partitions: u32) -> String {
    format!("{partitions} partition{}", if partitions == 1 { "" } else { "s" })
}

struct Road {
    servers: Servers,
    system: System,
    accepted: u64,
}

impl Road {
    async fn start(bench: &Bench, partitions: u32, processes: u32) -> anyhow::Result<Self> {
        let servers = Servers::from_environment()?;
        let installation = Installation::with_partitions(&bench.bin, partitions);
        let system = System::distributed(&installation, processes).await?;
        let mut road = Self { servers, system, accepted: 0 };
        // Groups form, and code runs for the first time.
        for (batch, span) in WARM_UP {
            road.once(batch, span).await?;
        }
        Ok(road)
    }

    async fn measure(&mut self, bench: &Bench, what: String, batch: usize) -> anyhow::Result<Row> {
        let (mut rates, mut ingested, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..bench.repeat {
            let (rate, accepted, cpu) = self.once(batch, bench.span).await?;
            rates.push(rate);
            ingested.push(accepted);
            shares.push(cpu);
        }
        let shares = meter::medians(&shares);
        let all: f64 = shares.iter().filter(|(name, _)| *name != meter::own().0).map(|(_, cpu)| cpu).sum();
        let ingested = crate::samples::Spread::of(ingested).median;
        let note = format!("answered {ingested:.0}/s; all but the load: {all:.1} CPU s a million");
        Ok(Row::alone(what, "traces/s", rates).cpu(shares).note(note))
    }

    /// Sends for `span` and waits for the rows: traces a second until all are stored, and until all were
    /// answered.
    async fn once(&mut self, batch: usize, span: Duration) -> anyhow::Result<(f64, f64, Shares)> {
        let mut processes = self.system.processes();
        processes.extend(self.servers.processes());
        processes.push(meter::own());
        let (meter, began) = (Meter::start(processes), Instant::now());
        let load = load::run(self.system.gateway, Shape::Batches(batch, CONNECTIONS), span).await?;
        self.accepted += load.accepted;
        self.system.room.caught_up(self.accepted).await?;
        let rate = load.accepted as f64 / began.elapsed().as_secs_f64();
        Ok((rate, load.per_second(), meter.per_million(load.accepted)))
    }
}
