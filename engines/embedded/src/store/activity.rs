//! What the aggregates say of users, for rules that know nothing of them yet.

use std::path::PathBuf;

use panopticon_core::{
    store::{Activity, PART_ROWS, Parts},
    time::Time,
};
use rusqlite::params;

use super::{
    parts::{Sending, in_parts},
    usage::BUCKET_SECS,
};
use crate::{fault::Fault, readers};

/// In the order of the table's key: nothing is sorted.
const ACTIVITY: &str = "
    SELECT client_id, user_sub, bucket, sum(traces), sum(CASE status WHEN 'denied' THEN traces ELSE 0 END)
    FROM usage_15m_rows WHERE bucket >= ?1 AND bucket <= ?2 AND user_sub <> ''
    GROUP BY client_id, bucket, user_sub";

pub(super) fn activity(database: PathBuf, cache_bytes: u64, since: Time, until: Time) -> Parts<Activity> {
    in_parts(move |parts: &Sending<Activity>| -> Result<(), Fault> {
        let conn = readers::open(&database, cache_bytes)?;
        let mut statement = conn.prepare(ACTIVITY)?;
        let last = until.secs() - BUCKET_SECS;
        let rows = statement.query_map(params![since.secs(), last], |row| {
            Ok(Activity {
                client_id: row.get(0)?,
                user_sub: row.get(1)?,
                since: Time::from_secs(row.get(2)?),
                traces: row.get::<_, i64>(3)?.unsigned_abs(),
                denied: row.get::<_, i64>(4)?.unsigned_abs(),
            })
        })?;
        let mut part = Vec::new();
        for row in rows {
            part.push(row?);
            if part.len() == PART_ROWS && !parts.send(std::mem::take(&mut part)) {
                return Ok(());
            }
        }
        parts.send(part);
        Ok(())
    })
}
