//! What a process knows of its own condition: the answers of `/healthz` and `/readyz`.
//!
//! Progress decides, not liveness: a partition that has work and has not finished any for
//! `stages.stuck_after_ms` makes the process not ready.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::Serialize;

/// The condition of all parts of a process.
#[derive(Clone, Default)]
pub struct Health {
    parts: Arc<Mutex<BTreeMap<String, Part>>>,
}

#[derive(Debug)]
struct Part {
    state: State,
    /// Since when it has had unfinished work.
    busy_since: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Waiting(String),
    Running,
    Failed(String),
}

/// One part, as `/readyz` shows it.
#[derive(Debug, Serialize)]
pub struct PartReport {
    /// Which part.
    pub name: String,
    /// Whether it does its work.
    pub ready: bool,
    /// `running`, `waiting`, `stuck` or `failed`.
    pub state: &'static str,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl Health {
    /// Registers a part, which is not ready until it runs.
    pub fn part(&self, name: impl Into<String>) -> PartHealth {
        let name = name.into();
        self.parts
            .lock()
            .insert(name.clone(), Part { state: State::Waiting("starting".to_owned()), busy_since: None });
        PartHealth { name, health: self.clone() }
    }

    /// The condition of each part; work older than `stuck_after` counts as stuck.
    pub fn report(&self, stuck_after: Duration) -> Vec<PartReport> {
        let parts = self.parts.lock();
        parts
            .iter()
            .map(|(name, part)| {
                let (state, reason) = match &part.state {
                    State::Failed(why) => ("failed", why.clone()),
                    State::Waiting(why) => ("waiting", why.clone()),
                    State::Running => match part.busy_since {
                        Some(since) if since.elapsed() > stuck_after => (
                            "stuck",
                            format!("no progress for {} s with work waiting", since.elapsed().as_secs()),
                        ),
                        _ => ("running", String::new()),
                    },
                };
                PartReport { name: name.clone(), ready: state == "running", state, reason }
            })
            .collect()
    }

    /// Whether every part does its work.
    pub fn is_ready(&self, stuck_after: Duration) -> bool {
        self.report(stuck_after).iter().all(|part| part.ready)
    }
}

/// One part's own view; dropping it takes the part out of the report.
pub struct PartHealth {
    name: String,
    health: Health,
}

impl PartHealth {
    fn update(&self, change: impl FnOnce(&mut Part)) {
        if let Some(part) = self.health.parts.lock().get_mut(&self.name) {
            change(part);
        }
    }

    /// It waits for something that is not there yet.
    pub fn waiting(&self, why: impl Into<String>) {
        let why = why.into();
        self.update(|part| part.state = State::Waiting(why));
    }

    /// It runs.
    pub fn running(&self) {
        self.update(|part| part.state = State::Running);
    }

    /// It has stopped for good.
    pub fn failed(&self, why: impl Into<String>) {
        let why = why.into();
        self.update(|part| part.state = State::Failed(why));
    }

    /// It has taken up work.
    pub fn busy(&self) {
        self.update(|part| {
            part.busy_since.get_or_insert_with(Instant::now);
        });
    }

    /// It has finished what it had taken up.
    pub fn progressed(&self) {
        self.update(|part| {
            part.state = State::Running;
            part.busy_since = None;
        });
    }
}

impl Drop for PartHealth {
    fn drop(&mut self) {
        self.health.parts.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_without_progress_makes_a_process_not_ready() {
        let health = Health::default();
        let part = health.part("store-0");
        assert!(!health.is_ready(Duration::MAX), "not before it runs");
        part.running();
        part.busy();
        assert!(health.is_ready(Duration::from_secs(3600)));
        assert!(!health.is_ready(Duration::ZERO), "stuck");
        part.progressed();
        assert!(health.is_ready(Duration::ZERO));
        drop(part);
        assert!(health.report(Duration::ZERO).is_empty());
    }
}
