//! What a batch of traces adds to the usage tables, and how much of that is there already.
//!
//! Normally the materialized views count. Here is what a recovery goes by: a usage row remembers the highest
//! position that it has counted, and a batch's share of a key comes in one part, so a trace has been counted
//! exactly if the row of its key has reached the trace's position. That holds for every age of a bucket,
//! whether the raw rows still exist or not, and concerns no other partition's rows.

use std::{collections::HashMap, hash::Hash};

use panopticon_core::{
    store::{BatchRange, Row},
    trace::AcceptedTrace,
};

use super::{
    batch::{position, status_code},
    row_binary::Writer,
    server::{Failure, Server},
};

const BUCKET_SECS: i64 = 900;
const DAY_SECS: i64 = 86_400;

/// A usage table.
pub(super) struct UsageTable {
    pub(super) name: &'static str,
    pub(super) columns: &'static str,
    pub(super) write: fn(&[Counted<'_>], &BatchRange) -> (usize, Vec<u8>),
    /// Which of the traces the table has not counted.
    reached: &'static str,
    period_secs: i64,
    by_user: bool,
}

pub(super) const USAGE_15M: UsageTable = UsageTable {
    name: "usage_15m",
    columns: "client_id, bucket, user_sub, tool, scope_used, status, traces, duration_ms, log_id, \
              log_partition, position",
    write: write_15m,
    reached: "SELECT u.client_id AS client_id, intDiv(toUnixTimestamp(u.bucket), 900) AS period, \
                  u.user_sub AS user_sub, u.tool AS tool, u.scope_used AS scope_used, \
                  toUInt8(u.status) AS status, max(u.position) AS reached \
              FROM usage_15m AS u \
              WHERE u.log_id = {log_id:UInt64} AND u.log_partition = {log_partition:UInt32} \
                  AND u.position >= {from:UInt64} \
                  AND u.bucket >= toDateTime({first:UInt32} * 900, 'UTC') \
                  AND u.bucket <= toDateTime({last:UInt32} * 900, 'UTC') \
              GROUP BY client_id, period, user_sub, tool, scope_used, status",
    period_secs: BUCKET_SECS,
    by_user: true,
};

pub(super) const USAGE_DAILY: UsageTable = UsageTable {
    name: "usage_daily",
    columns: "client_id, date, tool, scope_used, status, traces, duration_ms, last_received_at, log_id, \
              log_partition, position",
    write: write_daily,
    reached: "SELECT u.client_id AS client_id, toUInt32(toUInt16(u.date)) AS period, '' AS user_sub, \
                  u.tool AS tool, u.scope_used AS scope_used, toUInt8(u.status) AS status, \
                  max(u.position) AS reached \
              FROM usage_daily AS u \
              WHERE u.log_id = {log_id:UInt64} AND u.log_partition = {log_partition:UInt32} \
                  AND u.position >= {from:UInt64} \
                  AND u.date >= toDate({first:UInt32}) AND u.date <= toDate({last:UInt32}) \
              GROUP BY client_id, period, user_sub, tool, scope_used, status",
    period_secs: DAY_SECS,
    by_user: false,
};

/// A trace as usage tables see it.
pub(super) struct Counted<'a> {
    trace: &'a AcceptedTrace,
    position: u64,
}

impl<'a> Counted<'a> {
    pub(super) fn new(row: &'a Row<AcceptedTrace>) -> Self {
        Self { trace: &row.value, position: position(row.offset, row.index) }
    }
}

/// What usage rows are told apart by, beside the partition: client_id, number of the period, user_sub,
/// tool, scope_used, status.
type Key<'a> = (&'a str, u32, &'a str, &'a str, &'a str, u8);

#[derive(Default)]
struct Share {
    traces: u64,
    duration_ms: u64,
    last_received_at: i64,
    position: u64,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Reached {
    client_id: String,
    period: u32,
    user_sub: String,
    tool: String,
    scope_used: String,
    status: u8,
    reached: u64,
}

impl UsageTable {
    fn key<'a>(&self, trace: &'a AcceptedTrace) -> Key<'a> {
        let trace = &trace.trace;
        let user = if self.by_user { trace.user_sub.as_str() } else { "" };
        (
            trace.client_id.as_str(),
            self.period(trace.started_at.secs()),
            user,
            &trace.tool,
            &trace.scope_used,
            status_code(trace.status),
        )
    }

