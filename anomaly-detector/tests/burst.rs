//! What the rule `burst` says, and when it says nothing.
#![allow(clippy::unwrap_used)]

mod common;

use common::{at, secs, trace};
use panopticon_anomaly_detector::{
    backtest::backtest,
    settings::{Settings, SettingsOf},
};
use panopticon_core::trace::{AcceptedTrace, Status};
use panopticon_proto::log::Detection;
use proptest::prelude::*;

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// What the rule says of calls at these seconds.
fn bursts_with(settings: Settings, traces: Vec<AcceptedTrace>) -> Vec<Detection> {
    let mut found = Vec::new();
    backtest(traces, &SettingsOf::all(settings), &mut [], |detection| {
        if detection.rule == "burst" {
            found.push(detection);
        }
    });
    found
}

fn bursts(traces: Vec<AcceptedTrace>) -> Vec<Detection> {
    bursts_with(Settings::default(), traces)
}

fn of_user(found: &[Detection]) -> Vec<&Detection> {
    found.iter().filter(|detection| detection.kind == "by_user").collect()
}

fn calls(user: &str, times: impl IntoIterator<Item = i64>) -> Vec<AcceptedTrace> {
    let calls = times.into_iter().enumerate();
    let id =
        |n: usize, time: i64| ((n as u128) << 64) | u128::from(time as u64) ^ u128::from(user.len() as u64);
    calls.map(|(n, time)| trace(id(n, time), user, "", Status::Ok, at(time))).collect()
}

/// Two calls a minute apart every four hours of ten days.
fn usual() -> Vec<i64> {
    (0..60).flat_map(|n| [n * 4 * HOUR, n * 4 * HOUR + 20]).collect()
}

const AFTER: i64 = 10 * DAY;

fn usual_then(more: impl IntoIterator<Item = i64>) -> Vec<AcceptedTrace> {
    calls("alice", usual().into_iter().chain(more))
}

#[test]
fn a_burst_is_told_once_with_its_figures_and_its_end_ten_minutes_after() {
    let more = (0..100).map(|n| AFTER + n).chain([AFTER + 2 * HOUR]);
    let found = bursts(usual_then(more));
    let [started, ended] = of_user(&found)[..] else { panic!("{found:?}") };
    assert_eq!((started.phase.as_str(), ended.phase.as_str()), ("started", "ended"));
    assert_eq!(started.detection_id, ended.detection_id);
    // There was never more than one in ten seconds.
    assert_eq!((started.observed, started.expected), (4.0, 1.0));
    assert_eq!(secs(started.detected_at), AFTER + 3);
    // Ten minutes after the last minute that held too many, or an hour where an hour did.
    assert_eq!(secs(ended.ended_at), AFTER + 90 + HOUR);
    assert_eq!(
        started.explanation,
        "alice called tool and others 4 times in 10 s; in 10 days of calls it has never passed 1"
    );
    assert!((0.0..=100.0).contains(&started.score) && started.score > 90.0);
}

#[test]
fn many_calls_within_a_second_and_few_for_hours_both_count() {
    let at_once = bursts(usual_then([AFTER; 6]));
    assert_eq!(secs(of_user(&at_once)[0].detected_at), AFTER);
    // Never more than two a minute, but thirty in an hour.
    let sustained = bursts(usual_then((0..120).map(|n| AFTER + n * 120).chain([AFTER + 2 * DAY])));
    let [started, _] = of_user(&sustained)[..] else { panic!("{sustained:?}") };
    assert_eq!(started.observed, 10.0);
    let window = started.window.unwrap();
    assert_eq!((secs(window.start), secs(window.end)), (AFTER, AFTER + 9 * 120));
}

#[test]
fn a_lull_is_no_burst_and_neither_is_waking_up_from_it() {
    let woken = usual().into_iter().map(|time| AFTER + 200 * DAY + time);
    assert_eq!(bursts(usual_then(woken)), []);
}

