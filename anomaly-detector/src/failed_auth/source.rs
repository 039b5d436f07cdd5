//! By source: what is known of one address of an app.
//!
//! All that an address does is its matter, one user's refusals too; the user's side looks at what no single
//! address did. An address from which somebody has succeeded is shared with ordinary people: there only
//! five refusals in ten minutes count. Elsewhere all refusals of a month do, hours apart or not.

use std::time::Duration;

use panopticon_core::{
    ids::EventId,
    stage::{Findings, MAX_DELAY},
    time::Time,
};

use super::{
    evidence::{Credential, ENOUGH, Name, ORDINARY, Stranger, mark, of_strangers},
    expired::is_expired,
    told::{Case, Kind},
    trail::{BRIEFLY, Calm, MEMORY, Refusal, Trail, WINDOW, count, distinct},
};
use crate::settings::Settings;

/// So many refused calls say nothing of an address.
const FEW: usize = 2;
/// So many users from one address are many.
const MANY: usize = 5;
/// So many that never succeeded are.
const MANY_STRANGERS: usize = 3;

/// A call from an address.
#[derive(Debug, Clone, Copy)]
pub(super) struct SourceCall<'a> {
    pub(super) event_id: EventId,
    pub(super) app: &'a str,
    pub(super) user: &'a str,
    pub(super) source_ip: &'a str,
    pub(super) tool: &'a str,
    pub(super) error_code: &'a str,
    pub(super) denied: bool,
    pub(super) at: Time,
    pub(super) received_at: Time,
    pub(super) late: bool,
    /// The user had succeeded in this app before.
    pub(super) known: bool,
    /// How far apart the user's successes usually are, in milliseconds; 0: unknown.
    pub(super) usual_gap_ms: u32,
    pub(super) replay: bool,
    pub(super) settings: &'a Settings,
}

/// A success from an address.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Success {
    pub(super) at: Time,
    pub(super) who: u32,
    pub(super) event_id: EventId,
}

/// What is known of an address.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Source {
    /// Event time of its newest call.
    pub(super) newest: Time,
    /// Its first success that was not part of an attack.
    pub(super) first_success: Option<Time>,
    /// Its newest success.
    pub(super) last_success: Option<Success>,
    /// It had more than one refusal.
    pub(super) notable: bool,
    pub(super) trail: Option<Box<Trail>>,
}

/// What the evidence of a window comes to.
struct Finding {
    kind: Kind,
    calm: Calm,
    start: Time,
    end: Time,
    calls: u32,
    users: u32,
    points: u32,
}

