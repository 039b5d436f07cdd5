//! The rule `failed_auth` on the log of an ssh server on the Internet, and on attacks made from it.
//!
//! The log is shown to the rules as traces of one app: a login is a call of `ssh.login`, a failed one is
//! denied. It holds neither sprayings nor slow attacks. So these are made of its own sources: for slow ones
//! the tries of a source are moved hours apart, for sprayings each try gets another user's name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use anyhow::Context as _;
use panopticon_anomaly_detector::{backtest::backtest, settings::SettingsOf};
use panopticon_core::{
    ids::EventId,
    time::Time,
    trace::{AcceptedTrace, Status, Trace},
};
use panopticon_proto::log::Detection;
use serde::Deserialize;
use uuid::Uuid;

use crate::report::Line;

const APP: &str = "ssh";
const HOUR: i64 = 3_600;

/// A login.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    at: i64,
    source: String,
    user: String,
    ok: bool,
}

#[derive(Deserialize)]
struct Labels {
    year_assumed: i16,
    hostile: BTreeMap<String, serde_json::Value>,
    benign: BTreeMap<String, serde_json::Value>,
    turned: BTreeMap<String, Turned>,
}

#[derive(Deserialize)]
struct Turned {
    onset: i64,
    ok_after_onset: Vec<i64>,
}

/// Measures.
pub fn measure(data: &Path) -> anyhow::Result<Vec<Line>> {
    let folder = data.join("auth");
    let mut all: BTreeMap<String, serde_json::Value> =
        serde_json::from_reader(File::open(folder.join("labels.json"))?).context("labels.json")?;
    let labels = all.remove("elastic_auth.log").context("labels.json: elastic_auth.log")?;
    let labels: Labels = serde_json::from_value(labels).context("labels.json")?;
    let log = flate2::read::GzDecoder::new(File::open(folder.join("elastic_auth.log.gz"))?);
    let mut events = Vec::new();
    for line in BufReader::new(log).lines() {
        let (event, times) = match line.map(|line| read(&line, labels.year_assumed))? {
            Some(read) => read,
            None => continue,
        };
        events.extend(std::iter::repeat_n(event, times));
    }
    let mut lines = on_the_log(&events, &labels);
    lines.extend(on_made_attacks(&events, &labels));
    lines.push(in_disorder(&events));
    Ok(lines)
}

/// A line of the log, and how often it stands for the same.
fn read(line: &str, year: i16) -> Option<(Event, usize)> {
    let (head, message) = line.split_once("]: ")?;
    head.contains("sshd[").then_some(())?;
    let (message, times) = match message.strip_prefix("message repeated ") {
        None => (message, 1),
        Some(rest) => {
            let (times, rest) = rest.split_once(" times: [ ")?;
            (rest.trim_end_matches([' ', ']']), times.parse().ok()?)
        }
    };
    let (outcome, rest) = message.split_once(' ')?;
    let ok = match outcome {
        "Accepted" => true,
        "Failed" => false,
        _ => return None,
    };
    let (_method, rest) = rest.split_once(" for ")?;
    let rest = rest.strip_prefix("invalid user ").unwrap_or(rest);
    let (user, rest) = rest.split_once("from ")?;
    let source = rest.split(' ').next()?.to_owned();
    let at =
        jiff::civil::DateTime::strptime("%Y %b %d %H:%M:%S", format!("{year} {}", line.get(..15)?)).ok()?;
    let at = at.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
    Some((Event { at, source, user: user.trim_end().to_owned(), ok }, times))
}

/// The events as traces of `app`, each with its place as its id.
fn traces(events: &[Event]) -> Vec<AcceptedTrace> {
    (0_u128..)
        .zip(events)
        .map(|(n, event)| {
            let trace = Trace {
                event_id: EventId(Uuid::from_u128(n)),
                client_id: APP.parse().unwrap_or_else(|_| unreachable!("a client id")),
                user_sub: event.user.clone(),
                tool: "ssh.login".to_owned(),
                scope_used: String::new(),
                status: if event.ok { Status::Ok } else { Status::Denied },
                started_at: Time::from_secs(event.at),
                duration_ms: 0,
                session_id: String::new(),
                agent: String::new(),
                source_ip: event.source.clone(),
                error_code: String::new(),
                attributes: BTreeMap::new(),
            };
            AcceptedTrace::new(trace, Time::from_secs(event.at))
        })
        .collect()
}

/// An alarm: what it is, whom it concerns, and the number of the deciding event.
struct Alarm {
    kind: String,
    source: String,
    deciding: usize,
}

