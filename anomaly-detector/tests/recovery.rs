//! Wherever a stage dies and however often its state is written, it says what it would have said.
//!
//! The harness does what the stage runtime promises: batches are shown to the rule, its messages, its
//! changed entities and the position are committed together, and after a crash the entities are loaded and
//! what lies between checkpoint and position is replayed.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use common::{at, trace};
use panopticon_anomaly_detector::{
    app_rules,
    detector::SourcesRule,
    rules,
    settings::{Settings, SettingsOf},
};
use panopticon_core::{
    api::RateLimitBody,
    stage::{Findings, Rule},
    trace::{AcceptedTrace, Status},
};
use panopticon_guard_enforcer::rate_limit::RateLimitRule;
use panopticon_proto::log::{Denial, Detection, EntityState, Rollup};
use proptest::{prelude::*, test_runner::RngSeed};

/// What happens to a stage after a batch of records.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Records in the batch.
    records: usize,
    /// The stage dies before the commit, and does the batch once more.
    dies_before: bool,
    /// All that changed is written.
    checkpoint: bool,
    /// Nothing comes for a while, and the time advances by itself.
    idles: bool,
    /// The stage dies after the commit.
    dies_after: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (1_usize..6, any::<[bool; 5]>()).prop_map(|(records, [a, b, c, d, e])| Step {
        records,
        dies_before: a && e,
        checkpoint: b,
        idles: c,
        dies_after: d,
    });
    proptest::collection::vec(step, 1..20)
}

/// The log, as far as a rule's stage sees it.
#[derive(Default)]
struct Log {
    table: BTreeMap<Vec<u8>, EntityState>,
    checkpoint: u64,
    committed: u64,
    detections: Vec<Detection>,
}

impl Log {
    fn recall<R: Rule>(&self, mut rule: R, records: &[Vec<R::Event>]) -> R {
        for (key, state) in &self.table {
            rule.load(key, state.clone()).unwrap();
        }
        let mut ignored = Findings::default();
        for offset in self.checkpoint..self.committed {
            for event in &records[offset as usize] {
                rule.observe(event, offset, true, &mut ignored);
            }
        }
        assert_eq!(ignored.detections, [], "a replay says nothing");
        rule
    }

    fn commit<R: Rule>(&mut self, rule: &mut R, findings: Findings, next: u64, all: bool) {
        for (key, state) in rule.changed(next, all) {
            match state {
                Some(state) => self.table.insert(key, state),
                None => self.table.remove(&key),
            };
        }
        if all {
            self.checkpoint = next;
        }
        self.committed = next;
        self.detections.extend(findings.detections);
    }
}

fn batch<R: Rule>(rule: &mut R, records: &[Vec<R::Event>], from: usize, to: usize) -> Findings {
    let mut findings = Findings::default();
    for (offset, events) in records.iter().enumerate().take(to).skip(from) {
        for event in events {
            rule.advance(R::received_at(event), &mut findings);
            rule.observe(event, offset as u64, false, &mut findings);
        }
    }
    findings
}

/// Runs the stage over `records`, with the mishaps of `steps` over and over.
fn run<R: Rule>(
    make: impl Fn() -> R,
    records: &[Vec<R::Event>],
    steps: &[Step],
    mishaps: bool,
) -> Vec<Detection> {
    let mut log = Log::default();
    let mut rule = make();
    let mut steps = steps.iter().cycle();
    while (log.committed as usize) < records.len() {
        let step = steps.next().unwrap();
        let from = log.committed as usize;
        let to = (from + step.records).min(records.len());
        let mut findings = batch(&mut rule, records, from, to);
        if mishaps && step.dies_before {
            rule = log.recall(make(), records);
            findings = batch(&mut rule, records, from, to);
        }
        log.commit(&mut rule, findings, to as u64, mishaps && step.checkpoint);
        if let Some(next) = records.get(to).and_then(|record| record.first()).filter(|_| step.idles) {
            let mut findings = Findings::default();
            rule.advance(R::received_at(next), &mut findings);
            log.commit(&mut rule, findings, to as u64, false);
        }
        if mishaps && step.dies_after {
            rule = log.recall(make(), records);
        }
    }
    let mut findings = Findings::default();
    rule.advance(at(100_000_000), &mut findings);
    log.commit(&mut rule, findings, records.len() as u64, true);
    assert_eq!(log.table, BTreeMap::new(), "in the end everything is forgotten");
    // Ends at the same time come in any order.
    log.detections.sort_by_key(|d| (d.detected_at, d.detection_id.clone(), d.phase.clone()));
    log.detections
}

