//! At the end: what was promised against what is there.

mod alarms;
mod traces;
mod usage;
mod webhooks;

use std::time::Duration;

use serde::Serialize;

use crate::bed::Bed;

/// How many offenders of a check are named.
const NAMED: usize = 20;
/// How often what still moves is looked at before it counts as wrong.
const LOOKS: u32 = 4;
const LOOK_PAUSE: Duration = Duration::from_secs(4);

/// What a check found.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What must hold.
    pub promise: &'static str,
    /// How many things were looked at.
    pub checked: usize,
    /// Those that break it; empty: it holds.
    pub broken: Vec<String>,
}

impl Finding {
    fn new(promise: &'static str, checked: usize, broken: Vec<String>) -> Self {
        Self { promise, checked, broken }
    }

    /// Whether the promise was kept.
    pub const fn holds(&self) -> bool {
        self.broken.is_empty()
    }

    /// The first offenders.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        self.broken.iter().take(NAMED).map(String::as_str)
    }
}

/// All checks.
pub async fn all(bed: &Bed) -> anyhow::Result<Vec<Finding>> {
    let mut findings = vec![
        Finding::new("answers keep to the contract", bed.ledger.entries().len(), bed.ledger.wrong()),
        Finding::new("processes end only when told to, and in time", 0, bed.incidents.lock().clone()),
    ];
    findings.extend(traces::check(bed).await?);
    findings.extend(usage::check(bed).await?);
    findings.extend(settled(bed).await?);
    Ok(findings)
}

/// Episodes go on ending while topics and tables are read one after the other; what is really wrong stays so.
async fn settled(bed: &Bed) -> anyhow::Result<Vec<Finding>> {
    for _ in 1..LOOKS {
        let findings = alarms_and_webhooks(bed).await?;
        if findings.iter().all(Finding::holds) {
            return Ok(findings);
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    alarms_and_webhooks(bed).await
}

async fn alarms_and_webhooks(bed: &Bed) -> anyhow::Result<Vec<Finding>> {
    let mut findings = alarms::check(bed).await?;
    findings.extend(webhooks::check(bed).await?);
    Ok(findings)
}
