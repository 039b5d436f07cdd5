//! The rule `burst`: false alarms on real activity, and bursts put into it.
//!
//! Activity is what people did in public repositories over twelve years, and an hour of production calls of
//! a language model, as one user. Into it go bursts of several shapes, each alone: the entity calls until
//! it has passed three times its highest minute of all the data. A burst counts as found when a detection
//! is decided between its first call and one second after the call that took it past that.

mod seeded;

use std::{collections::BTreeMap, io::Read as _, path::Path};

use anyhow::Context as _;
use panopticon_anomaly_detector::{backtest::backtest, settings::SettingsOf};
use panopticon_core::{
    ids::EventId,
    time::Time,
    trace::{AcceptedTrace, Status, Trace},
};
use panopticon_proto::log::Detection;

use crate::report::Line;

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;

/// Measures.
pub fn measure(data: &Path) -> anyhow::Result<Vec<Line>> {
    let activity = activity(data)?;
    let llm = llm(data)?;
    let mut lines = false_alarms(&activity, &llm);
    lines.extend(recall(&activity, &llm));
    lines.extend(seeded::measure(&activity, &llm));
    Ok(lines)
}

/// One call: when, by whom, of what.
#[derive(Debug, Clone)]
struct Call {
    app: String,
    user: String,
    tool: String,
    at: i64,
}

fn unzipped(path: &Path) -> anyhow::Result<String> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text)?;
    Ok(text)
}

/// The commits of five projects, as calls.
fn activity(data: &Path) -> anyhow::Result<Vec<Call>> {
    let text = unzipped(&data.join("activity/git_activity.tsv.gz"))?;
    let mut calls = Vec::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [app, user, at, _, tool, _] = fields[..] else { anyhow::bail!("a line of another form: {line}") };
        let at = at.parse::<i64>()? * SECOND;
        calls.push(Call { app: app.to_owned(), user: user.to_owned(), tool: tool.to_owned(), at });
    }
    calls.sort_by_key(|call| call.at);
    Ok(calls)
}

/// An hour of calls of a language model, as those of one user.
fn llm(data: &Path) -> anyhow::Result<Vec<Call>> {
    let text = unzipped(&data.join("activity/azure_llm_2023_code.csv.gz"))?;
    let mut calls = Vec::new();
    for line in text.lines().skip(1) {
        let time = line.split(',').next().unwrap_or_default();
        let at: jiff::civil::DateTime = time.parse()?;
        let at = at.to_zoned(jiff::tz::TimeZone::UTC)?.timestamp().as_microsecond();
        calls.push(Call { app: "llm".to_owned(), user: "code".to_owned(), tool: "complete".to_owned(), at });
    }
    calls.sort_by_key(|call| call.at);
    Ok(calls)
}

/// The bursts that the rule finds in `calls`, which are in order of time.
fn bursts<'a>(calls: impl IntoIterator<Item = &'a Call>) -> Vec<Detection> {
    let mut found = Vec::new();
    let traces = (0_u128..).zip(calls).map(|(n, call)| trace(n, call));
    backtest(traces, &SettingsOf::default(), &mut [], |detection| {
        if detection.rule == "burst" && detection.phase == "started" {
            found.push(detection);
        }
    });
    found
}

fn trace(n: u128, call: &Call) -> AcceptedTrace {
    let trace = Trace {
        event_id: EventId(uuid::Uuid::from_u128(n)),
        client_id: call.app.parse().unwrap_or_else(|_| unreachable!("names of apps are visible characters")),
        user_sub: call.user.clone(),
        tool: call.tool.clone(),
        scope_used: String::new(),
        status: Status::Ok,
        started_at: Time::from_micros(call.at),
        duration_ms: 0,
        session_id: String::new(),
        agent: String::new(),
        source_ip: String::new(),
        error_code: String::new(),
        attributes: BTreeMap::new(),
    };
    let received_at = trace.started_at;
    AcceptedTrace::new(trace, received_at)
}

fn false_alarms(activity: &[Call], llm: &[Call]) -> Vec<Line> {
    let user_days: std::collections::BTreeSet<_> =
        activity.iter().map(|call| (&call.app, &call.user, call.at.div_euclid(1_440 * MINUTE))).collect();
    let found = bursts(activity);
    let (users, tools): (Vec<_>, Vec<_>) = found.iter().partition(|found| found.kind == "by_user");
    let rate = found.len() as f64 / user_days.len() as f64;
    let ten_minutes = llm.first().map_or(0, |call| call.at) + 10 * MINUTE;
    let after = bursts(llm).iter().filter(|found| found.detected_at >= ten_minutes).count();
    vec![
        Line {
            what: "burst: false alarms per user-day on real activity".to_owned(),
            best_known: "static 10/min: .012".to_owned(),
            reach: "<= .001".to_owned(),
            measured: format!(
                "{rate:.5} ({} by user, {} by tool, in {} active user-days)",
                users.len(),
                tools.len(),
                user_days.len()
            ),
            reached: rate <= 0.001,
        },
        Line {
            what: "burst: false alarms in an hour of LLM traffic after 10 min".to_owned(),
            best_known: String::new(),
            reach: "0".to_owned(),
            measured: after.to_string(),
            reached: after == 0,
        },
    ]
}

