//! What the rule `off_hour` promises.
#![allow(clippy::unwrap_used)]

mod common;

use common::{at, secs, trace};
use panopticon_anomaly_detector::{
    backtest::backtest,
    rules,
    settings::{Settings, SettingsOf},
};
use panopticon_core::{
    stage::{Findings, Rule},
    time::Time,
    trace::{AcceptedTrace, Status},
};
use panopticon_proto::log::Detection;
use proptest::prelude::*;

const MINUTE: i64 = 60;
const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// Calls at these seconds after noon of the first day.
fn calls(user: &str, seconds: &[i64]) -> Vec<AcceptedTrace> {
    (1_u128..).zip(seconds).map(|(n, second)| trace(n, user, "", Status::Ok, at(*second))).collect()
}

/// The seconds after noon, in order, of someone who works from about nine to six in a zone so many hours
/// ahead of UTC, on weekdays.
fn office(days: i64, ahead: i64) -> Vec<i64> {
    let mut seconds = Vec::new();
    for day in 0..days {
        // The first day is a Tuesday.
        if (day + 1) % 7 >= 5 {
            continue;
        }
        for (n, hour) in [-3, 0, 2, 5].into_iter().enumerate() {
            let second = (day * 7_919 + n as i64 * 3_571) % 3_000;
            seconds.push(day * DAY + (hour - ahead) * HOUR + second);
            seconds.push(day * DAY + (hour - ahead) * HOUR + second + 60);
        }
    }
    seconds
}

fn with(mut seconds: Vec<i64>, more: impl IntoIterator<Item = i64>) -> Vec<i64> {
    seconds.extend(more);
    seconds.sort_unstable();
    seconds
}

fn off_hours_with(settings: Settings, traces: impl IntoIterator<Item = AcceptedTrace>) -> Vec<Detection> {
    let mut found = Vec::new();
    backtest(traces, &SettingsOf::all(settings), &mut [], |detection| found.push(detection));
    found.retain(|detection| detection.rule == "off_hour");
    found
}

fn off_hours(seconds: &[i64]) -> Vec<Detection> {
    off_hours_with(Settings::default(), calls("user", seconds))
}

fn begun(seconds: &[i64]) -> Vec<i64> {
    let found = off_hours(seconds);
    found.iter().filter(|found| found.phase == "started").map(|found| secs(found.detected_at)).collect()
}

/// Three in the morning of a day, for someone so many hours ahead of UTC.
const fn night(day: i64, ahead: i64) -> i64 {
    day * DAY - (9 + ahead) * HOUR
}

#[test]
fn a_session_at_night_is_told_once_on_its_first_call_and_ends_with_its_last() {
    let session = [0, 5, 20, 50].map(|minutes| night(91, 0) + minutes * MINUTE);
    let found = off_hours(&with(office(120, 0), session));
    let [started, ended] = &found[..] else { panic!("{found:?}") };
    assert_eq!((started.phase.as_str(), secs(started.detected_at)), ("started", session[0]));
    assert_eq!((ended.phase.as_str(), secs(ended.ended_at)), ("ended", session[3] + HOUR));
    assert_eq!(started.detection_id, ended.detection_id);
    assert!(started.score > 80.0 && started.expected < 0.01, "{started:?}");
    assert_eq!(
        started.explanation,
        "user called tool at 03:00 UTC; on 100 active days, 0.6 sessions are to be expected within that hour; \
         most activity is between 09:00 and 17:00 UTC"
    );
}

#[test]
fn the_zone_of_a_user_is_learned_and_does_not_matter() {
    for ahead in -11..=12 {
        assert!(begun(&office(120, ahead)).is_empty(), "{ahead}");
        let found = begun(&with(office(120, ahead), [night(91, ahead)]));
        assert_eq!(found, [night(91, ahead)], "{ahead}");
    }
}

