//! Plain Redis: one key for each trace.

use std::time::Duration;

use anyhow::Context as _;
use redis::{AsyncConnectionConfig, aio::MultiplexedConnection};
use uuid::Uuid;

/// Commands sent together.
const PIPELINE: usize = 1_000;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Remembers `traces` by `SET key value EX`, the value a place in text, in a database of its own, which is
/// emptied; how many bytes that took.
pub async fn fill(url: &str, client_id: &str, traces: u64, seconds: u64) -> anyhow::Result<u64> {
    let mut redis = connect(&format!("{}/1", url.trim_end_matches('/'))).await?;
    let before = used_memory(url).await?;
    let mut left = traces;
    while left > 0 {
        let count = left.min(PIPELINE as u64);
        let mut pipe = redis::pipe();
        for n in left - count..left {
            let key = format!("seen:{client_id}:{}", Uuid::now_v7());
            let place = format!("{:016x}:{}:{}:{}", 1_u64 << 60, n % 4, n / 500, n % 500);
            pipe.cmd("SET").arg(key).arg(place).arg("EX").arg(seconds).ignore();
        }
        pipe.query_async::<()>(&mut redis).await?;
        left -= count;
    }
    let used = used_memory(url).await?.saturating_sub(before);
    redis::cmd("FLUSHDB").query_async::<()>(&mut redis).await?;
    Ok(used)
}

/// Bytes that the server uses for what it holds.
pub async fn used_memory(url: &str) -> anyhow::Result<u64> {
    info(url, "memory").await?.get("used_memory").context("INFO without used_memory")
}

/// How many scripts were called by now.
pub async fn script_calls(url: &str) -> anyhow::Result<u64> {
    let stats = info(url, "commandstats").await?;
    let calls = |name: &str| calls_of(&stats.get::<String>(name)?);
    Ok(["cmdstat_evalsha", "cmdstat_eval"].into_iter().filter_map(calls).sum())
}

/// Of `calls=…,usec=…`.
fn calls_of(stat: &str) -> Option<u64> {
    stat.split(',').find_map(|part| part.strip_prefix("calls=")?.parse().ok())
}

async fn info(url: &str, section: &str) -> anyhow::Result<redis::InfoDict> {
    let mut redis = connect(url).await?;
    Ok(redis::cmd("INFO").arg(section).query_async(&mut redis).await?)
}

/// Patient: what is measured here is no latency.
async fn connect(url: &str) -> anyhow::Result<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(Some(TIMEOUT))
        .set_connection_timeout(Some(TIMEOUT));
    Ok(redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?)
}
