//! The rule `off_hour`: false alarms on real activity, nights put into it, clock changes and moves.
//!
//! The alarms on the activity as it is are false. Into it go sessions at night, in each run one for each
//! user with a quiet night, on a random day on which they were active: found when an alarm is decided in
//! the session. A clock change or a move shifts all that a user did from a day on.

mod people;

use std::path::Path;

use self::people::{Alarm, DAY, HOUR, Person, alarms, people};
use crate::report::Line;

/// Runs with other random nights.
const RUNS: u64 = 12;
/// After so many days of activity a user may raise an alarm.
const ENOUGH: usize = 20;
/// Dates at which each user's clock changes or they move.
const CHANGES: usize = 4;

/// Measures.
pub fn measure(data: &Path) -> anyhow::Result<Vec<Line>> {
    let people = people(data)?;
    let real = alarms(people.iter().enumerate().map(|(n, person)| (n, person, person.calls.clone())));
    let mut lines = Vec::new();
    for night in &NIGHTS {
        lines.extend(nights(&people, &real, night));
    }
    lines.push(calm(&people, &real));
    lines.push(several_nights(&people, &real));
    lines.push(clock_changes(&people));
    lines.push(moves(&people));
    Ok(lines)
}

/// A way to choose users and a night for them.
struct Night {
    what: &'static str,
    /// Whether this user's night is quiet enough.
    quiet: fn(&Person) -> bool,
    /// When it begins on a day, in seconds since the epoch; it lasts three hours.
    begins: fn(&Person, i64) -> i64,
}

