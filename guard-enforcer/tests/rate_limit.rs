//! What the rule `rate_limit` promises.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc};

use panopticon_core::{
    api::RateLimitBody,
    ids::EventId,
    stage::{Findings, Rule},
    time::Time,
    trace::{AcceptedTrace, Status, Trace},
};
use panopticon_guard_enforcer::rate_limit::RateLimitRule;
use panopticon_proto::log::Detection;
use parking_lot::Mutex;
use proptest::prelude::*;

/// 2026-06-30T12:00:00Z.
const NOON: i64 = 1_782_820_800_000_000;

/// Milliseconds after noon.
fn at(ms: i64) -> Time {
    Time::from_micros(NOON + ms * 1_000)
}

fn ms(time: i64) -> i64 {
    (time - NOON) / 1_000
}

fn call(n: u128, app: &str, user: &str, tool: &str, started_ms: i64) -> AcceptedTrace {
    let trace = Trace {
        event_id: EventId(uuid::Uuid::from_u128(n)),
        client_id: app.parse().unwrap(),
        user_sub: user.to_owned(),
        tool: tool.to_owned(),
        scope_used: String::new(),
        status: Status::Ok,
        started_at: at(started_ms),
        duration_ms: 0,
        session_id: String::new(),
        agent: String::new(),
        source_ip: String::new(),
        error_code: String::new(),
        attributes: BTreeMap::new(),
    };
    AcceptedTrace::new(trace, at(started_ms))
}

type Limits = Box<dyn Fn(&str) -> RateLimitBody + Send>;

/// The rule, fed as its stage feeds it, with limits that a test can change.
struct Fed {
    rule: RateLimitRule<Limits>,
    limits: Arc<Mutex<BTreeMap<String, RateLimitBody>>>,
    offset: u64,
}

impl Fed {
    fn new() -> Self {
        let limits: Arc<Mutex<BTreeMap<String, RateLimitBody>>> = Arc::default();
        let shared = limits.clone();
        let of_app = move |app: &str| shared.lock().get(app).copied().unwrap_or_default();
        Self { rule: RateLimitRule::new(1_000, Box::new(of_app)), limits, offset: 0 }
    }

    fn limit(&self, app: &str, per_minute: u32, per_tool_per_minute: u32) {
        self.limits.lock().insert(app.to_owned(), RateLimitBody { per_minute, per_tool_per_minute });
    }

    fn see(&mut self, accepted: &AcceptedTrace) -> Vec<Detection> {
        let mut findings = Findings::default();
        self.rule.advance(accepted.received_at, &mut findings);
        self.rule.observe(accepted, self.offset, false, &mut findings);
        self.offset += 1;
        findings.detections
    }

    fn advance(&mut self, to_ms: i64) -> Vec<Detection> {
        let mut findings = Findings::default();
        self.rule.advance(at(to_ms), &mut findings);
        findings.detections
    }

    /// Calls number `range`, 100 ms apart, of a tool each of its own unless `tool` is given.
    fn calls(&mut self, range: std::ops::Range<i64>, user: &str, tool: Option<&str>) -> Vec<Detection> {
        range
            .flat_map(|n| {
                let own = format!("tool-{n}");
                self.see(&call(n as u128, "app", user, tool.unwrap_or(&own), n * 100))
            })
            .collect()
    }
}

#[test]
fn the_61st_call_in_a_minute_begins_an_episode_and_the_60th_does_not() {
    let mut fed = Fed::new();
    assert_eq!(fed.calls(0..60, "user_7", None), []);
    let found = fed.calls(60..61, "user_7", None);
    let [found] = &found[..] else { panic!("{found:?}") };
    assert_eq!(
        (found.rule.as_str(), found.kind.as_str(), found.phase.as_str()),
        ("rate_limit", "per_user", "started")
    );
    assert_eq!(
        (found.client_id.as_str(), found.user_sub.as_str(), found.tool.as_str()),
        ("app", "user_7", "")
    );
    assert_eq!(
        (found.observed, found.expected, found.score, found.severity.as_str()),
        (61.0, 60.0, 80.0, "high")
    );
    assert_eq!(found.explanation, "user_7 made 61 calls in 60 s; the limit is 60");
    assert_eq!(found.deciding_event_id, uuid::Uuid::from_u128(60).to_string());
    assert_eq!((ms(found.detected_at), found.ended_at, found.emitted_at), (6_000, 0, 0));
    let window = found.window.unwrap();
    assert_eq!((ms(window.start), ms(window.end)), (-54_000, 6_000));
}