/// Traces of three users and two addresses, in records of one to three: mostly quick, with pauses longer
/// than any window; up to a minute out of order, and some that took far longer than that.
fn records() -> impl Strategy<Value = Vec<Vec<AcceptedTrace>>> {
    let event =
        (0_i64..100, 0_i64..1_000, 0_usize..3, 0_usize..3, 0_usize..3, 0_i64..60, 0_u8..40, 0_usize..3);
    proptest::collection::vec(event, 1..250).prop_map(|events| {
        let mut now = 0;
        let mut records: Vec<Vec<AcceptedTrace>> = Vec::new();
        for (n, (pace, step, user, tool, source, delay, odd, length)) in events.into_iter().enumerate() {
            now += match pace {
                0..90 => step / 300,
                90..95 => step / 8,
                _ => step,
            };
            let delay = if odd == 0 { delay * 20 } else { delay };
            let user = ["a", "b", ""][user];
            let source_ip = ["198.51.100.1", "198.51.100.2", ""][source];
            let status = if odd % 3 == 1 { Status::Ok } else { Status::Denied };
            let mut accepted = trace(n as u128, user, source_ip, status, at(now - delay));
            accepted.trace.tool = ["x", "y", "z"][tool].to_owned();
            accepted.received_at = at(now);
            accepted.late = odd == 2;
            match records.last_mut() {
                Some(record) if record.len() <= length => record.push(accepted),
                _ => records.push(vec![accepted]),
            }
        }
        records
    })
}

/// The copies that the detector makes of each record's traces.
fn denials(records: &[Vec<AcceptedTrace>]) -> Vec<Vec<Denial>> {
    let (mut by_trace, _) = rules(1_000, &SettingsOf::default());
    let copies = records.iter().enumerate().map(|(offset, traces)| {
        let mut findings = Findings::default();
        for accepted in traces {
            by_trace.observe(accepted, offset as u64, false, &mut findings);
        }
        findings.denials
    });
    copies.filter(|denials| !denials.is_empty()).collect()
}

/// The same after four days with a call of each user and tool every eight hours, so that bursts are known.
fn after_a_history(records: Vec<Vec<AcceptedTrace>>) -> Vec<Vec<AcceptedTrace>> {
    let mut all = Vec::new();
    for n in 0..12 {
        for (user, tool) in [("a", "x"), ("b", "y"), ("", "z")] {
            let started = at(-400_000 + n * 8 * 3_600);
            let mut accepted = trace(10_000 + all.len() as u128, user, "", Status::Ok, started);
            accepted.trace.tool = tool.to_owned();
            all.push(vec![accepted]);
        }
    }
    all.extend(records);
    all
}

/// The counts that the detector makes of each record's traces.
fn rollups(records: &[Vec<AcceptedTrace>]) -> Vec<Vec<Rollup>> {
    let (mut by_trace, _) = rules(1_000, &SettingsOf::default());
    let counts = records.iter().enumerate().map(|(offset, traces)| {
        let mut findings = Findings::default();
        for accepted in traces {
            by_trace.observe(accepted, offset as u64, false, &mut findings);
        }
        findings.rollups.take()
    });
    counts.collect()
}

