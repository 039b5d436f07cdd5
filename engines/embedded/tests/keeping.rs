//! What is kept, for how long, and in how much room.

// Tests may, and so may what they share.
#![allow(clippy::unwrap_used)]

use std::{path::Path, sync::Arc, time::Duration};

use panopticon_conformance::ShiftedClock;
use panopticon_core::{
    config::Config,
    log::{Record, Stored},
    time::Clock as _,
    topic::Topic,
};
use panopticon_embedded::Embedded;
use tempfile::TempDir;

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
