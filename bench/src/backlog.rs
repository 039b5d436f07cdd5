//! A backlog: traces that the gateway took while nobody worked on them, and how fast a stage works it off.

use std::time::{Duration, Instant};

use crate::{
    Bench,
    load::{self, End, Shape},
    meter::{Meter, Shares},
    server::Server,
    servers::Servers,
    system::Installation,
};

const LOAD: Shape = Shape::Batches(500, 16);
/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Measured is from this part of a backlog to its end. Before it the stage starts, and partitions finish
/// their first batches at the same time, which says nothing of how long those took.
const FIRST_PART: u64 = 5;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(300);

/// An installation whose topic `traces.raw` is full.
pub struct Backlog {
    /// Its names and programs.
    pub installation: Installation,
    /// Traces in the topic.
    pub traces: u64,
    /// Partitions of the topic.
    pub partitions: i32,
}

/// What a stage did with a backlog, once it was at work.
#[derive(Debug, Clone)]
pub struct Drained {
    /// Traces a second.
    pub per_second: f64,
    /// CPU time, by process.
    pub shares: Shares,
    /// Largest memory of the stage's process, in MiB.
    pub peak_mib: f64,
}

impl Backlog {
    /// Fills the topic.
    pub async fn fill(bench: &Bench, partitions: i32) -> anyhow::Result<Self> {
        let installation = Installation::with_partitions(&bench.bin, partitions.try_into()?);
        installation.start(&["control-room"]).await?.stop().await?;
        let gateway = installation.start(&["ingest-gateway"]).await?;
        let traces = load::send(gateway.address, LOAD, End::With(bench.traces)).await?.accepted;
        gateway.stop().await?;
        Ok(Self { installation, traces, partitions })
    }

    /// A topic's full name.
    pub fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.installation.topic_prefix)
    }

    /// Lets the dedupe stage work it off.
    pub async fn dedupe(&self, servers: &Servers) -> anyhow::Result<Drained> {
        let raw = self.topic("traces.raw");
        let progress = servers.progress(&self.topic("dedupe"), &raw, self.partitions)?;
        let worker = self.installation.start(&["stream-workers", "--role", "dedupe"]).await?;
        let all = u64::try_from(progress.records)?;
        let done = async || Ok(u64::try_from(progress.done()?)?);
        self.watch(worker, "dedupe", servers, all, done).await
    }

    /// Lets the store stage put what dedupe has kept into the tables.
    pub async fn store(&self, servers: &Servers) -> anyhow::Result<Drained> {
        let worker = self.installation.start(&["stream-workers", "--role", "store"]).await?;
        let count = format!("SELECT count() FROM {}.traces", self.installation.database);
        let done = async || servers.sql.number(&count).await;
        self.watch(worker, "store", servers, self.traces, done).await
    }

    /// Watches a worker until it has done `all`, and ends it.
    async fn watch(
        &self,
        worker: Server,
        name: &str,
        servers: &Servers,
        all: u64,
        done: impl AsyncFn() -> anyhow::Result<u64>,
    ) -> anyhow::Result<Drained> {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        let until = async |enough: u64| loop {
            let now = done().await?;
            anyhow::ensure!(now <= all, "{name}: {now} of {all}: more than there are");
            if now >= enough {
                return Ok(now);
            }
            anyhow::ensure!(Instant::now() < deadline, "{name}: {now} of {all} after {DRAIN_TIMEOUT:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let first = until((all / FIRST_PART).max(1)).await?;
        let mut processes = vec![(name.to_owned(), worker.process)];
        processes.extend(servers.processes());
        let (began, meter) = (Instant::now(), Meter::start(processes));
        anyhow::ensure!(first < all, "{name} was done at once: take more traces");
        until(all).await?;
        let seconds = began.elapsed().as_secs_f64();
        // Envelopes and blocks are about equally full.
        let traces = self.traces as f64 * (all - first) as f64 / all as f64;
        let drained = Drained {
            per_second: traces / seconds,
            shares: meter.per_million(traces as u64),
            peak_mib: worker.process.peak_mib(),
        };
        worker.stop().await?;
        Ok(drained)
    }

    /// Removes its tables; topics and keys go with the servers.
    pub async fn remove(self, servers: &Servers) -> anyhow::Result<()> {
        servers.sql.run(&format!("DROP DATABASE {}", self.installation.database)).await.map(drop)
    }
}
