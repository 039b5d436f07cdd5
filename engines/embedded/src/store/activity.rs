//! What the aggregates say of users and tools, for rules that know nothing of them yet.

use std::{mem, path::PathBuf};

use panopticon_core::{
    store::{Activity, PART_ROWS, Parts, Whose},
    time::Time,
};
use rusqlite::{Row, params};

use super::{
    parts::{Sending, in_parts},
    usage::BUCKET_SECS,
};
use crate::{fault::Fault, readers};

/// In the order of the table's key, or nearly so: no more than a quarter of an hour of an app is sorted. The rows of
/// one user or tool follow each other, and are added up by who reads them, since SQLite would sort all of them to
/// do it.
const USERS: &str = "
    SELECT client_id, user_sub, bucket, traces, iif(status = 'denied', traces, 0) FROM usage_15m_rows
    WHERE bucket >= ?1 AND bucket <= ?2 ORDER BY client_id, bucket, user_sub";
const TOOLS: &str = "
    SELECT client_id, tool, bucket, traces, iif(status = 'denied', traces, 0) FROM usage_15m_rows
    WHERE bucket >= ?1 AND bucket <= ?2 ORDER BY client_id, bucket, tool";

pub(super) fn activity(
    database: PathBuf,
    cache_bytes: u64,
    whose: Whose,
    since: Time,
    until: Time,
) -> Parts<Activity> {
    in_parts(move |parts: &Sending<Activity>| -> Result<(), Fault> {
        let conn = readers::open(&database, cache_bytes)?;
        let mut statement = conn.prepare(match whose {
            Whose::Users => USERS,
            Whose::Tools => TOOLS,
        })?;
        let last = until.secs() - BUCKET_SECS;
        let mut part: Vec<Activity> = Vec::new();
        for row in statement.query_map(params![since.secs(), last], read)? {
            let more = row?;
            match part.last_mut() {
                Some(one) if is_of_same(one, &more) => {
                    one.traces += more.traces;
                    one.denied += more.denied;
                }
                _ => {
                    if part.len() == PART_ROWS && !parts.send(mem::take(&mut part)) {
                        return Ok(());
                    }
                    part.push(more);
                }
            }
        }
        parts.send(part);
        Ok(())
    })
}

fn read(row: &Row<'_>) -> rusqlite::Result<Activity> {
    Ok(Activity {
        client_id: row.get(0)?,
        name: row.get(1)?,
        since: Time::from_secs(row.get(2)?),
        traces: row.get::<_, i64>(3)?.unsigned_abs(),
        denied: row.get::<_, i64>(4)?.unsigned_abs(),
    })
}

fn is_of_same(one: &Activity, other: &Activity) -> bool {
    (one.since, &one.name, &one.client_id) == (other.since, &other.name, &other.client_id)
}
