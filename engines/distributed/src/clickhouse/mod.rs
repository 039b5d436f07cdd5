//! The trace store on ClickHouse.
//!
//! [`migrate`] makes the tables, which are also what analysts read (`infra/clickhouse/*.sql`).
//! [`ClickhouseStore`] puts batches in, exactly once, and answers the control room's queries. Rows are
//! written in RowBinary by hand, so that a batch is kept until its outcome is known and can be cut in two.

mod activity;
mod arrivals;
mod batch;
mod cluster;
mod erase;
mod erase_events;
mod events;
mod filter;
mod insert;
mod migrate;
mod parts;
mod row_binary;
mod server;
mod settle;
mod traces;
mod usage;
mod usage_query;

use std::{collections::HashSet, time::Duration};

use async_trait::async_trait;
use panopticon_core::{
    config::Config,
    erasure::{ErasedCounts, Erasure},
    ids::{ClientId, EventId},
    proto::log::{AuditEntry, Delivery, Detection, GuardAction},
    store::{
        Activity, Attempt, BatchRange, EventQuery, Page, Parts, RefusedRow, Rows, StoreError, TimelineQuery,
        TraceStore, UsageCounts, Whose,
    },
    time::{SharedClock, Time},
    trace::AcceptedTrace,
};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use batch::Batch;
use insert::Names;
use server::Server;
use settle::Unsettled;

pub use migrate::{Migrated, migrate};

/// Whether the configuration is one to connect with.
pub(crate) fn check(config: &Config) -> Result<(), StoreError> {
    Ok(Server::new(&config.clickhouse).map(|_| ())?)
}

/// Ranges of unknown outcome that are remembered; a partition has one at most.
const MAX_DOUBTS: usize = 10_000;

/// Keeps traces and what came of them in ClickHouse.
pub struct ClickhouseStore {
    server: Server,
    clock: SharedClock,
    raw: Duration,
    insert_pace: Duration,
    /// What this process began to insert and does not know the end of.
    doubts: Mutex<HashSet<BatchRange>>,
    /// Set once the tables are known to be those of this build.
    tables: OnceCell<()>,
    /// With what the tables are made, where that is left to the first insert.
    migrate: Option<Box<Config>>,
}

impl ClickhouseStore {
    /// Connects to the configured server. `clock` says which rows are past their time.
    ///
    /// [`StoreError::Unavailable`] when the server is not there, [`StoreError::Broken`] when it is too old or
    /// its tables are not those of this build: run [`migrate`] first.
    pub async fn connect(config: &Config, clock: SharedClock) -> Result<Self, StoreError> {
        let store = Self::later(config, clock)?;
        store.check_tables().await?;
        Ok(store)
    }

    /// The same without looking whether the server is there: until it is, calls are
    /// [`StoreError::Unavailable`].
    pub fn later(config: &Config, clock: SharedClock) -> Result<Self, StoreError> {
        let server = Server::new(&config.clickhouse)?;
        let insert_pace = Duration::from_millis(config.clickhouse.insert_pace_ms);
        let (doubts, tables) = (Mutex::default(), OnceCell::new());
        Ok(Self { server, clock, raw: config.retention.raw(), insert_pace, doubts, tables, migrate: None })
    }

    /// The same; where the configuration lets processes migrate, the first insert does.
    pub fn later_with_tables(config: &Config, clock: SharedClock) -> Result<Self, StoreError> {
        let migrate = config.migrate_at_start.then(|| Box::new(config.clone()));
        Ok(Self { migrate, ..Self::later(config, clock)? })
    }

    /// Rows must not go into tables of another build.
    async fn check_tables(&self) -> Result<(), StoreError> {
        let check = async || -> Result<(), StoreError> {
            if let Some(config) = &self.migrate {
                migrate(config).await?;
            }
            Ok(migrate::check(&self.server).await?)
        };
        self.tables.get_or_try_init(check).await?;
        Ok(())
    }

    /// The time before which raw rows are not shown.
    fn raw_from(&self) -> Time {
        self.clock.now().minus(self.raw)
    }

    fn in_doubt(&self, range: &BatchRange) -> bool {
        self.doubts.lock().contains(range)
    }

