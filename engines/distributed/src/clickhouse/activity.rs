//! What the aggregates say of users and tools, for rules that know nothing of them yet.

use panopticon_core::{
    store::{Activity, Parts, Whose},
    time::Time,
};

use super::{parts::in_parts, server::Server};

/// Seconds of a bucket.
const BUCKET_SECS: i64 = 900;

#[derive(clickhouse::Row, serde::Deserialize)]
struct ActivityRow {
    client_id: String,
    name: String,
    since: i64,
    calls: u64,
    denied: u64,
}

pub(super) fn activity(server: Server, whose: Whose, since: Time, until: Time) -> Parts<Activity> {
    let name = match whose {
        Whose::Users => "user_sub",
        Whose::Tools => "tool",
    };
    // In the order of the table's key, so that the server neither sorts nor holds all groups.
    let sql = format!(
        "SELECT u.client_id AS client_id, toString(u.{name}) AS name,
             toInt64(toUnixTimestamp(u.bucket)) AS since,
             sum(u.traces) AS calls, sumIf(u.traces, u.status = 'denied') AS denied
         FROM usage_15m AS u
         WHERE u.bucket >= toDateTime({{since:Int64}}, 'UTC') AND u.bucket <= toDateTime({{last:Int64}}, 'UTC')
         GROUP BY u.client_id, u.bucket, u.{name} ORDER BY u.client_id, u.bucket, u.{name}"
    );
    let query = server
        .query(&sql)
        .param("since", since.secs().max(0))
        .param("last", (until.secs() - BUCKET_SECS).max(0))
        .with_setting("optimize_aggregation_in_order", "1");
    in_parts(server, query, |row: ActivityRow| {
        Ok(Activity {
            client_id: row.client_id,
            name: row.name,
            since: Time::from_secs(row.since),
            traces: row.calls,
            denied: row.denied,
        })
    })
}
