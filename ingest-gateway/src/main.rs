//! The ingest gateway as a process of its own.

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use panopticon_core::config::Config;
use panopticon_ingest_gateway::{Gateway, intake::Intake};
use panopticon_process::{
    CommonArgs, NeedOfSeen, NeedOfStore, Needs, Process, bind, condition, serve, use_small_pages, worker_on,
};
use tokio::runtime;
use tracing::{info, warn};

/// Takes in traces over HTTP and gRPC and appends them to the log.
#[derive(Debug, Parser)]
#[command(
    name = "ingest-gateway",
    version,
    after_help = "Example:\n  \
    PANOPTICON_ENGINE=distributed PANOPTICON_KAFKA__BROKERS=kafka:9092 \\\n  \
    PANOPTICON_REDIS__URL=redis://redis:6379 PANOPTICON_LISTEN=0.0.0.0:7420 ingest-gateway"
)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    use_small_pages();
    worker_on(threads, &args.common, "ingest-gateway", run)
}

/// With one thread, what one request has woken runs together with what others have: answers to a connection go out
/// in one write, and no thread is woken to steal another's work.
fn threads(config: &Config) -> runtime::Builder {
    match config.gateway.threads {
        1 => runtime::Builder::new_current_thread(),
        several => {
            let mut builder = runtime::Builder::new_multi_thread();
            builder.worker_threads(several);
            builder
        }
    }
}

async fn run(process: Process) -> anyhow::Result<()> {
    let config = process.config.clone();
    let part = process.health.part("http");
    // Taken first, so that a wrong address is told at once and not after the servers are there.
    let listener = bind(config.listen, "listen").await?;
    let ports = process.ports(Needs { seen: NeedOfSeen::Marks, store: NeedOfStore::Answers }).await?;
    let view = process.control(&ports).await?;
    let sealer = process.sealer().inspect_err(|error| warn!(%error, "apps in HMAC mode are refused")).ok();
    let (seen, store) = (ports.seen()?, ports.store()?);
    let intake = process
        .wait_for("traces.raw", || {
            Intake::open(ports.log.clone(), seen.clone(), Some(store.clone()), &config, process.clock.clone())
        })
        .await?;
    let gateway = Gateway::new(Arc::new(intake), view, sealer, config.clone(), process.clock.clone());
    let stuck_after = Duration::from_millis(config.stages.stuck_after_ms);
    let router = gateway.router().merge(condition(process.health.clone(), stuck_after));
    part.running();
    info!(address = %config.listen, "taking in traces over HTTP and gRPC");
    let drain = Duration::from_millis(config.stages.drain_timeout_ms);
    serve(listener, router, process.shutdown, drain).await;
    Ok(())
}
