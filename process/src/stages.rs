//! Running stages until the process ends, and telling how far they are behind.

use std::{sync::Arc, time::Duration};

use panopticon_core::stage::{Runtime, Stage, run_stage};
use tokio::task::JoinSet;
use tracing::debug;

/// How often the lag is measured.
const LAG_EVERY: Duration = Duration::from_secs(10);

/// Runs `stages` until the shutdown and the drain are over.
pub async fn run_stages(stages: Vec<Arc<dyn Stage>>, runtime: Runtime) {
    let mut running = JoinSet::new();
    for stage in &stages {
        running.spawn(run_stage(stage.clone(), runtime.clone()));
    }
    let lag = tokio::spawn(tell_lag(stages, runtime));
    while running.join_next().await.is_some() {}
    lag.abort();
}

async fn tell_lag(stages: Vec<Arc<dyn Stage>>, runtime: Runtime) {
    let mut tick = tokio::time::interval(LAG_EVERY);
    loop {
        tick.tick().await;
        for stage in &stages {
            let partitions = match runtime.log.lag(stage.name(), stage.input()).await {
                Ok(partitions) => partitions,
                Err(error) => {
                    debug!(stage = stage.name(), %error, "cannot measure the lag now");
                    continue;
                }
            };
            for lag in partitions {
                let behind = lag.bounds.high.saturating_sub(lag.committed.offset.unwrap_or(lag.bounds.low));
                metrics::gauge!("panopticon_stage_lag_records", "stage" => stage.name(),
                    "topic" => stage.input().name(), "partition" => lag.partition.to_string())
                .set(behind as f64);
            }
        }
    }
}
