//! Measures Panopticon from outside: the release binaries, over the network, beside bare engines in the
//! same run. Started by `cargo xtask bench`, which builds what it needs.

mod bare;
mod distributed;
mod embedded;
mod load;
mod report;
mod server;

use std::time::Duration;

use clap::{Parser, Subcommand};

/// Measures Panopticon from outside.
#[derive(Debug, Parser)]
struct Args {
    /// Seconds of load for each figure.
    #[arg(long, default_value_t = 10, global = true)]
    secs: u64,
    /// Where the figures go as JSON.
    #[arg(long, global = true)]
    json: Option<std::path::PathBuf>,
    /// Folder of the release binaries.
    #[arg(long, default_value = "target/release", global = true)]
    bin: std::path::PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum What {
    /// One process on one SQLite file.
    Embedded,
    /// Separate workers on the servers that the environment names.
    Distributed,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // The HTTP client is built without a cryptography provider of its own; nothing here speaks TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let secs = Duration::from_secs(args.secs.max(1));
    let report = match args.what {
        What::Embedded => embedded::measure(&args.bin, secs).await?,
        What::Distributed => distributed::measure(&args.bin, secs).await?,
    };
    println!("{}", report.table());
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}
