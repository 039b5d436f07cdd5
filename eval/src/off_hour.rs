//! The rule `off_hour`: false alarms on real activity, nights put into it, clock changes and moves.
//!
//! The alarms on the activity as it is are false. Into it go sessions at night (`nights`). A clock change or
//! a move shifts all that a user did from a day on.

mod nights;
mod people;

use std::path::Path;

use panopticon_anomaly_detector::settings::SettingsOf;

use self::people::{Alarm, DAY, HOUR, Person, alarms, people};
use crate::report::Line;

/// After so many days of activity a user may raise an alarm.
const ENOUGH: usize = 20;
/// Dates at which each user's clock changes or they move.
const CHANGES: usize = 4;

/// Measures.
pub fn measure(data: &Path) -> anyhow::Result<Vec<Line>> {
    let people = people(data)?;
    let mut lines = nights::measure(&people);
    lines.push(calm(&people, &real(&people, &SettingsOf::default())));
    lines.push(clock_changes(&people));
    lines.push(moves(&people));
    Ok(lines)
}

/// The alarms on the activity as it is.
fn real(people: &[Person], settings: &SettingsOf) -> Vec<Alarm> {
    alarms(settings, people.iter().enumerate().map(|(n, person)| (n, person, person.calls.clone())))
}

/// What is told as it is set by default, of whom nothing is to be told, and too early.
fn calm(people: &[Person], real: &[Alarm]) -> Line {
    let people_alone = || people.iter().enumerate().filter(|(_, person)| !person.bot);
    let days: usize = people_alone().map(|(_, person)| person.settled_days().len()).sum();
    let false_ones = people_alone().map(|(n, person)| person.settled_scores(n, real).len()).sum::<usize>();
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
            false_ones as f64 / days as f64
        ),
        reached: bots + early == 0,
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
        let alarms = alarms(&SettingsOf::default(), moved);
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
