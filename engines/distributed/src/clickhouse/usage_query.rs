//! An app's figures per date.

use std::collections::BTreeMap;

use jiff::{civil::Date, tz::TimeZone};
use panopticon_core::{ids::ClientId, store::UsageCounts};

use super::server::{Failure, Server};

/// Counts by UTC date: a few rows a day.
const TRACES_UTC: &str = "
    SELECT toInt32(toUInt16(u.date)) AS day, sum(u.traces) AS traces,
        sumIf(u.traces, u.status != 'ok') AS errors
    FROM usage_daily AS u
    WHERE u.client_id = {client_id:String}
        AND u.date >= toDate({first:UInt32}) AND u.date <= toDate({last:UInt32})
    GROUP BY day";

/// Counts by the dates of a zone: every zone's days begin at a quarter of an hour.
const TRACES_ZONED: &str = "
    SELECT toInt32(toUInt16(toDate(u.bucket, {zone:String}))) AS day, sum(u.traces) AS traces,
        sumIf(u.traces, u.status != 'ok') AS errors
    FROM usage_15m AS u
    WHERE u.client_id = {client_id:String}
        AND u.bucket >= toDateTime({start:Int64}, 'UTC') AND u.bucket < toDateTime({end:Int64}, 'UTC')
    GROUP BY day";

const ACTIONS: &str = "
    SELECT toInt32(toUInt16(toDate(created_at, {zone:String}))) AS day,
        countIf(type = 'panopticon.approval_requested') AS hitl_requests,
        countIf(kill_state = 'killed') AS kills
    FROM guard_actions
    WHERE client_id = {client_id:String}
        AND created_at >= toDateTime({start:Int64}, 'UTC') AND created_at < toDateTime({end:Int64}, 'UTC')
        AND (type = 'panopticon.approval_requested' OR kill_state = 'killed')
    GROUP BY day";

#[derive(clickhouse::Row, serde::Deserialize)]
struct TracesOfDay {
    day: i32,
    traces: u64,
    errors: u64,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct ActionsOfDay {
    day: i32,
    hitl_requests: u64,
    kills: u64,
}

pub(super) async fn usage(
    server: &Server,
    client_id: &ClientId,
    since: Date,
    until: Date,
    zone: &str,
) -> Result<Vec<(Date, UsageCounts)>, Failure> {
    let tz = TimeZone::get(zone)
        .map_err(|_| Failure::Broken(format!("`{zone}` is not a time zone such as Europe/Berlin")))?;
    let Some((since, until)) = within_type(since, until) else { return Ok(Vec::new()) };
    let out_of_range = |error: jiff::Error| Failure::Broken(format!("dates out of range: {error}"));
    let begin = |date: Date| tz.to_zoned(date.into()).map(|zoned| zoned.timestamp().as_second());
    let start = begin(since).map_err(out_of_range)?.max(0);
    let end = begin(until.tomorrow().map_err(out_of_range)?).map_err(out_of_range)?;

    let is_utc = matches!(zone, "UTC" | "Etc/UTC");
    let traces = server
        .query(if is_utc { TRACES_UTC } else { TRACES_ZONED })
        .param("client_id", client_id.as_str())
        .param("zone", zone)
        .param("first", days(since))
        .param("last", days(until))
        .param("start", start)
        .param("end", end);
    let actions = server
        .query(ACTIONS)
        .param("client_id", client_id.as_str())
        .param("zone", zone)
        .param("start", start)
        .param("end", end);
    let (traces, actions) =
        futures::try_join!(server.rows::<TracesOfDay>(traces), server.rows::<ActionsOfDay>(actions))?;

    let mut by_day: BTreeMap<i32, UsageCounts> = BTreeMap::new();
    for TracesOfDay { day, traces, errors } in traces {
        let counts = by_day.entry(day).or_default();
        counts.traces = traces;
        counts.errors = errors;
    }
    for ActionsOfDay { day, hitl_requests, kills } in actions {
        let counts = by_day.entry(day).or_default();
        counts.hitl_requests = hitl_requests;
        counts.kills = kills;
    }
    Ok(by_day.into_iter().map(|(day, counts)| (date(day), counts)).collect())
}

const EPOCH: Date = jiff::civil::date(1970, 1, 1);
const LAST: Date = jiff::civil::date(2099, 12, 31);

/// The part of the dates for which there can be rows.
fn within_type(since: Date, until: Date) -> Option<(Date, Date)> {
    let (since, until) = (since.max(EPOCH), until.min(LAST));
    (since <= until).then_some((since, until))
}

fn days(date: Date) -> i32 {
    date.since(EPOCH).map_or(0, |span| span.get_days())
}

fn date(days: i32) -> Date {
    EPOCH.saturating_add(jiff::Span::new().days(days))
}