/// How the calls of a burst lie in time.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// Evenly in a minute.
    Minute,
    /// All in five seconds.
    Seconds,
    /// Evenly in fifteen seconds.
    Quarter,
    /// Ever faster, within two minutes.
    Rising,
    /// Evenly for ten minutes, as many in each.
    Sustained,
}

const SHAPES: [Shape; 5] = [Shape::Minute, Shape::Seconds, Shape::Quarter, Shape::Rising, Shape::Sustained];

impl Shape {
    /// When the calls come, in microseconds after the beginning: at least one more than `enough` in a
    /// minute.
    fn calls(self, enough: i64) -> Vec<i64> {
        let n = enough + 1;
        let even = |width: i64| (0..n).map(|call| call * width / n).collect::<Vec<_>>();
        match self {
            Self::Minute => even(MINUTE),
            Self::Seconds => even(5 * SECOND),
            Self::Quarter => even(15 * SECOND),
            Self::Rising => {
                // The square root puts three quarters of them into the second minute.
                let n = 2 * n;
                (0..n).map(|call| (120e6 * (call as f64 / n as f64).sqrt()) as i64).collect()
            }
            Self::Sustained => (0..10)
                .flat_map(|minute| even(MINUTE).into_iter().map(move |at| minute * MINUTE + at))
                .collect(),
        }
    }
}

/// The most calls in any minute that ends with a call.
fn highest_minute(times: impl Iterator<Item = i64>) -> i64 {
    let times: Vec<i64> = times.collect();
    let (mut from, mut highest) = (0, 0);
    for (n, at) in times.iter().enumerate() {
        while times[from] <= at - MINUTE {
            from += 1;
        }
        highest = highest.max(n + 1 - from);
    }
    highest as i64
}

/// The first time at which `calls` and those of a burst together are past `enough` in a minute.
fn moment(calls: &[Call], burst: &[i64], enough: i64) -> Option<i64> {
    let (from, to) = (burst.first()? - MINUTE, burst.last()?);
    let mut times: Vec<i64> = calls
        .iter()
        .map(|call| call.at)
        .filter(|at| from < *at && at <= to)
        .chain(burst.iter().copied())
        .collect();
    times.sort_unstable();
    (0..times.len())
        .find(|n| {
            let within = times[..=*n].iter().rev().take_while(|at| **at > times[*n] - MINUTE).count();
            within as i64 > enough
        })
        .map(|n| times[n])
}

fn recall(activity: &[Call], llm: &[Call]) -> Vec<Line> {
    let mut users: BTreeMap<(&str, &str), Vec<Call>> = BTreeMap::new();
    let mut tools: BTreeMap<(&str, &str), Vec<Call>> = BTreeMap::new();
    for call in activity {
        users.entry((&call.app, &call.user)).or_default().push(call.clone());
        let of_tool = Call { user: String::new(), ..call.clone() };
        tools.entry((&call.app, &call.tool)).or_default().push(of_tool);
    }
    let mut lines = Vec::new();
    let users = users.into_values();
    lines.push(recall_line("users", "by_user", users, &[50, 70, 90]));
    let tools = tools.into_values().filter(|calls| calls.len() >= 30);
    lines.push(recall_line("tools", "by_tool", tools, &[50, 70, 90]));
    lines.push(recall_line(
        "an hour of LLM traffic",
        "by_user",
        [llm.to_vec()].into_iter(),
        &[50, 60, 70, 80, 90, 99],
    ));
    lines
}

/// Puts each shape into the calls of each entity after each of these shares of them, in percent.
fn recall_line(whom: &str, kind: &str, entities: impl Iterator<Item = Vec<Call>>, places: &[usize]) -> Line {
    let (mut found, mut all) = (0, 0);
    let mut missed: BTreeMap<String, u32> = BTreeMap::new();
    for calls in entities {
        let enough = 3 * highest_minute(calls.iter().map(|call| call.at));
        for shape in SHAPES {
            for place in places {
                let begin = calls[calls.len() * place / 100].at + 17 * SECOND + 123_456;
                let burst: Vec<i64> = shape.calls(enough).iter().map(|after| begin + after).collect();
                let Some(moment) = moment(&calls, &burst, enough) else { continue };
                let mut with: Vec<Call> = calls.clone();
                with.extend(burst.iter().map(|at| Call { at: *at, ..calls[0].clone() }));
                with.sort_by_key(|call| call.at);
                let in_time = begin..=moment + SECOND;
                all += 1;
                let hit = bursts(&with).iter().any(|d| d.kind == kind && in_time.contains(&d.detected_at));
                found += u32::from(hit);
                if !hit {
                    *missed.entry(format!("{shape:?}")).or_default() += 1;
                }
            }
        }
    }
    let recall = f64::from(found) / f64::from(all.max(1));
    let missed = if missed.is_empty() { String::new() } else { format!("; missed {missed:?}") };
    Line {
        what: format!("burst: injected bursts found within 1 s, {whom}"),
        best_known: "static 60/min: .14".to_owned(),
        reach: ">= .99".to_owned(),
        measured: format!("{recall:.4} of {all}{missed}"),
        reached: recall >= 0.99,
    }
}
