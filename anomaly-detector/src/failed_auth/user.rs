//! By user: what no single address did, and what came from nowhere.
//!
//! Also keeps what the sources' side cannot know: whether a user has ever succeeded, and how far apart its
//! successes are.

use std::time::Duration;

use panopticon_core::{
    stage::{Findings, MAX_DELAY},
    time::Time,
    trace::WireError,
};
use prost::Message as _;

use super::{
    evidence::{Credential, ENOUGH, Name, ORDINARY, is_nobody, mark, weight},
    expired::is_expired,
    state::TrailState,
    told::{Case, Kind},
    trail::{BRIEFLY, Calm, MEMORY, Refusal, Trail, WINDOW, count, distinct},
};
use crate::user::{Call, UserRule};

/// So many refused calls of a user are an alarm however far apart they are.
const SLOWLY: u32 = 8;
/// So many successes make a history.
const HISTORY: u8 = 10;

/// What is known of the user whose call it is; goes with the call to the sources' side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// The user had succeeded in this app before.
    pub known: bool,
    /// How far apart the user's successes usually are, in milliseconds; 0: unknown.
    pub usual_gap_ms: u32,
}

/// What the rule keeps of a user.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UserFailedAuth {
    /// First and newest success, in Unix seconds; 0: none.
    first_success: u32,
    last_success: u32,
    /// Marks of the addresses of the newest successes.
    homes: [u16; 2],
    /// How many successes there were, up to 255.
    successes: u8,
    /// The usual gap between them, as [`steps_of`] writes it.
    usual_gap: u8,
    trail: Option<Box<Trail>>,
}

impl UserFailedAuth {
    /// What is known of the user of a call at `at`.
    pub fn standing(&self, at: Time) -> Standing {
        let settled = at.minus(MAX_DELAY).secs();
        let known = self.first_success > 0 && i64::from(self.first_success) < settled;
        let usual_gap_ms = if self.successes >= HISTORY { gap_of(self.usual_gap) } else { 0 };
        Standing { known, usual_gap_ms }
    }

    fn succeeded(&mut self, call: &Call<'_>, findings: &mut Findings) -> bool {
        let under_attack = self.trail.as_ref().is_some_and(|trail| trail.is_under_attack(call.at));
        let told = under_attack && !call.replay && !call.late && self.tell_success(call, findings);
        if !under_attack {
            self.learn(call);
        }
        if let Some(trail) = &mut self.trail {
            trail.pardon(mark(call.source_ip), call.at);
            if trail.is_over(call.at) {
                self.trail = None;
            }
        }
        told
    }

    fn learn(&mut self, call: &Call<'_>) {
        let at = u32::try_from(call.at.secs()).unwrap_or(0);
        if self.first_success == 0 || at < self.first_success {
            self.first_success = at;
        }
        if !call.late && self.successes > 0 {
            let gap = steps_of(at.abs_diff(self.last_success));
            let pace = i16::from(self.successes.min(HISTORY));
            let more = (i16::from(gap) - i16::from(self.usual_gap)) / pace;
            self.usual_gap = u8::try_from(i16::from(self.usual_gap) + more).unwrap_or(gap);
        }
        self.successes = self.successes.saturating_add(1);
        self.last_success = self.last_success.max(at);
        let home = home(call.source_ip);
        if self.homes[0] != home {
            self.homes = [home, self.homes[0]];
        }
    }

    /// Tells of a success during the open attack, once, unless it comes from where the user is at home.
    fn tell_success(&mut self, call: &Call<'_>, findings: &mut Findings) -> bool {
        let Some(trail) = self.trail.as_mut() else { return false };
        let from = mark(call.source_ip);
        let episode: Vec<Refusal> = trail.episode(call.at).copied().collect();
        let tried = episode.iter().any(|one| one.who == from);
        let at_home = !tried && self.homes.contains(&home(call.source_ip));
        if at_home || trail.has_told(Kind::Success.name()) || is_sources_matter(&episode, from) {
            return false;
        }
        let calls = count(episode.len());
        let first = episode.first().map_or(trail.from, |first| first.at);
        let case = Case {
            source_ip: call.source_ip,
            ..case(call, Kind::Success, (first, call.at), (calls, 1), (calls * ORDINARY).max(ENOUGH))
        };
        let told = tells(call, &case);
        if told {
            trail.tell(case.detection(), findings);
        }
        told
    }

