//! A detector that starts without a checkpoint knows from the trace store what is usual.
#![allow(clippy::unwrap_used)]

mod common;

use std::{path::Path, sync::Arc, time::Duration};

use common::{at, trace};
use panopticon_anomaly_detector::settings::SettingsOf;
use panopticon_core::{
    config::{Config, StagesConfig},
    health::Health,
    ids::partition_of,
    log::{EventLog, Record},
    stage::{Runtime, run_stage},
    store::{Attempt, BatchRange, Row, Rows, TraceStore},
    time::{Clock, Time},
    topic::Topic,
    trace::{AcceptedTrace, Status, encode_envelope},
};
use panopticon_embedded::Embedded;
use panopticon_proto::log::Detection;
use prost::Message as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const DAY: i64 = 86_400;
const DAYS: i64 = 120;

/// Stands at the night after the history.
struct Night;

/// 03:00 of the night after the last day.
fn night() -> Time {
    at(DAYS * DAY - 9 * 3_600)
}

/// What somebody who works in an office has called on so many days.
fn history(user: &str, from: u64) -> Vec<AcceptedTrace> {
    // The first day is a Tuesday.
    let days = (0..DAYS).filter(|day| (day + 1) % 7 < 5);
    let calls = days.flat_map(|day| {
        [-3, 0, 2, 5].into_iter().zip(0..).flat_map(move |(hour, n)| {
            let second = day * DAY + hour * 3_600 + (day * 7_919 + n * 3_571) % 3_000;
            [second, second + 60]
        })
    });
    calls.zip(from..).map(|(second, n)| trace(u128::from(n) + 1, user, "", Status::Ok, at(second))).collect()
}

impl Clock for Night {
    fn now(&self) -> Time {
        night().plus(Duration::from_secs(1))
    }
}

async fn open(data_dir: &Path) -> Embedded {
    let mut config = Config { data_dir: data_dir.to_owned(), ..Config::default() };
    config.embedded.partitions = 2;
    Embedded::open(&config, Arc::new(Night)).unwrap()
}

/// The history of a user, in the trace store; the log knows nothing of it any more.
async fn put_history(engine: &Embedded, user: &str, from: u64) {
    let rows = history(user, from).into_iter().zip(from..);
    let rows: Vec<_> = rows.map(|(value, offset)| Row { offset, index: 0, value }).collect();
    let log_id = engine.log.topic(Topic::Traces).await.unwrap().log_id;
    let to = from + rows.len() as u64;
    let range = BatchRange { topic: Topic::Traces, log_id, partition: 0, from, to };
    engine.store.insert(range, Rows::of_traces(rows), Attempt::First).await.unwrap();
}

async fn append(log: &dyn EventLog, accepted: AcceptedTrace) {
    let partition = partition_of(&[accepted.trace.client_id.as_str(), &accepted.trace.user_sub], 2);
    log.append(Topic::Traces, partition, Record::message(encode_envelope([accepted]))).await.unwrap();
}

/// Runs the detector's stages until they have judged everything; answers what was told so far.
async fn judge(engine: &Embedded, history: Option<Arc<dyn TraceStore>>) -> Vec<Detection> {
    let limits = StagesConfig { seeding_ms: 1_000, ..Config::default().stages };
    let shutdown = CancellationToken::new();
    let runtime = Runtime {
        log: engine.log.clone(),
        clock: Arc::new(Night),
        health: Health::default(),
        limits: limits.clone(),
        shutdown: shutdown.clone(),
    };
    let mut running = JoinSet::new();
    for stage in panopticon_anomaly_detector::stages(&limits, 2, &SettingsOf::default(), history) {
        running.spawn(run_stage(stage, runtime.clone()));
    }
    let done = async {
        while !engine
            .log
            .lag("detector", Topic::Traces)
            .await
            .unwrap()
            .iter()
            .all(|lag| lag.bounds.high == lag.bounds.low || lag.committed.offset >= Some(lag.bounds.high))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), done).await.unwrap();
    shutdown.cancel();
    while running.join_next().await.is_some() {}
    let partitions = engine.log.topic(Topic::Detections).await.unwrap().partitions;
    let mut told = Vec::new();
    for partition in 0..partitions {
        let records = engine.log.read(Topic::Detections, partition, 0, u64::MAX, usize::MAX).await.unwrap();
        told.extend(records.iter().map(|stored| Detection::decode(stored.record.bytes()).unwrap()));
    }
    told
}

fn users(told: &[Detection]) -> Vec<(&str, &str, &str)> {
    told.iter().map(|one| (one.rule.as_str(), one.phase.as_str(), one.user_sub.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_whom_only_the_trace_store_knows_is_judged_by_it_once_and_nothing_is_told_of_the_past() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    put_history(&engine, "alice", 0).await;
    let store = engine.store.clone();
    assert!(judge(&engine, Some(store.clone())).await.is_empty(), "what was learned tells nothing");
    append(&*engine.log, trace(10_000, "alice", "", Status::Ok, night())).await;
    append(&*engine.log, trace(10_001, "stranger", "", Status::Ok, night())).await;
    let told = judge(&engine, Some(store.clone())).await;
    assert_eq!(users(&told), [("off_hour", "started", "alice")]);
    // As if the detector had seen it all.
    let seen = history("alice", 0).into_iter().chain([trace(10_000, "alice", "", Status::Ok, night())]);
    assert_eq!(common::detections(seen)[0].detection_id, told[0].detection_id);
    // Started again, it goes by its checkpoint: the same, whatever the trace store has by then.
    put_history(&engine, "stranger", 5_000).await;
    append(&*engine.log, trace(10_002, "stranger", "", Status::Ok, night())).await;
    assert_eq!(judge(&engine, Some(store)).await, told);
    engine.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_store_that_is_away_is_not_waited_for_long() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (engine, other) = (open(folder.path()).await, open(elsewhere.path()).await);
    let away = other.store.clone();
    other.close().await;
    drop(elsewhere);
    append(&*engine.log, trace(10_000, "alice", "", Status::Ok, night())).await;
    let began = std::time::Instant::now();
    assert!(judge(&engine, Some(away)).await.is_empty());
    assert!(began.elapsed() > Duration::from_millis(900), "it was asked again");
    engine.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_trace_store_a_user_is_learned_anew() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    put_history(&engine, "alice", 0).await;
    append(&*engine.log, trace(10_000, "alice", "", Status::Ok, night())).await;
    assert!(judge(&engine, None).await.is_empty());
    engine.close().await;
}
