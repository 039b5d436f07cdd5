//! The tables of the file, how they came to be, and how connections are set.

use std::{path::Path, time::Duration};

use panopticon_core::config::RetentionConfig;
use rusqlite::{Connection, OpenFlags};

use crate::{fault::Fault, views};

/// Size of a page of the file.
pub(crate) const PAGE_BYTES: u64 = 4_096;

/// How long a connection waits for another to let go of the file.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Prepared statements that a connection keeps.
const STATEMENTS: usize = 128;

/// What leads from each version of the file to the next. Never changed once released, only added to.
const MIGRATIONS: &[&str] = &[LOG_AND_SEEN, STORE, REPLAYS];

/// The version of this build's files.
pub(crate) const VERSION: usize = MIGRATIONS.len();

const LOG_AND_SEEN: &str = "
    CREATE TABLE log_partitions (
        slot INTEGER PRIMARY KEY, topic TEXT NOT NULL, partition INTEGER NOT NULL, log_id INTEGER NOT NULL,
        low INTEGER NOT NULL, next INTEGER NOT NULL, created_at INTEGER NOT NULL,
        UNIQUE (topic, partition));
    -- position is slot << 40 | offset.
    CREATE TABLE log_records (
        position INTEGER PRIMARY KEY, appended_at INTEGER NOT NULL, key BLOB NOT NULL, for_stage TEXT,
        payload BLOB);
    -- The latest record of each key of a compacted topic, tombstones included.
    CREATE TABLE log_keys (
        slot INTEGER NOT NULL, key BLOB NOT NULL, position INTEGER NOT NULL,
        PRIMARY KEY (slot, key)) WITHOUT ROWID;
    -- Records of compacted topics that can go after a while: overtaken ones and tombstones.
    CREATE TABLE log_superseded (
        id INTEGER PRIMARY KEY, since INTEGER NOT NULL, position INTEGER NOT NULL);
    CREATE TABLE log_groups (
        stage TEXT NOT NULL, slot INTEGER NOT NULL, next INTEGER NOT NULL, metadata TEXT NOT NULL,
        PRIMARY KEY (stage, slot)) WITHOUT ROWID;

    -- Marks come in random order: they are collected as they come and moved on in sorted runs.
    CREATE TABLE seen_recent (
        id INTEGER PRIMARY KEY, at INTEGER NOT NULL, key BLOB NOT NULL, log_id INTEGER NOT NULL,
        partition INTEGER NOT NULL, offset INTEGER NOT NULL, idx INTEGER NOT NULL);
    CREATE TABLE seen_runs (run INTEGER PRIMARY KEY, last_at INTEGER NOT NULL, filter BLOB NOT NULL);
    CREATE TABLE seen_places (
        run INTEGER NOT NULL, key BLOB NOT NULL, log_id INTEGER NOT NULL, partition INTEGER NOT NULL,
        offset INTEGER NOT NULL, idx INTEGER NOT NULL,
        PRIMARY KEY (run, key)) WITHOUT ROWID;
";