const NIGHTS: [Night; 3] = [
    Night {
        what: "from 2 to 5, users with < 5 % of their calls from 1 to 6",
        quiet: |person| person.at_night() < 0.05,
        begins: two_in_the_morning,
    },
    Night {
        what: "from 2 to 5, users with < 2 % of their calls from 1 to 6",
        quiet: |person| person.at_night() < 0.02,
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

/// The score of the alarm in the session, if there is one.
fn found(alarms: &[Alarm], n: usize, session: &[i64]) -> Option<f64> {
    let within = |alarm: &&Alarm| {
        alarm.person == n && session.first() <= Some(&alarm.at) && Some(&alarm.at) <= session.last()
    };
    alarms.iter().find(within).map(|alarm| alarm.score)
}

/// The false alarms of the people that matter, the highest score first, and the days on which they were
/// active, all after their first ones.
fn false_alarms(people: &[Person], real: &[Alarm], matters: impl Fn(&Person) -> bool) -> (Vec<f64>, usize) {
    let mut days = 0;
    let mut scores = Vec::new();
    for (n, person) in people.iter().enumerate().filter(|(_, person)| !person.bot && matters(person)) {
        let settled = person.settled_days();
        days += settled.len();
        if let Some(first) = settled.first() {
            let false_ones = real.iter().filter(|alarm| alarm.person == n && alarm.at >= first * DAY);
            scores.extend(false_ones.map(|alarm| alarm.score));
        }
    }
    scores.sort_by(|one, other| other.total_cmp(one));
    (scores, days)
}

/// The share of the sessions whose score is above that of all but so many false alarms a day.
fn recall(sessions: &[Option<f64>], scores: &[f64], days: usize, rate: f64) -> f64 {
    let allowed = (rate * days as f64) as usize;
    let threshold = scores.get(allowed).copied().unwrap_or(-1.0);
    let above = sessions.iter().filter(|score| score.is_some_and(|score| score > threshold)).count();
    above as f64 / sessions.len().max(1) as f64
}

/// The share of sessions found that are put into nights, one for each user and run.
fn nights(people: &[Person], real: &[Alarm], night: &Night) -> Vec<Line> {
    let mut sessions = Vec::new();
    for run in 0..RUNS {
        let mut dice = Dice(run);
        let mut put = Vec::new();
        for (n, person) in
            people.iter().enumerate().filter(|(_, person)| !person.bot && (night.quiet)(person))
        {
            let settled = person.settled_days();
            if !settled.is_empty() {
                let day = settled[dice.below(settled.len() as i64) as usize];
                put.push((n, session(person, day, night, &mut dice)));
            }
        }
        let with =
            put.iter().map(|(n, session)| (*n, &people[*n], [&people[*n].calls[..], session].concat()));
        let alarms = alarms(with);
        sessions.extend(put.iter().map(|(n, session)| found(&alarms, *n, session)));
    }
    let (scores, days) = false_alarms(people, real, night.quiet);
    let line = |rate: f64, reach: f64, best_known: &str| {
        let recall = recall(&sessions, &scores, days, rate);
        Line {
            what: format!(
                "off_hour: nights found at {rate} false alarms per active user-day ({})",
                night.what
            ),
            best_known: best_known.to_owned(),
            reach: format!(">= {reach}"),
            measured: format!("{recall:.3} ({} sessions, {days} user-days)", sessions.len()),
            reached: recall >= reach,
        }
    };
    vec![line(0.005, 0.85, "ranking from UTC only: .74"), line(0.002, 0.60, "ranking from UTC only: .47")]
}

/// What is told as it is set by default, of whom nothing is to be told, and too early.
fn calm(people: &[Person], real: &[Alarm]) -> Line {
    let (scores, days) = false_alarms(people, real, |_| true);
    let bots = real.iter().filter(|alarm| people[alarm.person].bot).count();
    let early = |alarm: &&Alarm| {
        people[alarm.person].days().iter().take_while(|day| **day < alarm.at.div_euclid(DAY)).count() < ENOUGH
    };
    let early = real.iter().filter(early).count();
    Line {
        what: "off_hour: alarms on bots, and before 20 active days".to_owned(),
        best_known: String::new(),
        reach: "0, 0".to_owned(),
        measured: format!(
            "{bots}, {early} (of all users as set by default: {:.4} false alarms per active user-day)",
            scores.len() as f64 / days as f64
        ),
        reached: bots + early == 0,
    }
}

/// Ten nights of each user in the same stream.
fn several_nights(people: &[Person], real: &[Alarm]) -> Line {
    let night = &NIGHTS[1];
    let mut dice = Dice(7);
    let mut put = Vec::new();
    for (n, person) in people.iter().enumerate().filter(|(_, person)| !person.bot && (night.quiet)(person)) {
        let settled = person.settled_days();
        for part in settled.chunks(settled.len().div_ceil(10).max(1)) {
            let day = part[dice.below(part.len() as i64) as usize];
            put.push((n, session(person, day, night, &mut dice)));
        }
    }
    let with = people.iter().enumerate().map(|(n, person)| {
        let more = put.iter().filter(|(whose, _)| *whose == n).flat_map(|(_, session)| session.clone());
        (n, person, person.calls.iter().copied().chain(more).collect())
    });
    let alarms = alarms(with);
    let sessions: Vec<_> = put.iter().map(|(n, session)| found(&alarms, *n, session)).collect();
    let (scores, days) = false_alarms(people, real, night.quiet);
    let recall = recall(&sessions, &scores, days, 0.005);
    Line {
        what: "off_hour: nights found at 0.005, ten of each user in one stream".to_owned(),
        best_known: String::new(),
        reach: ">= 0.85".to_owned(),
        measured: format!("{recall:.3} ({} sessions)", sessions.len()),
        reached: recall >= 0.85,
    }
}

/// The alarms of each person whose calls are shifted by so many hours from a day on: in the 14 days after, and
/// in the 60 after, for each of some days.
fn shifted(people: &[Person], hours: i64) -> Vec<(usize, usize)> {
    let mut counts = Vec::new();
    for change in 0..CHANGES {
        let mut from = vec![i64::MAX; people.len()];
        for (n, person) in
            people.iter().enumerate().filter(|(_, person)| !person.bot && person.at_night() < 0.05)
        {
            let settled = person.settled_days();
            if settled.len() >= 10 {
                from[n] = settled[settled.len() * change / CHANGES] * DAY;
            }
        }
        let moved = people.iter().enumerate().filter(|(n, _)| from[*n] < i64::MAX).map(|(n, person)| {
            let shift = |at: &i64| if *at < from[n] { *at } else { at + hours * HOUR };
            (n, person, person.calls.iter().map(shift).collect())
        });
        let alarms = alarms(moved);
        for (n, from) in from.iter().enumerate().filter(|(_, from)| **from < i64::MAX) {
            let within = |days: i64| {
                let until = from + days * DAY;
                alarms.iter().filter(|alarm| alarm.person == n && (*from..until).contains(&alarm.at)).count()
            };
            counts.push((within(14), within(60)));
        }
    }
    counts
}

fn clock_changes(people: &[Person]) -> Line {
    let in_14_days = |hours| shifted(people, hours).iter().map(|(alarms, _)| alarms).sum::<usize>();
    let (without, forth, back) = (in_14_days(0), in_14_days(1), in_14_days(-1));
    Line {
        what: "off_hour: alarms in the 14 days after a clock change".to_owned(),
        best_known: String::new(),
        reach: "none extra".to_owned(),
        measured: format!("{forth} forward, {back} back, {without} without"),
        reached: forth <= without && back <= without,
    }
}

fn moves(people: &[Person]) -> Line {
    let mut more = Vec::new();
    let (mut moves, mut alarms) = (0, 0);
    for hours in [-9, -6, -3, 3, 6, 9] {
        let counts = shifted(people, hours);
        moves += counts.len();
        alarms += counts.iter().map(|(_, alarms)| alarms).sum::<usize>();
        more.push(counts.iter().filter(|(alarms, _)| *alarms > 1).count());
    }
    Line {
        what: "off_hour: moves by -9, -6, -3, 3, 6, 9 hours with more than one alarm in 14 days".to_owned(),
        best_known: String::new(),
        reach: "0".to_owned(),
        measured: format!("{more:?} of {moves} in all, with {alarms} alarms in 60 days"),
        reached: more.iter().sum::<usize>() == 0,
    }
}
