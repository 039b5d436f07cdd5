//! The anomaly detector as a process of its own.

use std::process::ExitCode;

use clap::Parser;
use panopticon_anomaly_detector::settings::SettingsOf;
use panopticon_core::topic::Topic;
use panopticon_process::{CommonArgs, NeedOfStore, Needs, Process, run_stages, worker};

/// Looks for anomalies in the traces and writes detections.
#[derive(Debug, Parser)]
#[command(
    name = "anomaly-detector",
    version,
    after_help = "Example:\n  \
    PANOPTICON_ENGINE=distributed PANOPTICON_KAFKA__BROKERS=kafka:9092 anomaly-detector"
)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    worker(&Args::parse().common, "anomaly-detector", run)
}

async fn run(process: Process) -> anyhow::Result<()> {
    let ports = process.ports(Needs { store: NeedOfStore::Answers, ..Needs::default() }).await?;
    let topic = process.wait_for("traces", || ports.log.topic(Topic::Traces)).await?;
    let settings = SettingsOf::in_force(process.control(&ports).await?);
    let stages = panopticon_anomaly_detector::stages(
        &process.config.stages,
        topic.partitions,
        &settings,
        ports.store.clone(),
    );
    run_stages(stages, process.runtime(&ports)).await;
    ports.close().await;
    Ok(())
}
