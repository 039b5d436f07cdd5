//! What the rules remember of one app × user: one entity that holds the state of each.
//!
//! A rule is a [`UserRule`]: a small plain struct that looks at one [`Call`] at a time and knows neither the
//! map it lies in nor its neighbours.

use panopticon_core::{
    ids::EventId,
    stage::{Entities, Entity, Findings},
    store::Activity,
    time::Time,
    trace::{AcceptedTrace, WireError},
};
use panopticon_proto::log::EntityState;
use prost::Message as _;

use crate::{
    burst::UserBurst,
    detector::denial_of,
    failed_auth::{Standing, UserFailedAuth},
    off_hour::UserOffHour,
    part::Part,
    settings::{Settings, SettingsOf},
};

/// A trace as the rules see it. Absent text is empty.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The identity of the trace.
    pub event_id: EventId,
    /// The app.
    pub app: &'a str,
    /// Whose data.
    pub user: &'a str,
    /// What was called.
    pub tool: &'a str,
    /// From where.
    pub source_ip: &'a str,
    /// Why it failed.
    pub error_code: &'a str,
    /// Whether it was refused for lack of authentication or authorization.
    pub denied: bool,
    /// Event time.
    pub at: Time,
    /// When the gateway had it.
    pub received_at: Time,
    /// It came too late to raise an alarm: it feeds baselines only.
    pub late: bool,
    /// It was judged before: it feeds windows and baselines, and neither begins nor ends an episode.
    pub replay: bool,
    /// The app's settings.
    pub settings: &'a Settings,
}

impl<'a> Call<'a> {
    /// The rules' view of `accepted`.
    pub fn new(accepted: &'a AcceptedTrace, settings: &'a Settings, replay: bool) -> Self {
        let trace = &accepted.trace;
        Self {
            event_id: trace.event_id,
            app: trace.client_id.as_str(),
            user: &trace.user_sub,
            tool: &trace.tool,
            source_ip: &trace.source_ip,
            error_code: &trace.error_code,
            denied: trace.is_denied(),
            at: accepted.event_time(),
            received_at: accepted.received_at,
            late: accepted.late,
            replay,
            settings,
        }
    }
}

/// A rule over the calls of one app × user, as the state that it keeps of them.
pub trait UserRule: Default + Send + 'static {
    /// Takes in a call; answers whether an episode began or ended, which must not be in a replay.
    fn observe(&mut self, call: &Call<'_>, findings: &mut Findings) -> bool;

    /// Ends what has ended by `now`; answers whether there was something.
    fn end(&mut self, now: Time, findings: &mut Findings) -> bool;

    /// See [`Entity::ends_at`].
    fn ends_at(&self) -> Option<Time>;

    /// See [`Entity::fades_at`].
    fn fades_at(&self) -> Time;

    /// The rule's own encoding; empty when there is nothing to remember.
    fn encode(&self) -> Vec<u8>;

    /// Reads what [`UserRule::encode`] wrote.
    fn decode(state: &[u8]) -> Result<Self, WireError>;
}

/// The states of all rules for one app × user. Calls without a user are one user of the app.
#[derive(Default)]
pub struct User {
    burst: UserBurst,
    failed_auth: UserFailedAuth,
    off_hour: UserOffHour,
}

impl User {
    fn observe(&mut self, call: &Call<'_>, findings: &mut Findings) -> bool {
        // In a replay it is forgotten just when it was the first time.
        if self.ends_at().is_none() && call.received_at >= self.fades_at() {
            *self = Self::default();
        }
        let burst = self.burst.observe(call, findings);
        let failed_auth = self.failed_auth.observe(call, findings);
        let off_hour = self.off_hour.observe(call, findings);
        burst || failed_auth || off_hour
    }

    /// Takes in that the user was active: as late calls do, this feeds what is usual and nothing else.
    fn learn(&mut self, activity: &Activity) {
        let call = Call {
            event_id: EventId(uuid::Uuid::nil()),
            app: &activity.client_id,
            user: &activity.name,
            tool: "",
            source_ip: "",
            error_code: "",
            denied: activity.denied == activity.traces,
            at: activity.since,
            received_at: activity.since,
            late: true,
            replay: true,
            settings: &Settings::default(),
        };
        let mut nothing = Findings::default();
        self.burst.learn(activity);
        self.failed_auth.observe(&call, &mut nothing);
        self.off_hour.observe(&call, &mut nothing);
    }

