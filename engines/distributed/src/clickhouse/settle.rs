//! Finding out what became of a batch, and putting in exactly what is missing.
//!
//! A deduplication token alone does not do: ClickHouse writes it down before the part has its name, so a
//! crash between the two answers every retry with success and no row; and the window forgets tokens. So the
//! data itself is looked at: rows by their offsets, counts by the position that they have reached (see
//! [`usage`](super::usage)). Tokens are the second guard, against an old sender whose statement arrives late.
//!
//! In rounds, until nothing is missing:
//! 1. Statements of this partition that still run are stopped.
//! 2. In the first round the whole batch is sent as if for the first time, under its own token. What is there
//!    stays as it is, as long as the server remembers the token; what a late statement of an old sender could
//!    still bring is there from then on. It is left out where the token may be forgotten, or where counts are
//!    there and no rows: then the token is used up.
//! 3. After that, missing rows go in marked as repaired, which the materialized views leave alone, and missing
//!    counts go straight into the usage tables, under tokens of the round: every settlement uses them in the
//!    same order, so that what an older one sends late a newer one has sent before.
//!
//! What this relies on: one owner of the partition at a time, who takes ranges in the order of the log and
//! settles one before the next. What remains: an old owner, frozen between deciding to send and sending for
//! longer than the table's tokens are remembered (100,000 inserts), could still add its rows or counts.

use std::collections::{BTreeMap, HashSet};

use clickhouse::query::Query;
use panopticon_core::{
    store::{BatchRange, Row},
    time::Time,
    trace::AcceptedTrace,
};

use super::{
    batch::Batch,
    insert::{Names, send, send_block},
    server::{Failure, Server},
    usage::{Counted, USAGE_15M, USAGE_DAILY, UsageTable},
};

/// Rounds until it is given up for now. Two are usual: one that puts in, one that finds nothing missing.
const MAX_ROUNDS: usize = 6;

/// A token counts as remembered while this many times the inserts since would fit into the window: views have
/// windows of their own, and may write several parts for one of the table.
const REMEMBERED_MARGIN: i64 = 10;

/// A batch of unknown outcome.
pub(super) struct Unsettled<'a> {
    pub(super) server: &'a Server,
    pub(super) range: &'a BatchRange,
    pub(super) batch: &'a Batch,
    /// The batch's traces, where it is of traces.
    pub(super) traces: &'a [Row<AcceptedTrace>],
    /// Rows from before this time may have expired: they are not missed.
    pub(super) expired_before: Time,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Present {
    log_offset: u64,
    log_index: u32,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Tokens {
    /// Parts that were inserted after the batch's rows, at most.
    parts_since: i64,
    /// Of how many the table remembers the tokens.
    window: i64,
}

/// What is not there.
struct Missing<'a> {
    /// Some rows are.
    has_rows: bool,
    rows: Vec<usize>,
    counts: Vec<(&'static UsageTable, Vec<Counted<'a>>)>,
}

impl Missing<'_> {
    fn is_nothing(&self) -> bool {
        self.rows.is_empty() && self.counts.iter().all(|(_, counted)| counted.is_empty())
    }
}

