//! A detector that starts without a checkpoint knows from the trace store what is usual.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use common::{at, trace};
use panopticon_anomaly_detector::{rules, settings::SettingsOf};
use panopticon_core::{
    config::{Config, StagesConfig},
    health::Health,
    ids::partition_of,
    log::{EventLog, Record},
    stage::{Findings, Rule as _, Runtime, run_stage},
    store::{Activity, Attempt, BatchRange, Row, Rows, TraceStore},
    time::{Clock, Time},
    topic::Topic,
    trace::{AcceptedTrace, Status, encode_envelope},
};
use panopticon_embedded::Embedded;
use panopticon_proto::log::Detection;
use proptest::prelude::*;
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
    let done =
        async {
            // The counts for the second are made by the first.
            for (stage, input) in [("detector", Topic::Traces), ("detector-apps", Topic::Rollups)] {
                while !engine.log.lag(stage, input).await.unwrap().iter().all(|lag| {
                    lag.bounds.high == lag.bounds.low || lag.committed.offset >= Some(lag.bounds.high)
                }) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
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

/// A call a second, of each of three users.
fn burst(from: u128, began: Time) -> impl Iterator<Item = AcceptedTrace> {
    let of_second = move |n: u128| {
        let at = began.plus(Duration::from_secs(n as u64));
        let call = move |(user, m)| trace(from + n * 3 + m, user, "", Status::Ok, at);
        ["alice", "bob", "carol"].into_iter().zip(0..).map(call)
    };
    (0..20).flat_map(of_second)
}

#[tokio::test(flavor = "multi_thread")]
async fn bursts_are_told_of_users_and_tools_of_which_only_the_trace_store_knows() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    put_history(&engine, "alice", 0).await;
    put_history(&engine, "bob", 5_000).await;
    for accepted in burst(20_000, night()) {
        append(&*engine.log, accepted).await;
    }
    let told = judge(&engine, Some(engine.store.clone())).await;
    let bursts: BTreeSet<_> =
        told.iter().filter(|one| one.rule == "burst").map(|one| one.explanation.as_str()).collect();
    // Both called twice in a quarter of an hour, which may have been at once. Nothing is known of carol.
    let wanted = [
        "alice called tool and others 5 times in 60 s; in 119 days of calls it has never passed 2",
        "bob called tool and others 5 times in 60 s; in 119 days of calls it has never passed 2",
        "tool was called 10 times in 60 s; in 119 days of calls it has never passed 4",
    ];
    assert_eq!(bursts, BTreeSet::from(wanted));
    engine.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// At the same times of the week, however the calls lay in the quarters of an hour of which alone the trace
    /// store knows.
    #[test]
    fn what_somebody_did_before_is_no_burst_when_they_do_it_again(
        quarters in proptest::collection::vec((1_i64..100, 1_usize..=32, 0_i64..900, 1_i64..900), 10..60),
    ) {
        let (mut times, mut quarter) = (Vec::new(), 0);
        for (pause, calls, first, width) in quarters {
            quarter += pause;
            // Within a part of the quarter, which may be a second.
            let within = |n: usize| quarter * 900 + first + n as i64 * width.min(900 - first) / 32;
            times.extend((0..calls).map(within));
        }
        let mut counts = BTreeMap::new();
        for time in &times {
            *counts.entry(time / 900).or_insert(0) += 1;
        }
        let (mut rule, _) = rules(10, &SettingsOf::default());
        for (quarter, traces) in counts {
            let (client_id, name) = ("app".to_owned(), "alice".to_owned());
            rule.learn(&Activity { client_id, name, since: at(quarter * 900), traces, denied: 0 });
        }
        let mut findings = Findings::default();
        let later = (quarter / 672 + 1) * 7 * DAY;
        for (n, time) in times.iter().enumerate() {
            rule.observe(&trace(n as u128, "alice", "", Status::Ok, at(later + time)), 0, false, &mut findings);
        }
        let bursts: Vec<_> = findings.detections.iter().filter(|one| one.rule == "burst").collect();
        prop_assert!(bursts.is_empty(), "{bursts:?}");
    }
}

/// What the log still holds is judged from the log, also where its counts by tool are yet to be made.
#[tokio::test(flavor = "multi_thread")]
async fn what_lies_in_the_log_is_not_learned_from_the_trace_store() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path()).await;
    put_history(&engine, "alice", 0).await;
    let began = night().minus(Duration::from_secs(2 * DAY.unsigned_abs()));
    let rows = burst(20_000, began).chain([trace(30_000, "alice", "", Status::Ok, night())]);
    let rows: Vec<_> = rows.zip(5_000..).map(|(value, offset)| Row { offset, index: 0, value }).collect();
    for row in &rows {
        append(&*engine.log, row.value.clone()).await;
    }
    let log_id = engine.log.topic(Topic::Traces).await.unwrap().log_id;
    let range = BatchRange { topic: Topic::Traces, log_id, partition: 0, from: 5_000, to: 6_000 };
    engine.store.insert(range, Rows::of_traces(rows), Attempt::First).await.unwrap();
    let told = judge(&engine, Some(engine.store.clone())).await;
    let began: Vec<_> = told.iter().filter(|one| one.rule == "burst" && one.phase == "started").collect();
    let mut kinds: Vec<_> = began.iter().map(|one| one.kind.as_str()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["by_tool", "by_user"]);
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
    for accepted in burst(20_000, night()) {
        append(&*engine.log, accepted).await;
    }
    assert!(judge(&engine, None).await.is_empty());
    engine.close().await;
}
