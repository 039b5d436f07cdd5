//! The rule `failed_auth`: five refused calls of one user, or from one address, in any ten minutes.
//!
//! Refused means for lack of authentication or authorization
//! ([`panopticon_core::trace::is_denied`]). One user refused from one address is the user side's matter:
//! the source side speaks up only where the refused calls of a window concern two users or more, or some
//! have no user. An episode lasts until no call has been refused for ten minutes.

use std::time::Duration;

use panopticon_core::{
    ids::EventId,
    stage::{Course, Crossing, Entities, Entity, EpisodeForm, Findings, SlidingWindow, Span},
    time::Time,
    trace::{AcceptedTrace, WireError},
};
use panopticon_proto::log::{Denial, Detection, EntityState, Window};
use prost::Message as _;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::part::Part;

/// So many refused calls are an alarm; also what a detection gives as `expected`.
pub const THRESHOLD: u32 = 5;
/// The window in which they are counted, and the calm after which an episode has ended.
pub const WINDOW: Duration = Duration::from_secs(600);
/// The most refused calls that are kept of a user or source; `observed` counts no further.
const KEPT: usize = 100;
/// The score of the fifth refused call.
const SCORE: f64 = 80.0;
/// Detections are UUIDv5 in this namespace.
const NAMESPACE: Uuid = Uuid::from_u128(0x5e0c_47a9_1b8d_5f62_9c3e_2ad4_80f7_b519);

const SPAN: Span = Span { width: WINDOW, limit: THRESHOLD - 1, kept: KEPT };
const FORM: EpisodeForm = EpisodeForm { width: WINDOW, ended: calm };

/// By user: traces with a user, and those with neither user nor source as one user of the app.
pub struct FailedAuthByUser(Refusals);

/// By source address.
pub struct FailedAuthBySource(Refusals);

impl FailedAuthByUser {
    /// Remembers at most `max_users` users (app × user) with refused calls.
    pub fn new(max_users: usize) -> Self {
        Self(Refusals { subjects: Entities::new("failed_auth_by_user", max_users), side: Side::User })
    }
}

impl FailedAuthBySource {
    /// Remembers at most `max_sources` sources (app × address) with refused calls.
    pub fn new(max_sources: usize) -> Self {
        Self(Refusals { subjects: Entities::new("failed_auth_by_source", max_sources), side: Side::Source })
    }
}

/// A refused call, as both sides see it.
struct Refused<'a> {
    event_id: EventId,
    app: &'a str,
    user: &'a str,
    /// The user or the source that it is counted for.
    subject: &'a str,
    at: Time,
    received_at: Time,
}

impl Part<AcceptedTrace> for FailedAuthByUser {
    fn name(&self) -> &'static str {
        "failed_auth"
    }

    fn observe(&mut self, accepted: &AcceptedTrace, offset: u64, replay: bool, findings: &mut Findings) {
        let trace = &accepted.trace;
        let sources_matter = trace.user_sub.is_empty() && !trace.source_ip.is_empty();
        if accepted.late || sources_matter || !trace.is_denied() {
            return;
        }
        let refused = Refused {
            event_id: trace.event_id,
            app: trace.client_id.as_str(),
            user: &trace.user_sub,
            subject: &trace.user_sub,
            at: accepted.event_time(),
            received_at: accepted.received_at,
        };
        self.0.observe(&refused, offset, replay, findings);
    }

    fn advance(&mut self, now: Time, findings: &mut Findings) {
        self.0.advance(now, findings);
    }

    fn load(&mut self, key: &[u8], state: EntityState) -> Result<(), WireError> {
        self.0.subjects.load(key, state)
    }

    fn changed(&mut self, next: u64, all: bool) -> Vec<(Vec<u8>, Option<EntityState>)> {
        self.0.subjects.changed(next, all)
    }
}

impl Part<Denial> for FailedAuthBySource {
    fn name(&self) -> &'static str {
        "failed_auth"
    }

    fn observe(&mut self, denial: &Denial, offset: u64, replay: bool, findings: &mut Findings) {
        let Ok(event_id) = Uuid::from_slice(&denial.event_id) else { return };
        if denial.late || !denial.denied {
            return;
        }
        let refused = Refused {
            event_id: EventId(event_id),
            app: &denial.client_id,
            user: &denial.user_sub,
            subject: &denial.source_ip,
            at: Time::from_micros(denial.event_time),
            received_at: Time::from_micros(denial.received_at),
        };
        self.0.observe(&refused, offset, replay, findings);
    }

    fn advance(&mut self, now: Time, findings: &mut Findings) {
        self.0.advance(now, findings);
    }

    fn load(&mut self, key: &[u8], state: EntityState) -> Result<(), WireError> {
        self.0.subjects.load(key, state)
    }

    fn changed(&mut self, next: u64, all: bool) -> Vec<(Vec<u8>, Option<EntityState>)> {
        self.0.subjects.changed(next, all)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    User,
    Source,
}

impl Side {
    /// Whether a window with refused calls of these users is this side's matter.
    fn matters(self, mut users: &mut dyn Iterator<Item = u64>) -> bool {
        match self {
            Self::User => true,
            Self::Source => {
                let Some(first) = users.next() else { return false };
                first == NO_USER || Iterator::any(&mut users, |user| user == NO_USER || user != first)
            }
        }
    }
}

/// Stands for a call without a user.
const NO_USER: u64 = 0;

/// What tells one user from another in a window.
fn user_mark(user: &str) -> u64 {
    if user.is_empty() { NO_USER } else { xxh3_64(user.as_bytes()).max(1) }
}

/// Counts refused calls by subject.
struct Refusals {
    subjects: Entities<Subject>,
    side: Side,
}

