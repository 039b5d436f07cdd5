//! CPU time of several processes over the same stretch.

use crate::{process::Process, samples::Spread};

/// CPU seconds a million traces, by process.
pub type Shares = Vec<(String, f64)>;

/// Watches processes.
pub struct Meter {
    before: Vec<(String, Process, f64)>,
}

impl Meter {
    /// Begins.
    pub fn start(processes: Vec<(String, Process)>) -> Self {
        let measured = processes.into_iter().map(|(name, process)| (name, process, process.cpu_seconds()));
        Self { before: measured.collect() }
    }

    /// What they have used since, a million traces; processes of one name together.
    pub fn per_million(&self, traces: u64) -> Shares {
        let mut shares = Shares::new();
        for (name, process, before) in &self.before {
            let share = (process.cpu_seconds() - before) * 1e6 / traces as f64;
            match shares.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += share,
                None => shares.push((name.clone(), share)),
            }
        }
        shares
    }
}

/// The share of one process.
pub fn share(shares: &Shares, name: &str) -> f64 {
    shares.iter().find(|(of, _)| of == name).map_or(f64::NAN, |(_, share)| *share)
}

/// By process, the median of several measurements.
pub fn medians(rounds: &[Shares]) -> Shares {
    let names = rounds.first().map_or(&[][..], |round| &round[..]);
    let median = |name: &str| Spread::of(rounds.iter().map(|round| share(round, name))).median;
    names.iter().map(|(name, _)| (name.clone(), median(name))).collect()
}

/// The load generator.
pub fn own() -> (String, Process) {
    ("load".to_owned(), Process::own())
}
