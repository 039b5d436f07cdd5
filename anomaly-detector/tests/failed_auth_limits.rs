//! What the rule `failed_auth` holds to: settings, limits, disorder, and the copies for the rules over sources.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use common::{at, denied, detections, detections_with, ok, secs, started, trace};
use panopticon_anomaly_detector::{
    detector, rules,
    settings::{Settings, SettingsOf},
};
use panopticon_core::{
    stage::{Findings, Rule},
    trace::{AcceptedTrace, Status},
};
use panopticon_proto::log::{Denial, Detection};
use proptest::prelude::*;

const HOME: &str = "198.51.100.23";
const AWAY: &str = "203.0.113.9";
const HOUR: i64 = 3_600;

#[test]
fn late_refusals_raise_nothing_on_either_side() {
    let late = |n: u128, user: &str| AcceptedTrace { late: true, ..denied(n, user, HOME, n as i64) };
    let users = ["a", "b"];
    assert_eq!(detections((0..40).map(|n| late(n, users[n as usize % 2]))), []);
}

#[test]
fn a_rule_that_is_off_and_a_quiet_user_raise_nothing() {
    let tries = |source_ip: &'static str| (0..40).map(move |n| denied(n, "u", source_ip, n as i64));
    for source_ip in ["", HOME] {
        let off = Settings { failed_auth: false, ..Settings::default() };
        assert_eq!(detections_with(off, tries(source_ip)), []);
        let quiet = Settings { quiet_users: ["u".to_owned()].into(), ..Settings::default() };
        assert_eq!(detections_with(quiet, tries(source_ip)), []);
    }
}

#[test]
fn an_app_that_wants_few_alarms_gets_one_when_there_is_more_evidence() {
    let seldom = Settings { alarms_a_month: 0.5, ..Settings::default() };
    let found = detections_with(seldom, (0..40).map(|n| denied(n, "u", "", n as i64)));
    let [found] = &found[..] else { panic!("{found:?}") };
    assert_eq!((found.kind.as_str(), secs(found.detected_at)), ("by_user", 7));
}

#[test]
fn every_trace_with_an_address_is_copied_once_and_not_in_a_replay() {
    let (mut by_trace, _) = rules(10, &SettingsOf::default());
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
        user_known: false,
        usual_gap_ms: 0,
    };
    assert_eq!(findings.denials, [expected]);
}

#[test]
fn a_copy_says_whether_its_user_has_succeeded_before() {
    let (mut by_trace, _) = rules(10, &SettingsOf::default());
    let mut findings = Findings::default();
    for n in 0..20 {
        by_trace.observe(&ok(n, "u", HOME, n as i64 * 100), n as u64, false, &mut findings);
    }
    let said: Vec<bool> = findings.denials.iter().map(|denial| denial.user_known).collect();
    assert_eq!((said[0], said[1], said[19]), (false, true, true));
    let gap = findings.denials[19].usual_gap_ms;
    assert!((90_000..=110_000).contains(&gap), "{gap}");
}

#[test]
fn an_entity_of_an_unknown_rule_is_refused() {
    let mut rule = detector::DetectorRule::new(Vec::new());
    assert!(rule.load(b"failed_auth/app\0u", Default::default()).is_err());
    assert!(rule.load(b"nothing", Default::default()).is_err());
}

/// Shows traces to rules that remember at most `limit` entities; answers what they said and remember.
fn with_little_room(
    limit: usize,
    traces: impl IntoIterator<Item = AcceptedTrace>,
) -> (Vec<Detection>, usize) {
    let (mut by_trace, mut by_source) = rules(limit, &SettingsOf::default());
    let mut findings = Findings::default();
    for accepted in traces {
        by_trace.advance(accepted.received_at, &mut findings);
        by_trace.observe(&accepted, 0, false, &mut findings);
        by_source.advance(accepted.received_at, &mut findings);
        for denial in std::mem::take(&mut findings.denials) {
            by_source.observe(&denial, 0, false, &mut findings);
        }
    }
    let entities = by_source.changed(1, true).into_iter().filter(|(_, state)| state.is_some()).count();
    (findings.detections, entities)
}

#[test]
fn a_flood_of_made_up_names_and_addresses_hides_no_slow_attack() {
    let flood = (0..100_000_u128).map(|n| {
        let source = format!("2001:db8::{:x}:{:x}", n >> 16, n & 0xffff);
        denied(n, &format!("made-up-{n}"), &source, n as i64 * 2)
    });
    let slow = (0..6_u128).map(|n| denied(1_000_000 + n, "u", HOME, n as i64 * 9 * HOUR + 1));
    let mut traces: Vec<AcceptedTrace> = flood.chain(slow).collect();
    traces.sort_by_key(|accepted| accepted.received_at);
    let (found, entities) = with_little_room(100_000, traces.clone());
    assert_eq!(started(&found), [("slow", "u", HOME)]);
    assert!(entities <= 100_000);
    // Where there is no room for all, the one that tries again outlives those that try once.
    let again = denied(2_000_000, "u", HOME, 2);
    let traces: Vec<AcceptedTrace> =
        traces.into_iter().take(1).chain([again]).chain(traces_of_slow()).collect();
    let (found, entities) = with_little_room(50, traces);
    assert_eq!(started(&found), [("slow", "u", HOME)]);
    assert!(entities <= 50);
}