fn alarms(events: &[Event]) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    backtest(traces(events), &SettingsOf::default(), &mut [], |detection| {
        alarms.extend(alarm(&detection, events));
    });
    alarms
}

fn alarm(detection: &Detection, events: &[Event]) -> Option<Alarm> {
    (detection.rule == "failed_auth" && detection.phase == "started").then_some(())?;
    let deciding = usize::try_from(detection.deciding_event_id.parse::<Uuid>().ok()?.as_u128()).ok()?;
    let source = match detection.source_ip.as_str() {
        "" => events.get(deciding)?.source.clone(),
        source => source.to_owned(),
    };
    Some(Alarm { kind: detection.kind.clone(), source, deciding })
}

fn is_attack(alarm: &Alarm) -> bool {
    alarm.kind != "success_after_failures"
}

/// How many of `sources` were found, and after how many failed tries each, the deciding one included.
fn found(events: &[Event], alarms: &[Alarm], sources: &BTreeSet<&str>) -> Vec<usize> {
    let first = |source: &str| alarms.iter().find(|alarm| alarm.source == source);
    let tries = |alarm: &Alarm| {
        let until = events.iter().take(alarm.deciding + 1);
        until.filter(|event| event.source == alarm.source && !event.ok).count()
    };
    let mut tries: Vec<usize> = sources.iter().filter_map(|source| first(source).map(tries)).collect();
    tries.sort_unstable();
    tries
}

fn quantile(sorted: &[usize], of: f64) -> usize {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * of).ceil() as usize).copied().unwrap_or(0)
}

fn on_the_log(events: &[Event], labels: &Labels) -> Vec<Line> {
    let alarms = alarms(events);
    let hostile: BTreeSet<&str> = labels.hostile.keys().map(String::as_str).collect();
    let tries = found(events, &alarms, &hostile);
    let share = tries.len() as f64 / hostile.len() as f64;
    let attacks = |alarm: &&Alarm| hostile.contains(alarm.source.as_str()) && is_attack(alarm);
    let each = alarms.iter().filter(attacks).count() as f64 / tries.len().max(1) as f64;
    let (median, p95) = (quantile(&tries, 0.5), quantile(&tries, 0.95));
    let too_early = |alarm: &&Alarm| match labels.turned.get(&alarm.source) {
        Some(turned) => events[alarm.deciding].at < turned.onset,
        None => labels.benign.contains_key(&alarm.source),
    };
    let benign: BTreeSet<&str> = alarms.iter().filter(too_early).map(|alarm| alarm.source.as_str()).collect();
    let turned = labels.turned.iter();
    let due: Vec<(&str, i64)> = turned
        .flat_map(|(source, turned)| turned.ok_after_onset.iter().map(|at| (source.as_str(), *at)))
        .collect();
    let raised = |(source, at): &&(&str, i64)| {
        alarms.iter().any(|alarm| {
            alarm.kind == "success_after_failures"
                && alarm.source == *source
                && events[alarm.deciding] == Event { at: *at, ok: true, ..events[alarm.deciding].clone() }
        })
    };
    let successes = due.iter().filter(raised).count();
    vec![
        Line {
            what: "failed_auth: hostile sources found".to_owned(),
            best_known: "fail2ban 92.8 %".to_owned(),
            reach: "≥ 98 %".to_owned(),
            measured: format!("{:.1} % ({} of {})", share * 100.0, tries.len(), hostile.len()),
            reached: share >= 0.98,
        },
        Line {
            what: "failed_auth: alarms an episode".to_owned(),
            best_known: String::new(),
            reach: "≤ 1.05".to_owned(),
            measured: format!("{each:.2}"),
            reached: each <= 1.05,
        },
        Line {
            what: "failed_auth: failed tries until the alarm".to_owned(),
            best_known: "5".to_owned(),
            reach: "median ≤ 4, p95 ≤ 8".to_owned(),
            measured: format!("median {median}, p95 {p95}"),
            reached: median <= 4 && p95 <= 8,
        },
        Line {
            what: "failed_auth: benign sources alarmed".to_owned(),
            best_known: "0–1".to_owned(),
            reach: "0".to_owned(),
            measured: format!("{} of {}", benign.len(), labels.benign.len() + labels.turned.len()),
            reached: benign.is_empty(),
        },
        Line {
            what: "failed_auth: success after brute force, on that trace".to_owned(),
            best_known: "not raised".to_owned(),
            reach: "100 %".to_owned(),
            measured: format!("{successes} of {}", due.len()),
            reached: successes == due.len(),
        },
    ]
}

