//! Sessions put into nights on which nobody was there, and the share of them that is found.
//!
//! In each run there is one for each user with a quiet night, on a random day on which they were active: found
//! when an alarm is decided in the session. What counts as a quiet night can be said in several ways, and the
//! rule must not depend on which; by the clock of each call it is as the figures of the best known were, since
//! the simple rankings have these here, too. Sessions count alike for each user, which favours what is said of
//! those of whom little is known, and for each day, which favours the others.
//!
//! No threshold is known beforehand where the rule is used: held out, it is the one that the false alarms of
//! half of the users give, and the recall and the false alarms are those of the other half.

use panopticon_anomaly_detector::{
    score,
    settings::{Settings, SettingsOf},
};

use super::{
    people::{Alarm, DAY, HOUR, Person, alarms},
    real,
};
use crate::report::Line;

/// Runs with other random nights.
const RUNS: u64 = 12;
/// Ways to split the users.
const SPLITS: u64 = 20;
/// False alarms per active user-day, the share of nights that has to be found at it, and the best known.
const POINTS: [(f64, f64, &str); 2] =
    [(0.005, 0.85, "ranking from UTC only: .74"), (0.002, 0.60, "ranking from UTC only: .47")];

/// A way to choose users and a night for them.
struct Night {
    what: &'static str,
    /// Whether this user's night is quiet enough.
    quiet: fn(&Person) -> bool,
    /// When it begins on a day, in seconds since the epoch; it lasts three hours.
    begins: fn(&Person, i64) -> i64,
}

const NIGHTS: [Night; 4] = [
    Night {
        what: "from 2 to 5, users with < 1 % of their calls then by the clock of each call",
        quiet: |person| person.at_own_night() < 0.01,
        begins: two_in_the_morning,
    },
    Night {
        what: "from 2 to 5, users with < 2 % of their calls from 1 to 6",
        quiet: |person| person.at_night() < 0.02,
        begins: two_in_the_morning,
    },
    Night {
        what: "from 2 to 5, users with < 5 % of their calls from 1 to 6",
        quiet: |person| person.at_night() < 0.05,
        begins: two_in_the_morning,
    },
    Night {
        what: "the user's three quietest hours, with < 2 % of the calls",
        quiet: |person| person.quietest().1 < 0.02,
        begins: |person, day| day * DAY + person.quietest().0 * HOUR,
    },
];

fn two_in_the_morning(person: &Person, day: i64) -> i64 {
    day * DAY + 2 * HOUR - person.zone()
}

/// Measures.
pub fn measure(people: &[Person]) -> Vec<Line> {
    let real = real(people, &all_with_a_score());
    let mut lines = Vec::new();
    for night in &NIGHTS {
        let outcome = Outcome::new(people, &real, night, one_each(people, night));
        lines.extend(POINTS.map(|point| outcome.line(night.what, point)));
    }
    let outcome = Outcome::new(people, &real, &NIGHTS[1], vec![ten_each(people, &NIGHTS[1])]);
    lines.push(outcome.line("ten of each user in one stream", POINTS[0]));
    lines
}

/// Settings that let through whatever has a score, so that its threshold can be moved.
fn all_with_a_score() -> SettingsOf {
    SettingsOf::all(Settings { alarms_a_month: score::monthly(0.0), ..Settings::default() })
}

/// A fixed sequence that looks random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: i64) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as i64).rem_euclid(limit.max(1))
    }
}

/// A session of one to ten calls in this night of the user.
fn session(person: &Person, day: i64, night: &Night, dice: &mut Dice) -> Vec<i64> {
    let mut at = (night.begins)(person, day) + dice.below(3 * HOUR);
    let mut session = vec![at];
    for _ in 0..dice.below(10) {
        at += 1 + dice.below(300);
        session.push(at);
    }
    session
}

/// Sessions to put into one stream, each with whose it is.
type Put = Vec<(usize, Vec<i64>)>;

/// The people with a quiet night and the days on which it counts.
fn quiet<'a>(people: &'a [Person], night: &'a Night) -> impl Iterator<Item = (usize, &'a Person, Vec<i64>)> {
    let all = people.iter().enumerate().filter(|(_, person)| !person.bot && (night.quiet)(person));
    all.map(|(n, person)| (n, person, person.settled_days())).filter(|(_, _, days)| !days.is_empty())
}

/// A night of each user, in several runs.
fn one_each(people: &[Person], night: &Night) -> Vec<Put> {
    let run = |run| {
        let mut dice = Dice(run);
        let mut one = |(n, person, days): (usize, &Person, Vec<i64>)| {
            let day = days[dice.below(days.len() as i64) as usize];
            (n, session(person, day, night, &mut dice))
        };
        quiet(people, night).map(&mut one).collect()
    };
    (0..RUNS).map(run).collect()
}