const STORE: &str = "
    CREATE TABLE store_settings (id INTEGER PRIMARY KEY CHECK (id = 1), raw_us INTEGER NOT NULL);
    CREATE TABLE store_progress (
        topic TEXT NOT NULL, log_id INTEGER NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
        PRIMARY KEY (topic, log_id, partition)) WITHOUT ROWID;

    CREATE TABLE traces_rows (
        row INTEGER PRIMARY KEY, client_id TEXT NOT NULL, started_at INTEGER NOT NULL,
        user_hash INTEGER NOT NULL, event_id BLOB NOT NULL, user_sub TEXT NOT NULL, tool TEXT NOT NULL,
        scope_used TEXT NOT NULL, status TEXT NOT NULL, duration_ms INTEGER NOT NULL,
        session_id TEXT NOT NULL, agent TEXT NOT NULL, source_ip TEXT NOT NULL, error_code TEXT NOT NULL,
        attributes TEXT NOT NULL, received_at INTEGER NOT NULL, late INTEGER NOT NULL,
        log_partition INTEGER NOT NULL, log_offset INTEGER NOT NULL, log_index INTEGER NOT NULL);
    CREATE INDEX traces_rows_timeline ON traces_rows (client_id, started_at, user_hash);
    CREATE TABLE traces_info (id INTEGER PRIMARY KEY CHECK (id = 1), next_row INTEGER NOT NULL);
    INSERT INTO traces_info VALUES (1, 1);
    -- Event ids come in random order too: collected as they come, then moved on in sorted runs.
    CREATE TABLE trace_ids_recent (row INTEGER PRIMARY KEY, event_id BLOB NOT NULL);
    CREATE TABLE trace_id_runs (run INTEGER PRIMARY KEY, last_row INTEGER NOT NULL);
    CREATE TABLE trace_ids (
        run INTEGER NOT NULL, event_id BLOB NOT NULL, row INTEGER NOT NULL,
        PRIMARY KEY (run, event_id, row)) WITHOUT ROWID;
    CREATE TABLE apps_received (client_id TEXT PRIMARY KEY, last_at INTEGER NOT NULL) WITHOUT ROWID;

    CREATE TABLE usage_15m_rows (
        client_id TEXT NOT NULL, bucket INTEGER NOT NULL, user_sub TEXT NOT NULL, tool TEXT NOT NULL,
        scope_used TEXT NOT NULL, status TEXT NOT NULL, traces INTEGER NOT NULL,
        duration_ms INTEGER NOT NULL,
        PRIMARY KEY (client_id, bucket, user_sub, tool, scope_used, status)) WITHOUT ROWID;
    CREATE TABLE usage_daily_rows (
        client_id TEXT NOT NULL, day INTEGER NOT NULL, tool TEXT NOT NULL, scope_used TEXT NOT NULL,
        status TEXT NOT NULL, traces INTEGER NOT NULL, duration_ms INTEGER NOT NULL,
        PRIMARY KEY (client_id, day, tool, scope_used, status)) WITHOUT ROWID;

    -- One row a message, as in the topic. `listed` is the first row of its id; its message is what is known
    -- of the episode by now.
    CREATE TABLE detections_rows (
        row INTEGER PRIMARY KEY, detection_id TEXT NOT NULL, listed INTEGER NOT NULL, rule TEXT NOT NULL,
        kind TEXT NOT NULL, phase TEXT NOT NULL, client_id TEXT NOT NULL, user_sub TEXT NOT NULL,
        source_ip TEXT NOT NULL, tool TEXT NOT NULL, severity TEXT NOT NULL, score REAL NOT NULL,
        detected_at INTEGER NOT NULL, emitted_at INTEGER NOT NULL, ended_at INTEGER NOT NULL,
        deciding_event_id TEXT NOT NULL, window_start INTEGER NOT NULL, window_end INTEGER NOT NULL,
        observed REAL NOT NULL, expected REAL NOT NULL, explanation TEXT NOT NULL, data TEXT NOT NULL,
        log_partition INTEGER NOT NULL, log_offset INTEGER NOT NULL, message BLOB NOT NULL);
    CREATE UNIQUE INDEX detections_rows_id ON detections_rows (detection_id) WHERE listed;
    CREATE INDEX detections_rows_app ON detections_rows (client_id, detected_at) WHERE listed;
    CREATE INDEX detections_rows_time ON detections_rows (detected_at) WHERE listed;
    CREATE INDEX detections_rows_trace ON detections_rows (deciding_event_id) WHERE listed;

    CREATE TABLE guard_actions_rows (
        action_id TEXT NOT NULL UNIQUE, type TEXT NOT NULL, client_id TEXT NOT NULL, user_sub TEXT NOT NULL,
        created_at INTEGER NOT NULL, detection_id TEXT NOT NULL, rule TEXT NOT NULL,
        deciding_event_id TEXT NOT NULL, kill_state TEXT NOT NULL, kill_reason TEXT NOT NULL,
        kill_actor TEXT NOT NULL, endpoint_id TEXT NOT NULL, data TEXT NOT NULL,
        log_partition INTEGER NOT NULL, log_offset INTEGER NOT NULL, message BLOB NOT NULL);
    CREATE INDEX guard_actions_rows_app ON guard_actions_rows (client_id, created_at);
    CREATE INDEX guard_actions_rows_time ON guard_actions_rows (created_at);
    CREATE INDEX guard_actions_rows_trace ON guard_actions_rows (deciding_event_id)
        WHERE deciding_event_id <> '';

    -- One row a change of state. `message` is without the body.
    CREATE TABLE webhook_deliveries_rows (
        row INTEGER PRIMARY KEY, delivery_id TEXT NOT NULL, latest INTEGER NOT NULL,
        webhook_id TEXT NOT NULL, endpoint_id TEXT NOT NULL, client_id TEXT NOT NULL,
        type TEXT NOT NULL, body BLOB NOT NULL, state TEXT NOT NULL,
        attempts INTEGER NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
        next_attempt_at INTEGER NOT NULL, last_status INTEGER NOT NULL, last_error TEXT NOT NULL,
        last_latency_ms INTEGER NOT NULL, replayed INTEGER NOT NULL, data TEXT NOT NULL,
        log_partition INTEGER NOT NULL, log_offset INTEGER NOT NULL, message BLOB NOT NULL);
    CREATE UNIQUE INDEX webhook_deliveries_rows_id ON webhook_deliveries_rows (delivery_id) WHERE latest;
    CREATE INDEX webhook_deliveries_rows_app ON webhook_deliveries_rows (client_id, created_at) WHERE latest;
    CREATE INDEX webhook_deliveries_rows_time ON webhook_deliveries_rows (created_at) WHERE latest;
    CREATE INDEX webhook_deliveries_rows_endpoint ON webhook_deliveries_rows (endpoint_id, created_at)
        WHERE latest;
    CREATE INDEX webhook_deliveries_rows_webhook ON webhook_deliveries_rows (webhook_id) WHERE latest;

    CREATE TABLE audit_rows (
        audit_id TEXT NOT NULL UNIQUE, at INTEGER NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
        client_id TEXT NOT NULL, target TEXT NOT NULL, detail TEXT NOT NULL, request_id TEXT NOT NULL,
        data TEXT NOT NULL, log_partition INTEGER NOT NULL, log_offset INTEGER NOT NULL,
        message BLOB NOT NULL);
    CREATE INDEX audit_rows_app ON audit_rows (client_id, at);
    CREATE INDEX audit_rows_time ON audit_rows (at);
