//! Measures Panopticon from outside: the release binaries, over the network, beside bare engines in the
//! same run. Started by `cargo xtask bench`, which builds what it needs and starts the servers.

mod bare;
mod embedded;
mod latency;
mod load;
mod process;
mod report;
mod room;
mod samples;
mod server;
mod system;
mod traces;

use std::{path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use report::Report;
use system::Engine;

/// Measures Panopticon from outside.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure; everything if nothing is named.
    parts: Vec<Part>,
    /// Seconds of load for each figure.
    #[arg(long, default_value_t = 10)]
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
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Folder of the release binaries.
    #[arg(long, default_value = "target/release")]
    bin: PathBuf,
}

/// One part of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One process on one SQLite file.
    Embedded,
    /// From the answer to live trace and to the webhook, in a steady load.
    Latency,
}

impl Args {
    async fn measure(&self, part: Part, report: &mut Report) -> anyhow::Result<()> {
        let span = Duration::from_secs(self.secs.max(1));
        match part {
            Part::Embedded => embedded::measure(report, &self.bin, span, self.repeat).await,
            Part::Latency => {
                let engines = self.engine.map_or(Engine::value_variants().to_vec(), |engine| vec![engine]);
                for engine in engines {
                    latency::measure(report, engine, &self.bin, self.rate, span, self.repeat).await?;
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
    let parts = if args.parts.is_empty() { Part::value_variants() } else { &args.parts };
    let mut report = Report::default();
    for (n, part) in parts.iter().enumerate() {
        eprintln!("[{}/{}] {part:?}", n + 1, parts.len());
        args.measure(*part, &mut report).await?;
    }
    println!("{}", report.table());
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}
