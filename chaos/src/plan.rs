//! Which faults come, and when: from the seed.

use std::time::Duration;

use rand::{RngExt as _, rngs::StdRng, seq::SliceRandom as _};

use crate::{
    bed::{PROGRAMS, SESSION_TIMEOUT},
    fault::Fault,
    servers::Server,
};

/// How long the longest outage of the store may be.
const LONGEST_STORE_OUTAGE: Duration = Duration::from_secs(60);
/// The longest outage of the log or the seen set: dedupe stands still meanwhile, and after a minute without
/// traces an episode is over.
const LONGEST_STANDSTILL: Duration = Duration::from_secs(15);

/// Faults of two kinds go on beside each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Processes of the product.
    Workers,
    /// Servers, and what hurts the product at a certain moment.
    Servers,
}

/// Every kind of fault of a lane once, short, in any order.
pub fn each_once(lane: Lane, rng: &mut StdRng) -> Vec<Fault> {
    let mut faults = match lane {
        Lane::Workers => {
            let mut faults = Vec::new();
            for program in PROGRAMS {
                let away = millis(rng, 0..1_500);
                faults.push(Fault::Kill { program, number: either(rng), away });
                faults.push(Fault::Terminate { program, number: either(rng), away });
            }
            for program in ["stream-workers", "guard-enforcer", "anomaly-detector", "webhook-dispatcher"] {
                faults.push(Fault::Freeze { program, number: either(rng), span: beyond_session(rng) });
            }
            faults.push(Fault::KillBoth { program: "stream-workers", away: millis(rng, 0..1_000) });
            faults
        }
        Lane::Servers => {
            let away = millis(rng, 500..3_000);
            vec![
                Fault::AckWithoutMark { number: either(rng) },
                Fault::RowsWithoutCommit { number: either(rng) },
                Fault::Stop { server: Server::Kafka, away },
                Fault::Crash { server: Server::Kafka, away },
                Fault::Pause { server: Server::Kafka, span: millis(rng, 3_000..6_000) },
                Fault::Crash { server: Server::Redis, away },
                Fault::Flush,
                Fault::Older { ago: millis(rng, 2_000..4_000) },
                Fault::Cut { server: Server::Redis, span: millis(rng, 2_000..4_000) },
                Fault::Crash { server: Server::Clickhouse, away },
                Fault::CrashInInsert { after: millis(rng, 0..20), away },
                Fault::CrashInInsert { after: millis(rng, 0..20), away },
                Fault::Pause { server: Server::Clickhouse, span: millis(rng, 6_000..10_000) },
                slow_store(rng, 4_000..6_000),
                Fault::Cut { server: Server::Clickhouse, span: millis(rng, 3_000..5_000) },
            ]
        }
    };
    faults.shuffle(rng);
    faults
}

/// Any fault of a lane.
pub fn any(lane: Lane, rng: &mut StdRng) -> Fault {
    match lane {
        Lane::Workers => any_of_workers(rng),
        Lane::Servers => any_of_servers(rng),
    }
}

fn any_of_workers(rng: &mut StdRng) -> Fault {
    // The road of the traces is hit more often than the rest.
    let program =
        if rng.random_bool(0.4) { "stream-workers" } else { PROGRAMS[rng.random_range(0..PROGRAMS.len())] };
    let (number, away) = (either(rng), millis(rng, 0..4_000));
    match rng.random_range(0..10) {
        0..5 => Fault::Kill { program, number, away },
        5 => Fault::KillBoth { program, away },
        6..8 => Fault::Terminate { program, number, away },
        _ => Fault::Freeze { program, number, span: beyond_session(rng) },
    }
}

fn any_of_servers(rng: &mut StdRng) -> Fault {
    let still = |rng: &mut StdRng| millis(rng, 500..LONGEST_STANDSTILL.as_millis() as u64);
    match rng.random_range(0..18) {
        0 => Fault::Stop { server: Server::Kafka, away: still(rng) },
        1 => Fault::Crash { server: Server::Kafka, away: still(rng) },
        2 => Fault::Pause { server: Server::Kafka, span: still(rng) },
        3 => Fault::Crash { server: Server::Redis, away: still(rng) },
        4 => Fault::Pause { server: Server::Redis, span: still(rng) },
        5 => Fault::Flush,
        6 => Fault::Older { ago: millis(rng, 1_000..10_000) },
        7 => Fault::Cut { server: Server::Redis, span: still(rng) },
        8 => Fault::Slow { server: Server::Redis, by: millis(rng, 20..1_500), span: still(rng) },
        9 => Fault::Crash { server: Server::Clickhouse, away: still(rng) },
        10..13 => Fault::CrashInInsert { after: millis(rng, 0..40), away: millis(rng, 0..3_000) },
        13 => {
            let longest = LONGEST_STORE_OUTAGE.as_millis() as u64;
            Fault::Pause { server: Server::Clickhouse, span: millis(rng, 2_000..longest) }
        }
        14 => slow_store(rng, 5_000..30_000),
        15 => Fault::Cut { server: Server::Clickhouse, span: millis(rng, 2_000..20_000) },
        16 => Fault::RowsWithoutCommit { number: either(rng) },
        _ => Fault::AckWithoutMark { number: either(rng) },
    }
}

fn slow_store(rng: &mut StdRng, span: std::ops::Range<u64>) -> Fault {
    Fault::Slow { server: Server::Clickhouse, by: millis(rng, 200..2_000), span: millis(rng, span) }
}

/// Long enough for partitions to have moved.
fn beyond_session(rng: &mut StdRng) -> Duration {
    SESSION_TIMEOUT + millis(rng, 2_000..5_000)
}

fn either(rng: &mut StdRng) -> usize {
    rng.random_range(0..2)
}

fn millis(rng: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}
