//! The refused calls of a user or from an address, and what has been told of them.
//!
//! Everything is judged by event time, so that up to [`MAX_DELAY`] of disorder changes nothing. A success
//! would: it pardons the refusals before it, and refusals that were counted before it came would not have
//! been. So it counts only from [`MAX_DELAY`] after it happened, when nothing from before it is outstanding.

use std::time::Duration;

use panopticon_core::{
    stage::{Course, EpisodeForm, Findings, MAX_DELAY},
    time::Time,
};
use panopticon_proto::log::Detection;

use super::{
    evidence::{Credential, Name},
    told,
};

/// The window in which any five refused calls are an alarm.
pub const WINDOW: Duration = Duration::from_secs(600);
/// How long refused calls, and successes, are remembered.
pub(super) const MEMORY: Duration = Duration::from_secs(30 * 86_400);
/// How long a user or source is remembered of whom there is but one refusal.
pub(super) const BRIEFLY: Duration = Duration::from_secs(7 * 86_400);
/// The most refused calls that are kept of a user or source; `observed` counts no further.
pub(super) const KEPT: usize = 32;

/// A refused call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Event time.
    pub(super) at: Time,
    /// By source: whose call it was; by user: from where; 0: nobody, nowhere.
    pub(super) who: u32,
    /// Which tool was called, and with which error it was refused.
    pub(super) call: u32,
    /// What the name of the user says.
    pub(super) name: Name,
    /// The user had succeeded in this app before.
    pub(super) known: bool,
    /// What the error says of the credential.
    pub(super) credential: Credential,
    /// When the same user succeeded after it from the same address.
    pub(super) pardoned_at: Option<Time>,
    /// It belongs to an expired credential.
    pub(super) expired: bool,
}

/// How long it has to be calm for an episode to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Calm {
    /// Where people work who would be locked out meanwhile.
    #[default]
    Minutes,
    /// Where nobody has ever succeeded.
    Hour,
    /// Where hours pass between tries, or the attacker has come back.
    Day,
}

impl Calm {
    pub(super) const fn form(self) -> EpisodeForm {
        match self {
            Self::Minutes => {
                EpisodeForm { width: WINDOW, ended: |started| told::calm(started, "10 minutes") }
            }
            Self::Hour => EpisodeForm {
                width: Duration::from_secs(3_600),
                ended: |started| told::calm(started, "an hour"),
            },
            Self::Day => EpisodeForm {
                width: Duration::from_secs(86_400),
                ended: |started| told::calm(started, "a day"),
            },
        }
    }
}

/// What is remembered beside the history of a user or source, as long as there are refused calls.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Trail {
    /// In the order of event time.
    pub(super) refusals: Vec<Refusal>,
    /// The episode of an attack.
    pub(super) attack: Course,
    /// How it ends.
    pub(super) calm: Calm,
    /// Exclusive: where the evidence of the open attack begins.
    pub(super) from: Time,
    /// When it was enough.
    pub(super) since: Time,
    /// What else has been told of the open attack: that it became a spraying, that it succeeded.
    pub(super) further: Vec<Detection>,
    /// The episode of an expired credential.
    pub(super) expired: Course,
    /// Whose it is.
    pub(super) expired_of: (u32, u32),
}

impl Trail {
    /// Takes note of an event; `false` when it came so late after others that it cannot be counted.
    pub(super) fn saw(&mut self, at: Time, received_at: Time) -> bool {
        let saw = self.attack.saw(at, received_at, WINDOW);
        self.expired.saw(at, received_at, WINDOW);
        saw
    }

    /// Takes in a refused call and answers its position.
    pub(super) fn insert(&mut self, refusal: Refusal) -> Option<usize> {
        let newest = self.refusals.last().map_or(refusal.at, |last| last.at.max(refusal.at));
        let horizon = newest.minus(MEMORY);
        self.refusals.retain(|old| old.at > horizon);
        let mut position = self.refusals.partition_point(|other| other.at <= refusal.at);
        if self.refusals.len() >= KEPT {
            // What is forgotten is the oldest, which may be this one.
            position = position.checked_sub(1)?;
            self.refusals.remove(0);
        }
        self.refusals.insert(position, refusal);
        Some(position)
    }

    /// Pardons what `who` was refused before they succeeded.
    pub(super) fn pardon(&mut self, who: u32, succeeded_at: Time) {
        for refusal in self.refusals.iter_mut().filter(|refusal| refusal.who == who) {
            if refusal.at <= succeeded_at && refusal.pardoned_at.is_none_or(|before| succeeded_at < before) {
                refusal.pardoned_at = Some(succeeded_at);
            }
        }
    }

    /// What happened before this counts for no attack that is met at `end`: it belongs to the one before,
    /// whose end may still be waiting for what is outstanding.
    pub(super) fn not_before(&self, end: Time) -> Time {
        let form = self.calm.form();
        if self.attack.covers(end, &form) { self.attack.not_before() } else { self.attack.over_from(&form) }
    }

    /// The refused calls that count in a window of `width` that ends with the one at `last`.
    pub(super) fn counted(&self, last: usize, width: Duration) -> impl Iterator<Item = &Refusal> + Clone {
        let end = self.refusals.get(last).map_or(Time::EPOCH, |refusal| refusal.at);
        let (start, not_before) = (end.minus(width), self.not_before(end));
        let settled = end.minus(MAX_DELAY);
        self.refusals[..=last.min(self.refusals.len().saturating_sub(1))].iter().filter(move |refusal| {
            refusal.at > start
                && refusal.at >= not_before
                && !refusal.expired
                && refusal.pardoned_at.is_none_or(|pardoned_at| pardoned_at > settled)
        })
    }

