//! How long it takes until accepted traces become rows again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rand::{SeedableRng as _, rngs::StdRng};
use serde::Deserialize;

use crate::{
    bed::{Bed, PARTITIONS},
    call::{App, Call},
    load,
};

/// So many users meet every partition.
const CANDIDATES: u32 = 40;
const FIRST_ROWS_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_PAUSE: Duration = Duration::from_millis(100);
/// Longer than this is no recovery.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A user for each partition.
#[derive(Debug, Clone)]
pub struct Canaries {
    users: Vec<String>,
}

#[derive(Deserialize)]
struct Home {
    user_sub: String,
}

#[derive(Deserialize)]
struct Count {
    rows: usize,
}

impl Canaries {
    /// Finds out which user belongs to which partition.
    pub async fn find(bed: &Bed) -> anyhow::Result<Self> {
        let mut rng = StdRng::seed_from_u64(0);
        let calls: Vec<_> = (0..CANDIDATES)
            .map(|n| Arc::new(Call::now(App::Canary, format!("canary-{n}"), "sing")))
            .collect();
        ensure!(load::insist(bed, &calls, FIRST_ROWS_TIMEOUT, &mut rng).await, "the gateways take nothing");
        let began = Instant::now();
        loop {
            let sql = format!(
                "SELECT min(user_sub) AS user_sub FROM traces WHERE client_id = '{}' GROUP BY log_partition",
                App::Canary.id()
            );
            let users: Vec<Home> = bed.sql.rows(&sql).await?;
            if users.len() == PARTITIONS as usize {
                return Ok(Self { users: users.into_iter().map(|home| home.user_sub).collect() });
            }
            let rows = users.len();
            ensure!(began.elapsed() < FIRST_ROWS_TIMEOUT, "rows of only {rows} partitions before any fault");
            tokio::time::sleep(POLL_PAUSE).await;
        }
    }

    /// Sends a trace to each partition from now on until it is taken, and waits for its row; how long that
    /// takes in all.
    pub async fn recovered(&self, bed: &Bed, seed: u64) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let mut rng = StdRng::seed_from_u64(seed);
        let calls: Vec<_> =
            self.users.iter().map(|user| Arc::new(Call::now(App::Canary, user.as_str(), "sing"))).collect();
        let mut left = calls.clone();
        while !left.is_empty() {
            ensure!(began.elapsed() < LIMIT, "{} canaries were not taken within {LIMIT:?}", left.len());
            left = load::attempt(bed, &left, Duration::from_secs(2), &mut rng).await;
        }
        let ids: Vec<String> = calls.iter().map(|call| format!("'{}'", call.event_id)).collect();
        let sql = format!(
            "SELECT count() AS rows FROM traces WHERE client_id = '{}' AND event_id IN ({})",
            App::Canary.id(),
            ids.join(",")
        );
        loop {
            // A server that is away again has no rows to show.
            let found: Vec<Count> = bed.sql.rows(&sql).await.unwrap_or_default();
            let rows = found.first().map_or(0, |count| count.rows);
            if rows >= calls.len() {
                return Ok(began.elapsed());
            }
            ensure!(began.elapsed() < LIMIT, "{rows} of {} canaries are rows after {LIMIT:?}", calls.len());
            tokio::time::sleep(POLL_PAUSE).await;
        }
    }
}

/// Waits until the stages are at rest.
pub async fn at_rest(bed: &Bed, limit: Duration) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let mut last = String::new();
    while began.elapsed() < limit {
        let path = format!("/apps/{}/status", App::Watched.id());
        let call = bed.control.insist(reqwest::Method::GET, &path, serde_json::Value::Null, limit);
        let status = call.await.context("the control rooms do not tell the lag")?;
        let stages = status["stages"].as_array().cloned().unwrap_or_default();
        let behind: Vec<String> = stages
            .iter()
            .filter(|stage| stage["lag_records"] != 0)
            .map(|stage| format!("{} {}", stage["stage"], stage["lag_records"]))
            .collect();
        let pending = pending_deliveries(bed).await.unwrap_or(usize::MAX);
        if behind.is_empty() && !stages.is_empty() && pending == 0 {
            return Ok(began.elapsed());
        }
        last = format!("behind: [{}], pending deliveries: {pending}", behind.join(", "));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    anyhow::bail!("not at rest after {limit:?}; {last}")
}

async fn pending_deliveries(bed: &Bed) -> anyhow::Result<usize> {
    let sql = "SELECT countIf(last = 'pending') AS rows FROM \
               (SELECT argMax(state, log_offset) AS last FROM webhook_deliveries GROUP BY delivery_id)";
    let counts: Vec<Count> = bed.sql.rows(sql).await?;
    Ok(counts.first().map_or(0, |count| count.rows))
}
