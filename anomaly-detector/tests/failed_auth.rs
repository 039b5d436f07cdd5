//! What the rule `failed_auth` promises.
#![allow(clippy::unwrap_used)]

mod common;

use common::{at, denied, detections, ok, secs, started, trace};
use panopticon_core::trace::{AcceptedTrace, Status};
use panopticon_proto::log::Detection;

const HOME: &str = "198.51.100.23";
const AWAY: &str = "203.0.113.9";
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

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
    assert_eq!(found.score, 80.0);
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
    assert_eq!(detections((0..9).map(|n| ok(n, "u", HOME, n as i64))), []);
}

#[test]
fn one_user_from_one_address_is_one_alarm_that_names_both() {
    let found = detections((0..20).map(|n| denied(n, "u", HOME, n as i64)));
    assert_eq!(kinds(&found), [("by_user", "started", 4)]);
    assert_eq!(started(&found), [("by_user", "u", HOME)]);
}

#[test]
fn a_name_that_machines_are_delivered_with_takes_four_refusals_where_nobody_ever_succeeded() {
    let found = detections((0..20).map(|n| denied(n, "root", HOME, n as i64)));
    assert_eq!(kinds(&found), [("by_user", "started", 3)]);
    let before = (0..9).map(|n| ok(100 + n, "root", HOME, n as i64 - 1_000));
    let found = detections(before.chain((0..20).map(|n| denied(n, "root", HOME, n as i64))));
    assert_eq!(kinds(&found), [("by_user", "started", 4)]);
}

#[test]
fn names_in_turn_that_never_succeeded_are_a_spraying() {
    let users = ["a", "b", "c", "d"];
    let found = detections((0..12).map(|n| denied(n, users[n as usize % 4], HOME, n as i64)));
    assert_eq!(kinds(&found), [("spraying", "started", 2)]);
    assert_eq!(started(&found), [("spraying", "", HOME)]);
    assert_eq!(
        found[0].explanation,
        "198.51.100.23 tried 3 users within 10 minutes, and was refused 3 times"
    );
}

#[test]
fn users_who_succeed_elsewhere_are_counted_like_any_refusal() {
    let users = ["a", "b", "c", "d"];
    let before = (0..4).map(|n| ok(100 + n, users[n as usize], AWAY, n as i64 - 1_000));
    let found = detections(before.chain((0..12).map(|n| denied(n, users[n as usize % 4], HOME, n as i64))));
    assert_eq!(kinds(&found), [("by_source", "started", 4)]);
    assert_eq!(
        found[0].explanation,
        "5 calls of 4 users from 198.51.100.23 were refused within 10 minutes for lack of authentication or \
         authorization"
    );
}

#[test]
fn a_brute_force_that_turns_to_many_users_is_told_to_be_a_spraying_once() {
    let alone = (0..8).map(|n| denied(n, "a", HOME, n as i64));
    let more = (8..20).map(|n| denied(n, &format!("user-{n}"), HOME, n as i64));
    let found = detections(alone.chain(more));
    assert_eq!(kinds(&found), [("by_user", "started", 4), ("spraying", "started", 11)]);
    assert_eq!(found[1].observed, 12.0);
}

#[test]
fn one_user_from_many_addresses_is_the_users_alarm() {
    let found = detections((0..9).map(|n| denied(n, "u", &format!("192.0.2.{n}"), n as i64)));
    assert_eq!(kinds(&found), [("by_user", "started", 4)]);
    assert_eq!(started(&found), [("by_user", "u", "")]);
    assert_eq!(
        found[0].explanation,
        "u was refused 5 times from 5 addresses within 10 minutes for lack of authentication or authorization"
    );
}

#[test]
fn without_a_user_the_address_counts_and_without_both_the_app_does() {
    let found = detections((0..6).map(|n| denied(n, "", HOME, n as i64)));
    assert_eq!(kinds(&found), [("by_source", "started", 3)]);
    let found = detections((0..6).map(|n| denied(n, "", "", n as i64)));
    assert_eq!(kinds(&found), [("by_user", "started", 4)]);
    assert_eq!((found[0].user_sub.as_str(), found[0].client_id.as_str()), ("", "app"));
}

