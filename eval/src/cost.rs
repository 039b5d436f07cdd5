//! What the rules cost: memory by entity, traces a second on one core, and the slowest of a hundred traces,
//! with a million live entities (app × user), each with a history. Source addresses are left out: what they
//! cost is not by entity. The rate is by the time that the core worked for this process, so that others on
//! the same machine do not count; the slowest trace is by the clock.

use std::{
    collections::BTreeMap,
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use panopticon_anomaly_detector::{detector::DetectorRule, rules, settings::SettingsOf};
use panopticon_core::{
    ids::EventId,
    stage::{Findings, Rule},
    time::Time,
    trace::{AcceptedTrace, Status, Trace},
};

use crate::report::Line;

const ENTITIES: u64 = 1_000_000;
/// Calls of each entity before anything is measured.
const HISTORY: u64 = 4;
/// Traces that the stage takes up at a time.
const BATCH: usize = 512;
/// Batches of which the time is taken.
const BATCHES: usize = 2_000;
const START: i64 = 1_780_000_000_000_000;

/// Measures.
pub fn measure(_data: &Path) -> anyhow::Result<Vec<Line>> {
    let (mut rule, _) = rules(ENTITIES as usize, &SettingsOf::default());
    let before = resident()?;
    let mut calls = Calls::default();
    for _ in 0..HISTORY * ENTITIES / BATCH as u64 {
        let batch = calls.batch();
        show(&mut rule, &batch);
    }
    let bytes = (resident()? - before) as f64 / ENTITIES as f64;
    let (rate, p99) = speed(&mut rule, &mut calls)?;
    Ok(vec![
        Line {
            what: "cost: bytes an entity, all three rules".to_owned(),
            best_known: "Elastic: 32 KB".to_owned(),
            reach: "<= 256".to_owned(),
            measured: format!("{bytes:.0}"),
            reached: bytes <= 256.0,
        },
        Line {
            what: "cost: traces a second and core, a million live entities".to_owned(),
            best_known: "CrowdSec: ~30,000".to_owned(),
            reach: ">= 1,000,000".to_owned(),
            measured: format!("{rate:.0}"),
            reached: rate >= 1e6,
        },
        Line {
            what: "cost: 99 % of the traces take at most".to_owned(),
            best_known: String::new(),
            reach: "5 µs".to_owned(),
            measured: format!("{p99:.2?}"),
            reached: p99 <= Duration::from_micros(5),
        },
    ])
}

fn show(rule: &mut DetectorRule, batch: &[AcceptedTrace]) {
    let mut findings = Findings::default();
    for accepted in batch {
        show_one(rule, accepted, &mut findings);
    }
    black_box(&findings);
}

fn show_one(rule: &mut DetectorRule, accepted: &AcceptedTrace, findings: &mut Findings) {
    rule.advance(accepted.received_at, findings);
    rule.observe(accepted, 0, false, findings);
}

/// Traces a second, and how long the slowest of a hundred takes at least.
fn speed(rule: &mut DetectorRule, calls: &mut Calls) -> anyhow::Result<(f64, Duration)> {
    let mut took = Duration::ZERO;
    for _ in 0..BATCHES {
        let batch = calls.batch();
        let began = worked()?;
        show(rule, &batch);
        took += worked()? - began;
    }
    let rate = (BATCHES * BATCH) as f64 / took.as_secs_f64();
    let mut each = Vec::with_capacity(BATCHES * BATCH);
    for _ in 0..BATCHES {
        let batch = calls.batch();
        let mut findings = Findings::default();
        for accepted in &batch {
            let began = Instant::now();
            show_one(rule, accepted, &mut findings);
            each.push(began.elapsed());
        }
    }
    each.sort_unstable();
    Ok((rate, each[each.len() * 99 / 100]))
}

/// Calls of all entities, each time in another order, at 10,000 a second.
#[derive(Default)]
struct Calls {
    made: u64,
}

impl Calls {
    fn batch(&mut self) -> Vec<AcceptedTrace> {
        (0..BATCH)
            .map(|_| {
                let (round, n) = (self.made / ENTITIES, self.made % ENTITIES);
                self.made += 1;
                // A prime that does not divide the number of entities: everyone once a round, far apart.
                call(self.made, (n * 611_953 + round * 7_919) % ENTITIES)
            })
            .collect()
    }
}

fn call(n: u64, user: u64) -> AcceptedTrace {
    let started_at = Time::from_micros(START + n as i64 * 100);
    let trace = Trace {
        event_id: EventId(uuid::Uuid::from_u128(n.into())),
        client_id: "an-app".parse().unwrap_or_else(|_| unreachable!("visible characters")),
        user_sub: format!("user_{user:08}"),
        tool: format!("tool.number.{}", n % 20),
        scope_used: String::new(),
        status: Status::Ok,
        started_at,
        duration_ms: 20,
        session_id: String::new(),
        agent: String::new(),
        source_ip: String::new(),
        error_code: String::new(),
        attributes: BTreeMap::new(),
    };
    AcceptedTrace::new(trace, started_at.plus(Duration::from_millis(30)))
}

/// How long a core has worked for this thread.
fn worked() -> anyhow::Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("cannot read schedstat")?;
    let nanos = text.split_whitespace().next().context("schedstat has another form")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}

/// Bytes of memory that this process has in use.
fn resident() -> anyhow::Result<u64> {
    const PAGE: u64 = 4_096;
    let text = std::fs::read_to_string("/proc/self/statm").context("cannot read /proc/self/statm")?;
    let pages = text.split_whitespace().nth(1).context("/proc/self/statm has another form")?;
    Ok(pages.parse::<u64>()? * PAGE)
}
