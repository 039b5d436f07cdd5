//! What is kept, for how long, and in how much room.

// Tests may, and so may what they share.
#![allow(clippy::unwrap_used)]

use std::{path::Path, sync::Arc, time::Duration};

use panopticon_conformance::ShiftedClock;
use panopticon_core::{
    config::Config,
    ids::{ClientId, EventId},
    log::{Record, Stored},
    proto::log::Delivery,
    store::{Attempt, BatchRange, Row, Rows},
    time::{Clock as _, Time},
    topic::Topic,
    trace::{AcceptedTrace, Status, Trace},
};
use panopticon_embedded::Embedded;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use uuid::Uuid;

const HOUR: Duration = Duration::from_secs(3_600);

fn config(directory: &Path) -> Config {
    Config { data_dir: directory.to_owned(), ..Config::default() }
}

async fn all(engine: &Embedded, topic: Topic) -> Vec<Stored> {
    let low = engine.log.bounds(topic, 0).await.unwrap().low;
    engine.log.read(topic, 0, low, u64::MAX, usize::MAX).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_go_on_where_they_were_when_retention_has_taken_everything() {
    let directory = TempDir::new().unwrap();
    let (config, clock) = (config(directory.path()), Arc::new(ShiftedClock::default()));
    let engine = Embedded::open(&config, clock.clone()).unwrap();
    for n in 0..500 {
        engine.log.append(Topic::Traces, 0, Record::message(n.to_string())).await.unwrap();
    }
    clock.advance(config.retention.log() - HOUR);
    engine.store.expire(clock.now()).await.unwrap();
    assert_eq!(all(&engine, Topic::Traces).await.len(), 500);
    clock.advance(2 * HOUR);
    engine.store.expire(clock.now()).await.unwrap();
    assert!(all(&engine, Topic::Traces).await.is_empty());
    engine.close().await;

    let engine = Embedded::open(&config, clock).unwrap();
    let bounds = engine.log.bounds(Topic::Traces, 0).await.unwrap();
    assert_eq!((bounds.low, bounds.high), (500, 500));
    assert_eq!(engine.log.append(Topic::Traces, 0, Record::message("next")).await.unwrap(), Some(500));
}

fn trace(n: u64, at: Time) -> AcceptedTrace {
    let trace = Trace {
        event_id: EventId(Uuid::from_u64_pair(n, n)),
        client_id: ClientId::new("app").unwrap(),
        user_sub: format!("user_{n}"),
        tool: "search".to_owned(),
        scope_used: "read".to_owned(),
        status: Status::Ok,
        started_at: at,
        duration_ms: 10,
        session_id: String::new(),
        agent: String::new(),
        source_ip: String::new(),
        error_code: String::new(),
        attributes: [("note".to_owned(), "of the call".to_owned())].into(),
    };
    AcceptedTrace { trace, received_at: at, late: false, place: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_rows_are_deleted_after_90_days_and_what_was_counted_stays() {
    let directory = TempDir::new().unwrap();
    let (config, clock) = (config(directory.path()), Arc::new(ShiftedClock::default()));
    let engine = Embedded::open(&config, clock.clone()).unwrap();
    let put = async |topic, from: u64, count, rows| {
        let log_id = engine.log.topic(topic).await.unwrap().log_id;
        let range = BatchRange { topic, log_id, partition: 0, from, to: from + count };
        assert_eq!(engine.store.insert(range, rows, Attempt::First).await.unwrap(), []);
    };
    let put_traces = async |from: u64, count: u64| {
        let rows = (from..from + count).map(|n| Row { offset: n, index: 0, value: trace(n, clock.now()) });
        put(Topic::Traces, from, count, Rows::of_traces(rows.collect())).await;
    };
    put_traces(0, 2_500).await;
    let delivery = Delivery { created_at: clock.now().micros(), body: "{}".into(), ..Delivery::default() };
    let row = Row { offset: 0, index: 0, value: delivery };
    put(Topic::WebhookDeliveries, 0, 1, Rows::Deliveries(vec![row])).await;
    clock.advance(45 * 24 * HOUR);
    put_traces(2_500, 500).await;

    let file = directory.path().join("panopticon.db");
    let conn = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let count = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    for (pass, raw, deliveries) in [(44 * 24 * HOUR, 3_000, 1), (26 * HOUR, 500, 0), (45 * 24 * HOUR, 0, 0)] {
        clock.advance(pass);
        engine.store.expire(clock.now()).await.unwrap();
        // The tables themselves, not the views, which leave out what is past its time.
        assert_eq!(count("SELECT count(*) FROM traces_rows"), raw);
        assert_eq!(count("SELECT count(*) FROM webhook_deliveries_rows"), deliveries);
        for kept in ["usage_15m", "usage_daily", "usage_by_app_day", "usage_by_user_day"] {
            assert_eq!(count(&format!("SELECT sum(traces) FROM {kept}")), 3_000, "{kept}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overtaken_records_and_tombstones_of_a_compacted_topic_can_be_followed_for_a_day() {
    let directory = TempDir::new().unwrap();
    let clock = Arc::new(ShiftedClock::default());
    let engine = Embedded::open(&config(directory.path()), clock.clone()).unwrap();
    let write = async |record| engine.log.append(Topic::Control, 0, record).await.unwrap();
    write(Record::keyed("a", "1")).await;
    write(Record::keyed("b", "1")).await;
    write(Record::keyed("a", "2")).await;
    write(Record::tombstone("b")).await;
    clock.advance(23 * HOUR);
    engine.store.expire(clock.now()).await.unwrap();
    assert_eq!(all(&engine, Topic::Control).await.len(), 4);
    clock.advance(2 * HOUR);
    engine.store.expire(clock.now()).await.unwrap();
    let left = all(&engine, Topic::Control).await;
    assert_eq!(left.iter().map(|stored| &stored.record).collect::<Vec<_>>(), [&Record::keyed("a", "2")]);
    assert_eq!(left[0].offset, 2);
    assert_eq!(engine.log.table(Topic::Control, 0).await.unwrap(), [("a".into(), "2".into())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn states_that_change_all_the_time_take_the_room_of_one() {
    let directory = TempDir::new().unwrap();
    let engine = Embedded::open(&config(directory.path()), Arc::new(ShiftedClock::default())).unwrap();
    for n in 0..200 {
        let record = Record::keyed(format!("entity {}", n % 2), vec![0; 1_000]);
        engine.log.append(Topic::DetectorState, 1, record).await.unwrap();
    }
    let left = engine.log.read(Topic::DetectorState, 1, 0, u64::MAX, usize::MAX).await.unwrap();
    assert_eq!(left.iter().map(|stored| stored.offset).collect::<Vec<_>>(), [198, 199]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_write_ahead_log_stays_bounded_while_there_are_writes() {
    const LIMIT: u64 = 1 << 20;
    let directory = TempDir::new().unwrap();
    let mut config = config(directory.path());
    config.embedded.checkpoint_bytes = LIMIT;
    let engine = Embedded::open(&config, Arc::new(ShiftedClock::default())).unwrap();
    let wal = directory.path().join("panopticon.db-wal");
    let mut largest = 0;
    for _ in 0..600 {
        engine.log.append(Topic::Traces, 0, Record::message(vec![1; 100_000])).await.unwrap();
        largest = largest.max(std::fs::metadata(&wal).unwrap().len());
    }
    assert!(largest < 10 * LIMIT, "{largest} bytes after 60 MB");
    engine.close().await;
    assert!(std::fs::metadata(directory.path().join("panopticon.db")).unwrap().len() > 60_000_000);
}
