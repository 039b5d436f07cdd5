//! The webhook dispatcher as a process of its own.

use std::{process::ExitCode, sync::Arc};

use clap::Parser;
use panopticon_core::control::ControlWriter;
use panopticon_process::{CommonArgs, Needs, Process, run_stages, worker};

/// Delivers guard actions to webhook endpoints.
#[derive(Debug, Parser)]
#[command(
    name = "webhook-dispatcher",
    version,
    after_help = "Example:\n  \
    PANOPTICON_ENGINE=distributed PANOPTICON_KAFKA__BROKERS=kafka:9092 \\\n  \
    PANOPTICON_SECRETS__KEY=$KEY webhook-dispatcher"
)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    worker(&Args::parse().common, "webhook-dispatcher", run)
}

async fn run(process: Process) -> anyhow::Result<()> {
    let sealer = process.sealer()?;
    let ports = process.ports(Needs::default()).await?;
    let view = process.control(&ports).await?;
    let writer = Arc::new(ControlWriter::new(ports.log.clone(), view, process.clock.clone()));
    let stages = panopticon_webhook_dispatcher::stages(&process.config, writer, sealer)?;
    run_stages(stages, process.runtime(&ports)).await;
    ports.close().await;
    Ok(())
}
