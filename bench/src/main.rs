//! Measures Panopticon from outside: the release binaries, over the network, beside bare engines in the
//! same run. Started by `cargo xtask bench`, which builds what it needs and starts the servers.

mod backlog;
mod bare;
mod control_state;
mod dedupe;
mod embedded;
mod gateway;
mod latency;
mod load;
mod memory;
mod meter;
mod process;
mod queries;
mod report;
mod road;
mod room;
mod samples;
mod server;
mod servers;
mod sql;
mod store;
mod system;
mod traces;

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use report::Report;
use system::Engine;

/// Measures Panopticon from outside.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    /// What to measure; everything if nothing is named.
    parts: Vec<Part>,
    /// Seconds of load for each figure.
    #[arg(long, default_value_t = 3)]
    secs: u64,
    /// How often each figure is measured.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Traces a second of the steady load.
    #[arg(long, default_value_t = 5_000)]
    rate: u64,
    /// Only this engine, where both are measured.
    #[arg(long)]
    engine: Option<Engine>,
    /// Traces in the backlog that a stage alone works off.
    #[arg(long, default_value_t = 1_000_000)]
    traces: u64,
    /// Partitions of the topics on the road and behind the gateway, and of the bare producer's: as many as are best
    /// where one machine does everything.
    #[arg(long, default_value_t = 1)]
    partitions: u32,
    /// Minutes of steady load in which memory is watched.
    #[arg(long, default_value_t = 0.5)]
    minutes: f64,
    /// Stored traces over which questions are asked.
    #[arg(long, default_value_t = 20_000_000)]
    rows: u64,
    /// Apps that a gateway reads when it starts.
    #[arg(long, default_value_t = 100_000)]
    apps: u64,
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Folder of the release binaries.
    #[arg(long, default_value = "target/release")]
    bin: PathBuf,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Be a bare engine.
    #[command(hide = true, subcommand)]
    Be(bare::Role),
}

/// What every measurement needs to know.
struct Bench {
    /// Folder of the release binaries.
    bin: PathBuf,
    /// How long a load lasts.
    span: Duration,
    /// How often each figure is measured.
    repeat: usize,
    /// Traces in a backlog.
    traces: u64,
    /// Partitions on the road and behind the gateway.
    partitions: u32,
}

/// One part of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One process on one SQLite file.
    Embedded,
    /// The gateway before the real log, and the broker behind it.
    Gateway,
    /// The dedupe stage alone, and the memory of the seen set.
    Dedupe,
    /// The store stage alone.
    Store,
    /// gRPC to rows, every process together.
    Road,
    /// The same with 1, 2 and 4 partitions and processes.
    Growth,
    /// Whether memory stays flat in a steady load.
    Memory,
    /// Timeline and usage over many stored traces.
    Queries,
    /// What many apps cost a gateway when it starts.
    Start,
    /// From the answer to live trace and to the webhook, in a steady load.
    Latency,
}

impl Args {
    async fn measure(&self, part: Part, report: &mut Report, bench: &Bench) -> anyhow::Result<()> {
        match part {
            Part::Embedded => embedded::measure(report, bench).await,
            Part::Gateway => gateway::measure(report, bench).await,
            Part::Dedupe => dedupe::measure(report, bench).await,
            Part::Store => store::measure(report, bench).await,
            Part::Road => road::measure(report, bench).await,
            Part::Growth => road::growth(report, bench).await,
            Part::Memory => {
                let span = Duration::from_secs_f64(self.minutes * 60.0);
                memory::measure(report, bench, self.rate, span).await
            }
            Part::Queries => queries::measure(report, bench, self.rows).await,
            Part::Start => control_state::measure(report, bench, self.apps).await,
            Part::Latency => {
                let engines = self.engine.map_or(Engine::value_variants().to_vec(), |engine| vec![engine]);
                for engine in engines {
                    latency::measure(report, bench, engine, self.rate).await?;
                }
                Ok(())
            }
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // The HTTP client is built without a cryptography provider of its own; nothing here speaks TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if let Some(Role::Be(role)) = args.role {
        return role.run().await;
    }
    let bench = Bench {
        bin: args.bin.clone(),
        span: Duration::from_secs(args.secs.max(1)),
        repeat: args.repeat.max(1),
        traces: args.traces,
        partitions: args.partitions.max(1),
    };
    let parts = if args.parts.is_empty() { Part::value_variants() } else { &args.parts };
    let (mut report, mut failed) = (Report::default(), Vec::new());
    for (n, part) in parts.iter().enumerate() {
        eprintln!("[{}/{}] {part:?}", n + 1, parts.len());
        // One part that fails does not take the others' figures with it.
        if let Err(error) = args.measure(*part, &mut report, &bench).await {
            eprintln!("  {part:?} failed: {error:#}");
            failed.push(format!("{part:?}"));
        }
    }
    println!("{}", report.table());
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}
