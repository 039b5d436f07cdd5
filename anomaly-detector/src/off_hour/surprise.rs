//! How unusual a time is for a user.
//!
//! Five things are weighed, each as the negative logarithm of a frequency: how often this user was active
//! near this time of day, whether they were so lately, whether people in general are so far from the middle
//! of their day, how regularly this user rests, and how much is known. A user may be elsewhere than usual:
//! the last sessions say how likely it is that their day is shifted by so many hours, and what is unusual is
//! so under every likely shift.

use super::rhythm::{DAY, Rhythm, hour_of, on_clock, tent};

/// How the sessions of a person are spread over the hours after the middle of their day, in thousandths:
/// the average of 240 users of open-source projects, each turned to the middle of their own activity.
/// Evenings fade slowly, mornings begin abruptly.
const PERSON: [f64; 24] = [
    82.0, 88.0, 77.0, 61.0, 48.0, 37.0, 29.0, 25.0, 20.0, 16.0, 12.0, 9.0, 8.0, 8.0, 9.0, 12.0, 17.0, 25.0,
    37.0, 56.0, 72.0, 84.0, 85.0, 80.0,
];
/// The average person counts as much as so many days of the user's own, and so many of their last sessions.
const PERSON_DAYS: f64 = 15.0;
const PERSON_SESSIONS: f64 = 6.0;
/// So many hours apart, the last sessions are no longer near.
const NEAR: f64 = 3.0;

/// Whoever is as active as this, of all their activity, in the quietest five hours of their day, has no
/// rhythm: evenly spread activity has a fifth there, people have a fiftieth.
const NO_RHYTHM: f64 = 0.05;
const QUIET_HALF_HOURS: usize = 10;
/// An hour with so much of all the activity, half of an even share, is a usual one, wherever the user is.
const USUAL: f64 = 0.02;

/// From one session to the next, the probability of a move to any other time zone.
const MOVES: f64 = 0.02;
/// What is held for possible before the oldest of the last sessions.
const MOVED_BEFORE: f64 = 0.05;
/// The least probability of activity in an hour that is assumed of a place.
const LEAST: f64 = 1e-4;

/// An hour beside, where a clock change may have moved the user's day, weighs so much.
const BESIDE: f64 = 0.35;

/// How much each thing weighs: round numbers on a broad optimum over several ways to choose nights. Each is
/// kept because it helps on users that it was not chosen by; to search all of them together does not.
const WEIGHT_OF_DAYS: f64 = 0.6;
const WEIGHT_OF_LATELY: f64 = 0.2;
const WEIGHT_OF_PERSON: f64 = 2.0;
/// Whoever is active now and then in the hours of rest will be so at other hours, too. It is held against
/// a share of so much, as is what could not have been seen yet.
const WEIGHT_OF_REST: f64 = 0.35;
const LITTLE_REST: f64 = 0.03;
/// The longer a user is known, the more occasions there are for false alarms.
const WEIGHT_OF_KNOWN: f64 = 0.2;
/// Until a user was active on so many days, the fewer there are the less is known of what is rare.
const KNOWN_DAYS: f64 = 60.0;
const WEIGHT_OF_UNKNOWN: f64 = 1.0;
/// Weekends are less regular.
const WEEKEND: f64 = 0.6;

/// Of a thousand days with activity of some user, 5.6 have a session at least this surprising: for an app of
/// 30 active users a day, so many in 30 days.
const LEVEL: f64 = 11.4;
const MONTHLY_AT_LEVEL: f64 = 5.0;
/// Each nat more makes it so many nats rarer.
const RARER: f64 = 1.2;

/// One session in a hundred is more surprising than this.
const UNUSUAL: f64 = 11.0;

/// How unusual it is for a session to begin at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Surprise {
    /// The more, the rarer.
    pub nats: f64,
    /// How many beginnings are to be expected within an hour at that time, per active day.
    pub rate: f64,
}

