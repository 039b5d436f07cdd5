//! Queries of raw traces. None shows a row past its time, whether ClickHouse has deleted it yet or not.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt as _, TryStreamExt as _};
use panopticon_core::{
    ids::{ClientId, EventId},
    store::{Page, TimelineQuery},
    time::Time,
    trace::{AcceptedTrace, Status, Trace},
};
use uuid::Uuid;

use super::{
    filter::Filter,
    server::{Failure, Server},
};

/// Ids of one app asked for in one query.
const KNOWN_IDS_PER_QUERY: usize = 2_000;
/// Such queries under way at once.
const KNOWN_QUERIES: usize = 4;

/// The condition that hides rows past their time.
pub(super) const RECEIVED: &str = "received_at > fromUnixTimestamp64Micro({raw_from:Int64}, 'UTC')";

pub(super) const COLUMNS: &str = "event_id, client_id, user_sub, tool, scope_used, toUInt8(status) AS status_code, \
                       started_at, duration_ms, session_id, agent, source_ip, error_code, attributes, \
                       received_at, late";

#[derive(clickhouse::Row, serde::Deserialize)]
pub(super) struct TraceRow {
    #[serde(with = "clickhouse::serde::uuid")]
    event_id: Uuid,
    client_id: String,
    user_sub: String,
    tool: String,
    scope_used: String,
    status_code: u8,
    started_at: i64,
    duration_ms: u32,
    session_id: String,
    agent: String,
    source_ip: String,
    error_code: String,
    attributes: Vec<(String, String)>,
    received_at: i64,
    late: bool,
}

impl TraceRow {
    pub(super) fn into_trace(self) -> Result<AcceptedTrace, Failure> {
        let client_id = ClientId::new(&self.client_id)
            .map_err(|why| Failure::Broken(format!("a row of `traces` has a client_id that {why}")))?;
        Ok(AcceptedTrace {
            trace: Trace {
                event_id: EventId(self.event_id),
                client_id,
                user_sub: self.user_sub,
                tool: self.tool,
                scope_used: self.scope_used,
                status: match self.status_code {
                    1 => Status::Ok,
                    2 => Status::Error,
                    _ => Status::Denied,
                },
                started_at: Time::from_micros(self.started_at),
                duration_ms: self.duration_ms,
                session_id: self.session_id,
                agent: self.agent,
                source_ip: self.source_ip,
                error_code: self.error_code,
                attributes: self.attributes.into_iter().collect(),
            },
            received_at: Time::from_micros(self.received_at),
            late: self.late,
            place: None,
        })
    }
}

pub(super) async fn timeline(
    server: &Server,
    client_id: &ClientId,
    query: &TimelineQuery,
    raw_from: Time,
) -> Result<Page<AcceptedTrace>, Failure> {
    let mut filter = Filter::default();
    filter.text("client_id = {client_id:String}", "client_id", client_id);
    filter.time(RECEIVED, "raw_from", raw_from);
    if let Some(since) = query.since {
        filter.time("started_at >= fromUnixTimestamp64Micro({since:Int64}, 'UTC')", "since", since);
    }
    if let Some(until) = query.until {
        filter.time("started_at <= fromUnixTimestamp64Micro({until:Int64}, 'UTC')", "until", until);
    }
    if let Some(user_sub) = &query.user_sub {
        filter.text("user_sub = {user_sub:String}", "user_sub", user_sub);
    }
    if let Some(tool) = &query.tool {
        filter.text("tool = {tool:String}", "tool", tool);
    }
    if let Some(status) = query.status {
        filter.text("status = {status:String}", "status", status);
    }
    if let Some(after) = query.after {
        filter.time(
            "started_at <= fromUnixTimestamp64Micro({after:Int64}, 'UTC')",
            "after",
            after.started_at,
        );
        // As text: ClickHouse orders UUIDs by their second half.
        filter.text(
            "(started_at < fromUnixTimestamp64Micro({after:Int64}, 'UTC') \
              OR toString(event_id) < {after_id:String})",
            "after_id",
            after.event_id,
        );
    }
    // The key begins with client_id and started_at: read backwards, until the limit.
    let sql = format!(
        "SELECT {COLUMNS} FROM traces WHERE {} \
         ORDER BY started_at DESC, toString(event_id) DESC LIMIT {{limit:UInt64}}",
        filter.sql()
    );
    let limit = query.limit as usize;
    let rows: Vec<TraceRow> = server.rows(filter.query(server, &sql, limit + 1)).await?;
    let more = rows.len() > limit;
    let items = rows.into_iter().take(limit).map(TraceRow::into_trace).collect::<Result<_, _>>()?;
    Ok(Page { items, more })
}

pub(super) async fn find(
    server: &Server,
    event_id: EventId,
    raw_from: Time,
) -> Result<Vec<AcceptedTrace>, Failure> {
    let mut filter = Filter::default();
    filter.text("event_id = {event_id:UUID}", "event_id", event_id);
    filter.time(RECEIVED, "raw_from", raw_from);
    let sql = format!("SELECT {COLUMNS} FROM traces WHERE {} ORDER BY client_id", filter.sql());
    let rows: Vec<TraceRow> = server.rows(filter.bind(server.query(&sql))).await?;
    rows.into_iter().map(TraceRow::into_trace).collect()
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Known {
    #[serde(with = "clickhouse::serde::uuid")]
    event_id: Uuid,
}

pub(super) async fn known(
    server: &Server,
    traces: &[(ClientId, EventId)],
    raw_from: Time,
) -> Result<Vec<bool>, Failure> {
    // App by app: the key begins with the client_id.
    let mut wanted: HashMap<&ClientId, Vec<String>> = HashMap::new();
    for (client_id, event_id) in traces {
        wanted.entry(client_id).or_default().push(event_id.to_string());
    }
    let mut queries = Vec::new();
    for (client_id, ids) in &wanted {
        for ids in ids.chunks(KNOWN_IDS_PER_QUERY) {
            queries.push(known_of_app(server, client_id, ids, raw_from));
        }
    }
    let found: HashSet<(&ClientId, EventId)> =
        futures::stream::iter(queries).buffer_unordered(KNOWN_QUERIES).try_concat().await?;
    Ok(traces.iter().map(|(client_id, event_id)| found.contains(&(client_id, *event_id))).collect())
}

async fn known_of_app<'a>(
    server: &Server,
    client_id: &'a ClientId,
    ids: &[String],
    raw_from: Time,
) -> Result<HashSet<(&'a ClientId, EventId)>, Failure> {
    let mut filter = Filter::default();
    filter.text("client_id = {client_id:String}", "client_id", client_id);
    filter.time(RECEIVED, "raw_from", raw_from);
    let sql = format!(
        "SELECT DISTINCT event_id FROM traces WHERE {} AND event_id IN {{ids:Array(UUID)}}",
        filter.sql()
    );
    let rows: Vec<Known> = server.rows(filter.bind(server.query(&sql)).param("ids", ids)).await?;
    Ok(rows.into_iter().map(|row| (client_id, EventId(row.event_id))).collect())
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct Last {
    last: i64,
}

/// From the daily counts: a few rows a day instead of all raw ones.
pub(super) async fn last_received(server: &Server, client_id: &ClientId) -> Result<Option<Time>, Failure> {
    let query = server
        .query(
            "SELECT toUnixTimestamp64Micro(max(last_received_at)) AS last FROM usage_daily \
             WHERE client_id = {client_id:String} HAVING count() > 0",
        )
        .param("client_id", client_id.as_str());
    let rows: Vec<Last> = server.rows(query).await?;
    Ok(rows.first().map(|row| Time::from_micros(row.last)))
}
