//! Exactly-once inserts: how far each partition is in stands in the file beside the rows, and is written in
//! the same transaction.

use std::{ops::Range, sync::Arc};

use panopticon_core::{
    store::{BatchRange, Row, Rows},
    trace::TakenBytes,
};
use rusqlite::{OptionalExtension as _, params};

use super::{event_rows, trace_ids::TraceIds, trace_rows};
use crate::{
    Core,
    fault::Fault,
    writer::{Durability, Tx},
};

/// Rows that one job inserts, unless a record has more: the gateway's appends wait behind it.
const JOB_ROWS: usize = 2_000;

/// Puts a batch in, unless it is in; it came from the partition of its range.
pub(super) async fn insert(
    core: &Arc<Core>,
    ids: &Arc<TraceIds>,
    range: BatchRange,
    rows: Rows,
) -> Result<(), Fault> {
    match rows {
        Rows::Traces(rows) => {
            let ids = Arc::clone(ids);
            let put =
                move |tx: &mut Tx<'_>, partition, rows: &[_]| trace_rows::put(tx, &ids, partition, rows);
            let read = |trace: TakenBytes| trace.to_owned().map_err(|error| Fault::Broken(error.to_string()));
            insert_rows(core, range, rows, read, put).await
        }
        Rows::Detections(rows) => insert_rows(core, range, rows, Ok, event_rows::put_detections).await,
        Rows::GuardActions(rows) => insert_rows(core, range, rows, Ok, event_rows::put_actions).await,
        Rows::Deliveries(rows) => insert_rows(core, range, rows, Ok, event_rows::put_deliveries).await,
        Rows::Audit(rows) => insert_rows(core, range, rows, Ok, event_rows::put_audit).await,
    }
}

/// Each row is read just before its part goes in.
async fn insert_rows<T, U>(
    core: &Arc<Core>,
    range: BatchRange,
    rows: Vec<Row<T>>,
    read: impl Fn(T) -> Result<U, Fault>,
    put: impl FnMut(&mut Tx<'_>, u32, &[Row<U>]) -> Result<(), Fault> + Clone + Send + 'static,
) -> Result<(), Fault>
where
    U: Send + 'static,
{
    let parts = parts(&rows, range.to);
    let mut left = rows.into_iter();
    for (part, to) in parts {
        let rows: Vec<Row<U>> =
            left.by_ref().take(part.len()).map(|row| row.try_map(&read)).collect::<Result<_, _>>()?;
        let mut put = put.clone();
        let job = core.writer.run(Durability::Lazy, move |tx| {
            let next = progress(tx, &range)?;
            if next >= to {
                return Ok(());
            }
            let new = &rows[rows.partition_point(|row| row.offset < next)..];
            put(tx, range.partition, new)?;
            set_progress(tx, &range, to)
        });
        job.await?;
    }
    Ok(())
}

/// Cuts rows into parts of whole records, each with the offset after its last; the last ends with the batch.
fn parts<T>(rows: &[Row<T>], to: u64) -> Vec<(Range<usize>, u64)> {
    let mut parts = Vec::new();
    let mut start = 0;
    for (i, row) in rows.iter().enumerate().skip(1) {
        let new_record = row.offset != rows[i - 1].offset;
        if new_record && i - start >= JOB_ROWS {
            parts.push((start..i, rows[i - 1].offset + 1));
            start = i;
        }
    }
    parts.push((start..rows.len(), to));
    parts
}

fn progress(tx: &Tx<'_>, range: &BatchRange) -> Result<u64, Fault> {
    let next: Option<i64> = tx
        .conn
        .prepare_cached(
            "SELECT next FROM store_progress WHERE topic = ?1 AND log_id = ?2 AND partition = ?3",
        )?
        .query_row(params![range.topic.name(), range.log_id.0.cast_signed(), range.partition], |row| {
            row.get(0)
        })
        .optional()?;
    Ok(next.unwrap_or(0).cast_unsigned())
}

fn set_progress(tx: &Tx<'_>, range: &BatchRange, next: u64) -> Result<(), Fault> {
    tx.conn
        .prepare_cached(
            "INSERT OR REPLACE INTO store_progress (topic, log_id, partition, next)
             VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![
            range.topic.name(),
            range.log_id.0.cast_signed(),
            range.partition,
            next.cast_signed()
        ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_between_records_only_and_ends_where_it_says() {
        let rows: Vec<Row<()>> = [(3, 1_500), (4, 1_500), (7, 4_000), (8, 1)]
            .into_iter()
            .flat_map(|(offset, n)| (0..n).map(move |index| Row { offset, index, value: () }))
            .collect();
        assert_eq!(parts(&rows, 12), [(0..3_000, 5), (3_000..7_000, 8), (7_000..7_001, 12)]);
        assert_eq!(parts::<()>(&[], 12), [(0..0, 12)]);
    }
}