/// A policy that changes all the time: rules go off and on again, users become quiet and are no longer.
fn restless(changes: Vec<(bool, bool)>) -> SettingsOf {
    let quiet = |user: &str| Settings { quiet_users: [user.to_owned()].into(), ..Settings::default() };
    let off = Settings { burst: false, off_hour: false, failed_auth: false, ..Settings::default() };
    let all = [Settings::default(), quiet("a"), quiet("b"), off].map(Arc::new);
    let asked = AtomicUsize::new(0);
    SettingsOf::new(move |_| {
        // Each holds for a few questions.
        let now = asked.fetch_add(1, Ordering::Relaxed) / 7 % changes.len();
        let (a, b) = changes[now];
        Arc::clone(&all[usize::from(a) + 2 * usize::from(b)])
    })
}

/// Each episode has one beginning and one end, and what is told is what its end is about.
fn each_ends_once(detections: &[Detection]) -> Result<(), TestCaseError> {
    let mut phases: BTreeMap<&str, Vec<&Detection>> = BTreeMap::new();
    for told in detections {
        phases.entry(&told.detection_id).or_default().push(told);
    }
    for told in phases.values() {
        let mut phases: Vec<&str> = told.iter().map(|told| told.phase.as_str()).collect();
        phases.sort_unstable();
        prop_assert_eq!(phases, ["ended", "started"], "{:?}", told[0]);
    }
    Ok(())
}

proptest! {
    // The same cases in every run; for others, set another seed here.
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1_795_274_399),
        ..ProptestConfig::default()
    })]

    #[test]
    fn rate_limit_says_the_same_after_any_crash(records in records(), steps in steps(), limit in 1_u32..9) {
        let limits = move |_: &str| RateLimitBody { per_minute: limit, per_tool_per_minute: limit.div_ceil(2) };
        let make = || RateLimitRule::new(1_000, limits);
        prop_assert_eq!(run(make, &records, &steps, true), run(make, &records, &steps, false));
    }

    #[test]
    fn failed_auth_by_user_says_the_same_after_any_crash(records in records(), steps in steps()) {
        let make = || rules(1_000, &SettingsOf::default()).0;
        prop_assert_eq!(run(make, &records, &steps, true), run(make, &records, &steps, false));
    }

    #[test]
    fn bursts_of_users_are_the_same_after_any_crash(records in records(), steps in steps()) {
        let records = after_a_history(records);
        let make = || rules(1_000, &SettingsOf::default()).0;
        prop_assert_eq!(run(make, &records, &steps, true), run(make, &records, &steps, false));
    }

    #[test]
    fn bursts_of_tools_are_the_same_after_any_crash(records in records(), steps in steps()) {
        let records = rollups(&after_a_history(records));
        let make = || app_rules(1_000, &SettingsOf::default());
        prop_assert_eq!(run(make, &records, &steps, true), run(make, &records, &steps, false));
    }

    #[test]
    fn what_was_told_gets_its_end_once_whatever_becomes_of_the_policy_meanwhile(
        records in records(),
        steps in steps(),
        changes in proptest::collection::vec(any::<(bool, bool)>(), 1..12),
    ) {
        let settings = restless(changes);
        let by_user = after_a_history(records.clone());
        each_ends_once(&run(|| rules(1_000, &settings).0, &by_user, &steps, true))?;
        each_ends_once(&run(|| -> SourcesRule { rules(1_000, &settings).1 }, &denials(&records), &steps, true))?;
        each_ends_once(&run(|| app_rules(1_000, &settings), &rollups(&by_user), &steps, true))?;
    }

    #[test]
    fn failed_auth_by_source_says_the_same_after_any_crash(records in records(), steps in steps()) {
        let records = denials(&records);
        let make = || -> SourcesRule { rules(1_000, &SettingsOf::default()).1 };
        prop_assert_eq!(run(make, &records, &steps, true), run(make, &records, &steps, false));
    }
}
