//! Takes a person out of the tables.
//!
//! Each step finds what is left for it to do, so after a crash it is simply made again. What is asked for in
//! a mutation ClickHouse keeps as text for a while: people are named there by a keyed hash only.
//!
//! A user is part of the key of `usage_15m` and cannot be changed there. So for each of the person's counts a
//! block brings in two rows: one that counts the same for the pseudonym, and one that takes it back from the
//! person (sums of UInt64 wrap around). Either both are there or none, and the sums are right at any time.
//! Then the person's rows, which add up to nothing, are deleted.
//!
//! Settling goes by the positions that the rows of a key have reached, so rows that a batch under way may
//! have counted in are left alone: those from `until` on. While there are any, the person's counts and what
//! takes them back stay beside them, for a later call. What remains: a batch with a new trace of the person
//! that comes in and is merged with an old row in the milliseconds between that look and the deletion.

use std::time::Duration;

use clickhouse::query::Query;
use panopticon_core::erasure::{ErasedCounts, Erasure};
use tokio::time::Instant;

use super::{
    batch::position,
    erase_events,
    server::{Failure, Server},
};

/// How long it is waited until what is under way is looked at again.
const PAUSE: Duration = Duration::from_millis(200);

/// The person's traces that are to go.
const TRACES: &str = "client_id = {client_id:String} \
    AND NOT (log_id = {log_id:UInt64} AND log_partition = {partition:UInt32} AND log_offset >= {offset:UInt64})";

/// Rows of usage that no batch under way may have counted in.
const USAGE: &str = "client_id = {client_id:String} \
    AND NOT (log_id = {log_id:UInt64} AND log_partition = {partition:UInt32} AND position >= {position:UInt64})";

const RENAMED_USAGE: &str = "
    INSERT INTO usage_15m (client_id, bucket, user_sub, tool, scope_used, status, traces, duration_ms, log_id,
        log_partition, position)
    SELECT client_id, bucket, side.1, tool, scope_used, status, if(side.2, n, bitNot(n) + 1),
        if(side.2, ms, bitNot(ms) + 1), 0, 0, 0
    FROM
    (
        SELECT client_id, bucket, tool, scope_used, status, sum(traces) AS n, sum(duration_ms) AS ms
        FROM usage_15m
        WHERE {usage} AND user_sub = {user_sub:String}
        GROUP BY client_id, bucket, tool, scope_used, status
        HAVING n != 0 OR ms != 0
    )
    ARRAY JOIN [({user_sub:String}, false), ({pseudonym:String}, true)] AS side";

#[derive(clickhouse::Row, serde::Deserialize)]
struct Number {
    number: u64,
}

pub(super) async fn erase(server: &Server, erasure: &Erasure) -> Result<ErasedCounts, Failure> {
    let work = Work { server, erasure, name: format!("panopticon:{}:erase", server.database) };
    work.until_alone().await?;
    let mut counts = ErasedCounts {
        traces: work.remove_traces().await?,
        usage: work.rename_usage().await?,
        ..ErasedCounts::default()
    };
    counts.usage_left = work.remove_usage().await?;
    erase_events::rename(&work, &mut counts).await?;
    Ok(counts)
}

/// One call.
pub(super) struct Work<'a> {
    pub(super) server: &'a Server,
    pub(super) erasure: &'a Erasure,
    /// What the query_ids of all erasures in this database begin with.
    name: String,
}

