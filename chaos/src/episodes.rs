//! Users who must raise an alarm: a loop that runs away, bursts, refused calls, and kills by an operator.

use std::{sync::Arc, time::Duration};

use rand::{SeedableRng as _, rngs::StdRng};
use reqwest::Method;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    bed::Bed,
    call::{App, Call},
    load,
};

/// The user whose loop runs away for as long as the load lasts.
pub const LOOP: &str = "loop";
/// Whose refused calls come from one address.
pub const SPRAYED_FROM: &str = "198.51.100.7";
/// Users of the kinds `burst-…`, `denied-…`, `killed-…`.
pub const BURST: &str = "burst-";
/// See [`BURST`].
pub const DENIED: &str = "denied-";
/// See [`BURST`].
pub const KILLED: &str = "killed-";

const LOOP_PAUSE: Duration = Duration::from_millis(250);
const BURST_PAUSE: Duration = Duration::from_millis(2_500);
const DENIED_PAUSE: Duration = Duration::from_secs(4);
const KILLED_PAUSE: Duration = Duration::from_secs(8);
/// Of a burst: more than the 20 that one tool may be called in a minute.
const BURST_CALLS: usize = 30;
/// Of refused calls: 5 are an alarm.
const DENIED_CALLS: usize = 7;
/// How long a call is insisted on; later it would be too late to raise an alarm.
const INSIST: Duration = Duration::from_secs(50);
/// How long a kill is insisted on: it must be in at last.
const KILL_LIMIT: Duration = Duration::from_secs(120);

/// Runs all of them until told to stop.
pub async fn run(bed: &Bed, seed: u64, stop: CancellationToken) {
    tokio::join!(
        loops(bed, seed, &stop),
        bursts(bed, seed + 1, &stop),
        denials(bed, seed + 2, &stop),
        spray(bed, seed + 3),
        kills(bed, &stop)
    );
}

/// Calls of the user whose loop runs away.
async fn loops(bed: &Bed, seed: u64, stop: &CancellationToken) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut denied = false;
    while !stop.is_cancelled() {
        let call = Arc::new(Call::now(App::Watched, LOOP, "search"));
        load::insist(bed, &[call], INSIST, &mut rng).await;
        // In the middle of it, one burst of refused calls.
        if !denied && bed.began.elapsed() > Duration::from_secs(20) {
            denied = true;
            let refused = || Arc::new(Call::now(App::Watched, LOOP, "search").denied("192.0.2.1"));
            let calls: Vec<_> = (0..DENIED_CALLS).map(|_| refused()).collect();
            load::insist(bed, &calls, INSIST, &mut rng).await;
        }
        tokio::time::sleep(LOOP_PAUSE).await;
    }
}

/// One new user after the other who calls too often once.
async fn bursts(bed: &Bed, seed: u64, stop: &CancellationToken) {
    let mut rng = StdRng::seed_from_u64(seed);
    for number in 0.. {
        if stop.is_cancelled() {
            return;
        }
        let user = format!("{BURST}{number}");
        for part in 0..3 {
            let call = || Arc::new(Call::now(App::Watched, user.as_str(), "export"));
            let calls: Vec<_> = (0..BURST_CALLS / 3).map(|_| call()).collect();
            if !load::insist(bed, &calls, INSIST, &mut rng).await {
                eprintln!("part {part} of the burst of {user} was not confirmed in time");
            }
        }
        tokio::time::sleep(BURST_PAUSE).await;
    }
}

/// One new user after the other who is refused again and again, each from an address of its own.
async fn denials(bed: &Bed, seed: u64, stop: &CancellationToken) {
    let mut rng = StdRng::seed_from_u64(seed);
    for number in 0_u32.. {
        if stop.is_cancelled() {
            return;
        }
        let [_, _, high, low] = number.to_be_bytes();
        let (user, from) = (format!("{DENIED}{number}"), format!("10.1.{high}.{low}"));
        let call = || Arc::new(Call::now(App::Watched, user.as_str(), "login").denied(from.as_str()));
        let calls: Vec<_> = (0..DENIED_CALLS).map(|_| call()).collect();
        load::insist(bed, &calls, INSIST, &mut rng).await;
        tokio::time::sleep(DENIED_PAUSE).await;
    }
}

/// Several users refused from one address, once.
async fn spray(bed: &Bed, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let call =
        |n: usize| Arc::new(Call::now(App::Watched, format!("spray-{n}"), "login").denied(SPRAYED_FROM));
    let calls: Vec<_> = (0..DENIED_CALLS).map(call).collect();
    load::insist(bed, &calls, INSIST, &mut rng).await;
}

/// An operator stops one user after the other, and lets them go on.
async fn kills(bed: &Bed, stop: &CancellationToken) {
    let path = format!("/apps/{}/kill", App::Watched.id());
    for number in 0.. {
        if stop.is_cancelled() {
            return;
        }
        let whom = json!({"user_sub": format!("{KILLED}{number}")});
        let killed = bed.control.insist(Method::POST, &path, whom.clone(), KILL_LIMIT).await;
        let lifted = bed.control.lift(&path, &whom, KILL_LIMIT).await;
        for error in [killed.err(), lifted.err()].into_iter().flatten() {
            bed.incident(format!("{error:#}"));
        }
        tokio::time::sleep(KILLED_PAUSE).await;
    }
}
