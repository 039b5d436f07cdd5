//! Makes the database and its tables.
//!
//! Every statement can be run again, and by several processes at once: tables are made where they are not
//! there, and `schema_migrations` says which files have been run. A released file is never changed; what comes
//! later gets the next number.

use std::time::Duration;

use panopticon_core::{config::Config, store::StoreError};

use super::{
    cluster,
    server::{Failure, Server},
};

/// The numbered files of `infra/clickhouse`.
const FILES: &[(u32, &str, &str)] = &[
    (1, "traces", include_str!("../../../../infra/clickhouse/0001_traces.sql")),
    (2, "usage", include_str!("../../../../infra/clickhouse/0002_usage.sql")),
    (3, "events", include_str!("../../../../infra/clickhouse/0003_events.sql")),
    (4, "views", include_str!("../../../../infra/clickhouse/0004_views.sql")),
    (5, "merges", include_str!("../../../../infra/clickhouse/0005_merges.sql")),
];

/// Tables whose rows expire with the raw traces, and the column that this goes by.
const EXPIRING: &[(&str, &str)] = &[("traces", "received_at"), ("webhook_deliveries", "created_at")];

const VERSIONS_TABLE: &str = "
    CREATE TABLE IF NOT EXISTS schema_migrations
    (
        version    UInt32,
        name       String,
        applied_at DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC')
    )
    ENGINE = ReplacingMergeTree ORDER BY version";

/// The oldest server that this is known to work with.
const OLDEST_VERSION: (u32, u32) = (25, 8);

/// Two processes that make the same table at once can disturb each other: the loser tries again.
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// What [`migrate`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The server's version.
    pub server_version: String,
    /// The files that were run, as `0001_traces`; empty when all had been.
    pub applied: Vec<String>,
    /// The tables whose retention was changed to the configured one.
    pub retention_changed: Vec<String>,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Text {
    text: String,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Version {
    version: u32,
}

/// Makes the configured database and what is in it, or brings it to the present version and retention.
///
/// [`StoreError::Broken`] when the server is too old or the user may not do it.
pub async fn migrate(config: &Config) -> Result<Migrated, StoreError> {
    let server = Server::new(&config.clickhouse)?;
    let root = server.without_database();
    let server_version = check_version(&root).await?;
    let database = &server.database;
    // The name was checked to be letters, digits and underscores.
    cluster::check(&root, &config.clickhouse).await?;
    run(&root, &format!("CREATE DATABASE IF NOT EXISTS {database}")).await?;
    run(&server, VERSIONS_TABLE).await?;

    let done = versions(&server).await?;
    let mut applied = Vec::new();
    for (version, name, file) in FILES.iter().filter(|(version, ..)| !done.contains(version)) {
        let file = file.replace("{raw_days}", &config.retention.raw_days.to_string());
        for statement in statements(&file) {
            run(&server, statement).await?;
        }
        let note = server
            .query("INSERT INTO schema_migrations (version, name) VALUES ({version:UInt32}, {name:String})")
            .with_setting("async_insert", "0")
            .param("version", version)
            .param("name", name);
        server.execute(note).await?;
        applied.push(format!("{version:04}_{name}"));
    }
    let retention_changed = set_retention(&server, config.retention.raw_days).await?;
    Ok(Migrated { server_version, applied, retention_changed })
}

/// Whether the server and its tables are what this build expects.
pub(super) async fn check(server: &Server) -> Result<(), Failure> {
    check_version(&server.without_database()).await?;
    let done = versions(server).await?;
    match FILES.iter().find(|(version, ..)| !done.contains(version)) {
        None => Ok(()),
        Some((version, name, _)) => Err(Failure::Broken(format!(
            "the database `{}` lacks {version:04}_{name}: run `panopticon migrate`",
            server.database
        ))),
    }
}

async fn check_version(server: &Server) -> Result<String, Failure> {
    let rows: Vec<Text> = server.rows(server.query("SELECT version() AS text")).await?;
    let version = rows.into_iter().next().map(|row| row.text).unwrap_or_default();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor) = OLDEST_VERSION;
    match (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= OLDEST_VERSION {
        true => Ok(version),
        false => Err(Failure::Broken(format!(
            "ClickHouse {version} is too old; it must be at least {major}.{minor}"
        ))),
    }
}

async fn versions(server: &Server) -> Result<Vec<u32>, Failure> {
    let query = server.query("SELECT DISTINCT version FROM schema_migrations");
    let rows: Vec<Version> = server.rows(query).await.map_err(|failure| match failure {
        Failure::Broken(text) => {
            Failure::Broken(format!("{text}; if `{}` is new, run `panopticon migrate`", server.database))
        }
        other => other,
    })?;
    Ok(rows.into_iter().map(|row| row.version).collect())
}

/// The statements of a file: each ends with a semicolon at the end of a line.
fn statements(file: &str) -> impl Iterator<Item = &str> {
    file.split(";\n").map(str::trim).filter(|statement| {
        statement.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with("--"))
    })
}