impl Work<'_> {
    /// A statement with the parameters that the conditions name.
    pub(super) fn query(&self, sql: &str) -> Query {
        let Erasure { client_id, user_sub, pseudonym, until } = self.erasure;
        self.server
            .query(sql)
            .param("client_id", client_id.as_str())
            .param("user_sub", user_sub)
            .param("pseudonym", pseudonym)
            .param("log_id", until.log_id.0)
            .param("partition", until.partition)
            .param("offset", until.offset)
            .param("position", position(until.offset, 0))
    }

    /// A statement that changes rows; it can be found by its name.
    pub(super) fn change(&self, sql: &str) -> Query {
        self.query(sql)
            .with_setting("query_id", format!("{}:{:016x}", self.name, rand::random::<u64>()))
            .with_setting("mutations_sync", "2")
            .with_setting("lightweight_deletes_sync", "2")
    }

    pub(super) async fn number(&self, sql: &str) -> Result<u64, Failure> {
        let rows: Vec<Number> = self.server.rows(self.query(sql)).await?;
        Ok(rows.first().map_or(0, |row| row.number))
    }

    /// Stops what an earlier call has left running, and waits for mutations under way: in between, rows that
    /// belong together are not all there.
    async fn until_alone(&self) -> Result<(), Failure> {
        let stop = self
            .server
            .query("KILL QUERY WHERE startsWith(query_id, {name:String}) SYNC")
            .param("name", &self.name);
        self.server.execute(stop).await?;
        let deadline = Instant::now() + self.server.query_timeout;
        let under_way = "SELECT count() AS number FROM system.mutations \
             WHERE database = currentDatabase() AND NOT is_done AND NOT is_killed \
                 AND table IN ('traces', 'usage_15m', 'detections', 'guard_actions', 'webhook_deliveries')";
        while self.number(under_way).await? > 0 {
            if Instant::now() > deadline {
                return Err(Failure::Unavailable(
                    "mutations of the trace store are still under way (system.mutations)".to_owned(),
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// The condition that says who it is, by a hash under a key of this moment.
    async fn person(&self) -> Result<String, Failure> {
        let (a, b): (u64, u64) = rand::random();
        let key = format!("sipHash64Keyed((toUInt64({a}), toUInt64({b})), ");
        let hash = self.number(&format!("SELECT {key}{{user_sub:String}}) AS number")).await?;
        Ok(format!("{key}user_sub) = {hash}"))
    }

    async fn remove_traces(&self) -> Result<u64, Failure> {
        let count =
            format!("SELECT count() AS number FROM traces WHERE {TRACES} AND user_sub = {{user_sub:String}}");
        let found = self.number(&count).await?;
        if found > 0 {
            let delete = format!("DELETE FROM traces WHERE {TRACES} AND {}", self.person().await?);
            self.server.change(self.change(&delete)).await?;
        }
        Ok(found)
    }

    /// Moves the person's counts to the pseudonym; answers how many traces they count.
    async fn rename_usage(&self) -> Result<u64, Failure> {
        let count = format!(
            "SELECT sum(traces) AS number FROM usage_15m WHERE {USAGE} AND user_sub = {{user_sub:String}}"
        );
        let traces = self.number(&count).await?;
        let insert = self
            .change(&RENAMED_USAGE.replace("{usage}", USAGE))
            // Both sides of a count in one part.
            .with_setting("max_insert_threads", "1")
            .with_setting("max_threads", "1")
            .with_setting("max_block_size", MAX_ROWS)
            .with_setting("min_insert_block_size_rows", MAX_ROWS)
            .with_setting("min_insert_block_size_bytes", "0")
            .with_setting("insert_deduplicate", "0");
        self.server.change(insert).await?;
        Ok(traces)
    }

    /// Deletes the person's rows of usage, unless a batch under way may have counted in some of them; answers
    /// how many are left.
    async fn remove_usage(&self) -> Result<u64, Failure> {
        let of_app = "FROM usage_15m WHERE client_id = {client_id:String} AND user_sub = {user_sub:String}";
        let left = self.number(&format!("SELECT count() AS number {of_app} AND NOT ({USAGE})")).await?;
        let there = self.number(&format!("SELECT count() AS number {of_app}")).await?;
        if left > 0 || there == 0 {
            return Ok(left);
        }
        let delete = format!("DELETE FROM usage_15m WHERE {USAGE} AND {}", self.person().await?);
        self.server.change(self.change(&delete)).await?;
        Ok(0)
    }
}

/// More counts than a person has in an app: two for each tool and quarter of an hour of years.
const MAX_ROWS: &str = "10000000";