impl Source {
    /// Takes in a call; answers whether something was told.
    pub(super) fn observe(&mut self, call: &SourceCall<'_>, findings: &mut Findings) -> bool {
        if self.has_faded(call.received_at) {
            *self = Self::default();
        }
        self.newest = self.newest.max(call.at);
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

    fn refused(&mut self, call: &SourceCall<'_>, findings: &mut Findings) -> bool {
        let who = mark(call.user);
        let refusal = Refusal {
            at: call.at,
            who,
            call: mark(call.tool) ^ mark(call.error_code).rotate_left(1),
            name: Name::of(call.user),
            known: call.known,
            credential: Credential::of(call.error_code),
            // It came after the success that followed it.
            pardoned_at: self.last_success.filter(|last| last.who == who && last.at >= call.at).map(|s| s.at),
            expired: false,
        };
        let trail = self.trail.get_or_insert_default();
        if trail.refusals.is_empty() {
            trail.saw(call.at, call.received_at);
        }
        self.notable |= !trail.refusals.is_empty();
        let Some(position) = trail.insert(refusal) else { return false };
        if trail.is_of_expired(position) {
            return false;
        }
        if trail.attack.goes_on(call.at, call.at, &trail.calm.form()) {
            let sooner = call.at < trail.since && self.was_enough_sooner(position, call, findings);
            return !call.replay && self.has_become_spraying(call, findings) || sooner;
        }
        let ended = !call.replay && trail.end(call.at, findings);
        let Some(finding) = self.find(position, call) else { return ended };
        self.tell(call, &finding, position, findings) || ended
    }

    /// The first window with enough evidence that the refused call at `position` completes.
    fn find(&self, position: usize, call: &SourceCall<'_>) -> Option<Finding> {
        let trail = self.trail.as_ref()?;
        trail.ends(position).find_map(|last| {
            let end = trail.refusals[last].at;
            let not_before = trail.not_before(end);
            if end < not_before {
                return None;
            }
            let at_home = self.is_at_home(end);
            let width = if at_home { WINDOW } else { MEMORY };
            let counted = trail.counted(last, width);
            let calls = count(counted.clone().count());
            let points = if at_home {
                calls * ORDINARY
            } else {
                of_strangers(counted.clone().map(|one| Stranger {
                    at: one.at,
                    who: one.who,
                    name: one.name,
                    known: one.known,
                }))
            };
            let first = counted.clone().next()?.at;
            (points >= ENOUGH).then(|| {
                let swift = end.since(first) < WINDOW;
                let returns = !at_home && end.since(not_before) < Calm::Day.form().width;
                let calm = match (swift, at_home) {
                    _ if returns => Calm::Day,
                    (false, _) => Calm::Day,
                    (true, true) => Calm::Minutes,
                    (true, false) => Calm::Hour,
                };
                let history = (at_home && call.usual_gap_ms > 0).then_some(call.usual_gap_ms);
                let (kind, users) = kind_of(counted, swift, history);
                // Exclusive.
                let start = if swift { end.minus(WINDOW) } else { first.minus(Duration::from_micros(1)) };
                Finding { kind, calm, start, end, calls, users, points }
            })
        })
    }

    /// Tells what was found, if it is to be told; answers whether it was.
    fn tell(
        &mut self,
        call: &SourceCall<'_>,
        finding: &Finding,
        position: usize,
        findings: &mut Findings,
    ) -> bool {
        let case = case(call, finding);
        let Some(trail) = self.trail.as_mut() else { return false };
        let told = call.settings.failed_auth && call.settings.lets_through(case.user, case.monthly());
        if finding.kind == Kind::Expired {
            let begins = trail.excuse(position) && told && !call.replay;
            if begins {
                trail.begin_expired(position, case.detection(), findings);
            }
            return begins;
        }
        if call.replay || !told {
            return false;
        }
        trail.begin((finding.start, finding.end), finding.calm, case.detection(), findings);
        self.forget_success_of_attack();
        self.tell_success_before(call, findings);
        true
    }

    /// In disorder, a refused call may show that there was enough evidence sooner than it seemed; answers
    /// whether something was told.
    fn was_enough_sooner(&mut self, position: usize, call: &SourceCall<'_>, findings: &mut Findings) -> bool {
        let sooner = self.find(position, call);
        let (Some(trail), Some(sooner)) = (self.trail.as_mut(), sooner) else { return false };
        trail.since = trail.since.min(sooner.end);
        // Follows from the calls alone, so also in a replay.
        self.forget_success_of_attack();
        !call.replay && self.tell_success_before(call, findings)
    }

    /// What an attacker has succeeded in makes nobody at home.
    fn forget_success_of_attack(&mut self) {
        if let Some(trail) = &self.trail {
            self.first_success = self.first_success.filter(|first| *first < trail.since);
        }
    }

    /// In disorder, a success may have come before the refusals that make it the attacker's; answers whether
    /// one had.
    fn tell_success_before(&mut self, call: &SourceCall<'_>, findings: &mut Findings) -> bool {
        let Some(since) = self.trail.as_ref().map(|trail| trail.since) else { return false };
        let last = self.last_success.filter(|last| last.at >= since);
        last.is_some_and(|last| self.tell_success(call, last, findings))
    }

    /// Of an attack that goes on: whether it now tries many users, which is told once.
    fn has_become_spraying(&mut self, call: &SourceCall<'_>, findings: &mut Findings) -> bool {
        let Some(trail) = self.trail.as_mut() else { return false };
        if trail.attack.kind() == Some(Kind::Spraying.name()) || trail.has_told(Kind::Spraying.name()) {
            return false;
        }
        // Whoever succeeded in between was no victim.
        let episode: Vec<&Refusal> = trail.episode(call.at).filter(|one| one.pardoned_at.is_none()).collect();
        let users = distinct(episode.iter().filter(|one| one.name != Name::None).map(|one| one.who)).len();
        if users < MANY {
            return false;
        }
        let calls = count(episode.len());
        let finding = Finding {
            kind: Kind::Spraying,
            calm: trail.calm,
            start: trail.from,
            end: call.at,
            calls,
            users: count(users),
            points: calls * ORDINARY,
        };
        let case = case(call, &finding);
        let told = call.settings.failed_auth && call.settings.lets_through("", case.monthly());
        if told {
            trail.tell(case.detection(), findings);
        }
        told
    }

    fn succeeded(&mut self, call: &SourceCall<'_>, findings: &mut Findings) -> bool {
        let success = Success { at: call.at, who: mark(call.user), event_id: call.event_id };
        let under_attack = self.trail.as_ref().is_some_and(|trail| trail.is_under_attack(call.at));
        let told = under_attack && !call.replay && !call.late && self.tell_success(call, success, findings);
        // What an attacker succeeds in makes nobody at home.
        if !under_attack && self.first_success.is_none_or(|first| call.at < first) {
            self.first_success = Some(call.at);
        }
        if self.last_success.is_none_or(|last| last.at <= call.at) {
            self.last_success = Some(success);
        }
        if let Some(trail) = self.trail.as_mut() {
            trail.pardon(success.who, call.at);
            if trail.is_over(call.at) {
                self.trail = None;
            }
        }
        told
    }

    /// Tells of a success during the open attack if it looks like the attacker's, once.
    fn tell_success(&mut self, call: &SourceCall<'_>, success: Success, findings: &mut Findings) -> bool {
        let at_home = self.is_at_home(success.at);
        let Some(trail) = self.trail.as_mut() else { return false };
        let episode: Vec<&Refusal> = trail.episode(success.at).collect();
        let of = |who: u32| episode.iter().filter(|one| one.who == who).count();
        let most = distinct(episode.iter().map(|one| one.who)).into_iter().map(of).max().unwrap_or(0);
        // Where ordinary people succeed too, it is a success of whom the attack is about.
        if trail.has_told(Kind::Success.name()) || (at_home && (most == 0 || 2 * of(success.who) < most)) {
            return false;
        }
        let calls = count(episode.len());
        let finding = Finding {
            kind: Kind::Success,
            calm: trail.calm,
            start: episode.first().map_or(trail.from, |first| first.at),
            end: success.at,
            calls,
            users: 1,
            points: (calls * ORDINARY).max(ENOUGH),
        };
        // In disorder, the deciding trace is not the one at hand.
        let same_user = mark(call.user) == success.who;
        let user = if same_user { call.user } else { "" };
        let case = Case { user, event_id: success.event_id, at: success.at, ..case(call, &finding) };
        let told = call.settings.failed_auth && call.settings.lets_through(user, case.monthly());
        if told {
            trail.tell(case.detection(), findings);
        }
        told
    }

    /// Whether so little was refused that it is no matter of this address alone.
    pub(super) fn has_few(&self) -> bool {
        self.trail.as_ref().is_some_and(|trail| trail.refusals.len() <= FEW && !trail.is_open())
    }

    /// Ends what has ended by `now`; answers whether something had.
    pub(super) fn end(&mut self, now: Time, findings: &mut Findings) -> bool {
        self.trail.as_mut().is_some_and(|trail| trail.end(now, findings))
    }

    /// Whether somebody had succeeded from here by `at`, as far as it is settled.
    fn is_at_home(&self, at: Time) -> bool {
        self.first_success.is_some_and(|first| first <= at.minus(MAX_DELAY))
    }

    fn has_faded(&self, received_at: Time) -> bool {
        !self.trail.as_ref().is_some_and(|trail| trail.is_open()) && received_at >= self.fades_at()
    }

    /// See [`panopticon_core::stage::Entity::fades_at`].
    pub(super) fn fades_at(&self) -> Time {
        let useful = self.notable || self.first_success.is_some();
        self.newest.plus(if useful { MEMORY } else { BRIEFLY })
    }
}

/// What a window's refused calls are called, and how many users they concern. `history`: the usual gap
/// between the successes of the user whose call ends it, where people have succeeded before.
fn kind_of<'r>(
    counted: impl Iterator<Item = &'r Refusal> + Clone,
    swift: bool,
    history: Option<u32>,
) -> (Kind, u32) {
    let named = counted.clone().filter(|one| one.name != Name::None);
    let users = distinct(named.clone().map(|one| one.who));
    let strangers = distinct(named.clone().filter(|one| !one.known).map(|one| one.who)).len();
    let calls = counted.clone().count();
    let once_each = strangers > 1 && strangers == users.len() && calls < 2 * strangers;
    let kind = if is_expired(counted, history) {
        Kind::Expired
    } else if users.len() >= MANY || strangers >= MANY_STRANGERS || once_each {
        Kind::Spraying
    } else if !swift {
        Kind::Slow
    } else if users.len() == 1 && named.count() == calls {
        Kind::ByUser
    } else {
        Kind::BySource
    };
    (kind, count(users.len()))
}

fn case<'a>(call: &SourceCall<'a>, finding: &Finding) -> Case<'a> {
    let one_user = match finding.kind {
        Kind::ByUser | Kind::Expired | Kind::Success => true,
        Kind::Slow => finding.users == 1,
        Kind::BySource | Kind::ByApp { .. } | Kind::Spraying => false,
    };
    Case {
        kind: finding.kind,
        app: call.app,
        user: if one_user { call.user } else { "" },
        source_ip: call.source_ip,
        tool: call.tool,
        error_code: call.error_code,
        event_id: call.event_id,
        at: call.at,
        start: finding.start,
        end: finding.end,
        calls: finding.calls,
        among: finding.users,
        points: finding.points,
    }
}