#[test]
fn nothing_is_said_before_enough_is_known() {
    let first = (0..200).map(|n| n / 4);
    assert_eq!(bursts(calls("alice", first)), []);
    let third_day = [0, 1, 2].map(|n| n * DAY - n).into_iter().chain((0..200).map(|n| 2 * DAY + n));
    assert_eq!(bursts(calls("alice", third_day)), []);
}

#[test]
fn what_became_usual_is_told_no_more() {
    // From now on ten calls where there were two, every four hours.
    let more = (0..60).flat_map(|n| (0..10).map(move |call| AFTER + n * 4 * HOUR + call));
    let found = bursts(usual_then(more));
    let started = of_user(&found).iter().filter(|detection| detection.phase == "started").count();
    assert!((1..=4).contains(&started), "{started}");
}

#[test]
fn a_tool_bursts_when_many_users_call_it_a_little_more() {
    let mut traces = Vec::new();
    for n in 0..60 {
        traces.extend(calls(&format!("user_{n:02}"), [n * 4 * HOUR]));
    }
    for n in 0..60 {
        traces.extend(calls(&format!("user_{n:02}"), [AFTER + n]));
    }
    let found = bursts(traces);
    let started: Vec<_> = found.iter().filter(|detection| detection.phase == "started").collect();
    let [burst] = started[..] else { panic!("{found:?}") };
    assert_eq!((burst.kind.as_str(), burst.tool.as_str(), burst.user_sub.as_str()), ("by_tool", "tool", ""));
    assert_eq!(
        burst.explanation,
        "tool was called 3 times in 60 s; in 10 days of calls it has never passed 1"
    );
}

#[test]
fn late_traces_teach_and_raise_nothing() {
    let late = |times: Vec<i64>| {
        calls("alice", times).into_iter().map(|accepted| AcceptedTrace { late: true, ..accepted })
    };
    let mut traces: Vec<_> = late(usual().into_iter().chain((0..30).map(|n| AFTER + n)).collect()).collect();
    assert_eq!(bursts(traces.clone()), []);
    // Without the late ones, nothing would be known of this user.
    traces.extend(calls("alice", (0..30).map(|n| AFTER + DAY + n)));
    let found = bursts(traces);
    assert_eq!(secs(of_user(&found)[0].detected_at), AFTER + DAY + 3);
    assert_eq!(of_user(&found)[0].expected, 1.0);
}

#[test]
fn a_rule_switched_off_and_a_quiet_user_say_nothing() {
    let off = Settings { burst: false, ..Settings::default() };
    assert_eq!(bursts_with(off, usual_then((0..100).map(|n| AFTER + n))), []);
    let quiet = Settings { quiet_users: ["alice".to_owned()].into(), ..Settings::default() };
    let found = bursts_with(quiet, usual_then((0..100).map(|n| AFTER + n)));
    assert!(of_user(&found).is_empty() && !found.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// The same bursts, each with the same end; which of the calls decides may differ.
    #[test]
    fn a_minute_of_disorder_changes_no_result(
        steps in proptest::collection::vec((0_i64..9, 0_i64..59), 1..200),
    ) {
        let mut time = AFTER;
        let mut traces = usual_then([]);
        let mut disordered = traces.clone();
        let mut arrivals = Vec::new();
        for (n, (step, delay)) in steps.into_iter().enumerate() {
            // Now and then a pause in which a burst ends.
            time += if step == 8 { 1_000 } else { step * step / 4 };
            let accepted = trace(1 << 100 | n as u128, "alice", "", Status::Ok, at(time));
            arrivals.push(AcceptedTrace { received_at: at(time + delay), ..accepted.clone() });
            traces.push(accepted);
        }
        arrivals.sort_by_key(|accepted| accepted.received_at);
        disordered.extend(arrivals);
        let told = |found: &[Detection]| {
            let ended = found.iter().filter(|detection| detection.kind == "by_user" && detection.phase == "ended");
            ended.map(|detection| detection.ended_at).collect::<Vec<_>>()
        };
        let last = calls("alice", [AFTER + 10 * DAY]);
        let in_order = bursts([traces, last.clone()].concat());
        let out_of_order = bursts([disordered, last].concat());
        prop_assert_eq!(told(&in_order), told(&out_of_order));
    }
}
