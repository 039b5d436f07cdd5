//! Fault after fault, in two lanes, and how long each recovery takes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::{
    bed::Bed,
    fault::Fault,
    plan::{Lane, any, each_once},
    recovery::Canaries,
    servers::Act,
};

/// A fault that was.
#[derive(Debug, Clone, Serialize)]
pub struct Struck {
    /// What.
    pub kind: String,
    /// The whole of it, with its figures.
    pub fault: String,
    /// When it began, in seconds since the run did.
    pub at: f64,
    /// When what it took away was back.
    pub until: f64,
    /// How long it then took until accepted traces became rows again, in every partition.
    pub recovery: Option<f64>,
    /// What there is to say.
    pub note: String,
}

/// All faults of a run.
#[derive(Default)]
pub struct Journal {
    struck: Mutex<Vec<Struck>>,
}

impl Journal {
    /// In the order in which they began.
    pub fn struck(&self) -> Vec<Struck> {
        let mut struck = self.struck.lock().clone();
        struck.sort_by(|a, b| a.at.total_cmp(&b.at));
        struck
    }
}

/// Strikes with every kind of fault once, then with any until `until`; returns after the last recovery.
pub async fn rage(
    bed: &Arc<Bed>,
    canaries: &Canaries,
    journal: &Arc<Journal>,
    lane: Lane,
    seed: u64,
    until: Instant,
) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut recoveries = JoinSet::new();
    let first = each_once(lane, &mut rng);
    let mut faults = first.into_iter();
    loop {
        let fault = match faults.next() {
            Some(fault) => fault,
            None if Instant::now() < until => any(lane, &mut rng),
            None => break,
        };
        match lane {
            Lane::Servers => {
                bed.calm.lock().end();
                raise_the_dead(bed, journal).await;
                strike(bed, canaries, journal, fault, &mut recoveries).await;
                bed.calm.lock().begin();
            }
            Lane::Workers => strike(bed, canaries, journal, fault, &mut recoveries).await,
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(200..2_500))).await;
    }
    while recoveries.join_next().await.is_some() {}
}

/// A server that ended by itself would make all that follows one long outage. It is one more fault that the
/// product has to survive, and told as such. Answers whether one had.
async fn raise_the_dead(bed: &Bed, journal: &Journal) -> bool {
    let died = match bed.servers.died().await {
        Ok(died) => died,
        Err(error) => {
            bed.incident(format!("{error:#}"));
            return false;
        }
    };
    let some = !died.is_empty();
    for server in died {
        let at = bed.began.elapsed().as_secs_f64();
        let kind = format!("{} ended by itself", server.name());
        eprintln!("{at:7.1} s  {kind}");
        if let Err(error) = bed.servers.act(Act::Start, server).await {
            bed.incident(format!("{error:#}"));
        }
        let until = bed.began.elapsed().as_secs_f64();
        let note = "not struck by this run; found dead before the next fault".to_owned();
        let fault = kind.clone();
        journal.struck.lock().push(Struck { kind, fault, at, until, recovery: None, note });
    }
    some
}

async fn strike(
    bed: &Arc<Bed>,
    canaries: &Canaries,
    journal: &Arc<Journal>,
    fault: Fault,
    recoveries: &mut JoinSet<()>,
) {
    let at = bed.began.elapsed().as_secs_f64();
    eprintln!("{at:7.1} s  {fault:?}");
    let note = match fault.strike(bed).await {
        Ok(note) => note,
        Err(error) => {
            // A server may have ended by itself in the very moment.
            if !raise_the_dead(bed, journal).await {
                bed.incident(format!("{}: {error:#}", fault.kind()));
            }
            format!("{error:#}")
        }
    };
    let until = bed.began.elapsed().as_secs_f64();
    let number = {
        let mut struck = journal.struck.lock();
        let kind = fault.kind();
        struck.push(Struck { kind, fault: format!("{fault:?}"), at, until, recovery: None, note });
        struck.len() - 1
    };
    let (bed, canaries, journal) = (bed.clone(), canaries.clone(), journal.clone());
    recoveries.spawn(async move {
        match canaries.recovered(&bed, number as u64).await {
            Ok(took) => journal.struck.lock()[number].recovery = Some(took.as_secs_f64()),
            Err(error) => bed.incident(format!("no recovery after {}: {error:#}", fault.kind())),
        }
    });
}