/// Attacks made of those in the log, between the ordinary logins of the log. Each ends with a success.
fn made(events: &[Event], labels: &Labels, change: impl Fn(usize, usize, &mut Event)) -> Vec<Event> {
    let mut made: Vec<Event> =
        events.iter().filter(|event| !labels.hostile.contains_key(&event.source)).cloned().collect();
    for (number, source) in labels.hostile.keys().enumerate() {
        let mut tries: Vec<Event> = events.iter().filter(|event| event.source == *source).cloned().collect();
        for (n, event) in tries.iter_mut().enumerate() {
            change(number, n, event);
        }
        let success = tries.last().map(|last| Event { at: last.at + 2, ok: true, ..last.clone() });
        made.extend(tries.into_iter().chain(success));
    }
    made.sort_by_key(|event| event.at);
    made
}

fn on_made_attacks(events: &[Event], labels: &Labels) -> Vec<Line> {
    let hostile: BTreeSet<&str> = labels.hostile.keys().map(String::as_str).collect();
    let first: BTreeMap<&str, i64> =
        events.iter().rev().map(|event| (event.source.as_str(), event.at)).collect();
    let slow = made(events, labels, |number, n, event| {
        // One to five hours between tries, never quite the same.
        let gap = HOUR * (1 + number as i64 % 5) + (n as i64 * 7_919) % 1_200;
        event.at = first[event.source.as_str()] + n as i64 * gap;
        if number % 2 == 0 {
            event.user = format!("user-{number}");
        }
    });
    let spraying = made(events, labels, |number, n, event| event.user = format!("user-{number}-{n}"));
    let mut lines = Vec::new();
    for (what, events, kind) in [("slow attacks", slow, None), ("sprayings", spraying, Some("spraying"))] {
        let alarms = alarms(&events);
        let attacks: Vec<&Alarm> =
            alarms.iter().filter(|alarm| hostile.contains(alarm.source.as_str())).collect();
        let count = |matters: &dyn Fn(&Alarm) -> bool| {
            let sources: BTreeSet<&str> =
                attacks.iter().filter(|alarm| matters(alarm)).map(|alarm| alarm.source.as_str()).collect();
            sources.len()
        };
        let typed = count(&|alarm| is_attack(alarm) && kind.is_none_or(|kind| alarm.kind == kind));
        let alarms = attacks.iter().filter(|alarm| is_attack(alarm)).count();
        let each = alarms as f64 / hostile.len() as f64;
        let succeeded = count(&|alarm| !is_attack(alarm) && events[alarm.deciding].ok);
        let all = hostile.len();
        lines.push(Line {
            what: format!("failed_auth: {what} made of the log's found and typed; success after it"),
            best_known: String::new(),
            reach: "100 %, ≤ 1.05 alarms each; 100 %".to_owned(),
            measured: format!("{typed} of {all}, {each:.2} alarms each; {succeeded} of {all}"),
            reached: typed == all && succeeded == all && each <= 1.05,
        });
    }
    lines
}

/// The same log, each trace up to a minute later than it happened: what is found must be the same.
fn in_disorder(events: &[Event]) -> Line {
    let found = |traces: Vec<AcceptedTrace>| {
        let mut found = Vec::new();
        backtest(traces, &SettingsOf::default(), &mut [], |detection| {
            if detection.rule == "failed_auth" && detection.phase == "started" {
                // Its kind follows from which evidence came first.
                found.push((detection.severity, detection.source_ip));
            }
        });
        found.sort_unstable();
        found
    };
    let mut disordered = traces(events);
    for (n, accepted) in (0_u64..).zip(&mut disordered) {
        // Spread over the minute by a multiplicative hash.
        let delay = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 38;
        let delay = std::time::Duration::from_micros(delay % 60_000_000);
        accepted.received_at = accepted.trace.started_at.plus(delay);
    }
    disordered.sort_by_key(|accepted| accepted.received_at);
    let (ordered, disordered) = (found(traces(events)), found(disordered));
    let same = ordered.iter().filter(|one| disordered.contains(one)).count();
    Line {
        what: "failed_auth: found too with up to 60 s of disorder".to_owned(),
        best_known: String::new(),
        reach: "the same".to_owned(),
        measured: format!("{same} of {}, {} in all", ordered.len(), disordered.len()),
        reached: ordered == disordered,
    }
}