#[test]
fn nothing_is_told_of_a_user_before_twenty_active_days() {
    let nights = (0..26).map(|day| night(day, 0));
    let days = office(26, 0);
    assert!(begun(&with(days.clone(), nights)).is_empty());
    assert!(begun(&with(days, [night(27, 0)])).is_empty(), "19 active days");
    assert_eq!(begun(&with(office(40, 0), [night(35, 0)])), [night(35, 0)]);
}

#[test]
fn of_what_has_no_rhythm_nothing_is_told() {
    let around_the_clock: Vec<i64> = (0..2_000).map(|n| n * 5 * HOUR + (n * 7_919) % HOUR).collect();
    assert!(begun(&around_the_clock).is_empty());
    for seed in 0..20 {
        let now_and_then: Vec<i64> =
            (0..150).map(|day| day * DAY + (day * day * 31_337 + seed * 7_919 * day) % DAY).collect();
        assert!(begun(&now_and_then).is_empty(), "{seed}");
    }
    let two_offices = with(office(200, 0), office(200, 12));
    assert!(begun(&with(two_offices, [night(150, 0), night(160, 6)])).is_empty());
}

#[test]
fn a_clock_change_raises_nothing_and_a_move_at_most_one_alarm() {
    let from = 120 * DAY - 12 * HOUR;
    let moved = |hours: i64| -> Vec<i64> {
        office(260, 0).into_iter().map(|at| if at < from { at } else { at + hours * HOUR }).collect()
    };
    assert!(begun(&moved(1)).is_empty() && begun(&moved(-1)).is_empty());
    for hours in -12..=12 {
        assert!(begun(&moved(hours)).len() <= 1, "{hours}: {:?}", begun(&moved(hours)));
    }
}

#[test]
fn after_an_alarm_the_next_waits_until_the_user_was_active_at_usual_times_again() {
    let (nights, noon) = ([night(91, 0), night(92, 0)], 91 * DAY);
    assert_eq!(begun(&with(office(120, 0), nights)), nights);
    let holidays: Vec<i64> = office(120, 0).into_iter().filter(|at| *at < noon - DAY / 2).collect();
    let hardly_there = with(holidays, [nights[0], noon, nights[1]]);
    assert_eq!(begun(&hardly_there), [nights[0]], "they may have moved");
}

#[test]
fn a_night_after_others_by_months_is_still_told() {
    let nights = [80, 150, 220].map(|day| night(day, 0));
    assert_eq!(begun(&with(office(260, 0), nights)), nights);
}

#[test]
fn late_traces_raise_nothing_and_teach() {
    let late = |day: i64, n: u128| {
        let mut late = trace(n, "user", "", Status::Ok, at(night(day, 0)));
        late.received_at = at(night(day, 0) + 2 * HOUR);
        late.late = true;
        late
    };
    let arrived = |mut traces: Vec<AcceptedTrace>| {
        traces.sort_by_key(|accepted| accepted.received_at);
        off_hours_with(Settings::default(), traces)
    };
    let office = calls("user", &office(120, 0));
    let one = [office.clone(), vec![late(91, 100_000)]].concat();
    assert!(arrived(one).is_empty());
    let each_night = (0..91).map(|day| late(day, 100_000 + day as u128)).collect();
    let usual = [office, each_night, calls("user", &[night(91, 0)])].concat();
    assert!(arrived(usual).is_empty(), "what late traces have shown to be usual is so");
}

#[test]
fn a_session_lasts_until_nothing_of_it_can_be_on_its_way() {
    let mut traces = calls("user", &with(office(120, 0), [night(91, 0), night(91, 0) + 59 * MINUTE + 40]));
    let second = traces.iter_mut().find(|accepted| accepted.trace.started_at > at(night(91, 0))).unwrap();
    second.received_at = second.received_at.plus(std::time::Duration::from_secs(50));
    let found = off_hours_with(Settings::default(), traces);
    assert_eq!(found.len(), 2);
    assert_eq!(secs(found[1].ended_at), night(91, 0) + 59 * MINUTE + 40 + HOUR);
}