/// Ten nights of each user, far from each other.
fn ten_each(people: &[Person], night: &Night) -> Put {
    let mut dice = Dice(7);
    let mut put = Vec::new();
    for (n, person, days) in quiet(people, night) {
        for part in days.chunks(days.len().div_ceil(10).max(1)) {
            let day = part[dice.below(part.len() as i64) as usize];
            put.push((n, session(person, day, night, &mut dice)));
        }
    }
    put
}

/// How sessions and false alarms were scored, of the users that matter.
struct Outcome {
    /// Whose session, and the score of the alarm in it.
    sessions: Vec<(usize, Option<f64>)>,
    /// Whose false alarm, and its score; the highest first.
    false_alarms: Vec<(usize, f64)>,
    /// On how many days each was active; 0: the user does not matter.
    days: Vec<usize>,
}

impl Outcome {
    fn new(people: &[Person], real: &[Alarm], night: &Night, runs: Vec<Put>) -> Self {
        let mut days = vec![0; people.len()];
        let mut false_alarms = Vec::new();
        for (n, person, settled) in quiet(people, night) {
            days[n] = settled.len();
            false_alarms.extend(person.settled_scores(n, real).into_iter().map(|score| (n, score)));
        }
        false_alarms.sort_by(|one, other| other.1.total_cmp(&one.1));
        let mut sessions = Vec::new();
        for put in runs {
            let with = people.iter().enumerate().filter(|(n, _)| days[*n] > 0).map(|(n, person)| {
                let more = put.iter().filter(|(whose, _)| *whose == n).flat_map(|(_, session)| session);
                (n, person, person.calls.iter().chain(more).copied().collect())
            });
            let alarms = alarms(&all_with_a_score(), with);
            sessions.extend(put.iter().map(|(n, session)| (*n, found(&alarms, *n, session))));
        }
        Self { sessions, false_alarms, days }
    }

    /// The active days of some users.
    fn days(&self, users: impl Fn(usize) -> bool) -> f64 {
        self.days.iter().enumerate().filter(|(n, _)| users(*n)).map(|(_, days)| *days as f64).sum()
    }

    /// The score above which there are only so many false alarms of these users on an active day.
    fn threshold(&self, rate: f64, users: impl Fn(usize) -> bool) -> f64 {
        let allowed = (rate * self.days(&users)) as usize;
        self.false_alarms.iter().filter(|(n, _)| users(*n)).nth(allowed).map_or(-1.0, |(_, score)| *score)
    }

    /// The share of these users' sessions above a threshold, where each user's weigh so much.
    fn recall(&self, threshold: f64, users: impl Fn(usize) -> bool, weight: impl Fn(usize) -> f64) -> f64 {
        let (mut found, mut all) = (0.0, 0.0);
        for (n, score) in self.sessions.iter().filter(|(n, _)| users(*n)) {
            all += weight(*n);
            found += if score.is_some_and(|score| score > threshold) { weight(*n) } else { 0.0 };
        }
        found / f64::max(all, 1.0)
    }

    /// The recall and the false alarms on an active day of the users by whom the threshold was not chosen.
    fn held_out(&self, rate: f64) -> (f64, f64) {
        let (mut recalls, mut rates) = (0.0, 0.0);
        for split in 0..SPLITS {
            let mut dice = Dice(split);
            let halves: Vec<bool> = self.days.iter().map(|_| dice.below(2) == 0).collect();
            for half in [false, true] {
                let threshold = self.threshold(rate, |n| halves[n] != half);
                let here = |n: usize| halves[n] == half;
                let above = |(n, score): &&(usize, f64)| here(*n) && *score > threshold;
                recalls += self.recall(threshold, here, |_| 1.0);
                rates += self.false_alarms.iter().filter(above).count() as f64 / self.days(here);
            }
        }
        let measured = 2.0 * SPLITS as f64;
        (recalls / measured, rates / measured)
    }

    fn line(&self, what: &str, (rate, reach, best_known): (f64, f64, &str)) -> Line {
        let threshold = self.threshold(rate, |_| true);
        let recall = self.recall(threshold, |_| true, |_| 1.0);
        let by_day = self.recall(threshold, |_| true, |n| self.days[n] as f64);
        let (held_out, held_out_rate) = self.held_out(rate);
        Line {
            what: format!("off_hour: nights found at {rate} false alarms per active user-day ({what})"),
            best_known: best_known.to_owned(),
            reach: format!(">= {reach}"),
            measured: format!(
                "{recall:.3}, each day alike {by_day:.3}, held out {held_out:.3} at {held_out_rate:.4} ({} \
                 sessions, {} user-days)",
                self.sessions.len(),
                self.days(|_| true),
            ),
            reached: recall >= reach,
        }
    }
}

/// The score of the alarm in the session, if there is one.
fn found(alarms: &[Alarm], n: usize, session: &[i64]) -> Option<f64> {
    let within = |alarm: &&Alarm| {
        alarm.person == n && session.first() <= Some(&alarm.at) && Some(&alarm.at) <= session.last()
    };
    alarms.iter().find(within).map(|alarm| alarm.score)
}
