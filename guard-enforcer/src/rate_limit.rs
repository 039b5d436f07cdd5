//! The rule `rate_limit`: a user's calls in any 60 seconds, all of them and those of one tool, against the
//! limits of the app's policy.
//!
//! Exact in event time; what counts as a window, and what disorder does, is said in
//! [`panopticon_core::stage::SlidingWindow`]. An app × user has one episode at a time, whichever limit
//! began it: while it is open, the other limit says nothing more.

use std::time::Duration;

use panopticon_core::{
    api::RateLimitBody,
    stage::{Entities, EpisodeForm, Findings, Rule, traces_of},
    time::Time,
    trace::{AcceptedTrace, WireError},
};
use panopticon_proto::log::{Detection, EntityState, Window};
use uuid::Uuid;

use crate::calls::{Calls, Over};

/// The name of the stage and of its group.
pub const STAGE: &str = "rate-limit";
/// The window in which calls are counted.
pub const WINDOW: Duration = Duration::from_secs(60);
/// The score of the first call over a limit.
const SCORE: f64 = 80.0;
/// Detections are UUIDv5 in this namespace.
const NAMESPACE: Uuid = Uuid::from_u128(0x3d9a_6c1e_52f7_5b0b_8a44_91c7_d2e0_6b35);

pub(crate) const FORM: EpisodeForm = EpisodeForm { width: WINDOW, ended: calm };

/// Counts each user's calls; `F` tells the limits in force for an app, at the moment of a decision.
pub struct RateLimitRule<F> {
    users: Entities<Calls>,
    limits: F,
}

impl<F: Fn(&str) -> RateLimitBody> RateLimitRule<F> {
    /// Remembers at most `max_users` users at once (app × user).
    pub fn new(max_users: usize, limits: F) -> Self {
        Self { users: Entities::new("rate_limit", max_users), limits }
    }
}

impl<F: Fn(&str) -> RateLimitBody + Send + 'static> Rule for RateLimitRule<F> {
    type Event = AcceptedTrace;

    fn decode(payload: &[u8]) -> Result<Vec<AcceptedTrace>, WireError> {
        traces_of(payload)
    }

    fn observe(&mut self, accepted: &AcceptedTrace, offset: u64, replay: bool, findings: &mut Findings) {
        if accepted.late {
            return;
        }
        let trace = &accepted.trace;
        let app = trace.client_id.as_str();
        let Some(slot) = self.users.take_up([app, &trace.user_sub], offset, replay) else { return };
        let calls = &mut self.users[slot];
        if calls.course.has_faded(accepted.received_at, &FORM) {
            *calls = Calls::default();
        }
        let at = accepted.event_time();
        if calls.course.saw(at, accepted.received_at, WINDOW) {
            let over = calls.count(at, &trace.tool, (self.limits)(app));
            let ends = over.iter().flatten().map(|over| (over.crossing.end, over.crossing.last_end));
            let ends = ends.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
            // Where both limits are exceeded at once, the one for the tool says more.
            if let (Some((first, last)), Some(over)) = (ends, over.into_iter().flatten().next())
                && !calls.course.goes_on(first, last, &FORM)
                && !replay
            {
                calls.course.end(&FORM, findings);
                calls.course.begin(last, detection(accepted, &over), findings);
                self.users.write_soon(slot);
            }
        } else if !replay {
            metrics::counter!("panopticon_rule_disordered_total", "rule" => "rate_limit").increment(1);
        }
        self.users.watch(slot);
    }

    fn ends_by(&self, now: Time) -> bool {
        self.users.ends_by(now)
    }

    fn advance(&mut self, now: Time, findings: &mut Findings) {
        self.users.advance(now, |user| user.course.end(&FORM, findings));
    }

    fn load(&mut self, key: &[u8], state: EntityState) -> Result<(), WireError> {
        self.users.load(key, state)
    }

    fn changed(&mut self, next: u64, all: bool) -> Vec<(Vec<u8>, Option<EntityState>)> {
        self.users.changed(next, all)
    }

    fn received_at(accepted: &AcceptedTrace) -> Time {
        accepted.received_at
    }
}

fn detection(accepted: &AcceptedTrace, over: &Over) -> Detection {
    let trace = &accepted.trace;
    let (app, user, tool) = (trace.client_id.as_str(), &trace.user_sub, &trace.tool);
    let Over { per_tool, limit, crossing } = *over;
    let (calls, seconds) = (crossing.calls, WINDOW.as_secs());
    let explanation = match (per_tool, user.is_empty()) {
        (true, false) => format!("{user} called {tool} {calls} times in {seconds} s; the limit is {limit}"),
        (true, true) => {
            format!("{tool} was called {calls} times in {seconds} s without a user; the limit is {limit}")
        }
        (false, false) => format!("{user} made {calls} calls in {seconds} s; the limit is {limit}"),
        (false, true) => {
            format!("{calls} calls were made in {seconds} s without a user; the limit is {limit}")
        }
    };
    let name = format!("rate_limit/{app}/{user}/{}", trace.event_id);
    Detection {
        detection_id: Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string(),
        rule: "rate_limit".to_owned(),
        kind: if per_tool { "per_tool" } else { "per_user" }.to_owned(),
        client_id: app.to_owned(),
        user_sub: user.clone(),
        tool: if per_tool { tool.clone() } else { String::new() },
        severity: "high".to_owned(),
        score: score(calls, limit),
        detected_at: accepted.event_time().micros(),
        deciding_event_id: trace.event_id.to_string(),
        window: Some(Window { start: crossing.start.micros(), end: crossing.end.micros() }),
        observed: f64::from(calls),
        expected: f64::from(limit),
        explanation,
        ..Detection::default()
    }
}

/// 80 for one call over the limit, in proportion for more (which a lowered limit can meet at once), at
/// most 100.
fn score(calls: u32, limit: u32) -> f64 {
    (SCORE * f64::from(calls) / (f64::from(limit) + 1.0)).min(100.0)
}

fn calm(started: &Detection) -> String {
    let seconds = WINDOW.as_secs();
    if started.user_sub.is_empty() {
        format!("calls without a user have kept within the limits for {seconds} s again")
    } else {
        format!("{} has kept within the limits for {seconds} s again", started.user_sub)
    }
}
