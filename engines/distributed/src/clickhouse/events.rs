//! Queries of the small tables: detections, guard actions, deliveries, audit. A page is ordered by time and
//! id, newest first; its rows are rebuilt from the messages that were stored with them.

use bytes::Bytes;
use panopticon_core::{
    proto::log::{AuditEntry, Delivery, Detection, GuardAction},
    store::{EventQuery, Page},
    time::Time,
};
use serde::de::DeserializeOwned;

use super::{
    filter::Filter,
    server::{Failure, Server},
};

#[derive(clickhouse::Row, serde::Deserialize)]
struct Message {
    data: String,
}

#[derive(clickhouse::Row, serde::Deserialize)]
struct DeliveryMessage {
    data: String,
    /// In base 64: a String of ClickHouse is bytes, which the driver reads as UTF-8.
    body: String,
}

pub(super) async fn detections(server: &Server, query: &EventQuery) -> Result<Page<Detection>, Failure> {
    let mut filter = app_and_user(query);
    if let Some(id) = &query.id {
        filter.text("detection_id = {id:String}", "id", id);
    }
    if let Some(event_id) = query.deciding_event_id {
        filter.text("deciding_event_id = {event_id:UUID}", "event_id", event_id);
    }
    let mut page = Filter::default();
    if let Some(since) = query.since {
        page.time("detected_at >= fromUnixTimestamp64Micro({since:Int64}, 'UTC')", "since", since);
    }
    before(
        &mut page,
        query,
        "(detected_at, detection_id) < (fromUnixTimestamp64Micro({before:Int64}, 'UTC'), {before_id:String})",
    );
    // The end of an episode is a row of its own, with all that its beginning said.
    let sql = format!(
        "SELECT data FROM (SELECT detected_at, detection_id, data FROM detections WHERE {} \
             ORDER BY phase = 'ended' DESC, log_offset DESC LIMIT 1 BY detection_id) \
         WHERE {} ORDER BY detected_at DESC, detection_id DESC LIMIT {{limit:UInt64}}",
        filter.sql(),
        page.sql()
    );
    let limit = query.limit as usize;
    messages(server.rows(page.bind(filter.query(server, &sql, limit + 1))).await?, limit)
}

pub(super) async fn actions(server: &Server, query: &EventQuery) -> Result<Page<GuardAction>, Failure> {
    let mut filter = app_and_user(query);
    if let Some(id) = &query.id {
        filter.text("action_id = {id:String}", "id", id);
    }
    if let Some(event_id) = query.deciding_event_id {
        filter.text("deciding_event_id = {event_id:UUID}", "event_id", event_id);
    }
    since_created(&mut filter, query);
    before(
        &mut filter,
        query,
        "(created_at, action_id) < (fromUnixTimestamp64Micro({before:Int64}, 'UTC'), {before_id:String})",
    );
    let sql = format!(
        "SELECT data FROM guard_actions WHERE {} \
         ORDER BY created_at DESC, action_id DESC LIMIT {{limit:UInt64}}",
        filter.sql()
    );
    let limit = query.limit as usize;
    messages(server.rows(filter.query(server, &sql, limit + 1)).await?, limit)
}

