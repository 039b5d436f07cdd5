//! What the rule `failed_auth` promises.
#![allow(clippy::unwrap_used)]

mod common;

use common::{at, secs, trace};
use panopticon_anomaly_detector::{backtest::backtest, detector, rules};
use panopticon_core::{
    stage::{Findings, Rule},
    trace::{AcceptedTrace, Status},
};
use panopticon_proto::log::{Denial, Detection};
use proptest::prelude::*;

const HOME: &str = "198.51.100.23";

fn denied(n: u128, user: &str, source_ip: &str, second: i64) -> AcceptedTrace {
    trace(n, user, source_ip, Status::Denied, at(second))
}

fn detections(traces: impl IntoIterator<Item = AcceptedTrace>) -> Vec<Detection> {
    let mut found = Vec::new();
    backtest(traces, &mut [], |detection| found.push(detection));
    found
}

fn kinds(found: &[Detection]) -> Vec<(&str, &str, i64)> {
    found.iter().map(|d| (d.kind.as_str(), d.phase.as_str(), secs(d.detected_at))).collect()
}

#[test]
fn the_fifth_refusal_of_a_user_in_ten_minutes_is_an_alarm_and_the_fourth_is_not() {
    assert_eq!(detections((0..4).map(|n| denied(n, "user_7", "", n as i64))), []);
    let found = detections((0..5).map(|n| denied(n, "user_7", "", n as i64 * 100)));
    let [found] = &found[..] else { panic!("{found:?}") };
    assert_eq!(
        (found.rule.as_str(), found.kind.as_str(), found.phase.as_str()),
        ("failed_auth", "by_user", "started")
    );
    assert_eq!(
        (found.user_sub.as_str(), found.source_ip.as_str(), found.severity.as_str()),
        ("user_7", "", "high")
    );
    assert_eq!((found.observed, found.expected, secs(found.detected_at)), (5.0, 5.0, 400));
    assert_eq!(found.deciding_event_id, uuid::Uuid::from_u128(4).to_string());
    let window = found.window.unwrap();
    assert_eq!((secs(window.start), secs(window.end)), (-200, 400));
    assert_eq!(
        found.explanation,
        "user_7 was refused 5 times within 10 minutes for lack of authentication or authorization"
    );
}

#[test]
fn refusals_exactly_ten_minutes_apart_are_in_no_window_together() {
    for (last, alarms) in [(600, 0), (599, 1)] {
        let first = (0..4).map(|n| denied(n, "u", "", 0));
        assert_eq!(detections(first.chain([denied(9, "u", "", last)])).len(), alarms, "{last}");
    }
}

#[test]
fn only_refusals_for_lack_of_authorization_count() {
    let failing = |code: &'static str| {
        (0..9).map(move |n| {
            let mut failed = trace(n, "u", "", Status::Error, at(n as i64));
            failed.trace.error_code = code.to_owned();
            failed
        })
    };
    assert_eq!(detections(failing("timeout")), []);
    assert_eq!(detections(failing("insufficient_scope")).len(), 1);
    assert_eq!(detections((0..9).map(|n| trace(n, "u", HOME, Status::Ok, at(n as i64)))), []);
}

#[test]
fn one_user_from_one_address_is_one_alarm_by_user() {
    let found = detections((0..20).map(|n| denied(n, "u", HOME, n as i64)));
    assert_eq!(kinds(&found), [("by_user", "started", 4)]);
}

#[test]
fn users_in_turn_from_one_address_are_one_alarm_by_source() {
    let users = ["a", "b", "c", "d"];
    let found = detections((0..12).map(|n| denied(n, users[n as usize % 4], HOME, n as i64)));
    assert_eq!(kinds(&found), [("by_source", "started", 4)]);
    assert_eq!((found[0].user_sub.as_str(), found[0].source_ip.as_str()), ("", HOME));
    assert_eq!(
        found[0].explanation,
        "5 calls of 4 users from 198.51.100.23 were refused within 10 minutes for lack of authentication or authorization"
    );
}

#[test]
fn a_second_user_makes_a_source_out_of_an_address_that_one_had_for_itself() {
    let alone = (0..8).map(|n| denied(n, "a", HOME, n as i64));
    let found = detections(alone.chain([denied(8, "b", HOME, 8)]));
    assert_eq!(kinds(&found), [("by_user", "started", 4), ("by_source", "started", 8)]);
    assert_eq!(found[1].observed, 9.0);
}

