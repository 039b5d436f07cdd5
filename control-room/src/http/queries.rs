//! Questions to the trace store: timeline, detections, guard actions, audit.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use panopticon_core::{
    api::ListAnswer,
    ids::{ClientId, EventId},
    proto::log::{AuditEntry, Detection, GuardAction},
    store::{EventQuery, Page, TimelineCursor, TimelineQuery},
    time::Time,
    trace::{AcceptedTrace, Status},
};

use crate::{
    access::{Caller, Need},
    answer::ApiError,
    input::{AfterTime, Cursor, Params, encode_cursor},
    room::Room,
};

impl Cursor for TimelineCursor {
    const KIND: &'static str = "timeline";
    fn write(&self) -> String {
        format!("{}:{}", self.started_at.micros(), self.event_id)
    }
    fn read(text: &str) -> Option<Self> {
        let (micros, id) = text.split_once(':')?;
        Some(Self { started_at: Time::from_micros(micros.parse().ok()?), event_id: EventId::parse(id)? })
    }
}

/// A page of the store as the API shows it.
pub(super) fn answer<T, C: Cursor>(page: Page<T>, cursor: impl Fn(&T) -> C) -> Json<ListAnswer<T>> {
    let next_cursor = page.items.last().filter(|_| page.more).map(|last| encode_cursor(&cursor(last)));
    Json(ListAnswer { items: page.items, next_cursor })
}

pub(super) async fn timeline(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
    mut params: Params,
) -> Result<Json<ListAnswer<AcceptedTrace>>, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Read)?;
    room.known(&client_id)?;
    let status = params.text("status").map(|text| {
        Status::parse(&text).ok_or_else(|| ApiError::invalid("status", "must be `ok`, `error` or `denied`"))
    });
    let (limit, after) = params.page()?;
    let query = TimelineQuery {
        since: params.time("since", false)?,
        until: params.time("until", true)?,
        user_sub: params.text("user_sub"),
        tool: params.text("tool"),
        status: status.transpose()?,
        after,
        limit,
    };
    params.done()?;
    if let (Some(since), Some(until)) = (query.since, query.until)
        && since > until
    {
        return Err(ApiError::invalid("since", format!("{since} is after `until`, {until}")));
    }
    let page = room.store.timeline(&client_id, &query).await?;
    Ok(answer(page, |last| TimelineCursor {
        started_at: last.trace.started_at,
        event_id: last.trace.event_id,
    }))
}

/// `since`, `user_sub`, `limit` and `cursor`.
fn events_query(params: &mut Params, client_id: Option<ClientId>) -> Result<EventQuery, ApiError> {
    let (limit, after) = params.page::<AfterTime>()?;
    Ok(EventQuery {
        client_id,
        user_sub: params.text("user_sub"),
        since: params.time("since", false)?,
        before: after.map(|after| (after.0, after.1)),
        limit,
        ..EventQuery::default()
    })
}

pub(super) async fn detections(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
    mut params: Params,
) -> Result<Json<ListAnswer<Detection>>, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Read)?;
    room.known(&client_id)?;
    let query = events_query(&mut params, Some(client_id))?;
    params.done()?;
    let page = room.store.detections(&query).await?;
    Ok(answer(page, |last| AfterTime(Time::from_micros(last.detected_at), last.detection_id.clone())))
}

pub(super) async fn actions(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
    mut params: Params,
) -> Result<Json<ListAnswer<GuardAction>>, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Read)?;
    room.known(&client_id)?;
    let query = events_query(&mut params, Some(client_id))?;
    params.done()?;
    let page = room.store.actions(&query).await?;
    Ok(answer(page, |last| AfterTime(Time::from_micros(last.created_at), last.action_id.clone())))
}

pub(super) async fn audit(
    State(room): State<Arc<Room>>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<ListAnswer<AuditEntry>>, ApiError> {
    let client_id = match params.text("client_id") {
        Some(client_id) => Some(caller.on_app(&client_id, Need::Read)?),
        None => None,
    };
    let (limit, after) = params.page::<AfterTime>()?;
    let query = EventQuery {
        since: params.time("since", false)?,
        before: after.map(|after| (after.0, after.1)),
        limit,
        ..EventQuery::default()
    };
    params.done()?;
    let page = match (client_id, caller.apps()) {
        (None, Some(apps)) => audit_of(&room, apps, query).await?,
        (client_id, _) => room.store.audit(&EventQuery { client_id, ..query }).await?,
    };
    Ok(answer(page, |last| AfterTime(Time::from_micros(last.at), last.audit_id.clone())))
}

/// What concerns some apps: the newest of each, merged.
async fn audit_of(room: &Room, apps: &[String], query: EventQuery) -> Result<Page<AuditEntry>, ApiError> {
    let mut merged = Page { items: Vec::new(), more: false };
    let mut apps: Vec<ClientId> = apps.iter().filter_map(|app| ClientId::new(app).ok()).collect();
    apps.sort();
    apps.dedup();
    for app in apps {
        let page = room.store.audit(&EventQuery { client_id: Some(app), ..query.clone() }).await?;
        merged.more |= page.more;
        merged.items.extend(page.items);
        merged.items.sort_by(|a, b| (b.at, &b.audit_id).cmp(&(a.at, &a.audit_id)));
        merged.more |= merged.items.len() > query.limit as usize;
        merged.items.truncate(query.limit as usize);
    }
    Ok(merged)
}