    fn end(&mut self, now: Time, findings: &mut Findings) -> bool {
        let burst = self.burst.end(now, findings);
        let failed_auth = self.failed_auth.end(now, findings);
        let off_hour = self.off_hour.end(now, findings);
        burst || failed_auth || off_hour
    }
}

/// How it is written down.
#[derive(Clone, PartialEq, prost::Message)]
struct UserState {
    #[prost(bytes = "vec", tag = "1")]
    burst: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    failed_auth: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    off_hour: Vec<u8>,
}

impl Entity for User {
    fn ends_at(&self) -> Option<Time> {
        [self.burst.ends_at(), self.failed_auth.ends_at(), self.off_hour.ends_at()]
            .into_iter()
            .flatten()
            .min()
    }

    fn fades_at(&self) -> Time {
        self.burst.fades_at().max(self.failed_auth.fades_at()).max(self.off_hour.fades_at())
    }

    fn encode(&self) -> Vec<u8> {
        UserState {
            burst: self.burst.encode(),
            failed_auth: self.failed_auth.encode(),
            off_hour: self.off_hour.encode(),
        }
        .encode_to_vec()
    }

    fn decode(state: &[u8]) -> Result<Self, WireError> {
        let state = UserState::decode(state)?;
        Ok(Self {
            burst: UserBurst::decode(&state.burst)?,
            failed_auth: UserFailedAuth::decode(&state.failed_auth)?,
            off_hour: UserOffHour::decode(&state.off_hour)?,
        })
    }
}

/// The rules over users; also counts traces for the rules over apps.
pub struct Users {
    users: Entities<User>,
    settings: SettingsOf,
}

impl Users {
    /// Remembers at most `max_users` users (app × user).
    pub fn new(max_users: usize, settings: SettingsOf) -> Self {
        Self { users: Entities::new("user", max_users), settings }
    }
}

impl Part<AcceptedTrace> for Users {
    fn name(&self) -> &'static str {
        "user"
    }

    fn observe(&mut self, accepted: &AcceptedTrace, offset: u64, replay: bool, findings: &mut Findings) {
        if !replay {
            // For the rules over apps.
            findings.rollups.add(accepted);
        }
        let app = accepted.trace.client_id.as_str();
        let taken_up = self.users.take_up([app, &accepted.trace.user_sub], offset, replay);
        // What is known of the user before this call goes with its copy to the rules over sources.
        if !replay && !accepted.trace.source_ip.is_empty() {
            let standing = taken_up.map_or_else(Standing::default, |slot| {
                self.users[slot].failed_auth.standing(accepted.event_time())
            });
            findings.denials.push(denial_of(accepted, standing));
        }
        let Some(slot) = taken_up else { return };
        let settings = self.settings.of(app);
        if self.users[slot].observe(&Call::new(accepted, &settings, replay), findings) {
            self.users.write_soon(slot);
        }
        self.users.watch(slot);
    }

    fn learn(&mut self, activity: &Activity) {
        // As a replay from the beginning: a user of whom something is committed stays as committed.
        let Some(slot) = self.users.take_up([&activity.client_id, &activity.name], 0, true) else {
            return;
        };
        self.users[slot].learn(activity);
        self.users.watch(slot);
    }

    fn ends_by(&self, now: Time) -> bool {
        self.users.ends_by(now)
    }

    fn advance(&mut self, now: Time, findings: &mut Findings) {
        self.users.advance(now, |user| user.end(now, findings));
    }

    fn load(&mut self, key: &[u8], state: EntityState) -> Result<(), WireError> {
        self.users.load(key, state)
    }

    fn changed(&mut self, next: u64, all: bool) -> Vec<(Vec<u8>, Option<EntityState>)> {
        self.users.changed(next, all)
    }
}