pub(super) async fn deliveries(
    server: &Server,
    query: &EventQuery,
    raw_from: Time,
) -> Result<Page<Delivery>, Failure> {
    let mut filter = Filter::default();
    filter.time("created_at > fromUnixTimestamp64Micro({raw_from:Int64}, 'UTC')", "raw_from", raw_from);
    if let Some(client_id) = &query.client_id {
        filter.text("client_id = {client_id:String}", "client_id", client_id);
    }
    if let Some(endpoint_id) = &query.endpoint_id {
        filter.text("endpoint_id = {endpoint_id:String}", "endpoint_id", endpoint_id);
    }
    if let Some(webhook_id) = &query.id {
        filter.text("webhook_id = {id:String}", "id", webhook_id);
    }
    // A delivery does not say whom and what it is about; its action does.
    if let Some(user_sub) = &query.user_sub {
        filter.text(
            "webhook_id IN (SELECT action_id FROM guard_actions WHERE user_sub = {user_sub:String})",
            "user_sub",
            user_sub,
        );
    }
    if let Some(event_id) = query.deciding_event_id {
        filter.text(
            "webhook_id IN (SELECT action_id FROM guard_actions WHERE deciding_event_id = {event_id:UUID})",
            "event_id",
            event_id,
        );
    }
    since_created(&mut filter, query);
    before(
        &mut filter,
        query,
        "(created_at, delivery_id) < (fromUnixTimestamp64Micro({before:Int64}, 'UTC'), {before_id:String})",
    );
    // All states of a delivery have the same created_at: the latest comes first and the others go.
    let sql = format!(
        "SELECT data, base64Encode(body) AS body FROM (SELECT * FROM webhook_deliveries WHERE {} \
             ORDER BY created_at DESC, delivery_id DESC, log_offset DESC, log_index DESC \
             LIMIT 1 BY delivery_id LIMIT {{limit:UInt64}}) \
         ORDER BY created_at DESC, delivery_id DESC",
        filter.sql()
    );
    let limit = query.limit as usize;
    let rows: Vec<DeliveryMessage> = server.rows(filter.query(server, &sql, limit + 1)).await?;
    let more = rows.len() > limit;
    let items = rows
        .into_iter()
        .take(limit)
        .map(|row| {
            use base64::Engine as _;
            let body = base64::prelude::BASE64_STANDARD
                .decode(&row.body)
                .map_err(|error| Failure::Broken(format!("a body cannot be read: {error}")))?;
            Ok(Delivery { body: Bytes::from(body), ..message(&row.data)? })
        })
        .collect::<Result<_, Failure>>()?;
    Ok(Page { items, more })
}

pub(super) async fn audit(server: &Server, query: &EventQuery) -> Result<Page<AuditEntry>, Failure> {
    let mut filter = Filter::default();
    if let Some(client_id) = &query.client_id {
        filter.text("client_id = {client_id:String}", "client_id", client_id);
    }
    if let Some(id) = &query.id {
        filter.text("audit_id = {id:String}", "id", id);
    }
    if let Some(since) = query.since {
        filter.time("at >= fromUnixTimestamp64Micro({since:Int64}, 'UTC')", "since", since);
    }
    before(
        &mut filter,
        query,
        "(at, audit_id) < (fromUnixTimestamp64Micro({before:Int64}, 'UTC'), {before_id:String})",
    );
    let sql = format!(
        "SELECT data FROM audit WHERE {} ORDER BY at DESC, audit_id DESC LIMIT {{limit:UInt64}}",
        filter.sql()
    );
    let limit = query.limit as usize;
    messages(server.rows(filter.query(server, &sql, limit + 1)).await?, limit)
}

fn app_and_user(query: &EventQuery) -> Filter {
    let mut filter = Filter::default();
    if let Some(client_id) = &query.client_id {
        filter.text("client_id = {client_id:String}", "client_id", client_id);
    }
    if let Some(user_sub) = &query.user_sub {
        filter.text("user_sub = {user_sub:String}", "user_sub", user_sub);
    }
    filter
}

fn since_created(filter: &mut Filter, query: &EventQuery) {
    if let Some(since) = query.since {
        filter.time("created_at >= fromUnixTimestamp64Micro({since:Int64}, 'UTC')", "since", since);
    }
}

/// Adds the cursor: `condition` compares with `{before}` and `{before_id}`.
fn before(filter: &mut Filter, query: &EventQuery, condition: &'static str) {
    if let Some((time, id)) = &query.before {
        filter.time(condition, "before", *time);
        filter.value("before_id", id);
    }
}

fn messages<T: DeserializeOwned>(rows: Vec<Message>, limit: usize) -> Result<Page<T>, Failure> {
    let more = rows.len() > limit;
    let items = rows.iter().take(limit).map(|row| message(&row.data)).collect::<Result<_, _>>()?;
    Ok(Page { items, more })
}

fn message<T: DeserializeOwned>(data: &str) -> Result<T, Failure> {
    serde_json::from_str(data)
        .map_err(|error| Failure::Broken(format!("a stored message cannot be read: {error}")))
}