async fn run(server: &Server, statement: &str) -> Result<(), Failure> {
    let statement = cluster::statement(statement, &server.config);
    let mut attempt = 1;
    loop {
        match server.change(server.query(&statement)).await {
            Err(Failure::Unavailable(text)) if attempt < ATTEMPTS => {
                tracing::debug!(attempt, %text, "a migration's statement is tried again");
                attempt += 1;
                tokio::time::sleep(PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// Retention is configuration, not schema: it follows without a new file.
async fn set_retention(server: &Server, raw_days: u32) -> Result<Vec<String>, Failure> {
    let mut changed = Vec::new();
    for (table, column) in EXPIRING {
        let query = server
            .query(
                "SELECT create_table_query AS text FROM system.tables \
                 WHERE database = {database:String} AND name = {table:String}",
            )
            .param("database", &server.database)
            .param("table", table);
        let rows: Vec<Text> = server.rows(query).await?;
        let wanted = format!("toIntervalDay({raw_days})");
        if rows.iter().any(|row| row.text.contains(&wanted)) {
            continue;
        }
        let alter = format!("ALTER TABLE {table} MODIFY TTL toDateTime({column}) + INTERVAL {raw_days} DAY");
        run(server, &alter).await?;
        changed.push((*table).to_owned());
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_cluster_everything_is_made_on_each_replica_and_remembers_inserts() {
        let config = panopticon_core::config::ClickhouseConfig {
            cluster: "blue-{shard}".to_owned(),
            ..Config::default().clickhouse
        };
        let alone = FILES.iter().flat_map(|(_, _, file)| statements(file)).chain([VERSIONS_TABLE]);
        let mut tables = 0;
        for alone in alone {
            let made = cluster::statement(alone, &config);
            let first = |line: &&str| ["CREATE", "ALTER"].iter().any(|word| line.starts_with(word));
            let head = made.lines().map(str::trim_start).find(first).unwrap();
            assert!(head.contains(" ON CLUSTER 'blue-{shard}'"), "{made}");
            assert_eq!(made.contains("ENGINE = Replicated"), alone.contains("ENGINE = "), "{made}");
            assert!(!made.contains("ENGINE = MergeTree") && !made.contains("non_replicated"), "{made}");
            let window = "replicated_deduplication_window = ";
            assert_eq!(made.contains(window), alone.contains(window), "{made}");
            assert_eq!(made.matches("ON CLUSTER").count(), 1, "{made}");
            tables += usize::from(alone.contains("ENGINE = "));
            assert_eq!(cluster::statement(alone, &Config::default().clickhouse), alone);
        }
        assert_eq!(tables, 8);
    }

    #[tokio::test]
    async fn the_server_reads_what_is_made_on_a_cluster() {
        let Ok(url) = std::env::var("PANOPTICON_TEST_CLICKHOUSE_URL") else {
            return println!("skipped: PANOPTICON_TEST_CLICKHOUSE_URL is not set");
        };
        let cluster = "blue".to_owned();
        let config =
            panopticon_core::config::ClickhouseConfig { url, cluster, ..Config::default().clickhouse };
        let server = Server::new(&config).unwrap().without_database();
        for (_, name, file) in FILES {
            for alone in statements(&file.replace("{raw_days}", "90")) {
                let made = cluster::statement(alone, &config);
                let read = server.execute(server.query(&format!("EXPLAIN AST {made}"))).await;
                assert_eq!(read, Ok(()), "{name}: {made}");
            }
        }
    }

    #[test]
    fn files_are_numbered_in_order_and_hold_statements_that_can_be_run_again() {
        for (i, (version, name, file)) in FILES.iter().enumerate() {
            assert_eq!(*version as usize, i + 1, "{name}");
            for statement in statements(file) {
                let made = statement.contains("IF NOT EXISTS");
                assert!(made || statement.contains("MODIFY SETTING"), "{name}: {statement}");
            }
        }
    }
}
