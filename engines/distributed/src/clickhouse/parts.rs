//! Long answers in parts: each is read when it is asked for.

use std::time::Duration;

use clickhouse::{
    RowOwned, RowRead,
    query::{Query, RowCursor},
};
use futures::{StreamExt as _, stream};
use panopticon_core::store::{PART_ROWS, Parts};

use super::server::{Failure, Server};

/// How long the server may take, from the first row to the last.
const QUERY_MAX: Duration = Duration::from_secs(6 * 3_600);
/// How long a part may take; the first may have to wait until all are sorted.
const PART_MAX: Duration = Duration::from_secs(600);
/// With so much in memory, the server goes on sorting on its disk.
const SORT_BYTES: u64 = 256 << 20;

/// The answer to `query`, each row as `read` has it.
pub(super) fn in_parts<R, T>(server: Server, query: Query, read: fn(R) -> Result<T, Failure>) -> Parts<T>
where
    R: RowOwned + RowRead + Send + 'static,
    T: Send + 'static,
{
    let query = query
        .with_setting("max_execution_time", QUERY_MAX.as_secs().to_string())
        .with_setting("max_bytes_before_external_sort", SORT_BYTES.to_string());
    let cursor = match query.fetch::<R>() {
        Ok(cursor) => cursor,
        Err(error) => return stream::iter([Err(server.explain(&error).into())]).boxed(),
    };
    let next = move |(server, cursor): (Server, Option<RowCursor<R>>)| async move {
        let mut cursor = cursor?;
        let part = server.within(PART_MAX, async {
            let mut rows = Vec::new();
            while rows.len() < PART_ROWS
                && let Some(row) = cursor.next().await?
            {
                rows.push(row);
            }
            Ok(rows)
        });
        let part = part.await.and_then(|rows| rows.into_iter().map(read).collect::<Result<Vec<_>, _>>());
        match part {
            Ok(part) if part.is_empty() => None,
            Ok(part) => Some((Ok(part), (server, Some(cursor)))),
            Err(failure) => Some((Err(failure.into()), (server, None))),
        }
    };
    stream::unfold((server, Some(cursor)), next).boxed()
}
