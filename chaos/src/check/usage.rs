//! Usage is what counting the rows gives.

use serde::Deserialize;
use serde_json::Value;

use super::Finding;
use crate::bed::Bed;

#[derive(Deserialize)]
struct Total {
    rows: usize,
}

pub(super) async fn check(bed: &Bed) -> anyhow::Result<Vec<Finding>> {
    let fine = difference(
        "usage_15m",
        "client_id, toStartOfFifteenMinutes(started_at) AS bucket, user_sub, tool, scope_used, status",
        "client_id, bucket, user_sub, tool, scope_used, status",
    );
    let daily = difference(
        "usage_daily",
        "client_id, toDate(started_at) AS date, tool, scope_used, status",
        "client_id, date, tool, scope_used, status",
    );
    let mut findings = Vec::new();
    for (promise, table, sql) in [
        ("`usage_15m` counts exactly the rows of `traces`", "usage_15m", fine),
        ("`usage_daily` counts exactly the rows of `traces`", "usage_daily", daily),
    ] {
        let differing: Vec<Value> = bed.sql.rows(&sql).await?;
        let total: Vec<Total> =
            bed.sql.rows(&format!("SELECT toUInt64(sum(traces)) AS rows FROM {table}")).await?;
        let checked = total.first().map_or(0, |total| total.rows);
        findings.push(Finding::new(promise, checked, differing.iter().map(Value::to_string).collect()));
    }
    Ok(findings)
}

/// Keys whose counts or durations differ between a usage table and the rows, with where their rows lie.
fn difference(table: &str, key_of_rows: &str, key: &str) -> String {
    format!(
        "SELECT {key}, sum(counted) AS in_usage, sum(rows) AS in_traces, sum(counted_ms) AS ms_in_usage, \
         sum(rows_ms) AS ms_in_traces, groupUniqArrayArray(places) AS log_places FROM (\
         SELECT {key}, toInt64(traces) AS counted, toInt64(0) AS rows, toInt64(duration_ms) AS counted_ms, \
         toInt64(0) AS rows_ms, emptyArrayString() AS places FROM {table} \
         UNION ALL \
         SELECT {key}, 0, toInt64(count()), 0, toInt64(sum(duration_ms)), \
         groupUniqArray(50)(concat(toString(log_partition), '/', toString(log_offset))) FROM \
         (SELECT {key_of_rows}, duration_ms, log_partition, log_offset FROM traces) GROUP BY {key}\
         ) GROUP BY {key} HAVING in_usage != in_traces OR ms_in_usage != ms_in_traces"
    )
}