";

/// Where a replayed record lay at first; NULL in all others.
const REPLAYS: &str = "ALTER TABLE log_records ADD COLUMN first_offset INTEGER;";

/// Why a file cannot be brought to the present version.
pub(crate) enum MigrateError {
    /// A later build has written it.
    Newer { found: usize, known: usize },
    /// SQLite refused.
    Failed(Fault),
}

impl<E: Into<Fault>> From<E> for MigrateError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The version of a file, which is only read.
pub(crate) fn version(database: &Path) -> Result<usize, Fault> {
    let conn = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    let found: u32 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok(found as usize)
}

/// Brings a new or older file to the present version.
pub(crate) fn migrate(conn: &mut Connection, retention: &RetentionConfig) -> Result<(), MigrateError> {
    conn.execute_batch(&format!("PRAGMA page_size={PAGE_BYTES}; PRAGMA journal_mode=WAL;"))?;
    let found: u32 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let found = found as usize;
    if found > VERSION {
        return Err(MigrateError::Newer { found, known: VERSION });
    }
    let tx = conn.transaction()?;
    for step in &MIGRATIONS[found..] {
        tx.execute_batch(step)?;
    }
    tx.execute_batch(&format!("PRAGMA user_version={}", VERSION))?;
    tx.execute_batch(&views::all())?;
    let raw_us = i64::try_from(retention.raw().as_micros()).unwrap_or(i64::MAX);
    tx.execute("INSERT OR REPLACE INTO store_settings VALUES (1, ?1)", [raw_us])?;
    tx.commit()?;
    Ok(())
}

/// Sets a connection that uses `cache_bytes` of memory.
pub(crate) fn tune(conn: &Connection, cache_bytes: u64) -> rusqlite::Result<()> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    // A negative cache size is in KiB. Checkpoints have a thread of their own.
    conn.execute_batch(&format!(
        "PRAGMA cache_size=-{}; PRAGMA temp_store=MEMORY; PRAGMA wal_autocheckpoint=0;",
        (cache_bytes / 1_024).max(64)
    ))
}
