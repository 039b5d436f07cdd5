//! What became of each app's traces since this process started, for `status`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use panopticon_core::{
    api::{GatewayCounts, RefusalCount},
    time::Time,
};
use parking_lot::Mutex;

/// Kinds of refusal remembered per app; further fields are counted under the empty one.
const MAX_KINDS: usize = 64;

/// Counts per app.
#[derive(Clone, Default)]
pub struct Counts {
    apps: Arc<Mutex<HashMap<String, AppCounts>>>,
}

#[derive(Default)]
struct AppCounts {
    totals: GatewayCounts,
    refused: BTreeMap<(&'static str, String), (u64, Time)>,
}

/// How many traces of a request came to which end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Durable and new.
    pub accepted: u64,
    /// Came before.
    pub duplicate: u64,
    /// Not confirmed.
    pub unavailable: u64,
    /// Of the accepted: late.
    pub late: u64,
}

impl Counts {
    /// Adds a request's traces.
    pub fn add(&self, client_id: &str, tally: Tally, now: Time) {
        for (outcome, count) in
            [("accepted", tally.accepted), ("duplicate", tally.duplicate), ("unavailable", tally.unavailable)]
        {
            if count > 0 {
                metrics::counter!("panopticon_gateway_traces_total", "outcome" => outcome).increment(count);
            }
        }
        if tally.late > 0 {
            metrics::counter!("panopticon_gateway_late_traces_total").increment(tally.late);
        }
        let mut apps = self.apps.lock();
        let totals = &mut entry(&mut apps, client_id).totals;
        totals.accepted += tally.accepted;
        totals.duplicate += tally.duplicate;
        totals.unavailable += tally.unavailable;
        totals.late += tally.late;
        if tally.accepted > 0 {
            totals.last_accepted_at = Some(now);
        }
    }

    /// Adds a refusal.
    pub fn refused(&self, client_id: &str, error: &'static str, field: &str, now: Time) {
        metrics::counter!("panopticon_gateway_refused_total", "error" => error).increment(1);
        let mut apps = self.apps.lock();
        let refused = &mut entry(&mut apps, client_id).refused;
        let known = refused.len() < MAX_KINDS || refused.contains_key(&(error, field.to_owned()));
        let kind = (error, if known { field.to_owned() } else { String::new() });
        let count = refused.entry(kind).or_default();
        *count = (count.0 + 1, now);
    }

    /// The counts of an app, if it has sent anything.
    pub fn of(&self, client_id: &str) -> Option<GatewayCounts> {
        let apps = self.apps.lock();
        let counts = apps.get(client_id)?;
        let mut answer = counts.totals.clone();
        answer.refused = counts
            .refused
            .iter()
            .map(|((error, field), (count, last_at))| RefusalCount {
                error: (*error).to_owned(),
                field: field.clone(),
                count: *count,
                last_at: *last_at,
            })
            .collect();
        Some(answer)
    }
}

fn entry<'a>(apps: &'a mut HashMap<String, AppCounts>, client_id: &str) -> &'a mut AppCounts {
    if !apps.contains_key(client_id) {
        apps.insert(client_id.to_owned(), AppCounts::default());
    }
    apps.entry(client_id.to_owned()).or_default()
}
