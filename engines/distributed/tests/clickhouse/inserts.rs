//! A batch is in once, whatever happens.

use std::time::{Duration, Instant};

use panopticon_core::{
    store::{Attempt, Row, Rows, StoreError, TraceStore},
    time::Time,
    topic::Topic,
};
use panopticon_distributed::clickhouse::ClickhouseStore;

use crate::fixture::{Fixture, now, rows, sums, trace};

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_in_once_however_often_it_is_inserted() {
    let Some(f) = Fixture::new().await else { return };
    let batch = rows(10, 300, now());
    for attempt in [Attempt::First, Attempt::First, Attempt::Again, Attempt::Again] {
        f.traces(3, 10, &batch, attempt).await;
        assert_eq!(f.counts().await, sums(&batch));
    }
    // A batch that nobody began, although it might have been.
    let next = rows(110, 30, now());
    f.traces(3, 110, &next, Attempt::Again).await;
    assert_eq!(f.counts().await, sums(&[batch, next].concat()));
    f.sql("OPTIMIZE TABLE usage_15m FINAL").await;
    f.sql("OPTIMIZE TABLE usage_daily FINAL").await;
    assert_eq!(f.counts().await[0], 330);
    assert_eq!(f.counts().await[1], 330);
}

/// What a crash of the server can leave of a batch, as statements that bring it about. Truncating forgets
/// rows but not tokens, which is the very state that a token alone does not survive.
const WRECKS: &[(&str, &[&str])] = &[
    (
        "nothing but the tokens",
        &["TRUNCATE TABLE traces", "TRUNCATE TABLE usage_15m", "TRUNCATE TABLE usage_daily"],
    ),
    ("no rows", &["TRUNCATE TABLE traces"]),
    ("some rows", &["ALTER TABLE traces DELETE WHERE log_index = 1"]),
    ("no counts", &["TRUNCATE TABLE usage_15m", "TRUNCATE TABLE usage_daily"]),
    ("one of the counts", &["TRUNCATE TABLE usage_daily"]),
    (
        "a month of the rows and no daily counts",
        &["ALTER TABLE traces DELETE WHERE toHour(received_at) < 12", "TRUNCATE TABLE usage_daily"],
    ),
    ("some of the counts", &["ALTER TABLE usage_15m DELETE WHERE user_sub = 'user_1'"]),
    (
        "rows in halves",
        &[
            "ALTER TABLE traces DELETE WHERE log_offset > 1030",
            "ALTER TABLE usage_15m DELETE WHERE position > bitShiftLeft(toUInt64(1030), 20)",
        ],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_insert_is_completed_whatever_the_crash_has_left() {
    for (what, statements) in WRECKS {
        let Some(f) = Fixture::new().await else { return };
        let batch = rows(1_000, 200, now());
        f.traces(1, 1_000, &batch, Attempt::First).await;
        for statement in *statements {
            f.sql(statement).await;
        }
        f.traces(1, 1_000, &batch, Attempt::Again).await;
        assert_eq!(f.counts().await, sums(&batch), "{what}");
        f.traces(1, 1_000, &batch, Attempt::Again).await;
        assert_eq!(f.counts().await, sums(&batch), "{what}, once more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_that_an_old_owners_late_statement_could_still_bring_are_there_once() {
    let Some(f) = Fixture::new().await else { return };
    let batch = rows(1_000, 60, now());
    // The server is killed when the rows are there and the views have not begun.
    f.without_views(async || f.traces(1, 1_000, &batch, Attempt::First).await).await;
    assert_eq!(f.counts().await[..3], [60, 0, 0]);
    f.traces(1, 1_000, &batch, Attempt::Again).await;
    assert_eq!(f.counts().await, sums(&batch));
    // An old owner, frozen meanwhile, sends what it was about to send.
    f.traces(1, 1_000, &batch, Attempt::First).await;
    assert_eq!(f.counts().await, sums(&batch));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_whose_token_may_be_forgotten_are_not_sent_again() {
    let Some(f) = Fixture::new().await else { return };
    f.sql("ALTER TABLE traces MODIFY SETTING non_replicated_deduplication_window = 3").await;
    let batch = rows(1_000, 60, now());
    f.without_views(async || f.traces(1, 1_000, &batch, Attempt::First).await).await;
    let mut all = batch.clone();
    for n in 0..5 {
        let other = rows(2_000 + n, 3, now());
        f.traces(2, 2_000 + n, &other, Attempt::First).await;
        all.extend(other);
    }
    f.traces(1, 1_000, &batch, Attempt::Again).await;
    assert_eq!(f.counts().await, sums(&all));
}

#[tokio::test(flavor = "multi_thread")]
async fn settling_leaves_other_partitions_and_older_batches_alone() {
    let Some(f) = Fixture::new().await else { return };
    let at = now();
    let (before, lost, other) = (rows(0, 60, at), rows(20, 60, at), rows(20, 60, at));
    f.traces(1, 0, &before, Attempt::First).await;
    f.traces(2, 20, &other, Attempt::First).await;
    f.traces(1, 20, &lost, Attempt::First).await;
    f.sql("ALTER TABLE traces DELETE WHERE log_partition = 1 AND log_offset >= 20").await;
    f.sql("ALTER TABLE usage_daily DELETE WHERE log_partition = 1").await;
    let all = sums(&[before.clone(), lost.clone(), other].concat());
    f.traces(1, 20, &lost, Attempt::Again).await;
    let mut counts = f.counts().await;
    // Daily counts of the older batch are not this batch's to restore.
    assert_eq!((counts[0], counts[1], counts[3]), (all[0], all[1], all[3]));
    f.sql("ALTER TABLE usage_daily DELETE WHERE log_partition = 1").await;
    f.traces(1, 0, &before, Attempt::Again).await;
    f.traces(1, 20, &lost, Attempt::Again).await;
    counts = f.counts().await;
    assert_eq!(counts, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_counts_are_settled_although_the_raw_rows_of_their_bucket_are_gone() {
    let Some(f) = Fixture::new().await else { return };
    let long_ago = Time::parse_rfc3339("2003-05-06T07:08:09Z").unwrap();
    let received_at = now();
    let of = |offset: u64| {
        let mut value = trace(3, long_ago);
        value.received_at = received_at;
        vec![Row { offset, index: 0, value }]
    };
    f.traces(0, 0, &of(0), Attempt::First).await;
    f.sql("TRUNCATE TABLE traces").await;
    f.traces(0, 1, &of(1), Attempt::Again).await;
    f.traces(0, 1, &of(1), Attempt::Again).await;
    assert_eq!(f.counts().await[..3], [1, 2, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_still_runs_is_stopped_before_settling() {
    let Some(f) = Fixture::new().await else { return };
    let batch = rows(5, 30, now());
    let names = format!("panopticon:{}:traces:{}:4:5-15", f.config.clickhouse.database, f.log_id);
    let slow = f
        .client
        .query_raw(
            "INSERT INTO traces (event_id, log_partition) \
             SELECT generateUUIDv4(), sleepEachRow(3) FROM numbers(20) \
             SETTINGS function_sleep_max_microseconds_per_block = 0, max_block_size = 1",
        )
        .with_setting("query_id", names);
    let slow = tokio::spawn(slow.execute());
    tokio::time::sleep(Duration::from_millis(700)).await;
    let start = Instant::now();
    f.traces(4, 5, &batch, Attempt::Again).await;
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert!(slow.await.unwrap().is_err());
    assert_eq!(f.count("(SELECT count() FROM traces)").await, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_server_is_unavailable_and_the_batch_settles_later() {
    let Some(f) = Fixture::new().await else { return };
    let batch = rows(0, 30, now());
    let mut config = f.config.clone();
    config.clickhouse.insert_timeout_ms = 1;
    let impatient = ClickhouseStore::connect(&config, f.clock.clone()).await.unwrap();
    let range = f.range(Topic::Traces, 0, 0, 10);
    let big = rows(0, 30_000, now());
    let outcome = impatient.insert(range, Rows::of_traces(big), Attempt::First).await;
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
    // Not told that it is again, this process remembers.
    let outcome = f.store.insert(range, Rows::of_traces(batch.clone()), Attempt::Again).await;
    assert!(outcome.is_ok(), "{outcome:?}");
}