impl Surprise {
    /// Of the beginning of a session at `at`, in seconds since the epoch, for a user with this rhythm; `None`
    /// at a usual hour, and for one without a rhythm.
    pub fn of(rhythm: &Rhythm, at: u32) -> Option<Self> {
        let hour = hour_of(at);
        let usual = Usual::unless_now(rhythm, hour)?;
        if usual.quietest() > NO_RHYTHM {
            return None;
        }
        let shifts = usual.shifts(rhythm);
        let (sessions, near) = rhythm
            .recent()
            .fold((0.0, 0.0), |(sessions, near), began| (sessions + 1.0, near + tent(hour - began, NEAR)));
        let under: [f64; 24] = std::array::from_fn(|shift| {
            let there = hour - shift as f64;
            let person = person(there - usual.middle);
            let lately = usual.a_day * (near + PERSON_SESSIONS * person) / (sessions + PERSON_SESSIONS);
            -WEIGHT_OF_DAYS * (usual.a_day * usual.share(there)).ln()
                - WEIGHT_OF_LATELY * lately.ln()
                - WEIGHT_OF_PERSON * person.ln()
        });
        let around = |shift: usize| {
            let (here, beside) = (under[shift], under[(shift + 23) % 24].min(under[(shift + 1) % 24]));
            here - BESIDE * (here - beside).max(0.0)
        };
        let days = f64::from(rhythm.days());
        let nats =
            shifts.iter().enumerate().map(|(shift, probability)| probability * around(shift)).sum::<f64>()
                - WEIGHT_OF_REST * (rhythm.at_rest() / LITTLE_REST + 1.0).ln()
                - WEIGHT_OF_KNOWN * days.ln()
                - WEIGHT_OF_UNKNOWN * (KNOWN_DAYS / days).max(1.0).ln()
                - if is_weekend(at) { WEEKEND } else { 0.0 };
        Some(Self { nats, rate: usual.a_day * usual.share(hour) })
    }

    /// Whether it is so unusual that it says little about what is usual.
    pub fn is_unusual(&self) -> bool {
        self.nats > UNUSUAL
    }

    /// Whether it is as rare as what an app is told by default.
    pub fn is_rare(&self) -> bool {
        self.nats > LEVEL
    }

    /// In 30 days, an app has to expect so many at least as unusual.
    pub fn monthly(&self) -> f64 {
        MONTHLY_AT_LEVEL * (RARER * (LEVEL - self.nats)).exp()
    }
}

/// A user's day as it usually is.
struct Usual {
    /// The middle of the activity, as an hour of UTC.
    middle: f64,
    /// How much activity there is on an active day.
    a_day: f64,
    /// The share of it per hour, at each half hour of UTC.
    shares: [f64; 48],
}

impl Usual {
    /// The usual day, unless this hour of it is a usual one: then most of the work is saved.
    fn unless_now(rhythm: &Rhythm, hour: f64) -> Option<Self> {
        let middle = rhythm.middle();
        let (days, a_day) = rhythm.extent();
        let share = |hour: f64| {
            (rhythm.near(hour) / a_day + PERSON_DAYS * person(hour - middle)) / (days + PERSON_DAYS)
        };
        let shares = || std::array::from_fn(|half| share(half as f64 / 2.0));
        (share(hour) < USUAL).then(|| Self { middle, a_day, shares: shares() })
    }

    /// The share of the activity per hour at an hour of UTC.
    fn share(&self, hour: f64) -> f64 {
        let halves = (hour * 2.0).rem_euclid(48.0);
        let (half, within) = (halves as usize % 48, halves.fract());
        self.shares[half] * (1.0 - within) + self.shares[(half + 1) % 48] * within
    }

    /// The share of the activity in the quietest hours.
    fn quietest(&self) -> f64 {
        let held =
            |from: usize| (0..QUIET_HALF_HOURS).map(|half| self.shares[(from + half) % 48] / 2.0).sum();
        (0..48).map(held).fold(1.0, f64::min)
    }

    /// How likely it is that the user's day is shifted by so many hours, as the last sessions have it.
    fn shifts(&self, rhythm: &Rhythm) -> [f64; 24] {
        let mut shifts = [MOVED_BEFORE / 24.0; 24];
        shifts[0] += 1.0 - MOVED_BEFORE;
        for began in rhythm.recent().rev() {
            let half = (began * 2.0).round() as usize;
            let mut all = 0.0;
            for (shift, probability) in shifts.iter_mut().enumerate() {
                let share = self.shares[(half + 48 - 2 * shift) % 48].max(LEAST);
                *probability = ((1.0 - MOVES) * *probability + MOVES / 24.0) * share;
                all += *probability;
            }
            shifts.iter_mut().for_each(|probability| *probability /= all);
        }
        shifts
    }
}

/// The share of a person's sessions in an hour, so long after the middle of their day.
fn person(hours: f64) -> f64 {
    // Each number stands for the middle of its hour.
    let (hour, within) = on_clock(hours - 0.5);
    (PERSON[hour] * (1.0 - within) + PERSON[(hour + 1) % 24] * within) / 1_000.0
}

/// Whether it is Saturday or Sunday in UTC: when a day begins elsewhere matters little here.
const fn is_weekend(at: u32) -> bool {
    // The epoch was a Thursday.
    (at / DAY + 3) % 7 >= 5
}