#[test]
fn the_21st_call_of_a_tool_begins_an_episode_and_the_20th_does_not() {
    let mut fed = Fed::new();
    assert_eq!(fed.calls(0..20, "user_7", Some("payment.charge")), []);
    let found = fed.calls(20..21, "user_7", Some("payment.charge"));
    let [found] = &found[..] else { panic!("{found:?}") };
    assert_eq!((found.kind.as_str(), found.tool.as_str()), ("per_tool", "payment.charge"));
    assert_eq!(found.explanation, "user_7 called payment.charge 21 times in 60 s; the limit is 20");
}

#[test]
fn calls_exactly_60_seconds_apart_are_in_no_window_together() {
    for (last, begins) in [(60_000, 0), (59_999, 1)] {
        let mut fed = Fed::new();
        for n in 0..20 {
            assert_eq!(fed.see(&call(n, "app", "u", "t", 0)), []);
        }
        assert_eq!(fed.see(&call(20, "app", "u", "t", last)).len(), begins, "{last}");
    }
}

#[test]
fn an_episode_is_told_once_also_when_the_second_limit_is_crossed() {
    let mut fed = Fed::new();
    let found = fed.calls(0..200, "u", Some("t"));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].kind.as_str(), ms(found[0].detected_at)), ("per_tool", 2_000));
}

#[test]
fn one_end_is_told_60_seconds_after_the_last_call_over_a_limit() {
    let mut fed = Fed::new();
    let began = fed.calls(0..30, "u", Some("t")).remove(0);
    // The call at 2.9 s is the last over the limit: these later ones are not.
    assert_eq!(fed.see(&call(100, "app", "u", "other", 50_000)), []);
    assert_eq!(fed.advance(62_899), []);
    let ended = fed.advance(62_900);
    let [ended] = &ended[..] else { panic!("{ended:?}") };
    assert_eq!((ended.phase.as_str(), ms(ended.ended_at)), ("ended", 62_900));
    assert_eq!(ended.detection_id, began.detection_id);
    assert_eq!(ended.deciding_event_id, began.deciding_event_id);
    assert_eq!(fed.advance(1_000_000), []);
}

#[test]
fn a_burst_after_the_calm_is_another_episode_though_nothing_told_the_time() {
    let mut fed = Fed::new();
    fed.calls(0..30, "u", Some("t"));
    // The next trace received is over the limit again, a minute after the last that was.
    let mut found = Vec::new();
    for n in 630..660 {
        let mut trace = call(n as u128, "app", "u", "t", n * 100);
        let mut findings = Findings::default();
        trace.received_at = at(n * 100);
        fed.rule.observe(&trace, n as u64, false, &mut findings);
        found.extend(findings.detections);
    }
    let phases: Vec<_> =
        found.iter().map(|d| (d.phase.as_str(), ms(d.detected_at), ms(d.ended_at).max(0))).collect();
    assert_eq!(phases, [("ended", 2_000, 62_900), ("started", 65_000, 0)]);
    assert_ne!(found[0].detection_id, found[1].detection_id);
}

#[test]
fn where_calls_arrive_with_delay_the_end_waits_for_as_long() {
    let mut fed = Fed::new();
    for n in 0..21 {
        let mut trace = call(n, "app", "u", "t", n as i64 * 100);
        trace.received_at = at(n as i64 * 100 + 30_000);
        fed.see(&trace);
    }
    assert_eq!(fed.advance(2_000 + 60_000 + 29_999), []);
    let ended = fed.advance(2_000 + 60_000 + 30_000);
    assert_eq!((ended.len(), ms(ended[0].ended_at)), (1, 62_000));
}

