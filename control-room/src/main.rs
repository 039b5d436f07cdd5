//! The control room as a process of its own.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use panopticon_control_room::{ControlRoom, ops};
use panopticon_core::{control::ControlWriter, secrets, stage::GROUPS};
use panopticon_process::{CommonArgs, NeedOfStore, Needs, Process, bind, condition, serve, worker};
use panopticon_webhook_dispatcher::egress::Egress;
use tracing::info;

/// Serves the control API, queries and live trace.
#[derive(Debug, Parser)]
#[command(
    name = "control-room",
    version,
    after_help = "Example:\n  \
    PANOPTICON_ENGINE=distributed PANOPTICON_KAFKA__BROKERS=kafka:9092 \\\n  \
    PANOPTICON_CLICKHOUSE__URL=http://clickhouse:8123 PANOPTICON_SECRETS__KEY=$KEY \\\n  \
    PANOPTICON_ADMIN_TOKEN=$TOKEN PANOPTICON_LISTEN=0.0.0.0:7420 control-room"
)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    worker(&Args::parse().common, "control-room", run)
}

/// Writes the configured apps, once the log takes them.
async fn seed(process: &Process, writer: &ControlWriter) -> anyhow::Result<()> {
    let attempt = || async {
        match ops::seed(&process.config, writer).await {
            Err(ops::SeedError::Log(error)) => Err(error),
            decided => Ok(decided),
        }
    };
    Ok(process.wait_for("the configured apps", attempt).await??)
}

async fn run(process: Process) -> anyhow::Result<()> {
    let config = process.config.clone();
    let part = process.health.part("http");
    let listener = bind(config.listen, "listen").await?;
    let sealer = process.sealer()?;
    let admin_token = process.admin_token()?;
    let egress = Egress::new(&config).context("configuration: `webhooks`")?;
    let ports = process.ports(Needs { store: NeedOfStore::Tables, ..Needs::default() }).await?;
    let view = process.control(&ports).await?;
    let writer = Arc::new(ControlWriter::new(ports.log.clone(), view.clone(), process.clock.clone()));
    seed(&process, &writer).await?;
    let room = panopticon_control_room::router(ControlRoom {
        log: ports.log.clone(),
        store: ports.store()?,
        view,
        writer,
        sealer,
        config: config.clone(),
        clock: process.clock.clone(),
        health: process.health.clone(),
        admin_digests: vec![secrets::digest(admin_token.expose())],
        stages: GROUPS.to_vec(),
        gateway_counts: None,
        check_url: Arc::new(move |url: &str| egress.check_url(url).map_err(|error| error.to_string())),
        shutdown: process.shutdown.clone(),
    });
    let stuck_after = Duration::from_millis(config.stages.stuck_after_ms);
    let router = room.merge(condition(process.health.clone(), stuck_after));
    part.running();
    info!(address = %config.listen, "serving the control room");
    let drain = Duration::from_millis(config.stages.drain_timeout_ms);
    serve(listener, router, process.shutdown, drain).await;
    ports.close().await;
    Ok(())
}
