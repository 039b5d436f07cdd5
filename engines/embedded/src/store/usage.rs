//! An app's figures by day, in any time zone.

use std::collections::BTreeMap;

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use panopticon_core::{
    ids::ClientId,
    store::{StoreError, UsageCounts},
};
use rusqlite::{Connection, params};

use crate::fault::Fault;

/// Length of the buckets in which usage is kept. Every zone's offset is a multiple of it.
pub(super) const BUCKET_SECS: i64 = 900;
/// Length of a UTC date.
pub(super) const DAY_SECS: i64 = 86_400;

/// The type of guard actions that ask for an approval.
const APPROVAL_REQUESTED: &str = "panopticon.approval_requested";

/// A span of dates in a zone.
pub(super) struct Days {
    zone: TimeZone,
    /// First second.
    start: i64,
    /// One past the last second.
    end: i64,
}

impl Days {
    /// From `since` to `until`, inclusive.
    pub(super) fn new(since: Date, until: Date, zone: &str) -> Result<Self, StoreError> {
        let refuse = |why: String| StoreError::Broken(why);
        let zone = TimeZone::get(zone)
            .map_err(|_| refuse(format!("`{zone}` is not a known time zone, such as Europe/Berlin")))?;
        let start_of = |date: Date| {
            date.to_zoned(zone.clone())
                .map(|day| day.timestamp().as_second())
                .map_err(|error| refuse(format!("date {date}: {error}")))
        };
        let after = until.tomorrow().map_err(|error| refuse(format!("date {until}: {error}")))?;
        Ok(Self { start: start_of(since)?, end: start_of(after)?, zone })
    }

    fn date_at(&self, secs: i64) -> Date {
        let at = Timestamp::from_second(secs).unwrap_or(Timestamp::UNIX_EPOCH);
        self.zone.to_datetime(at).date()
    }

    fn is_utc(&self) -> bool {
        self.zone == TimeZone::UTC || self.zone.iana_name() == Some("Etc/UTC")
    }
}

/// The figures of each date that has any.
pub(super) fn usage(
    conn: &Connection,
    client_id: &ClientId,
    days: &Days,
) -> Result<Vec<(Date, UsageCounts)>, Fault> {
    let mut dates: BTreeMap<Date, UsageCounts> = BTreeMap::new();
    count_traces(conn, client_id, days, &mut dates)?;
    count_actions(conn, client_id, days, &mut dates)?;
    Ok(dates.into_iter().collect())
}

fn count_traces(
    conn: &Connection,
    client_id: &ClientId,
    days: &Days,
    dates: &mut BTreeMap<Date, UsageCounts>,
) -> Result<(), Fault> {
    // UTC dates are kept as such, without users: far fewer rows.
    let sql = if days.is_utc() {
        "SELECT day * 86400, sum(traces), sum(iif(status = 'ok', 0, traces)) FROM usage_daily_rows
         WHERE client_id = ?1 AND day >= ?2 / 86400 AND day < ?3 / 86400 GROUP BY day"
    } else {
        "SELECT bucket, sum(traces), sum(iif(status = 'ok', 0, traces)) FROM usage_15m_rows
         WHERE client_id = ?1 AND bucket >= ?2 AND bucket < ?3 GROUP BY bucket"
    };
    let mut query = conn.prepare_cached(sql)?;
    let mut rows = query.query(params![client_id.as_str(), days.start, days.end])?;
    while let Some(row) = rows.next()? {
        let counts = dates.entry(days.date_at(row.get(0)?)).or_default();
        counts.traces += row.get::<_, i64>(1)?.cast_unsigned();
        counts.errors += row.get::<_, i64>(2)?.cast_unsigned();
    }
    Ok(())
}

fn count_actions(
    conn: &Connection,
    client_id: &ClientId,
    days: &Days,
    dates: &mut BTreeMap<Date, UsageCounts>,
) -> Result<(), Fault> {
    let mut query = conn.prepare_cached(
        "SELECT created_at, kill_state = 'killed' FROM guard_actions_rows
         WHERE client_id = ?1 AND created_at >= ?2 * 1000000 AND created_at < ?3 * 1000000
             AND (kill_state = 'killed' OR type = ?4)",
    )?;
    let mut rows = query.query(params![client_id.as_str(), days.start, days.end, APPROVAL_REQUESTED])?;
    while let Some(row) = rows.next()? {
        let counts = dates.entry(days.date_at(row.get::<_, i64>(0)?.div_euclid(1_000_000))).or_default();
        if row.get(1)? {
            counts.kills += 1;
        } else {
            counts.hitl_requests += 1;
        }
    }
    Ok(())
}
