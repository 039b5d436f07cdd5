//! The trace store.

mod activity;
pub(crate) mod arrivals;
mod erase;
mod event_rows;
mod events;
mod insert;
mod parts;
mod retention;
mod timeline;
mod trace_ids;
mod trace_rows;
mod usage;

use std::sync::Arc;

use async_trait::async_trait;
use panopticon_core::{
    erasure::{ErasedCounts, Erasure},
    ids::{ClientId, EventId},
    proto::log::{AuditEntry, Delivery, Detection, GuardAction},
    store::{
        Activity, Attempt, BatchRange, EventQuery, Page, Parts, RefusedRow, Rows, StoreError, TimelineQuery,
        TraceStore, UsageCounts, Whose,
    },
    time::Time,
    trace::AcceptedTrace,
};
use rusqlite::{Connection, OptionalExtension as _};

pub(crate) use self::trace_ids::TraceIds;
use crate::{Core, fault::Fault};

/// Most rows that one query answers; a page can be asked for after it.
const QUERY_ROWS_MAX: u32 = 10_000;

/// The trace store of a data directory.
pub(crate) struct Store {
    core: Arc<Core>,
    ids: Arc<TraceIds>,
}

impl Store {
    pub(crate) fn new(core: Arc<Core>, ids: TraceIds) -> Self {
        Self { core, ids: Arc::new(ids) }
    }

    async fn query<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    {
        Ok(self.core.store_readers.read(work).await?)
    }

    /// Raw rows received before this are past their time.
    fn raw_since(&self) -> Time {
        self.core.clock.now().minus(self.core.config.retention.raw())
    }
}

#[async_trait]
impl TraceStore for Store {
    async fn insert(&self, range: BatchRange, rows: Rows, _: Attempt) -> Result<Vec<RefusedRow>, StoreError> {
        // Whether an earlier attempt is in can be read from the file: both kinds are the same here.
        insert::insert(&self.core, &self.ids, range, rows).await?;
        Ok(Vec::new())
    }

    async fn timeline(
        &self,
        client_id: &ClientId,
        query: &TimelineQuery,
    ) -> Result<Page<AcceptedTrace>, StoreError> {
        let (client_id, query, raw_since) = (client_id.clone(), query.clone(), self.raw_since());
        self.query(move |conn| timeline::timeline(conn, &client_id, &query, raw_since)).await
    }

    fn arrivals(&self, client_id: &ClientId, since: Time, until: Time) -> Parts<AcceptedTrace> {
        arrivals::arrivals(arrivals::Wanted {
            database: self.core.database.clone(),
            cache_bytes: self.core.reader_cache_bytes,
            client_id: client_id.clone(),
            since,
            until,
            raw_since: self.raw_since(),
        })
    }

    fn activity(&self, whose: Whose, since: Time, until: Time) -> Parts<Activity> {
        activity::activity(self.core.database.clone(), self.core.reader_cache_bytes, whose, since, until)
    }

    async fn find(&self, event_id: EventId) -> Result<Vec<AcceptedTrace>, StoreError> {
        let (ids, raw_since) = (Arc::clone(&self.ids), self.raw_since());
        self.query(move |conn| timeline::find(conn, &ids, event_id, raw_since)).await
    }

    async fn known(&self, traces: &[(ClientId, EventId)]) -> Result<Vec<bool>, StoreError> {
        let (ids, traces, raw_since) = (Arc::clone(&self.ids), traces.to_vec(), self.raw_since());
        self.query(move |conn| {
            let known = |(app, id): &(ClientId, EventId)| timeline::known(conn, &ids, app, *id, raw_since);
            traces.iter().map(known).collect()
        })
        .await
    }

    async fn usage(
        &self,
        client_id: &ClientId,
        since: jiff::civil::Date,
        until: jiff::civil::Date,
        zone: &str,
    ) -> Result<Vec<(jiff::civil::Date, UsageCounts)>, StoreError> {
        let days = usage::Days::new(since, until, zone)?;
        let client_id = client_id.clone();
        self.query(move |conn| usage::usage(conn, &client_id, &days)).await
    }

    async fn detections(&self, query: &EventQuery) -> Result<Page<Detection>, StoreError> {
        let query = query.clone();
        self.query(move |conn| events::detections(conn, &query)).await
    }

    async fn actions(&self, query: &EventQuery) -> Result<Page<GuardAction>, StoreError> {
        let query = query.clone();
        self.query(move |conn| events::actions(conn, &query)).await
    }

    async fn deliveries(&self, query: &EventQuery) -> Result<Page<Delivery>, StoreError> {
        let (query, raw_since) = (query.clone(), self.raw_since());
        self.query(move |conn| events::deliveries(conn, &query, raw_since)).await
    }

    async fn audit(&self, query: &EventQuery) -> Result<Page<AuditEntry>, StoreError> {
        let query = query.clone();
        self.query(move |conn| events::audit(conn, &query)).await
    }

    async fn last_received(&self, client_id: &ClientId) -> Result<Option<Time>, StoreError> {
        let client_id = client_id.clone();
        self.query(move |conn| {
            let last_at: Option<i64> = conn
                .prepare_cached("SELECT last_at FROM apps_received WHERE client_id = ?1")?
                .query_row([client_id.as_str()], |row| row.get(0))
                .optional()?;
            Ok(last_at.map(Time::from_micros))
        })
        .await
    }

    async fn erase(&self, erasure: &Erasure) -> Result<ErasedCounts, StoreError> {
        Ok(erase::erase(&self.core, Arc::new(erasure.clone())).await?)
    }

    async fn expire(&self, now: Time) -> Result<(), StoreError> {
        retention::expire(&self.core, now.minus(self.core.config.retention.raw())).await?;
        Ok(crate::log::expire(&self.core, now).await?)
    }
}

/// A page of at most `limit` of `rows`, which has one more where there is more.
fn page<T>(mut rows: Vec<T>, limit: u32) -> Page<T> {
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    Page { items: rows, more }
}
