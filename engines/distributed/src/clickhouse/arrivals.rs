//! An app's traces in the order in which they were received, for whoever looks at all of them again.

use std::time::Duration;

use clickhouse::query::RowCursor;
use futures::{StreamExt as _, stream};
use panopticon_core::{
    ids::ClientId,
    store::{ARRIVALS_PART, Arrivals},
    time::Time,
};

use super::{
    filter::Filter,
    server::Server,
    traces::{COLUMNS, RECEIVED, TraceRow},
};

/// How long the server may take, from the first row to the last.
const QUERY_MAX: Duration = Duration::from_secs(6 * 3_600);
/// How long a part may take; the first has to wait until all are sorted.
const PART_MAX: Duration = Duration::from_secs(600);
/// With so much in memory, the server goes on sorting on its disk.
const SORT_BYTES: u64 = 256 << 20;

pub(super) fn arrivals(
    server: Server,
    client_id: &ClientId,
    since: Time,
    until: Time,
    raw_from: Time,
) -> Arrivals {
    let mut filter = Filter::default();
    filter.text("client_id = {client_id:String}", "client_id", client_id);
    filter.time(RECEIVED, "raw_from", raw_from);
    filter.time("received_at >= fromUnixTimestamp64Micro({since:Int64}, 'UTC')", "since", since);
    filter.time("received_at <= fromUnixTimestamp64Micro({until:Int64}, 'UTC')", "until", until);
    let sql = format!(
        "SELECT {COLUMNS} FROM traces WHERE {} ORDER BY received_at, log_partition, log_offset, log_index",
        filter.sql()
    );
    let query = filter
        .bind(server.query(&sql))
        .with_setting("max_execution_time", QUERY_MAX.as_secs().to_string())
        .with_setting("max_bytes_before_external_sort", SORT_BYTES.to_string());
    let cursor = match query.fetch::<TraceRow>() {
        Ok(cursor) => cursor,
        Err(error) => return stream::iter([Err(server.explain(&error).into())]).boxed(),
    };
    let next = |(server, cursor): (Server, Option<RowCursor<TraceRow>>)| async move {
        let mut cursor = cursor?;
        let part = server.within(PART_MAX, async {
            let mut rows = Vec::new();
            while rows.len() < ARRIVALS_PART
                && let Some(row) = cursor.next().await?
            {
                rows.push(row);
            }
            Ok(rows)
        });
        let part = part
            .await
            .and_then(|rows| rows.into_iter().map(TraceRow::into_trace).collect::<Result<Vec<_>, _>>());
        match part {
            Ok(part) if part.is_empty() => None,
            Ok(part) => Some((Ok(part), (server, Some(cursor)))),
            Err(failure) => Some((Err(failure.into()), (server, None))),
        }
    };
    stream::unfold((server, Some(cursor)), next).boxed()
}
