//! Ordinary load: many apps and users over HTTP and gRPC, with resends on purpose, at once and later.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    bed::Bed,
    call::{App, Call, Status, TOOLS},
    ledger::Answer,
    wire::Form,
};

/// Users of each app.
const USERS: u32 = 40;
/// How often traces go to both gateways at the same moment.
const TWIN_CHANCE: f64 = 0.15;
/// How often traces that were answered are sent once more, up to this many batches later.
const ECHO_CHANCE: f64 = 0.05;
const REMEMBERED_BATCHES: usize = 50;
/// How often what was not confirmed is never sent again.
const GIVE_UP_CHANCE: f64 = 0.1;
/// How often something invalid is sent beside.
const INVALID_CHANCE: f64 = 0.03;
/// How often a trace tells of something long ago.
const LATE_CHANCE: f64 = 0.03;
/// How long a sender waits for an answer: mostly longer than the gateway's own limit.
const PATIENCE: Duration = Duration::from_secs(7);
const SHORT_PATIENCE: Duration = Duration::from_millis(800);
/// How long after the end of the load a sender goes on to get answers.
const LAST_RESENDS: Duration = Duration::from_secs(60);

/// One of several senders, with its share of the rate in traces a second, until told to stop.
pub async fn send(bed: &Bed, seed: u64, rate: f64, stop: CancellationToken) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut remembered: VecDeque<Vec<Arc<Call>>> = VecDeque::new();
    let mut next = Instant::now();
    while !stop.is_cancelled() {
        let calls = batch(&mut rng);
        next = (next + Duration::from_secs_f64(calls.len() as f64 / rate)).max(Instant::now());
        deliver(bed, &calls, &mut rng, &stop).await;
        remembered.push_back(calls);
        if remembered.len() > REMEMBERED_BATCHES {
            remembered.pop_front();
        }
        if rng.random_bool(ECHO_CHANCE) {
            let echo = &remembered[rng.random_range(0..remembered.len())];
            attempt(bed, echo, PATIENCE, &mut rng).await;
        }
        if rng.random_bool(INVALID_CHANCE) {
            send_invalid(bed, &mut rng).await;
        }
        tokio::time::sleep_until(next).await;
    }
}

fn batch(rng: &mut StdRng) -> Vec<Arc<Call>> {
    let app = App::LOADED[rng.random_range(0..App::LOADED.len())];
    let traces = match rng.random_range(0..10) {
        0..3 => 1,
        3..9 => rng.random_range(2..20),
        _ => rng.random_range(50..200),
    };
    (0..traces)
        .map(|_| {
            let user = format!("user-{}", rng.random_range(0..USERS));
            let mut call = Call::now(app, user, TOOLS[rng.random_range(0..TOOLS.len())]);
            if rng.random_bool(0.08) {
                call.status = Status::Error;
            }
            if rng.random_bool(LATE_CHANCE) {
                call.started_at -= jiff::SignedDuration::from_secs(rng.random_range(120..7_200));
            }
            Arc::new(call)
        })
        .collect()
}

/// Sends traces until they are confirmed, or given up.
async fn deliver(bed: &Bed, calls: &[Arc<Call>], rng: &mut StdRng, stop: &CancellationToken) {
    if rng.random_bool(TWIN_CHANCE) {
        let forms = [Form::any(calls.len(), rng), Form::any(calls.len(), rng)];
        let (one, other) = tokio::join!(
            bed.gateways[0].send(forms[0], calls, PATIENCE),
            bed.gateways[1].send(forms[1], calls, PATIENCE)
        );
        bed.ledger.record(calls, &one);
        bed.ledger.record(calls, &other);
        return;
    }
    let mut left = calls.to_vec();
    let mut stopped_at = None;
    while !left.is_empty() {
        let patience = if rng.random_bool(0.05) { SHORT_PATIENCE } else { PATIENCE };
        left = attempt(bed, &left, patience, rng).await;
        if stop.is_cancelled() {
            let since = *stopped_at.get_or_insert_with(Instant::now);
            if since.elapsed() > LAST_RESENDS {
                return;
            }
        }
        if !left.is_empty() {
            if rng.random_bool(GIVE_UP_CHANCE) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(rng.random_range(50..400))).await;
        }
    }
}

/// Sends traces once to any gateway, and answers those that were not confirmed.
pub async fn attempt(bed: &Bed, calls: &[Arc<Call>], patience: Duration, rng: &mut StdRng) -> Vec<Arc<Call>> {
    let gateway = &bed.gateways[rng.random_range(0..bed.gateways.len())];
    let answers = gateway.send(Form::any(calls.len(), rng), calls, patience).await;
    bed.ledger.record(calls, &answers);
    let unconfirmed = |answer: &Answer| matches!(answer, Answer::Unconfirmed(_));
    calls
        .iter()
        .zip(&answers)
        .filter(|(_, answer)| unconfirmed(answer))
        .map(|(call, _)| call.clone())
        .collect()
}

/// What no gateway may take.
async fn send_invalid(bed: &Bed, rng: &mut StdRng) {
    let call = Call::now(App::Alpha, "user-0", TOOLS[0]);
    let mut trace = call.to_json();
    let wrong: [(&str, Value); 8] = [
        ("status", json!("maybe")),
        ("tool", Value::Null),
        ("tool", json!("two\nlines")),
        ("started_at", json!("yesterday")),
        ("duration_ms", json!(-1)),
        ("scope_used", json!("s".repeat(2_000))),
        ("colour", json!("red")),
        ("client_id", json!(App::Beta.id())),
    ];
    let (field, value) = &wrong[rng.random_range(0..wrong.len())];
    trace[*field] = value.clone();
    let gateway = &bed.gateways[rng.random_range(0..bed.gateways.len())];
    let sent = tokio::time::timeout(PATIENCE, gateway.http_one(&App::Alpha.pak(), &trace)).await;
    let answer = match sent {
        Ok(Ok(answer)) => answer,
        Ok(Err(why)) => Answer::Unconfirmed(why),
        Err(_) => Answer::Unconfirmed("no answer in time".to_owned()),
    };
    bed.ledger.record_invalid(call.event_id, field, &answer);
}

/// Traces that must arrive, of one app, by any number of attempts; whether all were confirmed in time.
pub async fn insist(bed: &Bed, calls: &[Arc<Call>], limit: Duration, rng: &mut StdRng) -> bool {
    let deadline = Instant::now() + limit;
    let mut left = calls.to_vec();
    while !left.is_empty() && Instant::now() < deadline {
        left = attempt(bed, &left, PATIENCE, rng).await;
        if !left.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    left.is_empty()
}
