//! Tables that a cluster keeps on each of its replicas.
//!
//! The files of `infra/clickhouse` are written for one server. On a cluster the same statements are run
//! `ON CLUSTER`, with the replicated engine of the same name. One shard: a range of the log is made exactly-once by
//! looking at the rows of it, which must all be in one place.

use std::borrow::Cow;

use panopticon_core::config::ClickhouseConfig;

use super::{
    batch::{TRACES, Table},
    server::{Failure, Server},
};

/// How long replicas remember an insert, beside how many of them (`replicated_deduplication_window`).
const DEDUPLICATION_SECONDS: u32 = 7 * 86_400;

/// The engines of the files.
const ENGINES: [&str; 3] = ["SummingMergeTree", "ReplacingMergeTree", "MergeTree"];

/// What a statement that makes something, or sets how a table works, is on the configured cluster. What changes a
/// replicated table itself is not among them: its replicas tell each other.
pub(super) fn statement<'a>(statement: &'a str, config: &ClickhouseConfig) -> Cow<'a, str> {
    const MADE: &str = " IF NOT EXISTS ";
    const SET: &str = " MODIFY SETTING ";
    let cluster = &config.cluster;
    if cluster.is_empty() {
        return Cow::Borrowed(statement);
    }
    if let Some((before, after)) = statement.split_once(SET) {
        return Cow::Owned(format!("{before} ON CLUSTER '{cluster}'{SET}{after}"));
    }
    let Some((before, after)) = statement.split_once(MADE) else {
        return Cow::Borrowed(statement);
    };
    let (name, rest) = after.split_at(after.find(|c: char| c.is_whitespace()).unwrap_or(after.len()));
    let mut rest = rest.to_owned();
    if let Some(engine) = ENGINES.into_iter().find(|engine| rest.contains(&format!("ENGINE = {engine}"))) {
        rest = rest.replacen(&format!("ENGINE = {engine}"), &format!("ENGINE = Replicated{engine}"), 1);
        rest = rest.replacen(
            "non_replicated_deduplication_window = ",
            &format!(
                "replicated_deduplication_window_seconds = {DEDUPLICATION_SECONDS}, \
                 replicated_deduplication_window = "
            ),
            1,
        );
    }
    Cow::Owned(format!("{before}{MADE}{name} ON CLUSTER '{cluster}'{rest}"))
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Shards {
    shards: u64,
}

/// Whether the configured cluster is one that tables can be made on.
pub(super) async fn check(server: &Server, config: &ClickhouseConfig) -> Result<(), Failure> {
    if config.cluster.is_empty() {
        return Ok(());
    }
    let query = server
        .query("SELECT uniqExact(shard_num) AS shards FROM system.clusters WHERE cluster = {cluster:String}")
        .param("cluster", &config.cluster);
    let shards = server.rows::<Shards>(query).await?.first().map_or(0, |row| row.shards);
    let problem = match shards {
        1 => return Ok(()),
        0 => "is not known to the server (`remote_servers`)".to_owned(),
        _ => format!("has {shards} shards: it must have one, with replicas as you like"),
    };
    Err(Failure::Broken(format!("`clickhouse.cluster`: `{}` {problem}", config.cluster)))
}

/// Has this replica fetch what others have, so that looking at its rows tells what was inserted through them.
pub(super) async fn catch_up(server: &Server, table: &Table) -> Result<(), Failure> {
    if !server.is_cluster() {
        return Ok(());
    }
    let usage = if table.name == TRACES.name { &["usage_15m", "usage_daily"][..] } else { &[] };
    for table in [table.name].iter().chain(usage) {
        server.change(server.query(&format!("SYSTEM SYNC REPLICA {table} LIGHTWEIGHT"))).await?;
    }
    Ok(())
}
