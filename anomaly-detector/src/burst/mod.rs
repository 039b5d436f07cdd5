//! The rule `burst`: an agent suddenly calls far more than it, or its app, usually does.
//!
//! Per app × user, from traces, and per app × tool, from `rollups`. What is too much follows from what the
//! entity did before, and is said in [`pace`]: three times the highest count ever in ten seconds, ten
//! minutes or an hour, two and a half times the highest minute, or, for entities with a long history, three
//! times the highest minute at this time of day. A lull is no burst. Nothing is said of an entity before
//! it has made 10 calls since at least three days, or 1,000 since at least ten minutes.
//!
//! A burst begins with the call that reaches the limit and has ended when no window was over its limit for
//! ten minutes, or for an hour where an hour was.

pub mod apps;
pub mod level;
pub mod pace;
pub mod rhythm;
mod spell;

use panopticon_core::{stage::Findings, store::Activity, time::Time, trace::WireError};

pub use self::spell::Burst;
use self::spell::Seen;
use crate::user::{Call, UserRule};

/// The rule for one app × user.
#[derive(Debug, Default)]
pub struct UserBurst(Burst);

impl UserBurst {
    /// Takes in what the aggregates say of the user.
    pub(crate) fn learn(&mut self, activity: &Activity) {
        self.0.learn(activity);
    }
}

impl UserRule for UserBurst {
    fn observe(&mut self, call: &Call<'_>, findings: &mut Findings) -> bool {
        let seen = Seen {
            app: call.app,
            user: call.user,
            tool: "",
            example: call.tool,
            event_id: call.event_id.0,
            at: call.at,
            calls: 1,
            late: call.late,
            replay: call.replay,
            settings: call.settings,
        };
        self.0.observe(&seen, findings)
    }

    fn end(&mut self, now: Time, findings: &mut Findings) -> bool {
        self.0.end(now, findings)
    }

    fn ends_at(&self) -> Option<Time> {
        self.0.ends_at()
    }

    fn fades_at(&self) -> Time {
        self.0.fades_at()
    }

    fn encode(&self) -> Vec<u8> {
        self.0.encode()
    }

    fn decode(state: &[u8]) -> Result<Self, WireError> {
        Ok(Self(Burst::decode(state)?))
    }
}
