//! `/apps/{client_id}/usage`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use jiff::{ToSpan as _, tz::TimeZone};
use panopticon_core::api::{ListAnswer, UsageRow};

use crate::{
    access::{Caller, Need},
    answer::ApiError,
    input::Params,
    room::Room,
};

/// Days shown unless the request says otherwise.
const DEFAULT_DAYS: i64 = 30;
/// The most days of one answer: ten years.
const MAX_DAYS: i32 = 3_660;

pub(super) async fn get(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
    mut params: Params,
) -> Result<Json<ListAnswer<UsageRow>>, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Read)?;
    room.known(&client_id)?;
    let (since, until) = (params.date("since")?, params.date("until")?);
    let name = params.text("tz").unwrap_or_else(|| "UTC".to_owned());
    params.done()?;
    let zone = TimeZone::get(&name).map_err(|_| {
        let shown: String = name.chars().take(64).collect();
        ApiError::invalid("tz", format!("`{shown}` is no IANA time zone such as Asia/Seoul"))
    })?;

    let until = until.unwrap_or_else(|| room.clock.now().to_jiff().to_zoned(zone).date());
    let since = match since {
        Some(since) => since,
        None => until
            .checked_sub((DEFAULT_DAYS - 1).days())
            .map_err(|_| ApiError::invalid("until", "is too early"))?,
    };
    if since > until {
        return Err(ApiError::invalid("since", format!("{since} is after `until`, {until}")));
    }
    if (until - since).get_days() >= MAX_DAYS {
        return Err(ApiError::invalid("since", format!("is more than {MAX_DAYS} days before `until`")));
    }
    let rows = room.store.usage(&client_id, since, until, &name).await?;
    let items = rows.into_iter().map(|(date, counts)| UsageRow { date: date.to_string(), counts }).collect();
    Ok(Json(ListAnswer { items, next_cursor: None }))
}