#[test]
fn the_policy_in_force_at_the_call_decides() {
    let mut fed = Fed::new();
    fed.limit("app", 0, 3);
    assert_eq!(fed.calls(0..3, "u", Some("t")), []);
    assert_eq!(fed.calls(3..4, "u", Some("t"))[0].expected, 3.0);
    // Nobody is limited by 0.
    fed.limit("app", 0, 0);
    assert_eq!(fed.calls(4..300, "v", Some("t")), []);
    // From now on, two; what was counted under a higher limit counts, up to twice the limit and a bit.
    fed.limit("app", 50, 0);
    assert_eq!(fed.calls(300..340, "w", Some("t")), []);
    fed.limit("app", 2, 0);
    let found = fed.calls(340..341, "w", Some("t"));
    assert_eq!((found[0].observed, found[0].expected, found[0].score), (6.0, 2.0, 100.0));
    // Another app has its own.
    let mut other = Vec::new();
    for n in 0..20 {
        other.extend(fed.see(&call(1_000 + n, "other", "w", "t", 34_100)));
    }
    assert_eq!(other, []);
}

#[test]
fn apps_and_users_are_counted_apart_and_no_user_is_one_user() {
    let mut fed = Fed::new();
    let mut found = Vec::new();
    for n in 0..20 {
        for (m, (app, user)) in [("a", "x"), ("a", "y"), ("b", "x"), ("a", "")].into_iter().enumerate() {
            found.extend(fed.see(&call(n * 10 + m as u128, app, user, "t", n as i64)));
        }
    }
    assert_eq!(found, []);
    let found = fed.see(&call(999, "a", "", "t", 30));
    assert_eq!((found[0].client_id.as_str(), found[0].user_sub.as_str()), ("a", ""));
    assert_eq!(found[0].explanation, "t was called 21 times in 60 s without a user; the limit is 20");
}

#[test]
fn late_traces_are_not_counted_and_raise_nothing() {
    let mut fed = Fed::new();
    fed.calls(0..20, "u", Some("t"));
    for n in 0..100 {
        let mut late = call(500 + n, "app", "u", "t", 2_000);
        late.late = true;
        assert_eq!(fed.see(&late), []);
    }
    assert_eq!(fed.calls(20..21, "u", Some("t")).len(), 1);
}

#[test]
fn the_same_calls_give_the_same_id() {
    let ids: Vec<String> =
        (0..2).map(|_| Fed::new().calls(0..21, "u", Some("t"))[0].detection_id.clone()).collect();
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[0], Fed::new().calls(0..21, "v", Some("t"))[0].detection_id);
}

#[test]
fn a_flood_of_users_and_tools_leaves_open_episodes_alone() {
    let mut fed = Fed::new();
    let began = fed.calls(0..21, "u", Some("t"));
    for n in 0..20_000 {
        let user = if n % 2 == 0 { format!("made-up-{n}") } else { "many-tools".to_owned() };
        fed.limit("app", 0, 20);
        fed.see(&call(1_000 + n, "app", &user, &format!("made-up-{n}"), 3_000));
    }
    let entities = fed.rule.changed(1, true);
    let states = entities.iter().filter_map(|(_, state)| state.as_ref());
    let bytes: Vec<usize> = states.map(|state| state.state.len()).collect();
    assert!(bytes.len() <= 1_000 && bytes.iter().all(|bytes| *bytes < 16_000), "{}", bytes.len());
    assert_eq!(fed.advance(70_000)[0].detection_id, began[0].detection_id);
}

#[test]
fn a_user_without_calls_is_forgotten() {
    let mut fed = Fed::new();
    fed.calls(0..5, "u", None);
    assert_eq!(fed.rule.changed(1, true).len(), 1);
    fed.advance(400 + 119_999);
    assert_eq!(fed.rule.changed(2, true), []);
    fed.advance(400 + 120_000);
    assert_eq!(fed.rule.changed(3, true), [(b"app\0u".to_vec(), None)]);
}

#[test]
fn a_replay_counts_but_begins_and_ends_nothing() {
    let mut fed = Fed::new();
    let mut findings = Findings::default();
    for n in 0..40 {
        fed.rule.observe(&call(n, "app", "u", "t", n as i64), n as u64, true, &mut findings);
    }
    assert_eq!(findings.detections, []);
    assert!(fed.rule.changed(40, false).is_empty());
    assert_eq!(fed.see(&call(40, "app", "u", "t", 40)).len(), 1);
}