/// The state of one app × user or app × source.
#[derive(Debug, Default)]
struct Subject {
    course: Course,
    /// The refused calls, each with whose it was.
    refused: SlidingWindow<u64>,
}

impl Refusals {
    fn observe(&mut self, refused: &Refused<'_>, offset: u64, replay: bool, findings: &mut Findings) {
        let Some(slot) = self.subjects.take_up([refused.app, refused.subject], offset, replay) else {
            return;
        };
        let subject = &mut self.subjects[slot];
        if subject.course.has_faded(refused.received_at, &FORM) {
            *subject = Subject::default();
        }
        if subject.course.saw(refused.at, refused.received_at, WINDOW) {
            if subject.refused_again(refused, self.side, replay, findings) {
                self.subjects.write_soon(slot);
            }
        } else if !replay {
            metrics::counter!("panopticon_rule_disordered_total", "rule" => "failed_auth").increment(1);
        }
        self.subjects.watch(slot);
    }

    fn advance(&mut self, now: Time, findings: &mut Findings) {
        while let Some(slot) = self.subjects.next_end(now) {
            self.subjects[slot].course.end(&FORM, findings);
            self.subjects.write_soon(slot);
            self.subjects.watch(slot);
        }
        self.subjects.forget(now);
    }
}

impl Subject {
    /// Takes in a refused call; answers whether an episode began or ended.
    fn refused_again(
        &mut self,
        refused: &Refused<'_>,
        side: Side,
        replay: bool,
        findings: &mut Findings,
    ) -> bool {
        let position = self.refused.insert(refused.at, user_mark(refused.user), SPAN);
        if self.course.goes_on(refused.at, refused.at, &FORM) || replay {
            return false;
        }
        let ended = self.course.end(&FORM, findings);
        let crossing = position.and_then(|position| {
            self.refused.crossing_where(position, SPAN, self.course.not_before(), |users| side.matters(users))
        });
        let Some(crossing) = crossing else { return ended };
        let users = self.users_in(&crossing);
        let detection = detection(refused, side, &crossing, users);
        self.course.begin(self.course.newest(), detection, findings);
        true
    }

    /// How many users the calls of a window concern; those without one count as one.
    fn users_in(&self, crossing: &Crossing) -> usize {
        let mut users: Vec<u64> = self.refused.notes(crossing.start, crossing.end).collect();
        users.sort_unstable();
        users.dedup();
        users.len()
    }
}

fn detection(refused: &Refused<'_>, side: Side, crossing: &Crossing, users: usize) -> Detection {
    let calls = crossing.calls;
    let at_least = if calls as usize >= KEPT { "at least " } else { "" };
    let minutes = WINDOW.as_secs() / 60;
    let what = format!("within {minutes} minutes for lack of authentication or authorization");
    let subject = refused.subject;
    let (kind, explanation) = match side {
        Side::User if subject.is_empty() => {
            ("by_user", format!("{at_least}{calls} calls without a user were refused {what}"))
        }
        Side::User => ("by_user", format!("{subject} was refused {at_least}{calls} times {what}")),
        Side::Source => {
            let whose = if users == 1 { "without a user".to_owned() } else { format!("of {users} users") };
            ("by_source", format!("{at_least}{calls} calls {whose} from {subject} were refused {what}"))
        }
    };
    let name = format!("failed_auth/{kind}/{}/{subject}/{}", refused.app, refused.event_id);
    let (user_sub, source_ip) = match side {
        Side::User => (subject.to_owned(), String::new()),
        Side::Source => (String::new(), subject.to_owned()),
    };
    Detection {
        detection_id: Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string(),
        rule: "failed_auth".to_owned(),
        kind: kind.to_owned(),
        client_id: refused.app.to_owned(),
        user_sub,
        source_ip,
        severity: "high".to_owned(),
        score: (SCORE * f64::from(calls) / f64::from(THRESHOLD)).min(100.0),
        detected_at: refused.at.micros(),
        deciding_event_id: refused.event_id.to_string(),
        window: Some(Window { start: crossing.start.micros(), end: crossing.end.micros() }),
        observed: f64::from(calls),
        expected: f64::from(THRESHOLD),
        explanation,
        ..Detection::default()
    }
}

fn calm(started: &Detection) -> String {
    let minutes = WINDOW.as_secs() / 60;
    let whose = match (started.user_sub.as_str(), started.source_ip.as_str()) {
        ("", "") => "call without a user".to_owned(),
        ("", source) => format!("call from {source}"),
        (user, _) => format!("call of {user}"),
    };
    format!("no {whose} has been refused for {minutes} minutes")
}

/// How it is written down.
#[derive(Clone, PartialEq, prost::Message)]
struct SubjectState {
    #[prost(message, optional, tag = "1")]
    course: Option<Course>,
    #[prost(sint64, repeated, tag = "2")]
    refused: Vec<i64>,
    #[prost(fixed64, repeated, tag = "3")]
    users: Vec<u64>,
}

impl Entity for Subject {
    fn ends_at(&self) -> Option<Time> {
        self.course.ends_at(&FORM)
    }

    fn fades_at(&self) -> Time {
        self.course.fades_at(&FORM)
    }

    fn encode(&self) -> Vec<u8> {
        let (refused, users) = self.refused.to_steps();
        SubjectState { course: Some(self.course.clone()), refused, users }.encode_to_vec()
    }

    fn decode(state: &[u8]) -> Result<Self, WireError> {
        let state = SubjectState::decode(state)?;
        Ok(Self {
            course: state.course.unwrap_or_default(),
            refused: SlidingWindow::from_steps(&state.refused, state.users),
        })
    }
}