/// A slow attack after its second try, with a thousand addresses that try once between any two tries.
fn traces_of_slow() -> Vec<AcceptedTrace> {
    let each = |n: u128| {
        let others = (0..1_000_u128).map(move |m| {
            let number = n * 1_000 + m;
            denied(
                number,
                &format!("made-up-{number}"),
                &format!("2001:db8::{number:x}"),
                n as i64 * HOUR + m as i64,
            )
        });
        [denied(3_000_000 + n, "u", HOME, n as i64 * HOUR)].into_iter().chain(others)
    };
    (0..6).flat_map(each).collect()
}

#[test]
fn a_flood_of_attacking_addresses_hides_no_other_attack() {
    let tries = |number: u128, source: String| {
        (0..5).map(move |n| denied(number * 10 + n, "root", &source, number as i64))
    };
    let flood = (0..500_u128).flat_map(|number| tries(number, format!("2001:db8::{number:x}")));
    let (found, entities) = with_little_room(50, flood.chain(tries(500, HOME.to_owned())));
    assert!(started(&found).contains(&("by_user", "root", HOME)));
    assert_eq!(started(&found).iter().filter(|one| !one.2.is_empty()).count(), 501);
    assert!(entities <= 50);
}

/// Traces of three users from three addresses or none: mostly refused, quick, with pauses.
fn streams() -> impl Strategy<Value = Vec<(i64, usize, usize, bool, i64)>> {
    let call = (0_i64..400, 0_usize..3, 0_usize..3, 0_u8..6, 0_i64..60)
        .prop_map(|(step, user, source, outcome, delay)| (step / 3, user, source, outcome == 0, delay));
    proptest::collection::vec(call, 1..60)
}

fn stream(calls: &[(i64, usize, usize, bool, i64)]) -> Vec<AcceptedTrace> {
    let mut now = 0;
    let one = |(n, (step, user, source, succeeds, delay)): (u128, &(i64, usize, usize, bool, i64))| {
        now += step;
        let status = if *succeeds { Status::Ok } else { Status::Denied };
        let mut one = trace(n, ["a", "b", "root"][*user], [HOME, AWAY, ""][*source], status, at(now));
        one.received_at = at(now + delay);
        one
    };
    (0_u128..).zip(calls).map(one).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn five_refusals_in_ten_minutes_of_a_user_or_from_an_address_are_always_an_alarm(calls in streams()) {
        let traces: Vec<AcceptedTrace> = stream(&calls).into_iter().filter(|one| one.trace.is_denied()).collect();
        let mut traces = traces;
        traces.iter_mut().for_each(|one| one.received_at = one.trace.started_at);
        let within = |one: &AcceptedTrace, other: &AcceptedTrace| {
            one.trace.started_at.since(other.trace.started_at).as_secs() < 600
        };
        let due = traces.iter().enumerate().find(|(n, one)| {
            let before: Vec<&AcceptedTrace> = traces[..=*n].iter().filter(|other| within(one, other)).collect();
            let user = before.iter().filter(|other| other.trace.user_sub == one.trace.user_sub).count();
            let source = before.iter().filter(|other| other.trace.source_ip == one.trace.source_ip).count();
            user >= 5 || (source >= 5 && !one.trace.source_ip.is_empty())
        });
        let found = detections(traces.clone());
        if let Some((_, due)) = due {
            prop_assert!(found.iter().any(|d| d.detected_at <= due.trace.started_at.micros()), "{:?}", found);
        }
    }

    /// Which addresses attack, or which users are attacked where there are none. By which evidence an attack
    /// is told first, and so its kind, depends on what came first; and of several successes of one user
    /// within a minute only the last is remembered.
    #[test]
    fn a_minute_of_disorder_changes_nothing(calls in streams(), with_addresses in any::<bool>()) {
        let mut traces = stream(&calls);
        let mut succeeded = BTreeSet::new();
        traces.retain_mut(|one| {
            let whose = (one.trace.user_sub.clone(), one.trace.source_ip.clone());
            if !with_addresses {
                one.trace.source_ip.clear();
            }
            let addressed = !one.trace.source_ip.is_empty();
            addressed == with_addresses && (one.trace.is_denied() || (addressed && succeeded.insert(whose)))
        });
        let (mut in_order, mut disordered) = (traces.clone(), traces);
        in_order.sort_by_key(|one| one.trace.started_at);
        disordered.sort_by_key(|one| one.received_at);
        let told = |traces: Vec<AcceptedTrace>| -> BTreeSet<String> {
            let found = detections(traces);
            let attacks = found.iter().filter(|d| d.phase == "started" && d.severity == "high");
            let about = |d: &Detection| if with_addresses { d.source_ip.clone() } else { d.user_sub.clone() };
            attacks.map(about).filter(|about| !about.is_empty()).collect()
        };
        prop_assert_eq!(told(in_order), told(disordered));
    }
}
