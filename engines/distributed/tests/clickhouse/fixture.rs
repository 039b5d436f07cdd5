//! A store on tables of its own, and what is put into them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use clickhouse::Client;
use panopticon_core::{
    config::Config,
    ids::{ClientId, EventId, LogId},
    store::{Attempt, BatchRange, RefusedRow, Row, Rows, StoreError, TraceStore},
    time::{Clock, SystemClock, Time},
    topic::Topic,
    trace::{AcceptedTrace, Status, Trace},
};
use panopticon_distributed::clickhouse::{ClickhouseStore, migrate};
use uuid::Uuid;

const VIEWS: [&str; 2] = ["usage_15m_from_traces", "usage_daily_from_traces"];

pub struct ShiftedClock(pub AtomicI64);

impl Clock for ShiftedClock {
    fn now(&self) -> Time {
        Time::from_micros(SystemClock.now().micros() + self.0.load(Ordering::SeqCst))
    }
}

pub struct Fixture {
    pub store: ClickhouseStore,
    pub clock: Arc<ShiftedClock>,
    pub config: Config,
    pub client: Client,
    pub log_id: LogId,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let drop = self.client.query_raw(&format!("DROP DATABASE {} SYNC", self.config.clickhouse.database));
        let runtime = tokio::runtime::Handle::current();
        let _ = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(drop.execute())).join());
    }
}

pub fn config() -> Option<Config> {
    let Ok(url) = std::env::var("PANOPTICON_TEST_CLICKHOUSE_URL") else {
        println!("skipped: PANOPTICON_TEST_CLICKHOUSE_URL is not set");
        return None;
    };
    let mut config = Config::default();
    config.clickhouse.url = url;
    config.clickhouse.database = format!("test_{}", LogId::random());
    Some(config)
}

impl Fixture {
    pub async fn new() -> Option<Self> {
        let config = config()?;
        migrate(&config).await.unwrap();
        let clock = Arc::new(ShiftedClock(AtomicI64::new(0)));
        let store = ClickhouseStore::connect(&config, clock.clone()).await.unwrap();
        let client =
            Client::default().with_url(&config.clickhouse.url).with_database(&config.clickhouse.database);
        Some(Self { store, clock, config, client, log_id: LogId(u64::MAX - 7) })
    }

    pub fn range(&self, topic: Topic, partition: u32, from: u64, to: u64) -> BatchRange {
        BatchRange { topic, log_id: self.log_id, partition, from, to }
    }

    pub async fn traces(&self, partition: u32, from: u64, rows: &[Row<AcceptedTrace>], attempt: Attempt) {
        assert_eq!(self.try_traces(partition, from, rows, attempt).await.unwrap(), []);
    }

    pub async fn try_traces(
        &self,
        partition: u32,
        from: u64,
        rows: &[Row<AcceptedTrace>],
        attempt: Attempt,
    ) -> Result<Vec<RefusedRow>, StoreError> {
        let to = rows.last().unwrap().offset + 1;
        let range = self.range(Topic::Traces, partition, from, to);
        self.store.insert(range, Rows::of_traces(rows.to_vec()), attempt).await
    }

    pub async fn sql(&self, statement: &str) {
        self.client
            .query_raw(statement)
            .with_setting("mutations_sync", "2")
            .with_setting("allow_experimental_lightweight_delete", "1")
            .execute()
            .await
            .unwrap();
    }

    /// Does something while nothing is counted.
    pub async fn without_views(&self, work: impl AsyncFnOnce()) {
        for view in VIEWS {
            self.sql(&format!("DETACH TABLE {view} SYNC")).await;
        }
        work().await;
        for view in VIEWS {
            self.sql(&format!("ATTACH TABLE {view}")).await;
        }
    }

    pub async fn count(&self, of: &str) -> u64 {
        self.client.query_raw(&format!("SELECT assumeNotNull(toUInt64({of}))")).fetch_one().await.unwrap()
    }

    /// Rows, and what each usage table has counted of them.
    pub async fn counts(&self) -> [u64; 5] {
        [
            self.count("(SELECT count() FROM traces)").await,
            self.count("(SELECT sum(traces) FROM usage_15m)").await,
            self.count("(SELECT sum(traces) FROM usage_daily)").await,
            self.count("(SELECT sum(duration_ms) FROM usage_15m)").await,
            self.count("(SELECT sum(duration_ms) FROM usage_daily)").await,
        ]
    }
}

pub fn app() -> ClientId {
    ClientId::new("https://rp.example/app?x='1'&y=\\2").unwrap()
}

pub fn now() -> Time {
    // In whole milliseconds, so that printed times are easy to compare.
    Time::from_micros(SystemClock.now().micros() / 1_000 * 1_000)
}

pub fn trace(n: u64, started_at: Time) -> AcceptedTrace {
    AcceptedTrace {
        trace: Trace {
            event_id: EventId(Uuid::from_u64_pair(n.wrapping_mul(0x9e37_79b9_7f4a_7c15), !n)),
            client_id: app(),
            user_sub: format!("user_{}", n % 3),
            tool: format!("tool \u{1f980} '{}'", n % 2),
            scope_used: "read write".to_owned(),
            status: [Status::Ok, Status::Error, Status::Denied][n as usize % 3],
            started_at,
            duration_ms: n as u32 % 1_000,
            session_id: String::new(),
            agent: "agent\\".to_owned(),
            source_ip: "2001:db8::1".to_owned(),
            error_code: "timeout".to_owned(),
            attributes: BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), n.to_string())]),
        },
        received_at: started_at.plus(Duration::from_secs(1)),
        late: n.is_multiple_of(2),
        place: None,
    }
}

/// `count` traces, three a record, a minute apart.
pub fn rows(from: u64, count: u64, last: Time) -> Vec<Row<AcceptedTrace>> {
    (0..count)
        .map(|n| Row {
            offset: from + n / 3,
            index: (n % 3) as u32,
            value: trace(from * 1_000 + n, last.minus(Duration::from_secs(60 * (count - n)))),
        })
        .collect()
}

pub fn sums(rows: &[Row<AcceptedTrace>]) -> [u64; 5] {
    let count = rows.len() as u64;
    let duration = rows.iter().map(|row| u64::from(row.value.trace.duration_ms)).sum();
    [count, count, count, duration, duration]
}

pub fn numbered<T>(values: Vec<T>) -> Vec<Row<T>> {
    values.into_iter().enumerate().map(|(n, value)| Row { offset: n as u64, index: 0, value }).collect()
}
