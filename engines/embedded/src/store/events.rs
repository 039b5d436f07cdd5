//! Lists of the small tables, newest first.

use panopticon_core::{
    proto::log::{AuditEntry, Delivery, Detection, GuardAction},
    store::{EventQuery, Page},
    time::Time,
};
use prost::Message;
use rusqlite::{Connection, Row, ToSql};

use super::{QUERY_ROWS_MAX, page};
use crate::fault::Fault;

/// How a table answers an [`EventQuery`]. A filter that says nothing of a table's rows is `None`: it lets
/// all of them through.
struct Table {
    from: &'static str,
    /// Which of its rows are listed.
    listed: &'static str,
    /// What the list is ordered by, and what tells rows of one time apart.
    order: (&'static str, &'static str),
    id: &'static str,
    user_sub: Option<&'static str>,
    deciding_event_id: Option<&'static str>,
    endpoint_id: Option<&'static str>,
}

const DETECTIONS: Table = Table {
    from: "detections_rows",
    listed: "listed",
    order: ("detected_at", "detection_id"),
    id: "detection_id = ?",
    user_sub: Some("user_sub = ?"),
    deciding_event_id: Some("deciding_event_id = ?"),
    endpoint_id: None,
};

const ACTIONS: Table = Table {
    from: "guard_actions_rows",
    listed: "true",
    order: ("created_at", "action_id"),
    id: "action_id = ?",
    user_sub: Some("user_sub = ?"),
    // Most have none; said again for the index that leaves those out.
    deciding_event_id: Some("deciding_event_id = ? AND deciding_event_id <> ''"),
    endpoint_id: None,
};

const DELIVERIES: Table = Table {
    from: "webhook_deliveries_rows",
    listed: "latest",
    order: ("created_at", "delivery_id"),
    id: "webhook_id = ?",
    // What a delivery is about, its action says.
    user_sub: Some("webhook_id IN (SELECT action_id FROM guard_actions_rows WHERE user_sub = ?)"),
    deciding_event_id: Some(
        "webhook_id IN (SELECT action_id FROM guard_actions_rows
         WHERE deciding_event_id = ? AND deciding_event_id <> '')",
    ),
    endpoint_id: Some("endpoint_id = ?"),
};

const AUDIT: Table = Table {
    from: "audit_rows",
    listed: "true",
    order: ("at", "audit_id"),
    id: "audit_id = ?",
    user_sub: None,
    deciding_event_id: None,
    endpoint_id: None,
};

/// Detections by `detected_at`, one an episode.
pub(super) fn detections(conn: &Connection, query: &EventQuery) -> Result<Page<Detection>, Fault> {
    list(conn, &DETECTIONS, query, "message", message)
}

/// Guard actions by `created_at`.
pub(super) fn actions(conn: &Connection, query: &EventQuery) -> Result<Page<GuardAction>, Fault> {
    list(conn, &ACTIONS, query, "message", message)
}

/// Deliveries made since `raw_since` by `created_at`, each in its latest state.
pub(super) fn deliveries(
    conn: &Connection,
    query: &EventQuery,
    raw_since: Time,
) -> Result<Page<Delivery>, Fault> {
    let since = query.since.map_or(raw_since, |since| since.max(raw_since));
    let query = EventQuery { since: Some(since), ..query.clone() };
    list(conn, &DELIVERIES, &query, "message, body", |row| {
        Ok(Delivery { body: row.get::<_, Vec<u8>>(1)?.into(), ..message(row)? })
    })
}

/// Audit entries by `at`.
pub(super) fn audit(conn: &Connection, query: &EventQuery) -> Result<Page<AuditEntry>, Fault> {
    list(conn, &AUDIT, query, "message", message)
}

fn message<M: Message + Default>(row: &Row<'_>) -> Result<M, Fault> {
    let bytes = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
    M::decode(bytes).map_err(|error| Fault::Broken(error.to_string()))
}

fn list<T>(
    conn: &Connection,
    table: &Table,
    query: &EventQuery,
    columns: &str,
    read: impl Fn(&Row<'_>) -> Result<T, Fault>,
) -> Result<Page<T>, Fault> {
    let limit = query.limit.min(QUERY_ROWS_MAX);
    let (time, id) = table.order;
    let mut sql = format!("SELECT {columns} FROM {} WHERE {}", table.from, table.listed);
    let mut values: Vec<Box<dyn ToSql>> = Vec::new();
    let filters = [
        (Some("client_id = ?"), query.client_id.as_ref().map(|id| id.as_str().to_owned())),
        (table.user_sub, query.user_sub.clone()),
        (table.deciding_event_id, query.deciding_event_id.map(|id| id.to_string())),
        (table.endpoint_id, query.endpoint_id.clone()),
        (Some(table.id), query.id.clone()),
    ];
    for (condition, wanted) in filters {
        if let (Some(condition), Some(wanted)) = (condition, wanted) {
            sql.push_str(&format!(" AND {condition}"));
            values.push(Box::new(wanted));
        }
    }
    if let Some(since) = query.since {
        sql.push_str(&format!(" AND {time} >= ?"));
        values.push(Box::new(since.micros()));
    }
    if let Some((before, before_id)) = &query.before {
        sql.push_str(&format!(" AND {time} <= ? AND ({time}, {id}) < (?, ?)"));
        values.push(Box::new(before.micros()));
        values.push(Box::new(before.micros()));
        values.push(Box::new(before_id.clone()));
    }
    sql.push_str(&format!(" ORDER BY {time} DESC, {id} DESC LIMIT ?"));
    values.push(Box::new(limit + 1));

    let mut statement = conn.prepare_cached(&sql)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(page(found, limit))
}