impl Unsettled<'_> {
    /// Settles the batch; answers the rows that the server refuses, by number.
    pub(super) async fn settle(&self) -> Result<BTreeMap<usize, String>, Failure> {
        metrics::counter!("panopticon_clickhouse_settled_batches_total").increment(1);
        let names = Names::new(self.server, self.range);
        self.stop_old_statements(&names).await?;
        let mut refused = BTreeMap::new();
        for round in 0..MAX_ROUNDS {
            let missing = self.missing(&refused).await?;
            if missing.is_nothing() {
                return Ok(refused);
            }
            if round == 0 && self.may_go_whole(&missing).await? {
                refused.extend(send(self.server, self.batch, &names.token("")).await?);
                continue;
            }
            tracing::warn!(
                topic = %self.range.topic,
                partition = self.range.partition,
                from = self.range.from,
                to = self.range.to,
                rows = missing.rows.len(),
                "part of a batch was missing after an interrupted insert; putting it in"
            );
            metrics::counter!("panopticon_clickhouse_repaired_rows_total")
                .increment(missing.rows.len() as u64);
            refused.extend(self.repair(&missing, &names, round.max(1)).await?);
        }
        Err(Failure::Unavailable(format!(
            "rows {} to {} of partition {} of {} are still incomplete after {MAX_ROUNDS} rounds of repair",
            self.range.from, self.range.to, self.range.partition, self.range.topic
        )))
    }

    async fn stop_old_statements(&self, names: &Names) -> Result<(), Failure> {
        let stop = self
            .server
            .query("KILL QUERY WHERE startsWith(query_id, {names:String}) SYNC")
            .param("names", &names.partition);
        self.server.execute(stop).await
    }

    async fn missing(&self, refused: &BTreeMap<usize, String>) -> Result<Missing<'_>, Failure> {
        let present = self.present().await?;
        let has_expired =
            |time: i64| self.batch.table.expires_by.is_some() && time <= self.expired_before.micros();
        let (mut rows, mut taken) = (Vec::new(), HashSet::new());
        for (row, entry) in self.batch.entries.iter().enumerate() {
            if refused.contains_key(&row) {
                continue;
            }
            let place = (entry.offset, entry.index);
            taken.insert(place);
            if !present.contains(&place) && !has_expired(entry.time) {
                rows.push(row);
            }
        }
        let traces = self.traces.iter().filter(|row| taken.contains(&(row.offset, row.index)));
        let mut counts = Vec::new();
        for table in [&USAGE_15M, &USAGE_DAILY] {
            let traces = traces.clone().map(Counted::new);
            counts.push((table, table.not_counted(self.server, self.range, traces).await?));
        }
        Ok(Missing { has_rows: !present.is_empty(), rows, counts })
    }

    /// Whether the whole batch may be sent under its own token.
    async fn may_go_whole(&self, missing: &Missing<'_>) -> Result<bool, Failure> {
        Ok(self.is_everything(missing) || missing.has_rows && self.is_token_remembered().await?)
    }

    /// Whether so few parts were inserted since the batch's rows that its token must be known. A merged part
    /// is as old as the oldest in it, so this errs towards no.
    async fn is_token_remembered(&self) -> Result<bool, Failure> {
        let table = self.batch.table.name;
        let sql = format!(
            "SELECT assumeNotNull((SELECT max(max_block_number) FROM system.parts \
                     WHERE database = currentDatabase() AND table = '{table}' AND active)) \
                 - assumeNotNull((SELECT min(toInt64(splitByChar('_', _part)[2])) FROM {table} \
                     WHERE log_id = {{log_id:UInt64}} AND log_partition = {{log_partition:UInt32}} \
                     AND log_offset >= {{from:UInt64}} AND log_offset < {{to:UInt64}})) AS parts_since, \
                 toInt64OrZero(extract(create_table_query, \
                     'non_replicated_deduplication_window = ([0-9]+)')) AS window \
             FROM system.tables WHERE database = currentDatabase() AND name = '{table}'"
        );
        let tokens: Vec<Tokens> = match self.server.rows(self.of_range(&sql)).await {
            // Most likely a user that may not read `system.parts`.
            Err(Failure::Broken(error)) => {
                tracing::warn!(%error, "it is not known which tokens the server remembers");
                return Ok(false);
            }
            answer => answer?,
        };
        let is_known = |tokens: &Tokens| tokens.parts_since.saturating_mul(REMEMBERED_MARGIN) < tokens.window;
        Ok(tokens.first().is_some_and(is_known))
    }

    /// A query whose parameters are the batch's range.
    fn of_range(&self, sql: &str) -> Query {
        self.server
            .query(sql)
            .param("log_id", self.range.log_id.0)
            .param("log_partition", self.range.partition)
            .param("from", self.range.from)
            .param("to", self.range.to)
    }

    /// Which rows are there.
    async fn present(&self) -> Result<HashSet<(u64, u32)>, Failure> {
        let table = self.batch.table;
        let mut sql = format!(
            "SELECT log_offset, log_index FROM {} WHERE log_id = {{log_id:UInt64}} \
             AND log_partition = {{log_partition:UInt32}} AND log_offset >= {{from:UInt64}} \
             AND log_offset < {{to:UInt64}}",
            table.name
        );
        if let Some(time) = table.expires_by {
            // Says which parts can hold them.
            sql.push_str(&format!(
                " AND {time} >= fromUnixTimestamp64Micro({{first:Int64}}, 'UTC') \
                 AND {time} <= fromUnixTimestamp64Micro({{last:Int64}}, 'UTC')"
            ));
        }
        let times = self.batch.entries.iter().map(|entry| entry.time);
        let query = self
            .of_range(&sql)
            .param("first", times.clone().min().unwrap_or(0))
            .param("last", times.max().unwrap_or(0));
        let rows: Vec<Present> = self.server.rows(query).await?;
        Ok(rows.into_iter().map(|row| (row.log_offset, row.log_index)).collect())
    }

    fn is_everything(&self, missing: &Missing<'_>) -> bool {
        let all = self.batch.len();
        missing.rows.len() == all
            && missing.counts.iter().all(|(_, counted)| self.traces.is_empty() || counted.len() == all)
    }

    async fn repair(
        &self,
        missing: &Missing<'_>,
        names: &Names,
        round: usize,
    ) -> Result<BTreeMap<usize, String>, Failure> {
        let mut refused = BTreeMap::new();
        if !missing.rows.is_empty() {
            let part = self.batch.repair(&missing.rows);
            let token = names.token(&format!("~{round}"));
            for (row, error) in send(self.server, &part, &token).await? {
                refused.insert(missing.rows[row], error);
            }
        }
        for (table, counted) in &missing.counts {
            // What was refused just now is not counted; the next round counts the others.
            if counted.is_empty() || !refused.is_empty() {
                continue;
            }
            let (rows, body) = (table.write)(counted, self.range);
            let token = names.token(&format!("~{round}:{}", table.name));
            send_block(self.server, table.name, table.columns, rows, &token, body.into()).await?;
        }
        Ok(refused)
    }
}
