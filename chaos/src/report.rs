//! What was done and what came of it, as a table and as JSON.

use std::{collections::BTreeMap, time::Duration};

use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use serde::Serialize;

use crate::{check::Finding, ledger::Counts, storm::Struck};

/// A run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What the faults follow from.
    pub seed: u64,
    /// How long the load lasted, in seconds.
    pub load_secs: f64,
    /// What was sent and answered.
    pub counts: Counts,
    /// The faults.
    pub faults: Vec<Struck>,
    /// How long it took from the end of the load until all stages were at rest, in seconds.
    pub at_rest_secs: f64,
    /// Resident memory of each process: at first and at most, in MiB.
    pub memory_mib: BTreeMap<String, (f64, f64)>,
    /// How long processes took to end after SIGTERM, in seconds.
    pub drain_secs: Vec<(String, f64)>,
    /// The checks.
    pub checks: Vec<Finding>,
}

impl Report {
    /// Whether every promise was kept.
    pub fn holds(&self) -> bool {
        self.checks.iter().all(Finding::holds)
    }

    /// Everything, for people.
    pub fn text(&self) -> String {
        let Counts { traces, promised, answers_accepted, answers_duplicate, .. } = &self.counts;
        format!(
            "{}\n{}\n{}\n{}\n\nseed {}: {} faults in {:.0} s of load; {traces} traces sent, {promised} \
             promised ({answers_accepted} answers accepted, {answers_duplicate} duplicate), {} never \
             confirmed, {} accepted more than once, {} invalid; at rest {:.1} s after the end of the load\n\
             not confirmed: {:?}\n",
            self.faults(),
            self.recoveries(),
            self.processes(),
            self.checks(),
            self.seed,
            self.faults.len(),
            self.load_secs,
            self.counts.never_confirmed,
            self.counts.accepted_again,
            self.counts.invalid,
            self.at_rest_secs,
            self.counts.unconfirmed,
        )
    }

    fn faults(&self) -> Table {
        let mut table = table(["at s", "until s", "fault", "rows again s", "meanwhile", "note"]);
        for fault in &self.faults {
            let recovery = fault.recovery.map_or("-".to_owned(), |secs| format!("{secs:.1}"));
            let meanwhile = self.meanwhile(fault).to_string();
            let (at, until) = (format!("{:.1}", fault.at), format!("{:.1}", fault.until));
            table.add_row([at, until, fault.kind.clone(), recovery, meanwhile, fault.note.clone()]);
        }
        table
    }

    /// How many other faults fell into the time of a recovery.
    fn meanwhile(&self, fault: &Struck) -> usize {
        let end = fault.until + fault.recovery.unwrap_or(0.0);
        self.faults.iter().filter(|other| other.at < end && other.until > fault.until).count()
    }

    fn recoveries(&self) -> Table {
        let mut kinds: BTreeMap<&str, Vec<(f64, bool)>> = BTreeMap::new();
        for fault in &self.faults {
            if let Some(secs) = fault.recovery {
                kinds.entry(&fault.kind).or_default().push((secs, self.meanwhile(fault) == 0));
            }
        }
        let mut table =
            table(["fault", "times", "rows again s: median", "most", "with no other fault: times", "most"]);
        for (kind, recoveries) in kinds {
            let mut all: Vec<f64> = recoveries.iter().map(|(secs, _)| *secs).collect();
            all.sort_by(f64::total_cmp);
            let alone: Vec<f64> =
                recoveries.iter().filter(|(_, alone)| *alone).map(|(secs, _)| *secs).collect();
            let most = |secs: &[f64]| {
                secs.iter().copied().reduce(f64::max).map_or(String::new(), |s| format!("{s:.1}"))
            };
            table.add_row([
                kind.to_owned(),
                all.len().to_string(),
                format!("{:.1}", all[all.len() / 2]),
                most(&all),
                alone.len().to_string(),
                most(&alone),
            ]);
        }
        table
    }

    fn processes(&self) -> Table {
        let mut table = table(["process", "MiB at first", "at most", "SIGTERM: times", "longest drain s"]);
        for (name, (first, most)) in &self.memory_mib {
            let drains: Vec<f64> = self
                .drain_secs
                .iter()
                .filter(|(drained, _)| drained == name)
                .map(|(_, secs)| *secs)
                .collect();
            let longest =
                drains.iter().copied().reduce(f64::max).map_or(String::new(), |s| format!("{s:.1}"));
            table.add_row([
                name.clone(),
                format!("{first:.0}"),
                format!("{most:.0}"),
                drains.len().to_string(),
                longest,
            ]);
        }
        table
    }

    fn checks(&self) -> Table {
        let mut table = table(["promise", "checked", "kept"]);
        for check in &self.checks {
            let kept =
                if check.holds() { "yes".to_owned() } else { format!("BROKEN {} times", check.broken.len()) };
            table.add_row([check.promise.to_owned(), check.checked.to_string(), kept]);
        }
        table
    }
}

/// Seconds of spans.
pub fn secs(spans: &[(String, Duration)]) -> Vec<(String, f64)> {
    spans.iter().map(|(name, span)| (name.clone(), span.as_secs_f64())).collect()
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.set_header(header);
    table
}