#[test]
fn hours_between_tries_are_one_slow_attack() {
    let found = detections((0..30).map(|n| denied(n, "u", HOME, n as i64 * 5 * HOUR)));
    assert_eq!(kinds(&found), [("slow", "started", 15 * HOUR)]);
    assert_eq!(started(&found), [("slow", "u", HOME)]);
    assert_eq!(
        found[0].explanation,
        "4 calls of u from 198.51.100.23 were refused within 15 hours, slowly, and none succeeded in between"
    );
    let found = detections((0..30).map(|n| denied(n, "u", "", n as i64 * 5 * HOUR)));
    assert_eq!(kinds(&found), [("slow", "started", 35 * HOUR)]);
}

#[test]
fn a_slow_spraying_is_a_spraying() {
    let found = detections((0..9).map(|n| denied(n, &format!("u{n}"), HOME, n as i64 * 5 * HOUR)));
    assert_eq!(kinds(&found), [("spraying", "started", 10 * HOUR)]);
}

#[test]
fn a_user_who_mistypes_and_then_succeeds_raises_nothing_however_often() {
    let days = (0..60_u128).flat_map(|day| {
        let start = day as i64 * DAY;
        let wrong = (0..4).map(move |n| denied(day * 10 + n, "u", HOME, start + n as i64 * 10));
        let right = ok(day * 10 + 5, "u", HOME, start + 50);
        let again = denied(day * 10 + 6, "u", HOME, start + 300);
        wrong.chain([right, again, ok(day * 10 + 7, "u", HOME, start + 310)])
    });
    assert_eq!(detections(days), []);
}

#[test]
fn colleagues_who_mistype_at_the_office_raise_nothing() {
    // Each of forty has one refusal and a success a few minutes later, all day long.
    let calls = (0..400_u128).flat_map(|n| {
        let user = format!("user-{}", n % 40);
        [denied(2 * n, &user, HOME, n as i64 * 200), ok(2 * n + 1, &user, HOME, n as i64 * 200 + 150)]
    });
    let morning = [ok(9_000, "user-0", HOME, -5_000)];
    assert_eq!(detections(morning.into_iter().chain(calls)), []);
}

#[test]
fn a_success_right_after_a_brute_force_is_critical_and_on_its_own_trace() {
    for user in ["u", "root"] {
        let tries = (0..20).map(|n| denied(n, user, HOME, n as i64));
        let found = detections(tries.chain([ok(77, user, HOME, 21), ok(78, user, HOME, 22)]));
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[1].kind.as_str(), found[1].severity.as_str()),
            ("success_after_failures", "critical")
        );
        assert_eq!(found[1].deciding_event_id, uuid::Uuid::from_u128(77).to_string());
        assert_eq!((found[1].user_sub.as_str(), found[1].source_ip.as_str()), (user, HOME));
        assert!(found[1].score >= 99.0);
    }
    let tries = (0..20).map(|n| denied(n, "u", "", n as i64));
    let found = detections(tries.chain([ok(77, "u", "", 21)]));
    assert_eq!(found[1].explanation, "u succeeded right after 20 calls had been refused within 21 seconds");
}

#[test]
fn a_success_after_a_slow_attack_or_a_spraying_is_told_too() {
    let slow = (0..9).map(|n| denied(n, "u", HOME, n as i64 * 5 * HOUR));
    let found = detections(slow.chain([ok(77, "u", HOME, 44 * HOUR)]));
    assert_eq!(kinds(&found)[1], ("success_after_failures", "started", 44 * HOUR));
    // The user who is found is often one that was not tried before.
    let spraying = (0..9).map(|n| denied(n, &format!("u{n}"), HOME, n as i64));
    let found = detections(spraying.chain([ok(77, "u10", HOME, 10)]));
    assert_eq!(started(&found)[1], ("success_after_failures", "u10", HOME));
    let many = (0..9).map(|n| denied(n, "u", &format!("192.0.2.{n}"), n as i64));
    let found = detections(many.chain([ok(77, "u", "192.0.2.99", 10)]));
    assert_eq!(started(&found)[1], ("success_after_failures", "u", "192.0.2.99"));
}

