//! By app: refused calls from many addresses, each with too few for an alarm of its own.
//!
//! The sources' side counts such calls into rollups of their own ([`FEW_FROM_SOURCE`]); here they are added
//! up over ten minutes and compared with the most there ever was. Silent for an app's first day.

use std::time::Duration;

use panopticon_core::{
    ids::EventId,
    stage::{Course, Entities, Entity, EpisodeForm, FEW_FROM_SOURCE, Findings, MAX_DELAY},
    time::Time,
    trace::WireError,
};
use panopticon_proto::log::{EntityState, Rollup};
use prost::Message as _;
use uuid::Uuid;

use super::{
    evidence::ENOUGH,
    told::{Case, Kind},
    trail::{MEMORY, WINDOW},
};
use crate::{
    part::Part,
    settings::{Settings, SettingsOf},
};

/// Fewer than so many in ten minutes are never an alarm.
const LEAST: u32 = 30;
/// So many times as many as there ever were are.
const TIMES: u32 = 5;
/// For so long it only learns.
const LEARNS: Duration = Duration::from_secs(86_400);
/// The minutes of a window, and of the disorder there may be.
const MINUTES: usize = 11;
const FORM: EpisodeForm =
    EpisodeForm { width: WINDOW, ended: |_| "refused calls are as few as usual".to_owned() };

/// Refused calls by app.
pub struct FailedAuthByApp {
    apps: Entities<App>,
    settings: SettingsOf,
}

impl FailedAuthByApp {
    /// Remembers at most `max_apps` apps.
    pub fn new(max_apps: usize, settings: SettingsOf) -> Self {
        Self { apps: Entities::new("failed_auth_by_app", max_apps), settings }
    }
}

/// The state of one app.
#[derive(Clone, PartialEq, prost::Message)]
struct App {
    #[prost(message, required, tag = "1")]
    course: Course,
    /// Its first such call, in microseconds; 0: none yet.
    #[prost(sfixed64, tag = "2")]
    since: i64,
    /// Such calls in the newest minutes, the newest first.
    #[prost(uint32, repeated, tag = "3")]
    minutes: Vec<u32>,
    /// Which minute the newest is.
    #[prost(int64, tag = "4")]
    newest: i64,
    /// The most in ten minutes there were on any day; the older the day, the less it counts.
    #[prost(uint32, tag = "5")]
    most: u32,
    /// The most in ten minutes on the newest day.
    #[prost(uint32, tag = "6")]
    most_today: u32,
}

impl App {
    fn observe(
        &mut self,
        rollup: &Rollup,
        replay: bool,
        settings: &Settings,
        findings: &mut Findings,
    ) -> bool {
        let (at, received_at) = (Time::from_micros(rollup.event_time), Time::from_micros(rollup.received_at));
        if self.course.has_faded(received_at, &EpisodeForm { width: MEMORY, ..FORM }) {
            *self = Self::default();
        }
        if rollup.late || !self.course.saw(at, received_at, WINDOW) {
            return false;
        }
        if self.since == 0 {
            (self.since, self.newest) = (at.micros(), rollup.second / 60);
        }
        let now = self.count(rollup.second / 60, u32::try_from(rollup.traces).unwrap_or(u32::MAX));
        let limit = LEAST.max(TIMES.saturating_mul(self.most));
        let learns = at.since(Time::from_micros(self.since)) < LEARNS;
        if now < limit || learns {
            // A day with an attack is no measure for the next.
            self.most_today = self.most_today.max(now);
            return false;
        }
        if self.course.goes_on(at, at, &FORM) || replay {
            return false;
        }
        let ended = self.course.end(&FORM, findings);
        let case = Case {
            kind: Kind::ByApp { most: self.most },
            app: &rollup.client_id,
            user: "",
            source_ip: "",
            tool: "",
            error_code: "",
            event_id: EventId(Uuid::from_slice(&rollup.event_id).unwrap_or_default()),
            at,
            start: at.minus(WINDOW),
            end: at,
            calls: now,
            among: 0,
            points: ENOUGH.saturating_mul(now) / limit,
        };
        if !settings.failed_auth || !settings.lets_through("", case.monthly()) {
            return ended;
        }
        self.course.begin(at, case.detection(), findings);
        true
    }

    /// Counts calls of a minute; answers how many there are in the newest ten.
    fn count(&mut self, minute: i64, calls: u32) -> u32 {
        self.minutes.resize(MINUTES, 0);
        if minute.div_euclid(1_440) > self.newest.div_euclid(1_440) {
            self.most = self.most_today.max(self.most - self.most / 8);
            self.most_today = 0;
        }
        let ahead = usize::try_from(minute - self.newest).unwrap_or(0).min(MINUTES);
        self.minutes.rotate_right(ahead % MINUTES);
        self.minutes[..ahead].fill(0);
        self.newest = self.newest.max(minute);
        let behind = usize::try_from(self.newest - minute).unwrap_or(MINUTES);
        if let Some(count) = self.minutes.get_mut(behind) {
            *count = count.saturating_add(calls);
        }
        self.minutes[..MINUTES - 1].iter().fold(0, |sum, count| sum.saturating_add(*count))
    }
}

impl Part<Rollup> for FailedAuthByApp {
    fn name(&self) -> &'static str {
        "failed_auth"
    }

    fn observe(&mut self, rollup: &Rollup, offset: u64, replay: bool, findings: &mut Findings) {
        if rollup.status != FEW_FROM_SOURCE {
            return;
        }
        let Some(slot) = self.apps.take_up([&rollup.client_id, ""], offset, replay) else { return };
        let settings = self.settings.of(&rollup.client_id);
        if self.apps[slot].observe(rollup, replay, &settings, findings) {
            self.apps.write_soon(slot);
        }
        self.apps.watch(slot);
    }

    fn ends_by(&self, now: Time) -> bool {
        self.apps.ends_by(now)
    }

    fn advance(&mut self, now: Time, findings: &mut Findings) {
        self.apps.advance(now, |app| app.course.end(&FORM, findings));
    }

    fn load(&mut self, key: &[u8], state: EntityState) -> Result<(), WireError> {
        self.apps.load(key, state)
    }

    fn changed(&mut self, next: u64, all: bool) -> Vec<(Vec<u8>, Option<EntityState>)> {
        self.apps.changed(next, all)
    }
}

impl Entity for App {
    fn ends_at(&self) -> Option<Time> {
        self.course.ends_at(&FORM)
    }

    fn fades_at(&self) -> Time {
        self.course.newest().plus(MEMORY + MAX_DELAY)
    }

    fn encode(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    fn decode(state: &[u8]) -> Result<Self, WireError> {
        Ok(<Self as prost::Message>::decode(state)?)
    }
}
