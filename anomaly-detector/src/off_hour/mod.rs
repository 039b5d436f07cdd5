//! The rule `off_hour`: activity at a time at which this user is never active.
//!
//! A session is activity without an hour's pause. Its first call is held against the user's rhythm
//! (`rhythm`), as it was before; the session is told at most once, and ends with its last call. Users of
//! whom too little is known, and those without a rhythm (bots, shared accounts), raise nothing.

mod rhythm;
mod surprise;
mod told;

use std::time::Duration;

use panopticon_core::{
    stage::{Findings, MAX_DELAY},
    time::Time,
    trace::WireError,
};
use panopticon_proto::log::Detection;
use prost::Message as _;

use self::{
    rhythm::{Rhythm, half_hour},
    surprise::Surprise,
};
use crate::user::{Call, UserRule};

/// A pause that ends a session.
const PAUSE: Duration = Duration::from_secs(3_600);
/// On so many days a user has to have been active before anything is told.
pub const ENOUGH_DAYS: u16 = 20;
/// For so long after an alarm the user may have moved: until then the next is told only once so many sessions
/// began at usual times.
const LATELY: Duration = Duration::from_secs(14 * 86_400);
const AT_HOME: u8 = 4;
/// What is known of a user is kept this long after their last call, and of one active on few days, so long
/// for each of these.
const KEPT: Duration = Duration::from_secs(400 * 86_400);
const KEPT_A_DAY: Duration = Duration::from_secs(20 * 86_400);

/// What the rule remembers of one app × user.
#[derive(Debug, Default)]
pub struct UserOffHour {
    rhythm: Rhythm,
    /// Event time of the newest call, in seconds since the epoch; 0 before the first.
    newest: u32,
    /// The half hour of the last late call that counted.
    late: u32,
    /// When something rare was told last, in seconds since the epoch; 0: never.
    told: u32,
    /// Whether the present session began at an unusual time.
    unusual: bool,
    /// How many sessions began at usual times since then, at most [`AT_HOME`].
    at_home: u8,
    /// What was told of the present session.
    open: Option<Box<Detection>>,
}

impl UserRule for UserOffHour {
    fn observe(&mut self, call: &Call<'_>, findings: &mut Findings) -> bool {
        // Calls without a user are those of many.
        if call.user.is_empty() {
            return false;
        }
        let at = u32::try_from(call.at.secs()).unwrap_or(0);
        let newest = self.newest;
        if at <= newest {
            self.saw_older(at, call.late);
            return false;
        }
        self.newest = at;
        let begins = newest == 0 || seconds(at - newest) > PAUSE;
        let mut told = false;
        if begins {
            let surprise = self.surprise(at);
            self.unusual = surprise.is_some_and(|surprise| surprise.is_unusual());
            told = !call.replay && self.begins(call, at, newest, surprise, findings);
            if !self.unusual {
                self.at_home = (self.at_home + 1).min(AT_HOME);
            }
        }
        if begins || half_hour(at) != half_hour(newest) {
            self.rhythm.saw(at, begins, self.unusual);
        }
        told
    }

    fn end(&mut self, now: Time, findings: &mut Findings) -> bool {
        self.ends_at().is_some_and(|end| end <= now) && self.close(self.newest, findings)
    }

    fn ends_at(&self) -> Option<Time> {
        self.open.as_ref().map(|_| time(self.newest).plus(PAUSE + MAX_DELAY))
    }

    fn fades_at(&self) -> Time {
        match self.newest {
            0 => Time::EPOCH,
            newest => time(newest).plus(KEPT.min(KEPT_A_DAY * u32::from(self.rhythm.days()))),
        }
    }

    fn encode(&self) -> Vec<u8> {
        if self.newest == 0 {
            return Vec::new();
        }
        let state = OffHourState {
            rhythm: Some(self.rhythm.clone().into()),
            newest: self.newest,
            late: self.late,
            told: self.told,
            unusual: self.unusual,
            at_home: self.at_home.into(),
            open: self.open.as_deref().cloned(),
        };
        state.encode_to_vec()
    }

    fn decode(state: &[u8]) -> Result<Self, WireError> {
        let state = OffHourState::decode(state)?;
        Ok(Self {
            rhythm: state.rhythm.unwrap_or_default().into(),
            newest: state.newest,
            late: state.late,
            told: state.told,
            unusual: state.unusual,
            at_home: u8::try_from(state.at_home).unwrap_or(AT_HOME),
            open: state.open.map(Box::new),
        })
    }
}

impl UserOffHour {
    /// How unusual the beginning of a session is, once enough is known to say so.
    fn surprise(&self, at: u32) -> Option<Surprise> {
        if self.rhythm.days_before(at) < ENOUGH_DAYS {
            return None;
        }
        Surprise::of(&self.rhythm, at)
    }

    /// A session begins at `at` after silence since `newest`; answers whether an episode began or ended.
    fn begins(
        &mut self,
        call: &Call<'_>,
        at: u32,
        newest: u32,
        surprise: Option<Surprise>,
        findings: &mut Findings,
    ) -> bool {
        let ended = self.close(newest, findings);
        let Some(surprise) = surprise else { return ended };
        if call.late || !call.settings.off_hour || self.may_have_moved(at) {
            return ended;
        }
        let monthly = surprise.monthly();
        if !call.settings.lets_through(call.user, monthly) {
            return ended;
        }
        let started = told::started(call, &self.rhythm, &surprise, monthly);
        findings.detections.push(started.clone());
        self.open = Some(Box::new(started));
        if surprise.is_rare() {
            self.told = at;
            self.at_home = 0;
        }
        true
    }

    /// Whether what was told last may have been the first sign of a move: since then the user was hardly
    /// active at their usual times.
    fn may_have_moved(&self, at: u32) -> bool {
        self.told > 0 && seconds(at.saturating_sub(self.told)) < LATELY && self.at_home < AT_HOME
    }

    /// Ends the open episode with the call at `last`; `false` when none is open.
    fn close(&mut self, last: u32, findings: &mut Findings) -> bool {
        let Some(started) = self.open.take() else { return false };
        findings.detections.push(told::ended(*started, time(last).plus(PAUSE)));
        true
    }

    /// A call from before the newest: of the same session, or so late that it only widens what is usual.
    fn saw_older(&mut self, at: u32, late: bool) {
        if late && half_hour(at) != self.late && half_hour(at) != half_hour(self.newest) {
            self.late = half_hour(at);
            self.rhythm.saw_late(at);
        }
    }
}

fn seconds(number: u32) -> Duration {
    Duration::from_secs(number.into())
}

fn time(secs: u32) -> Time {
    Time::from_secs(i64::from(secs))
}

/// How it is written down.
#[derive(Clone, PartialEq, prost::Message)]
struct OffHourState {
    #[prost(message, optional, tag = "1")]
    rhythm: Option<rhythm::RhythmState>,
    #[prost(fixed32, tag = "2")]
    newest: u32,
    #[prost(uint32, tag = "3")]
    late: u32,
    #[prost(fixed32, tag = "4")]
    told: u32,
    #[prost(bool, tag = "5")]
    unusual: bool,
    #[prost(message, optional, tag = "6")]
    open: Option<Detection>,
    #[prost(uint32, tag = "7")]
    at_home: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_costs_at_most_88_bytes() {
        assert!(size_of::<UserOffHour>() <= 88, "{}", size_of::<UserOffHour>());
    }
}
