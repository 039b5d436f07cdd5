//! The rule `burst` where it begins without a checkpoint, and knows what the trace store's aggregates say.
//!
//! It begins on real activity every sixty days. What it tells in the next thirty days is a false alarm; into the
//! first three go bursts, after the first call of each user who is there. So they do after half an hour of calls
//! of a language model.

use std::collections::{BTreeMap, BTreeSet};

use panopticon_anomaly_detector::{app_rules, backtest::MAX_ENTITIES, rules, settings::SettingsOf};
use panopticon_core::{
    stage::{Findings, Rule as _},
    store::{Activity, Whose},
    time::Time,
};
use panopticon_proto::log::Detection;

use super::{Call, MINUTE, SECOND, SHAPES, Shape, highest_minute, moment, trace};
use crate::report::Line;

const QUARTER: i64 = 15 * MINUTE;
const DAY: i64 = 1_440 * MINUTE;
/// How far back the aggregates are read.
const REACH: i64 = 400 * DAY;

/// Measures.
pub(super) fn measure(activity: &[Call], llm: &[Call]) -> Vec<Line> {
    let (Some(first), Some(last), Some(llm_first)) = (activity.first(), activity.last(), llm.first()) else {
        return Vec::new();
    };
    let starts = (1..).map(|n| first.at + n * 60 * DAY).take_while(|start| start + 30 * DAY < last.at);
    let (mut user_days, mut alarms, mut anew) = (0, 0, 0);
    let (mut found, mut all) = (0, 0);
    for start in starts {
        let after = between(activity, start, start + 30 * DAY);
        let days: BTreeSet<_> = after.iter().map(|call| (&call.app, &call.user, call.at / DAY)).collect();
        user_days += days.len();
        anew += Past::default().bursts(&after).len();
        alarms += Past::of(&between(activity, start - REACH, start)).bursts(&after).len();
        for hit in hits(activity, start) {
            (found, all) = (found + u32::from(hit), all + 1);
        }
    }
    let half_past = llm_first.at.div_euclid(QUARTER) * QUARTER + 2 * QUARTER;
    let llm_hits = hits_after(&between(llm, 0, half_past), &between(llm, half_past, i64::MAX), llm);
    let llm_found = llm_hits.iter().filter(|hit| **hit).count();
    let rate = |alarms: usize| alarms as f64 / f64::max(user_days as f64, 1.0);
    let recall = f64::from(found) / f64::from(all.max(1));
    vec![
        Line {
            what: "burst: the same, in 30 days after a start from the aggregates".to_owned(),
            best_known: format!("learning anew: {:.5}", rate(anew)),
            reach: "<= .001".to_owned(),
            measured: format!("{:.5} ({alarms} in {user_days} active user-days)", rate(alarms)),
            reached: rate(alarms) <= 0.001,
        },
        Line {
            what: "burst: injected bursts found within 1 s, in 3 days after such a start".to_owned(),
            best_known: "learning anew: 0".to_owned(),
            reach: "some".to_owned(),
            measured: format!("{recall:.4} of {all}; {llm_found} of {} in LLM traffic", llm_hits.len()),
            reached: found > 0,
        },
    ]
}

/// Which bursts are found of the users who are there in three days from `start` on.
fn hits(activity: &[Call], start: i64) -> Vec<bool> {
    let there = between(activity, start, start + 3 * DAY);
    let users: BTreeSet<_> = there.iter().map(|call| (&call.app, &call.user)).collect();
    let of_user = |(app, user): (&String, &String)| {
        let calls: Vec<Call> =
            activity.iter().filter(|call| (&call.app, &call.user) == (app, user)).cloned().collect();
        let past = between(&calls, start - REACH, start);
        hits_after(&past, &between(&calls, start, start + 3 * DAY), &calls)
    };
    users.into_iter().flat_map(of_user).collect()
}

/// Whether a burst of each shape, after the first of an entity's `calls`, is found. `all` are its calls ever.
fn hits_after(past: &[Call], calls: &[Call], all: &[Call]) -> Vec<bool> {
    let past = Past::of(past);
    let enough = 3 * highest_minute(all.iter().map(|call| call.at));
    let is_hit = |shape: Shape| {
        let begin = calls.first()?.at + 17 * SECOND;
        let burst: Vec<i64> = shape.calls(enough).iter().map(|after| begin + after).collect();
        let in_time = begin..=moment(calls, &burst, enough)? + SECOND;
        let mut with = calls.to_vec();
        with.extend(burst.iter().map(|at| Call { at: *at, ..calls[0].clone() }));
        with.sort_by_key(|call| call.at);
        let found = past.bursts(&with);
        Some(found.iter().any(|burst| burst.kind == "by_user" && in_time.contains(&burst.detected_at)))
    };
    SHAPES.into_iter().filter_map(is_hit).collect()
}

fn between(calls: &[Call], from: i64, until: i64) -> Vec<Call> {
    calls.iter().filter(|call| (from..until).contains(&call.at)).cloned().collect()
}

/// What the aggregates say.
#[derive(Default)]
struct Past {
    users: Vec<Activity>,
    tools: Vec<Activity>,
}

impl Past {
    fn of(calls: &[Call]) -> Self {
        Self { users: activity_of(calls, Whose::Users), tools: activity_of(calls, Whose::Tools) }
    }

    /// The bursts in `calls`, for rules that have learned this.
    fn bursts(&self, calls: &[Call]) -> Vec<Detection> {
        let settings = SettingsOf::default();
        let (mut by_trace, _) = rules(MAX_ENTITIES, &settings);
        let mut by_app = app_rules(MAX_ENTITIES, &settings);
        self.users.iter().for_each(|activity| by_trace.learn(activity));
        self.tools.iter().for_each(|activity| by_app.learn(activity));
        let mut findings = Findings::default();
        for (n, call) in calls.iter().enumerate() {
            let accepted = trace(n as u128, call);
            by_trace.advance(accepted.received_at, &mut findings);
            by_trace.observe(&accepted, n as u64, false, &mut findings);
            for rollup in findings.rollups.take() {
                by_app.advance(accepted.received_at, &mut findings);
                by_app.observe(&rollup, n as u64, false, &mut findings);
            }
        }
        findings.detections.retain(|detection| detection.rule == "burst" && detection.phase == "started");
        findings.detections
    }
}

fn activity_of(calls: &[Call], whose: Whose) -> Vec<Activity> {
    let mut quarters: BTreeMap<(i64, &str, &str), u64> = BTreeMap::new();
    for call in calls {
        let name = match whose {
            Whose::Users => &call.user,
            Whose::Tools => &call.tool,
        };
        *quarters.entry((call.at.div_euclid(QUARTER), &call.app, name)).or_default() += 1;
    }
    let activity = |((quarter, app, name), traces): ((i64, &str, &str), u64)| Activity {
        client_id: app.to_owned(),
        name: name.to_owned(),
        since: Time::from_micros(quarter * QUARTER),
        traces,
        denied: 0,
    };
    quarters.into_iter().map(activity).collect()
}