    /// The ends of the windows that a refused call at `position` may have completed.
    pub(super) fn ends(&self, position: usize) -> impl Iterator<Item = usize> + use<> {
        let at = self.refusals[position].at;
        // Of calls at the same instant, the last ends the window.
        let last = |n: &usize| self.refusals.get(n + 1).is_none_or(|next| next.at > self.refusals[*n].at);
        let until = at.plus(WINDOW);
        let ends: Vec<usize> = (position..self.refusals.len())
            .take_while(|n| self.refusals[*n].at < until)
            .filter(last)
            .collect();
        ends.into_iter()
    }

    /// Whether the open attack was going on at `at`, which it had begun by then.
    pub(super) fn is_under_attack(&self, at: Time) -> bool {
        self.attack.is_open() && self.since <= at && self.attack.covers(at, &self.calm.form())
    }

    /// The refused calls of the open attack up to `until`.
    pub(super) fn episode(&self, until: Time) -> impl Iterator<Item = &Refusal> + Clone {
        self.refusals.iter().filter(move |one| self.from < one.at && one.at <= until && !one.expired)
    }

    /// Begins an attack whose evidence, in the window given, is enough; ends the one before.
    pub(super) fn begin(
        &mut self,
        (from, since): (Time, Time),
        calm: Calm,
        detection: Detection,
        findings: &mut Findings,
    ) {
        self.end_attack(findings);
        (self.from, self.since) = (from, since);
        self.calm = calm;
        self.attack.begin(self.newest(), detection, findings);
    }

    /// Tells something more of the open attack.
    pub(super) fn tell(&mut self, detection: Detection, findings: &mut Findings) {
        let started = Detection { phase: "started".to_owned(), ..detection };
        findings.detections.push(started.clone());
        self.further.push(started);
    }

    /// Whether something of this kind has been told of the open attack.
    pub(super) fn has_told(&self, kind: &str) -> bool {
        self.further.iter().any(|told| told.kind == kind)
    }

    /// Ends the open attack; `false` when there is none.
    pub(super) fn end_attack(&mut self, findings: &mut Findings) -> bool {
        let form = self.calm.form();
        if !self.attack.end(&form, findings) {
            return false;
        }
        let ended_at = self.attack.not_before().micros();
        findings.detections.extend(self.further.drain(..).map(|started| Detection {
            phase: "ended".to_owned(),
            ended_at,
            explanation: (form.ended)(&started),
            ..started
        }));
        true
    }

    /// Whether the refused call at `position` is one more of the open episode of an expired credential.
    pub(super) fn is_of_expired(&mut self, position: usize) -> bool {
        let refusal = &mut self.refusals[position];
        let same = self.expired_of == (refusal.who, refusal.call);
        refusal.expired = same && self.expired.goes_on(refusal.at, refusal.at, &EXPIRED_FORM);
        refusal.expired
    }

    /// Takes the refused call at `position`, and the others like it, for those of an expired credential;
    /// `false` when another such episode is open already, which covers them.
    pub(super) fn excuse(&mut self, position: usize) -> bool {
        let Refusal { who, call, .. } = self.refusals[position];
        for other in self.refusals.iter_mut().filter(|other| (other.who, other.call) == (who, call)) {
            other.expired = true;
        }
        !self.expired.is_open()
    }

    /// Begins the episode of an expired credential with the refused call at `position`.
    pub(super) fn begin_expired(&mut self, position: usize, detection: Detection, findings: &mut Findings) {
        let Refusal { who, call, .. } = self.refusals[position];
        self.expired_of = (who, call);
        self.expired.begin(self.newest(), detection, findings);
    }

    /// Whether nothing in it can matter after a success at `at`.
    pub(super) fn is_over(&self, at: Time) -> bool {
        let settled = at.minus(MAX_DELAY);
        let over = |one: &Refusal| one.expired || one.pardoned_at.is_some_and(|at| at < settled);
        let calm = self.attack.not_before().max(self.expired.not_before()) < settled;
        calm && !self.is_open() && self.refusals.iter().all(over)
    }

    /// Ends what has ended by `now`; answers whether something had.
    pub(super) fn end(&mut self, now: Time, findings: &mut Findings) -> bool {
        let over = |end: Option<Time>| end.is_some_and(|end| end <= now);
        let attack = over(self.attack.ends_at(&self.calm.form())) && self.end_attack(findings);
        let expired = over(self.expired.ends_at(&EXPIRED_FORM)) && self.expired.end(&EXPIRED_FORM, findings);
        attack || expired
    }

    /// When an open episode may end next.
    pub(super) fn ends_at(&self) -> Option<Time> {
        let ends = [self.attack.ends_at(&self.calm.form()), self.expired.ends_at(&EXPIRED_FORM)];
        ends.into_iter().flatten().min()
    }

    /// Whether an episode is open.
    pub(super) fn is_open(&self) -> bool {
        self.attack.is_open() || self.expired.is_open()
    }

    /// The newest refused call.
    pub(super) fn newest(&self) -> Time {
        self.refusals.last().map_or(self.since, |last| last.at)
    }
}

/// How the episode of an expired credential ends.
pub(super) const EXPIRED_FORM: EpisodeForm = Calm::Day.form();

/// Each of `marks` once.
pub(super) fn distinct(marks: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut marks: Vec<u32> = marks.collect();
    marks.sort_unstable();
    marks.dedup();
    marks
}

/// How many there are.
pub(super) fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