    fn refused(&mut self, call: &Call<'_>, findings: &mut Findings) -> bool {
        let standing = self.standing(call.at);
        // It came after the success that followed it.
        let succeeded_at = Time::from_secs(self.last_success.into());
        let pardoned_at =
            (succeeded_at >= call.at && self.homes[0] == home(call.source_ip)).then_some(succeeded_at);
        let trail = self.trail.get_or_insert_default();
        if trail.refusals.is_empty() {
            trail.saw(call.at, call.received_at);
        }
        let inserted = trail.insert(Refusal {
            at: call.at,
            who: mark(call.source_ip),
            call: mark(call.tool) ^ mark(call.error_code).rotate_left(1),
            name: Name::of(call.user),
            known: standing.known,
            credential: Credential::of(call.error_code),
            pardoned_at,
            expired: false,
        });
        let Some(position) = inserted else { return false };
        if trail.is_of_expired(position) || trail.attack.goes_on(call.at, call.at, &trail.calm.form()) {
            return false;
        }
        let ended = !call.replay && trail.end(call.at, findings);
        let ends: Vec<usize> = trail.ends(position).collect();
        ends.into_iter().any(|last| self.look(call, position, last, standing, findings)) || ended
    }

    /// Looks at the window that ends with the refused call at `last`; answers whether something was told.
    fn look(
        &mut self,
        call: &Call<'_>,
        position: usize,
        last: usize,
        standing: Standing,
        findings: &mut Findings,
    ) -> bool {
        let Some(trail) = self.trail.as_mut() else { return false };
        let end = trail.refusals[last].at;
        if end < trail.not_before(end) {
            return false;
        }
        let all: Vec<Refusal> = trail.counted(last, MEMORY).copied().collect();
        let own: Vec<Refusal> = all.iter().filter(|one| !is_sources_matter(&all, one.who)).copied().collect();
        let swift = own.partition_point(|one| one.at <= end.minus(WINDOW));
        let (fast, slow) = (count(own.len() - swift) * ORDINARY, count(own.len()) * ENOUGH / SLOWLY);
        // A name that never succeeded is tried by everybody everywhere: that is no attack of its own.
        let somebodys = standing.known || (!call.user.is_empty() && own.iter().all(|one| one.who == 0));
        let (kind, calm, counted, points) = match () {
            () if fast >= ENOUGH => (Kind::ByUser, Calm::Minutes, &own[swift..], fast),
            () if slow >= ENOUGH && somebodys => (Kind::Slow, Calm::Day, &own[..], slow),
            () => return false,
        };
        let history = (standing.usual_gap_ms > 0).then_some(standing.usual_gap_ms);
        let kind = if is_expired(counted.iter(), history) { Kind::Expired } else { kind };
        let start = if kind == Kind::Slow {
            counted[0].at.minus(Duration::from_micros(1))
        } else {
            end.minus(WINDOW)
        };
        let sources = distinct(counted.iter().map(|one| one.who));
        // From one address: it is the caller's own, since it is this call's.
        let source_ip = if sources.len() == 1 { call.source_ip } else { "" };
        let among = if source_ip.is_empty() { count(sources.len()) } else { 1 };
        let case =
            Case { source_ip, ..case(call, kind, (start, end), (count(counted.len()), among), points) };
        let told = tells(call, &case) && !call.replay;
        if kind == Kind::Expired {
            let begins = trail.excuse(position) && told;
            if begins {
                trail.begin_expired(position, case.detection(), findings);
            }
            return begins;
        }
        if told {
            trail.begin((start, end), calm, case.detection(), findings);
            // In disorder, a success of the attacker's may have come before.
            if i64::from(self.first_success) >= end.secs() {
                (self.first_success, self.successes) = (0, 0);
            }
        }
        told
    }
}

/// Whether what was refused from `source` is enough for the sources' side to speak of it.
fn is_sources_matter(refusals: &[Refusal], source: u32) -> bool {
    let from = refusals.iter().filter(|one| one.who == source);
    source != 0 && from.map(|one| weight(one.name, one.known)).sum::<u32>() >= ENOUGH
}

fn tells(call: &Call<'_>, case: &Case<'_>) -> bool {
    call.settings.failed_auth && call.settings.lets_through(call.user, case.monthly())
}

fn case<'a>(
    call: &Call<'a>,
    kind: Kind,
    (start, end): (Time, Time),
    (calls, among): (u32, u32),
    points: u32,
) -> Case<'a> {
    Case {
        kind,
        app: call.app,
        user: call.user,
        source_ip: "",
        tool: call.tool,
        error_code: call.error_code,
        event_id: call.event_id,
        at: call.at,
        start,
        end,
        calls,
        among,
        points,
    }
}

/// A time in seconds by its logarithm: eight steps for each doubling, without a difference between machines.
fn steps_of(seconds: u32) -> u8 {
    // Calls within a second are half a second apart.
    let halves = (2 * u64::from(seconds)).max(1);
    let doublings = halves.ilog2();
    // The three bits after the first.
    let between = (halves << 3 >> doublings) & 7;
    u8::try_from(8 * u64::from(doublings) + between).unwrap_or(u8::MAX)
}

/// The time that [`steps_of`] wrote, in milliseconds.
fn gap_of(steps: u8) -> u32 {
    let (doublings, between) = (u32::from(steps) / 8, u64::from(steps) % 8);
    let gap_ms = ((8 + between) << doublings) * 500 / 8;
    u32::try_from(gap_ms).unwrap_or(u32::MAX)
}

