//! Single traces: timelines and look-ups by event id.

use panopticon_core::{
    ids::{ClientId, EventId},
    store::{Page, TimelineQuery},
    time::Time,
    trace::{AcceptedTrace, Status, Trace},
};
use rusqlite::{Connection, OptionalExtension as _, Row, ToSql, params, types::Type};
use uuid::Uuid;

use super::{QUERY_ROWS_MAX, page, trace_ids::TraceIds, trace_rows::user_hash};
use crate::fault::Fault;

pub(super) const COLUMNS: &str =
    "t.event_id, t.client_id, t.user_sub, t.tool, t.scope_used, t.status, t.started_at,
    t.duration_ms, t.session_id, t.agent, t.source_ip, t.error_code, t.attributes, t.received_at, t.late";

/// An app's traces received since `raw_since`, newest first.
pub(super) fn timeline(
    conn: &Connection,
    client_id: &ClientId,
    query: &TimelineQuery,
    raw_since: Time,
) -> Result<Page<AcceptedTrace>, Fault> {
    let limit = query.limit.min(QUERY_ROWS_MAX);
    let mut sql = format!(
        "SELECT {COLUMNS} FROM traces_rows t INDEXED BY traces_rows_timeline
         WHERE t.client_id = ? AND t.received_at >= ?"
    );
    let mut values: Vec<Box<dyn ToSql>> =
        vec![Box::new(client_id.as_str().to_owned()), Box::new(raw_since.micros())];
    let mut only = |condition: &str, value: Box<dyn ToSql>| {
        sql.push_str(" AND ");
        sql.push_str(condition);
        values.push(value);
    };
    if let Some(since) = query.since {
        only("t.started_at >= ?", Box::new(since.micros()));
    }
    if let Some(until) = query.until {
        only("t.started_at <= ?", Box::new(until.micros()));
    }
    if let Some(user_sub) = &query.user_sub {
        only("t.user_hash = ?", Box::new(user_hash(user_sub)));
        only("t.user_sub = ?", Box::new(user_sub.clone()));
    }
    if let Some(tool) = &query.tool {
        only("t.tool = ?", Box::new(tool.clone()));
    }
    if let Some(status) = query.status {
        only("t.status = ?", Box::new(status.as_str()));
    }
    if let Some(after) = query.after {
        only("t.started_at <= ?", Box::new(after.started_at.micros()));
        only("(t.started_at, t.event_id) < (?", Box::new(after.started_at.micros()));
        sql.push_str(", ?)");
        values.push(Box::new(after.event_id.0.as_bytes().to_vec()));
    }
    sql.push_str(" ORDER BY t.started_at DESC, t.event_id DESC LIMIT ?");
    values.push(Box::new(limit + 1));

    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map(rusqlite::params_from_iter(values), trace_of)?;
    Ok(page(rows.collect::<Result<_, _>>()?, limit))
}

/// The traces with this event id.
pub(super) fn find(
    conn: &Connection,
    ids: &TraceIds,
    event_id: EventId,
    raw_since: Time,
) -> Result<Vec<AcceptedTrace>, Fault> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM traces_rows t WHERE t.row = ?1 AND t.event_id = ?2 AND t.received_at >= ?3"
    ))?;
    let mut traces = Vec::new();
    for row in ids.rows(conn, event_id)? {
        let one = statement
            .query_row(params![row, event_id.0.as_bytes(), raw_since.micros()], trace_of)
            .optional()?;
        traces.extend(one);
    }
    Ok(traces)
}

/// Whether this app has a trace with this event id.
pub(super) fn known(
    conn: &Connection,
    ids: &TraceIds,
    client_id: &ClientId,
    event_id: EventId,
    raw_since: Time,
) -> Result<bool, Fault> {
    let mut statement = conn.prepare_cached(
        "SELECT 1 FROM traces_rows WHERE row = ?1 AND event_id = ?2 AND received_at >= ?3 AND client_id = ?4",
    )?;
    for row in ids.rows(conn, event_id)? {
        let is_it = params![row, event_id.0.as_bytes(), raw_since.micros(), client_id.as_str()];
        if statement.exists(is_it)? {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn trace_of(row: &Row<'_>) -> rusqlite::Result<AcceptedTrace> {
    let impossible = |column: usize, why: &str| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, why.to_owned().into())
    };
    let attributes: String = row.get(12)?;
    let attributes = match attributes.as_str() {
        "" => Default::default(),
        json => serde_json::from_str(json).map_err(|error| impossible(12, &error.to_string()))?,
    };
    Ok(AcceptedTrace {
        trace: Trace {
            event_id: EventId(Uuid::from_bytes(row.get(0)?)),
            client_id: ClientId::new(row.get_ref(1)?.as_str()?).map_err(|why| impossible(1, why))?,
            user_sub: row.get(2)?,
            tool: row.get(3)?,
            scope_used: row.get(4)?,
            status: Status::parse(row.get_ref(5)?.as_str()?).ok_or_else(|| impossible(5, "no status"))?,
            started_at: Time::from_micros(row.get(6)?),
            duration_ms: row.get(7)?,
            session_id: row.get(8)?,
            agent: row.get(9)?,
            source_ip: row.get(10)?,
            error_code: row.get(11)?,
            attributes,
        },
        received_at: Time::from_micros(row.get(13)?),
        late: row.get(14)?,
        place: None,
    })
}