#[test]
fn a_replay_of_everything_says_nothing() {
    let mut rule = rules(100, &SettingsOf::default()).0;
    let mut findings = Findings::default();
    for (offset, accepted) in (0..).zip(calls("user", &with(office(120, 0), [night(91, 0)]))) {
        rule.observe(&accepted, offset, true, &mut findings);
    }
    assert!(findings.detections.is_empty());
}

#[test]
fn an_app_can_switch_it_off_or_name_quiet_users() {
    let traces = calls("user", &with(office(120, 0), [night(91, 0)]));
    let off = Settings { off_hour: false, ..Settings::default() };
    let quiet = Settings { quiet_users: ["user".to_owned()].into(), ..Settings::default() };
    let rarer = Settings { alarms_a_month: 1e-6, ..Settings::default() };
    for settings in [off, quiet, rarer] {
        assert!(off_hours_with(settings, traces.clone()).is_empty());
    }
    let nobody = calls("", &with(office(120, 0), [night(91, 0)]));
    assert!(off_hours_with(Settings::default(), nobody).is_empty(), "calls without a user are of many");
}

/// Shows the traces to a rule that dies after each of these offsets, with a checkpoint so many calls before.
fn with_deaths(traces: &[AcceptedTrace], deaths: &[usize], behind: usize) -> Vec<Detection> {
    let fresh = || rules(100, &SettingsOf::default()).0;
    let mut rule = fresh();
    let mut table = std::collections::BTreeMap::new();
    let (mut checkpoint, mut told) = (0, Vec::new());
    for (offset, accepted) in traces.iter().enumerate() {
        let mut findings = Findings::default();
        rule.advance(accepted.received_at, &mut findings);
        rule.observe(accepted, offset as u64, false, &mut findings);
        told.append(&mut findings.detections);
        let all = deaths.contains(&(offset + behind));
        for (key, state) in rule.changed(offset as u64 + 1, all) {
            match state {
                Some(state) => table.insert(key, state),
                None => table.remove(&key),
            };
        }
        if all {
            checkpoint = offset + 1;
        }
        if deaths.contains(&offset) {
            rule = fresh();
            for (key, state) in &table {
                rule.load(key, state.clone()).unwrap();
            }
            for (replayed, accepted) in traces.iter().enumerate().take(offset + 1).skip(checkpoint) {
                rule.observe(accepted, replayed as u64, true, &mut findings);
            }
            assert!(findings.detections.is_empty(), "a replay says nothing");
        }
    }
    told
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn wherever_it_dies_it_says_what_it_would_have_said(
        deaths in proptest::collection::vec(0_usize..900, 1..12),
        behind in 0_usize..40,
    ) {
        let nights = [50, 51, 80, 110].into_iter().flat_map(|day| [0, 10, 40].map(|m| night(day, 0) + m * MINUTE));
        let traces = calls("user", &with(office(120, 0), nights));
        let undisturbed = with_deaths(&traces, &[], 0);
        prop_assert!(undisturbed.len() >= 4, "{}", undisturbed.len());
        prop_assert_eq!(with_deaths(&traces, &deaths, behind), undisturbed);
    }

    #[test]
    fn disorder_up_to_a_minute_changes_no_session(delays in proptest::collection::vec(0_i64..60, 900)) {
        let nights = [50, 80, 110].into_iter().flat_map(|day| [0, 10, 40].map(|m| night(day, 0) + m * 20));
        let seconds = with(office(120, 0), nights);
        let mut traces = calls("user", &seconds);
        for (accepted, delay) in traces.iter_mut().zip(&delays) {
            accepted.received_at = Time::from_micros(accepted.received_at.micros() + delay * 1_000_000);
        }
        let ends = |found: Vec<Detection>| -> Vec<i64> { found.iter().map(|found| found.ended_at).collect() };
        let ordered = ends(off_hours(&seconds));
        traces.sort_by_key(|accepted| accepted.received_at);
        prop_assert_eq!(ends(off_hours_with(Settings::default(), traces)), ordered);
    }
}