/// What tells one home from another; 0 stands for none.
fn home(source_ip: &str) -> u16 {
    let mark = mark(source_ip);
    if mark == 0 { 0 } else { (mark as u16).max(1) }
}

/// How it is written down.
#[derive(Clone, PartialEq, prost::Message)]
struct UserState {
    #[prost(fixed32, tag = "1")]
    first_success: u32,
    #[prost(fixed32, tag = "2")]
    last_success: u32,
    #[prost(uint32, repeated, tag = "3")]
    homes: Vec<u32>,
    #[prost(uint32, tag = "4")]
    successes: u32,
    #[prost(uint32, tag = "5")]
    usual_gap: u32,
    #[prost(message, optional, tag = "6")]
    trail: Option<TrailState>,
}

impl UserRule for UserFailedAuth {
    fn observe(&mut self, call: &Call<'_>, findings: &mut Findings) -> bool {
        // What has a source but no user is the sources' matter alone.
        if is_nobody(call.user) && !call.source_ip.is_empty() {
            return false;
        }
        if let Some(trail) = self.trail.as_mut().filter(|_| !call.late)
            && !trail.saw(call.at, call.received_at)
        {
            if !call.replay {
                metrics::counter!("panopticon_rule_disordered_total", "rule" => "failed_auth").increment(1);
            }
            return false;
        }
        match (call.denied, call.late) {
            (true, true) => false,
            (true, false) => self.refused(call, findings),
            (false, _) => self.succeeded(call, findings),
        }
    }

    fn end(&mut self, now: Time, findings: &mut Findings) -> bool {
        self.trail.as_mut().is_some_and(|trail| trail.end(now, findings))
    }

    fn ends_at(&self) -> Option<Time> {
        self.trail.as_ref()?.ends_at()
    }

    fn fades_at(&self) -> Time {
        let history = match self.last_success {
            0 => Time::EPOCH,
            last => Time::from_secs(last.into()).plus(MEMORY),
        };
        let refusals = self.trail.as_ref().map_or(Time::EPOCH, |trail| {
            let memory = if trail.refusals.len() > 1 { MEMORY } else { BRIEFLY };
            trail.newest().plus(memory)
        });
        history.max(refusals)
    }

    fn encode(&self) -> Vec<u8> {
        let state = UserState {
            first_success: self.first_success,
            last_success: self.last_success,
            homes: self.homes.map(u32::from).to_vec(),
            successes: self.successes.into(),
            usual_gap: self.usual_gap.into(),
            trail: self.trail.as_deref().map(TrailState::from),
        };
        if *self == Self::default() { Vec::new() } else { state.encode_to_vec() }
    }

    fn decode(state: &[u8]) -> Result<Self, WireError> {
        let state = UserState::decode(state)?;
        let home = |n: usize| state.homes.get(n).and_then(|home| u16::try_from(*home).ok()).unwrap_or(0);
        Ok(Self {
            first_success: state.first_success,
            last_success: state.last_success,
            homes: [home(0), home(1)],
            successes: u8::try_from(state.successes).map_err(|_| WireError::Field("successes"))?,
            usual_gap: u8::try_from(state.usual_gap).map_err(|_| WireError::Field("usual_gap"))?,
            trail: state.trail.map(|trail| Trail::try_from(trail).map(Box::new)).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usual_gap_is_known_to_an_eighth() {
        for seconds in [1, 2, 7, 60, 61, 3_600, 86_400, 1_000_000] {
            let (gap_ms, exact) = (f64::from(gap_of(steps_of(seconds))), f64::from(seconds) * 1_000.0);
            assert!(gap_ms <= exact && gap_ms > exact * 0.88, "{seconds}: {gap_ms}");
        }
        assert_eq!(gap_of(steps_of(0)), 500);
        assert!(gap_of(steps_of(u32::MAX)) == u32::MAX);
    }

    #[test]
    fn what_is_kept_of_an_ordinary_user_is_small() {
        assert!(size_of::<UserFailedAuth>() <= 24);
    }

    #[test]
    fn what_is_written_down_reads_back_as_the_same() {
        let mut trail = Trail { since: Time::from_secs(7), calm: Calm::Day, ..Trail::default() };
        trail.insert(Refusal {
            at: Time::from_secs(5),
            who: 1,
            call: 2,
            name: Name::Default,
            known: true,
            credential: Credential::Other,
            pardoned_at: Some(Time::from_secs(9)),
            expired: true,
        });
        let user = UserFailedAuth {
            first_success: 1,
            last_success: 2,
            homes: [3, 4],
            successes: 5,
            usual_gap: 6,
            trail: Some(Box::new(trail)),
        };
        assert_eq!(UserFailedAuth::decode(&user.encode()).unwrap(), user);
        assert!(UserFailedAuth::default().encode().is_empty());
        assert_eq!(UserFailedAuth::decode(&[]).unwrap(), UserFailedAuth::default());
    }
}
