//! The guard enforcer as a process of its own.

use std::process::ExitCode;

use clap::Parser;
use panopticon_core::topic::Topic;
use panopticon_process::{CommonArgs, Needs, Process, run_stages, worker};

/// Holds traces against policies and turns detections into guard actions.
#[derive(Debug, Parser)]
#[command(
    name = "guard-enforcer",
    version,
    after_help = "Example:\n  \
    PANOPTICON_ENGINE=distributed PANOPTICON_KAFKA__BROKERS=kafka:9092 guard-enforcer"
)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    worker(&Args::parse().common, "guard-enforcer", run)
}

async fn run(process: Process) -> anyhow::Result<()> {
    let ports = process.ports(Needs::default()).await?;
    let view = process.control(&ports).await?;
    let topic = process.wait_for("traces", || ports.log.topic(Topic::Traces)).await?;
    let stages = panopticon_guard_enforcer::stages(view, &process.config.stages, topic.partitions);
    run_stages(stages, process.runtime(&ports)).await;
    ports.close().await;
    Ok(())
}
