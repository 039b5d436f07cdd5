//! Breaks a running Panopticon in every way it must survive, and counts what is left.
//!
//! Started by `cargo xtask chaos`, which starts the servers and builds the programs. Two processes of every
//! worker run on real Kafka, Redis and ClickHouse under load, with resends on purpose; faults strike in two
//! lanes, workers and servers, in the order that the seed gives. At the end everything is healed, the stages
//! come to rest, and plain SQL over the tables is held against what was answered.

mod bed;
mod call;
mod check;
mod control;
mod episodes;
mod fault;
mod ledger;
mod load;
mod plan;
mod poison;
mod proxy;
mod receiver;
mod recovery;
mod report;
mod servers;
mod sql;
mod storm;
mod topics;
mod wire;
mod worker;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use tokio_util::sync::CancellationToken;

use self::{
    bed::{Bed, Places},
    plan::Lane,
    recovery::Canaries,
    report::Report,
    storm::Journal,
};

/// How long the stages may take to come to rest after the last fault.
const REST_LIMIT: Duration = Duration::from_secs(180);
/// So many requests of ordinary load may wait for an answer at once.
const SENDERS: u64 = 6;

/// Breaks a running Panopticon and counts what is left.
#[derive(Debug, Parser)]
struct Args {
    /// How long faults go on at least; every kind comes once however short it is.
    #[arg(long, default_value_t = 0.0)]
    minutes: f64,
    /// What the faults follow from.
    #[arg(long)]
    seed: u64,
    /// Traces a second.
    #[arg(long, default_value_t = 400.0)]
    rate: f64,
    /// Folder of the product's programs.
    #[arg(long)]
    bin: PathBuf,
    /// Where logs and the report go.
    #[arg(long)]
    folder: PathBuf,
    /// The program that controls the servers, as `PROGRAM stack --dir STACK kill redis`.
    #[arg(long)]
    control: PathBuf,
    /// The folder of the servers.
    #[arg(long)]
    stack: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    // The HTTP client is built without a cryptography provider of its own; nothing here speaks TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = Args::parse();
    match run(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#} (seed {})", args.seed);
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<bool> {
    println!("seed {}", args.seed);
    let places = Places {
        bin: args.bin.clone(),
        folder: args.folder.clone(),
        control: args.control.clone(),
        stack: args.stack.clone(),
    };
    let bed = Arc::new(Bed::start(&places, args.seed).await.context("cannot start")?);
    let canaries = Canaries::find(&bed).await?;
    let watch = tokio::spawn({
        let bed = bed.clone();
        async move { bed.watch().await }
    });

    let (began, stop) = (Instant::now(), CancellationToken::new());
    let senders = senders(&bed, args, &stop);
    let journal = Arc::new(Journal::default());
    let until = began + Duration::from_secs_f64(args.minutes * 60.0);
    tokio::join!(
        storm::rage(&bed, &canaries, &journal, Lane::Workers, args.seed, until),
        storm::rage(&bed, &canaries, &journal, Lane::Servers, args.seed.wrapping_add(1), until),
        async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            poison::pour(&bed).await;
        }
    );
    let load_secs = began.elapsed().as_secs_f64();
    if let Err(error) = bed.heal().await {
        bed.incident(format!("not everything came back: {error:#}"));
    }
    stop.cancel();
    for sender in senders {
        sender.await?;
    }
    let at_rest = recovery::at_rest(&bed, REST_LIMIT).await;
    if let Err(error) = &at_rest {
        bed.incident(format!("{error:#}"));
    }
    watch.abort();
    let checks = check::all(&bed).await?;
    let report = Report {
        seed: args.seed,
        load_secs,
        counts: bed.ledger.counts(),
        faults: journal.struck(),
        at_rest_secs: at_rest.unwrap_or(REST_LIMIT).as_secs_f64(),
        memory_mib: bed.memory.lock().clone(),
        drain_secs: report::secs(&bed.drains.lock()),
        checks,
    };
    println!("{}", report.text());
    std::fs::write(args.folder.join("report.json"), serde_json::to_vec_pretty(&report)?)?;
    for check in report.checks.iter().filter(|check| !check.holds()) {
        println!("BROKEN: {}", check.promise);
        check.named().for_each(|broken| println!("  {broken}"));
    }
    if !report.holds() {
        println!("seed {}; logs and report: {}", args.seed, args.folder.display());
    }
    Ok(report.holds())
}

fn senders(bed: &Arc<Bed>, args: &Args, stop: &CancellationToken) -> Vec<tokio::task::JoinHandle<()>> {
    let mut senders = Vec::new();
    for number in 0..SENDERS {
        let (bed, stop, seed) = (bed.clone(), stop.clone(), args.seed.wrapping_add(1_000 + number));
        let rate = args.rate / SENDERS as f64;
        senders.push(tokio::spawn(async move { load::send(&bed, seed, rate, stop).await }));
    }
    let (bed, stop, seed) = (bed.clone(), stop.clone(), args.seed.wrapping_add(2_000));
    senders.push(tokio::spawn(async move { episodes::run(&bed, seed, stop).await }));
    senders
}