/// The plain way: every call is kept, every window counted.
#[derive(Default)]
struct Plain {
    calls: Vec<(i64, u8)>,
    newest: i64,
    delay: i64,
    open: Option<i64>,
    ended: i64,
}

const MINUTE: i64 = 60_000;

impl Plain {
    fn over(&self, end: i64, tool: u8, limits: RateLimitBody) -> bool {
        let within = |call: &&(i64, u8)| end - MINUTE < call.0 && call.0 <= end;
        let all = self.calls.iter().filter(within).count();
        let of_tool = self.calls.iter().filter(within).filter(|call| call.1 == tool).count();
        let ends_with_tool = self.calls.contains(&(end, tool));
        all > limits.per_minute as usize || (ends_with_tool && of_tool > limits.per_tool_per_minute as usize)
    }

    fn advance(&mut self, now: i64, told: &mut Vec<(&'static str, i64)>) {
        if let Some(last) = self.open
            && now >= last + MINUTE + self.delay
        {
            self.end(last, told);
        }
    }

    fn end(&mut self, last: i64, told: &mut Vec<(&'static str, i64)>) {
        self.open = None;
        self.ended = last + MINUTE;
        told.push(("ended", self.ended));
    }

    fn see(
        &mut self,
        at: i64,
        received: i64,
        tool: u8,
        limits: RateLimitBody,
        told: &mut Vec<(&'static str, i64)>,
    ) {
        if self.open.is_none() && received >= self.newest + 2 * MINUTE {
            (self.delay, self.ended) = (0, i64::MIN / 2);
        }
        self.newest = self.newest.max(at);
        self.delay = self.delay.max((received - at).min(MINUTE));
        self.calls.push((at, tool));
        let ends: Vec<i64> = self
            .calls
            .iter()
            .map(|call| call.0)
            .filter(|end| (at..at + MINUTE).contains(end) && *end >= self.ended)
            .filter(|end| self.over(*end, tool, limits))
            .collect();
        let (Some(first), Some(last)) = (ends.iter().min(), ends.iter().max()) else { return };
        match self.open {
            Some(before) if *first < before + MINUTE => self.open = Some(before.max(*last)),
            open => {
                if let Some(before) = open {
                    self.end(before, told);
                }
                self.open = Some(*last);
                told.push(("started", at));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn episodes_are_those_that_counting_every_window_finds(
        steps in proptest::collection::vec((0_u8..100, 0_i64..60_000, 0_u8..3, 0_i64..60_000), 1..400),
        disorder in prop_oneof![Just(0_i64), Just(1), Just(10), Just(60)],
        per_minute in 1_u32..12,
        per_tool_per_minute in 1_u32..8,
    ) {
        let limits = RateLimitBody { per_minute, per_tool_per_minute };
        let mut fed = Fed::new();
        fed.limit("app", per_minute, per_tool_per_minute);
        let mut plain = Plain { newest: i64::MIN / 2, ended: i64::MIN / 2, ..Plain::default() };
        let (mut expected, mut found) = ( Vec::new(), Vec::new());
        let mut now = 0;
        for (n, (pace, step, tool, delay)) in steps.into_iter().enumerate() {
            // Mostly quick, with pauses long enough for an end.
            now += if pace < 92 { step / 20 } else { step * 4 };
            let started = now - delay * disorder / 60;
            plain.advance(now, &mut expected);
            plain.see(started, now, tool, limits, &mut expected);
            let mut trace = call(n as u128, "app", "u", &format!("tool-{tool}"), started);
            trace.received_at = at(now);
            for detection in fed.see(&trace) {
                found.push(match detection.phase.as_str() {
                    "started" => ("started", ms(detection.detected_at)),
                    _ => ("ended", ms(detection.ended_at)),
                });
            }
        }
        plain.advance(now + 1_000_000, &mut expected);
        found.extend(fed.advance(now + 1_000_000).iter().map(|d| ("ended", ms(d.ended_at))));
        prop_assert_eq!(found, expected);
    }
}