    fn period(&self, secs: i64) -> u32 {
        u32::try_from(secs / self.period_secs).unwrap_or(0)
    }

    /// Which of `traces`, in the order of the log, this table has not counted.
    pub(super) async fn not_counted<'a>(
        &self,
        server: &Server,
        range: &BatchRange,
        traces: impl Iterator<Item = Counted<'a>> + Clone,
    ) -> Result<Vec<Counted<'a>>, Failure> {
        let periods = traces.clone().map(|counted| self.period(counted.trace.trace.started_at.secs()));
        let Some((first, last)) = bounds(periods) else { return Ok(Vec::new()) };
        let query = server
            .query(self.reached)
            .param("log_id", range.log_id.0)
            .param("log_partition", range.partition)
            .param("from", position(range.from, 0))
            .param("first", first)
            .param("last", last);
        let rows: Vec<Reached> = server.rows(query).await?;
        let reached: HashMap<Key<'_>, u64> = rows
            .iter()
            .map(|row| {
                let key: Key<'_> =
                    (&row.client_id, row.period, &row.user_sub, &row.tool, &row.scope_used, row.status);
                (key, row.reached)
            })
            .collect();
        Ok(traces
            .filter(|counted| {
                reached.get(&self.key(counted.trace)).is_none_or(|reached| counted.position > *reached)
            })
            .collect())
    }
}

fn bounds(numbers: impl Iterator<Item = u32>) -> Option<(u32, u32)> {
    numbers.fold(None, |bounds, n| match bounds {
        None => Some((n, n)),
        Some((first, last)) => Some((n.min(first), n.max(last))),
    })
}

fn shares<'a, K: Hash + Eq>(
    traces: &'a [Counted<'_>],
    key: impl Fn(&'a AcceptedTrace) -> K,
) -> HashMap<K, Share> {
    let mut shares: HashMap<K, Share> = HashMap::new();
    for Counted { trace, position } in traces {
        let share = shares.entry(key(trace)).or_default();
        share.traces += 1;
        share.duration_ms += u64::from(trace.trace.duration_ms);
        share.last_received_at = share.last_received_at.max(trace.received_at.micros());
        share.position = share.position.max(*position);
    }
    shares
}

fn write_15m(traces: &[Counted<'_>], range: &BatchRange) -> (usize, Vec<u8>) {
    let shares = shares(traces, |trace| USAGE_15M.key(trace));
    let mut out = Writer::default();
    for ((client_id, period, user_sub, tool, scope_used, status), share) in &shares {
        out.text(client_id)
            .u32(period * BUCKET_SECS as u32)
            .text(user_sub)
            .text(tool)
            .text(scope_used)
            .u8(*status)
            .u64(share.traces)
            .u64(share.duration_ms)
            .u64(range.log_id.0)
            .u32(range.partition)
            .u64(share.position);
    }
    (shares.len(), out.0)
}

fn write_daily(traces: &[Counted<'_>], range: &BatchRange) -> (usize, Vec<u8>) {
    let shares = shares(traces, |trace| USAGE_DAILY.key(trace));
    let mut out = Writer::default();
    for ((client_id, period, _, tool, scope_used, status), share) in &shares {
        out.text(client_id)
            // Days fit: a row's times are before 2100.
            .u16(u16::try_from(*period).unwrap_or(u16::MAX))
            .text(tool)
            .text(scope_used)
            .u8(*status)
            .u64(share.traces)
            .u64(share.duration_ms)
            .i64(share.last_received_at)
            .u64(range.log_id.0)
            .u32(range.partition)
            .u64(share.position);
    }
    (shares.len(), out.0)
}