#[test]
fn without_a_user_the_address_counts_and_without_both_the_app_does() {
    let found = detections((0..6).map(|n| denied(n, "", HOME, n as i64)));
    assert_eq!(kinds(&found), [("by_source", "started", 4)]);
    let found = detections((0..6).map(|n| denied(n, "", "", n as i64)));
    assert_eq!(kinds(&found), [("by_user", "started", 4)]);
    assert_eq!((found[0].user_sub.as_str(), found[0].client_id.as_str()), ("", "app"));
}

#[test]
fn an_episode_ends_ten_minutes_after_the_last_refusal_and_another_may_begin() {
    let first = (0..10).map(|n| denied(n, "u", "", n as i64));
    let quiet = [trace(50, "other", "", Status::Ok, at(608)), trace(51, "other", "", Status::Ok, at(609))];
    let second = (60..65).map(|n| denied(n, "u", "", 700 + n as i64));
    let found = detections(first.chain(quiet).chain(second));
    assert_eq!(
        kinds(&found),
        [("by_user", "started", 4), ("by_user", "ended", 4), ("by_user", "started", 764)]
    );
    assert_eq!((secs(found[1].ended_at), found[1].detection_id == found[0].detection_id), (609, true));
    assert_ne!(found[2].detection_id, found[0].detection_id);
}

#[test]
fn late_refusals_raise_nothing_on_either_side() {
    let late = |n: u128, user: &str| AcceptedTrace { late: true, ..denied(n, user, HOME, n as i64) };
    let users = ["a", "b"];
    assert_eq!(detections((0..40).map(|n| late(n, users[n as usize % 2]))), []);
}

#[test]
fn every_trace_with_an_address_is_copied_once_and_not_in_a_replay() {
    let (mut by_trace, _) = rules(10);
    let mut findings = Findings::default();
    by_trace.observe(&trace(7, "u", "2001:DB8::0:1", Status::Ok, at(1)), 0, false, &mut findings);
    by_trace.observe(&trace(8, "u", "", Status::Denied, at(1)), 1, false, &mut findings);
    by_trace.observe(&trace(9, "u", HOME, Status::Denied, at(1)), 2, true, &mut findings);
    let expected = Denial {
        event_id: uuid::Uuid::from_u128(7).as_bytes().to_vec(),
        client_id: "app".to_owned(),
        user_sub: "u".to_owned(),
        source_ip: "2001:db8::1".to_owned(),
        tool: "tool".to_owned(),
        denied: false,
        error_code: String::new(),
        event_time: at(1).micros(),
        received_at: at(1).micros(),
        late: false,
    };
    assert_eq!(findings.denials, [expected]);
}

#[test]
fn an_entity_of_an_unknown_rule_is_refused() {
    let mut rule = detector::DetectorRule::new(Vec::new());
    assert!(rule.load(b"failed_auth/app\0u", Default::default()).is_err());
    assert!(rule.load(b"nothing", Default::default()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_source_is_reported_just_when_counting_finds_it(
        steps in proptest::collection::vec((0_i64..200, 0_usize..5, 0_i64..60), 1..60),
    ) {
        let users = ["a", "a", "a", "b", ""];
        let (mut now, mut traces, mut calls, mut first) = (0, Vec::new(), Vec::new(), None);
        for (n, (step, user, delay)) in steps.into_iter().enumerate() {
            now += step;
            let (user, started) = (users[user], now - delay);
            let mut refused = denied(n as u128, user, HOME, started);
            refused.received_at = at(now);
            traces.push(refused);
            calls.push((started, user));
            let over = calls.iter().map(|call| call.0).filter(|end| started <= *end && *end < started + 600).any(|end| {
                let within: Vec<&str> =
                    calls.iter().filter(|call| end - 600 < call.0 && call.0 <= end).map(|call| call.1).collect();
                within.len() >= 5 && within.iter().any(|user| user.is_empty() || *user != within[0])
            });
            if over && first.is_none() {
                first = Some(uuid::Uuid::from_u128(n as u128).to_string());
            }
        }
        let found = detections(traces);
        let found = found.iter().find(|d| d.kind == "by_source");
        prop_assert_eq!(found.map(|d| d.deciding_event_id.clone()), first);
    }
}