#[test]
fn a_success_that_arrives_before_the_refusals_is_told_on_its_own_trace_all_the_same() {
    let mut traces: Vec<AcceptedTrace> = (0..8).map(|n| denied(n, "u", HOME, n as i64)).collect();
    traces.iter_mut().for_each(|one| one.received_at = at(30));
    traces.insert(0, ok(77, "u", HOME, 8));
    let found = detections(traces);
    assert_eq!(kinds(&found), [("by_user", "started", 4), ("success_after_failures", "started", 8)]);
    assert_eq!(found[1].deciding_event_id, uuid::Uuid::from_u128(77).to_string());
}

#[test]
fn what_the_owner_and_colleagues_do_during_an_attack_is_no_success_of_the_attacker() {
    let before = (0..20).map(|n| ok(100 + n, ["u", "v"][n as usize % 2], HOME, n as i64 * 500 - 20_000));
    let elsewhere = (0..20).map(|n| denied(n, "u", AWAY, n as i64));
    let owner = [ok(77, "u", HOME, 22)];
    assert_eq!(started(&detections(before.clone().chain(elsewhere).chain(owner))), [("by_user", "u", AWAY)]);
    let many = (0..9).map(|n| denied(n, "u", &format!("192.0.2.{n}"), n as i64));
    assert_eq!(started(&detections(before.clone().chain(many).chain([ok(77, "u", HOME, 22)]))).len(), 1);
    let at_home = (0..20).map(|n| denied(n, "u", HOME, n as i64));
    let colleague = [denied(76, "v", HOME, 21), ok(77, "v", HOME, 22)];
    let found = detections(before.chain(at_home).chain(colleague).chain([ok(78, "u", HOME, 23)]));
    assert_eq!(started(&found), [("by_user", "u", HOME), ("success_after_failures", "u", HOME)]);
}

/// A service that called every `pace` seconds, and whose credential then expired.
fn service(pace: i64, calls: i64, source_ip: &str, error_code: &str) -> Vec<AcceptedTrace> {
    let call = |n: i64| {
        let mut call = match n < 100 {
            true => ok(n as u128, "service", source_ip, n * pace),
            false => denied(n as u128, "service", source_ip, n * pace),
        };
        call.trace.error_code = if n < 100 { String::new() } else { error_code.to_owned() };
        call
    };
    (0..100 + calls).map(call).collect()
}

#[test]
fn a_service_with_an_expired_token_is_told_once_as_that() {
    for (source_ip, code) in
        [(HOME, "invalid_token"), ("", "invalid_token"), (HOME, "token_expired"), ("", "")]
    {
        let found = detections(service(60, 5_000, source_ip, code));
        let [found] = &found[..] else { panic!("{found:?}") };
        assert_eq!((found.kind.as_str(), found.severity.as_str()), ("expired_credential", "low"));
        assert_eq!((found.user_sub.as_str(), found.tool.as_str()), ("service", "tool"));
        assert!(found.score < 80.0);
    }
    let found = detections(service(60, 9, HOME, "invalid_token"));
    assert_eq!(
        found[0].explanation,
        "service makes the same call of tool from 198.51.100.23 over and over with a credential that has \
         expired: 5 times within 10 minutes it was refused as invalid_token"
    );
}

#[test]
fn much_faster_than_ever_or_for_lack_of_a_scope_is_no_expired_token() {
    assert_eq!(
        started(&detections(service(60, 50, HOME, "insufficient_scope"))),
        [("by_user", "service", HOME)]
    );
    let mut calls = service(60, 0, HOME, "");
    calls.extend((0..50).map(|n| denied(1_000 + n, "service", HOME, 6_000 + n as i64)));
    calls.push(ok(2_000, "service", HOME, 6_051));
    let found = detections(calls);
    assert_eq!(started(&found), [("by_user", "service", HOME), ("success_after_failures", "service", HOME)]);
}

#[test]
fn behind_an_expired_token_an_attack_from_the_same_address_is_seen() {
    let mut calls = service(60, 100, HOME, "invalid_token");
    calls.extend((0..5).map(|n| denied(1_000 + n, "other", HOME, 9_000 + n as i64)));
    calls.sort_by_key(|call| call.received_at);
    let found = detections(calls);
    assert_eq!(started(&found), [("expired_credential", "service", HOME), ("by_user", "other", HOME)]);
}

