//! What people and bots did in public repositories, as calls of agents in their names.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    path::Path,
};

use anyhow::Context as _;
use panopticon_anomaly_detector::{backtest::backtest, settings::SettingsOf};
use panopticon_core::{
    ids::EventId,
    time::Time,
    trace::{AcceptedTrace, Status, Trace},
};
use uuid::Uuid;

pub const HOUR: i64 = 3_600;
pub const DAY: i64 = 24 * HOUR;

/// Alarms count once a user has been active on so many days.
pub const SETTLED: usize = 60;

/// One user of one app.
#[derive(Debug, Clone)]
pub struct Person {
    pub app: String,
    pub user: String,
    pub bot: bool,
    /// When they were active, in order, in seconds since the epoch.
    pub calls: Vec<i64>,
    /// How often they were in which time zone, in seconds ahead of UTC.
    zones: BTreeMap<i64, usize>,
    /// How many of the calls were from 2 to 5 in the morning where they were.
    own_night: usize,
}

impl Person {
    /// The days with activity, in order.
    pub fn days(&self) -> Vec<i64> {
        let days: BTreeSet<i64> = self.calls.iter().map(|at| at.div_euclid(DAY)).collect();
        days.into_iter().collect()
    }

    /// The days with activity after the first [`SETTLED`].
    pub fn settled_days(&self) -> Vec<i64> {
        self.days().split_off(SETTLED.min(self.days().len()))
    }

    /// The time zone in which they mostly were.
    pub fn zone(&self) -> i64 {
        self.zones.iter().max_by_key(|(_, calls)| **calls).map_or(0, |(zone, _)| *zone)
    }

    /// How the activity is spread over the hours of a zone.
    fn hours(&self, zone: i64) -> [usize; 24] {
        let mut hours = [0; 24];
        for at in &self.calls {
            hours[((at + zone).rem_euclid(DAY) / HOUR) as usize] += 1;
        }
        hours
    }

    /// The share of the activity from 1 to 6 in the morning.
    pub fn at_night(&self) -> f64 {
        self.hours(self.zone())[1..6].iter().sum::<usize>() as f64 / self.calls.len() as f64
    }

    /// The share of the activity from 2 to 5 in the morning where they were.
    pub fn at_own_night(&self) -> f64 {
        self.own_night as f64 / self.calls.len() as f64
    }

    /// The scores of these alarms, of person `n`, that count.
    pub fn settled_scores(&self, n: usize, alarms: &[Alarm]) -> Vec<f64> {
        let first = self.settled_days().first().map_or(i64::MAX, |day| day * DAY);
        let count = alarms.iter().filter(|alarm| alarm.person == n && alarm.at >= first);
        count.map(|alarm| alarm.score).collect()
    }

    /// The three hours of UTC with the least activity, and its share.
    pub fn quietest(&self) -> (i64, f64) {
        let hours = self.hours(0);
        let held = |from: usize| (0..3).map(|hour| hours[(from + hour) % 24]).sum::<usize>();
        let from = (0..24).min_by_key(|from| held(*from)).unwrap_or(0);
        (from as i64, held(from) as f64 / self.calls.len() as f64)
    }
}

/// Reads the data.
pub fn people(data: &Path) -> anyhow::Result<Vec<Person>> {
    let path = data.join("activity/git_activity.tsv.gz");
    let file = std::fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text)?;
    let mut people: BTreeMap<(&str, &str), Person> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [app, user, at, offset, _, bot] = fields[..] else {
            anyhow::bail!("a line of another form: {line}")
        };
        let person = people.entry((app, user)).or_insert_with(|| Person {
            app: app.to_owned(),
            user: user.to_owned(),
            bot: bot == "1",
            calls: Vec::new(),
            zones: BTreeMap::new(),
            own_night: 0,
        });
        let (at, zone) = (at.parse::<i64>()?, 60 * offset.parse::<i64>()?);
        person.calls.push(at);
        *person.zones.entry(zone).or_default() += 1;
        person.own_night += usize::from((2 * HOUR..5 * HOUR).contains(&(at + zone).rem_euclid(DAY)));
    }
    let mut people: Vec<Person> = people.into_values().collect();
    people.iter_mut().for_each(|person| person.calls.sort_unstable());
    Ok(people)
}

/// An alarm of the rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Alarm {
    /// Whose, by place in the list of people.
    pub person: usize,
    pub at: i64,
    pub score: f64,
}

/// The alarms of the rule, set so, over what these people did, each at their own times.
pub fn alarms<'a>(
    settings: &SettingsOf,
    people: impl IntoIterator<Item = (usize, &'a Person, Vec<i64>)>,
) -> Vec<Alarm> {
    let mut calls = Vec::new();
    for (n, person, times) in people {
        calls.extend(times.into_iter().map(|at| (at, n, person)));
    }
    calls.sort_by_key(|(at, n, _)| (*at, *n));
    let whose: Vec<usize> = calls.iter().map(|(_, n, _)| *n).collect();
    let traces = (0_u128..).zip(calls).map(|(id, (at, _, person))| trace(id, person, at));
    let mut alarms = Vec::new();
    backtest(traces, settings, &mut [], |detection| {
        if detection.rule == "off_hour" && detection.phase == "started" {
            let deciding = detection.deciding_event_id.parse::<Uuid>().map_or(0, |id| id.as_u128() as usize);
            let at = Time::from_micros(detection.detected_at).secs();
            alarms.push(Alarm { person: whose[deciding], at, score: detection.score });
        }
    });
    alarms
}

fn trace(id: u128, person: &Person, at: i64) -> AcceptedTrace {
    let trace = Trace {
        event_id: EventId(Uuid::from_u128(id)),
        client_id: person
            .app
            .parse()
            .unwrap_or_else(|_| unreachable!("names of apps are visible characters")),
        user_sub: person.user.clone(),
        tool: "tool".to_owned(),
        scope_used: String::new(),
        status: Status::Ok,
        started_at: Time::from_secs(at),
        duration_ms: 0,
        session_id: String::new(),
        agent: String::new(),
        source_ip: String::new(),
        error_code: String::new(),
        attributes: BTreeMap::new(),
    };
    AcceptedTrace { received_at: trace.started_at, late: false, place: None, trace }
}