    fn doubt(&self, range: BatchRange) {
        let mut doubts = self.doubts.lock();
        if doubts.len() < MAX_DOUBTS {
            doubts.insert(range);
        }
    }
}

#[async_trait]
impl TraceStore for ClickhouseStore {
    async fn insert(
        &self,
        range: BatchRange,
        rows: Rows,
        attempt: Attempt,
    ) -> Result<Vec<RefusedRow>, StoreError> {
        self.check_tables().await?;
        let (batch, mut refused) = Batch::new(&range, &rows);
        if batch.len() == 0 {
            return Ok(refused);
        }
        let doubtful = attempt == Attempt::Again || self.in_doubt(&range);
        // From here on, whatever stops this call leaves the outcome unknown.
        self.doubt(range);
        let refused_rows = if doubtful {
            let traces = match rows {
                Rows::Traces(traces) => traces
                    .into_iter()
                    .map(|row| row.try_map(|trace| trace.to_owned()))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|error| StoreError::Broken(error.to_string()))?,
                _ => Vec::new(),
            };
            cluster::catch_up(&self.server, batch.table).await?;
            let (server, batch, range) = (&self.server, &batch, &range);
            Unsettled { server, range, batch, traces: &traces, expired_before: self.raw_from() }
                .settle()
                .await?
        } else {
            // Only the bytes to send are needed from here on.
            drop(rows);
            let names = Names::new(&self.server, &range);
            insert::send(&self.server, &batch, &names.token("")).await?
        };
        self.doubts.lock().remove(&range);
        refused.extend(insert::named(&batch, refused_rows));
        refused.sort_by_key(|row| (row.offset, row.index));
        Ok(refused)
    }

    fn insert_pace(&self) -> Duration {
        self.insert_pace
    }

    async fn timeline(
        &self,
        client_id: &ClientId,
        query: &TimelineQuery,
    ) -> Result<Page<AcceptedTrace>, StoreError> {
        Ok(traces::timeline(&self.server, client_id, query, self.raw_from()).await?)
    }

    fn arrivals(&self, client_id: &ClientId, since: Time, until: Time) -> Parts<AcceptedTrace> {
        arrivals::arrivals(self.server.clone(), client_id, since, until, self.raw_from())
    }

    fn activity(&self, whose: Whose, since: Time, until: Time) -> Parts<Activity> {
        activity::activity(self.server.clone(), whose, since, until)
    }

    async fn find(&self, event_id: EventId) -> Result<Vec<AcceptedTrace>, StoreError> {
        Ok(traces::find(&self.server, event_id, self.raw_from()).await?)
    }

    async fn known(&self, traces: &[(ClientId, EventId)]) -> Result<Vec<bool>, StoreError> {
        Ok(traces::known(&self.server, traces, self.raw_from()).await?)
    }

    async fn usage(
        &self,
        client_id: &ClientId,
        since: jiff::civil::Date,
        until: jiff::civil::Date,
        zone: &str,
    ) -> Result<Vec<(jiff::civil::Date, UsageCounts)>, StoreError> {
        Ok(usage_query::usage(&self.server, client_id, since, until, zone).await?)
    }

    async fn detections(&self, query: &EventQuery) -> Result<Page<Detection>, StoreError> {
        Ok(events::detections(&self.server, query).await?)
    }

    async fn actions(&self, query: &EventQuery) -> Result<Page<GuardAction>, StoreError> {
        Ok(events::actions(&self.server, query).await?)
    }

    async fn deliveries(&self, query: &EventQuery) -> Result<Page<Delivery>, StoreError> {
        Ok(events::deliveries(&self.server, query, self.raw_from()).await?)
    }

    async fn audit(&self, query: &EventQuery) -> Result<Page<AuditEntry>, StoreError> {
        Ok(events::audit(&self.server, query).await?)
    }

    async fn last_received(&self, client_id: &ClientId) -> Result<Option<Time>, StoreError> {
        Ok(traces::last_received(&self.server, client_id).await?)
    }

    async fn erase(&self, erasure: &Erasure) -> Result<ErasedCounts, StoreError> {
        Ok(erase::erase(&self.server, erasure).await?)
    }

    /// ClickHouse deletes by the tables' TTL.
    async fn expire(&self, _now: Time) -> Result<(), StoreError> {
        Ok(())
    }
}
