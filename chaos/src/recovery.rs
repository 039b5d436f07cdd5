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
/// Longer than this is no recovery, of the time in which no server was hurt.
const LIMIT: Duration = Duration::from_secs(120);

/// The time that has passed without a server being hurt: outages follow each other, and nothing recovers in one.
#[derive(Debug)]
pub struct Calm {
    passed: Duration,
    since: Option<Instant>,
}

impl Default for Calm {
    fn default() -> Self {
        Self { passed: Duration::ZERO, since: Some(Instant::now()) }
    }
}

impl Calm {
    /// It ends here, until it begins again.
    pub fn end(&mut self) {
        self.passed = self.passed();
        self.since = None;
    }

    /// It begins again.
    pub fn begin(&mut self) {
        self.passed = self.passed();
        self.since = Some(Instant::now());
    }

    /// How much there was of it.
    pub fn passed(&self) -> Duration {
        self.passed + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

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
    /// takes in all, outages of servers included.
    pub async fn recovered(&self, bed: &Bed, seed: u64) -> anyhow::Result<Duration> {
        let (began, calm) = (Instant::now(), bed.calm.lock().passed());
        let is_late = || bed.calm.lock().passed() - calm > LIMIT;
        let mut rng = StdRng::seed_from_u64(seed);
        let calls: Vec<_> =
            self.users.iter().map(|user| Arc::new(Call::now(App::Canary, user.as_str(), "sing"))).collect();
        let mut left = calls.clone();
        while !left.is_empty() {
            ensure!(!is_late(), "{} canaries were not taken within {LIMIT:?} of calm", left.len());
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
            ensure!(!is_late(), "{rows} of {} canaries are rows after {LIMIT:?} of calm", calls.len());
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