#[test]
fn an_episode_ends_ten_minutes_after_the_last_refusal_and_another_may_begin() {
    let first = (0..10).map(|n| denied(n, "u", "", n as i64));
    let quiet = [ok(50, "other", "", 608), ok(51, "other", "", 609)];
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
fn where_nobody_succeeds_it_is_calm_after_an_hour_and_for_one_who_comes_back_after_a_day() {
    let burst =
        |first: u128, start: i64| (0..6).map(move |n| denied(first + n, "root", HOME, start + n as i64));
    let later = [0, 1_800, 2 * HOUR, 20 * HOUR, 30 * HOUR];
    let bursts = (0_u128..).zip(later).flat_map(|(n, start)| burst(n * 10, start));
    let found = detections(bursts.chain([ok(99, "other", AWAY, 60 * HOUR)]));
    assert_eq!(
        kinds(&found),
        [
            ("by_user", "started", 3),
            ("by_user", "ended", 3),
            ("by_user", "started", 2 * HOUR + 3),
            ("by_user", "ended", 2 * HOUR + 3),
        ]
    );
    assert_eq!(found[1].explanation, "no call of root from 198.51.100.23 has been refused for an hour");
    assert_eq!(found[3].explanation, "no call of root from 198.51.100.23 has been refused for a day");
}

#[test]
fn what_was_told_of_an_attack_ends_with_it() {
    let tries = (0..9).map(|n| denied(n, &format!("u{n}"), HOME, n as i64));
    let found = detections(tries.chain([ok(77, "u3", HOME, 10), ok(78, "other", AWAY, 2 * HOUR)]));
    let [spraying, success, ended @ ..] = &found[..] else { panic!("{found:?}") };
    let ids: Vec<&str> = ended.iter().map(|d| d.detection_id.as_str()).collect();
    assert_eq!(ids, [spraying.detection_id.as_str(), success.detection_id.as_str()]);
    assert!(ended.iter().all(|d| d.phase == "ended" && secs(d.ended_at) == 8 + HOUR));
}

/// Ordinary days, on which a few addresses mistype, and then many addresses with one try each.
fn botnet(days: i64, tries: i64, pace: i64) -> Vec<AcceptedTrace> {
    let mistakes = (0..days * 24)
        .map(|n| denied(n as u128, &format!("user-{n}"), &format!("192.0.2.{}", n % 200), n * HOUR));
    let attack = (0..tries).map(|n| {
        let source = format!("2001:db8::{n:x}");
        denied(1_000_000 + n as u128, &format!("victim-{n}"), &source, days * DAY + n * pace)
    });
    mistakes.chain(attack).collect()
}

#[test]
fn many_addresses_with_one_try_each_are_the_apps_alarm_once() {
    let found = detections(botnet(3, 200, 2));
    let found: Vec<&Detection> = found.iter().filter(|d| d.rule == "failed_auth").collect();
    let [found] = &found[..] else { panic!("{found:?}") };
    assert_eq!(
        (found.kind.as_str(), found.user_sub.as_str(), secs(found.detected_at)),
        ("by_app", "", 3 * DAY + 58)
    );
    assert_eq!(
        found.explanation,
        "30 calls from addresses with one or two each were refused within 10 minutes for lack of authentication \
         or authorization; the most there were before is 1"
    );
}

#[test]
fn as_many_as_usual_or_on_the_first_day_of_an_app_are_no_alarm_of_the_app() {
    assert_eq!(detections(botnet(0, 200, 2)), []);
    // Twenty in ten minutes.
    assert_eq!(detections(botnet(0, 10_000, 30)), []);
}

#[test]
fn one_address_or_one_user_is_not_the_apps_matter() {
    let ordinary = botnet(3, 0, 1);
    let spraying = (0..500).map(|n| denied(2_000_000 + n, &format!("u{n}"), HOME, 3 * DAY + n as i64));
    let found = detections(ordinary.into_iter().chain(spraying));
    assert!(found.iter().all(|d| d.kind != "by_app"), "{found:?}");
}
