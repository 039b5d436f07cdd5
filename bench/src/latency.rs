//! How soon a trace that was answered is seen, and how soon a webhook tells of it, in a steady load.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use panopticon_proto::v1::{IngestBatchRequest, Outcome, trace_service_client::TraceServiceClient};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::{
    Bench,
    report::{Reach, Report, Row},
    samples::{Spread, Times},
    server::CLIENT_ID,
    system::{Engine, System},
    traces,
};

/// Traces in a request.
const BATCH: u64 = 10;
/// Connections that the requests share.
const CONNECTIONS: usize = 4;
/// Of load before anything is measured: leases are taken, connections opened.
const WARM_UP: Duration = Duration::from_secs(3);
/// A shorter round has too few runaway users to speak of.
const SHORTEST: Duration = Duration::from_secs(10);
/// How long to wait for what was sent last.
const GRACE: Duration = Duration::from_secs(5);
/// One runaway user in this time.
const RUNAWAY_EVERY: Duration = Duration::from_secs(1);
/// Calls that a runaway user makes at once; the rule's limit is 60 a minute.
const RUNAWAY_CALLS: u64 = 70;
const LIVE_REACH_MS: f64 = 150.0;
const WEBHOOK_REACH_MS: f64 = 500.0;

/// When something was heard of, by what it is about.
pub type Heard<K> = Arc<Mutex<HashMap<K, Instant>>>;

/// Measures both ways at `rate` traces a second.
pub async fn measure(report: &mut Report, bench: &Bench, engine: Engine, rate: u64) -> anyhow::Result<()> {
    let system = System::start(engine, &bench.bin).await?;
    let webhooks = Heard::default();
    let url = receiver(webhooks.clone()).await?;
    let endpoint = json!({"url": url, "types": ["panopticon.anomaly_detected"]});
    system.room.call(Method::POST, &format!("/apps/{CLIENT_ID}/webhooks"), Some(endpoint)).await?;
    // A change is known everywhere within a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut rounds = Vec::new();
    for round in 0..bench.repeat {
        let heard = one_round(&system, rate, bench.span.max(SHORTEST), round, &webhooks).await?;
        eprintln!("  live {}; webhook {}", heard.live.summary(), heard.webhook.summary());
        rounds.push(heard);
    }
    system.stop().await?;
    let name = format!("{engine:?}").to_lowercase();
    let sum = |of: fn(&Round) -> u64| rounds.iter().map(of).sum::<u64>();
    let quantile =
        |of: fn(&Round) -> &Times, share| rounds.iter().map(|r| of(r).quantile_ms(share)).collect::<Vec<_>>();
    let per_second = Spread::of(rounds.iter().map(|round| round.answered as f64 / round.took.as_secs_f64()));
    let (live, webhook): (Of, Of) = (|round| &round.live, |round| &round.webhook);
    report.add(
        Row::alone(format!("trace → live subscriber, p99 ({name})"), "ms", quantile(live, 0.99))
            .reach(Reach::AtMost(LIVE_REACH_MS))
            .note(format!(
                "{:.0} traces/s; {} of {} missed, {} requests left late; {}",
                per_second.median,
                sum(|round| round.missed),
                sum(|round| round.answered),
                sum(|round| round.late_ticks),
                rounds.last().map_or(String::new(), |round| round.live.summary()),
            )),
    );
    report.add(
        Row::alone(format!("deciding trace → webhook received, p99 ({name})"), "ms", quantile(webhook, 0.99))
            .reach(Reach::AtMost(WEBHOOK_REACH_MS))
            .note(format!(
                "{} of {} missed; {}",
                sum(|round| round.untold),
                sum(|round| round.untold + round.webhook.count() as u64),
                rounds.last().map_or(String::new(), |round| round.webhook.summary()),
            )),
    );
    Ok(())
}

type Of = fn(&Round) -> &Times;

/// What came of one round.
struct Round {
    live: Times,
    webhook: Times,
    /// Traces that were answered `accepted`.
    answered: u64,
    /// Of them, those that no event told of.
    missed: u64,
    /// Runaway users that no webhook told of.
    untold: u64,
    /// Requests that left later than the next one was due: the load itself was not steady.
    late_ticks: u64,
    took: Duration,
}

async fn one_round(
    system: &System,
    rate: u64,
    span: Duration,
    round: usize,
    webhooks: &Heard<String>,
) -> anyhow::Result<Round> {
    let (answers, seen) = (Heard::default(), Heard::default());
    let viewer = tokio::spawn(watch(system.room.clone(), seen.clone()));
    let runaways = tokio::spawn(runaways(channel(system).await?, WARM_UP, span, round));
    pace(system, rate, WARM_UP, &Heard::default()).await?;
    let began = Instant::now();
    let late_ticks = pace(system, rate, span, &answers).await?;
    let took = began.elapsed();
    let runaways = runaways.await??;
    let until = Instant::now() + GRACE;
    loop {
        let all_seen = lock(&answers).keys().all(|id| lock(&seen).contains_key(id));
        let all_told = runaways.iter().all(|(user, _)| lock(webhooks).contains_key(user));
        if (all_seen && all_told) || Instant::now() >= until {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::ensure!(!viewer.is_finished(), "the stream of live trace ended");
    viewer.abort();
    let (answers, seen, webhooks) = (lock(&answers), lock(&seen), lock(webhooks));
    // What is seen before its answer was read is seen at once.
    let live: Vec<Duration> = answers
        .iter()
        .filter_map(|(id, answered)| Some(seen.get(id)?.saturating_duration_since(*answered)))
        .collect();
    let told: Vec<Duration> = runaways
        .iter()
        .filter_map(|(user, answered)| Some(webhooks.get(user)?.saturating_duration_since(*answered)))
        .collect();
    Ok(Round {
        answered: answers.len() as u64,
        missed: (answers.len() - live.len()) as u64,
        untold: (runaways.len() - told.len()) as u64,
        live: Times::of(live),
        webhook: Times::of(told),
        late_ticks,
        took,
    })
}

/// Sends `rate` traces a second whether or not earlier ones were answered; how many requests left late.
pub async fn pace(system: &System, rate: u64, span: Duration, answers: &Heard<Uuid>) -> anyhow::Result<u64> {
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(channel(system).await?);
    }
    let every = Duration::from_secs_f64(BATCH as f64 / rate as f64);
    let (began, mut tasks, mut late) = (Instant::now(), JoinSet::new(), 0);
    let requests = (span.as_secs_f64() / every.as_secs_f64()) as u32;
    for n in 0..requests {
        let due = began + every * n;
        tokio::time::sleep_until(due.into()).await;
        // The timer's own grain is a millisecond.
        late += u64::from(due.elapsed() > every + Duration::from_millis(1));
        let client = TraceServiceClient::new(channels[n as usize % CONNECTIONS].clone());
        let first = u64::from(n) * BATCH;
        tasks.spawn(send(
            client,
            (first..first + BATCH).map(|n| traces::trace(n, jiff::Timestamp::now())).collect(),
        ));
        while let Some(done) = tasks.try_join_next() {
            take_down(answers, done??);
        }
    }
    while let Some(done) = tasks.join_next().await {
        take_down(answers, done??);
    }
    Ok(late)
}

fn take_down(answers: &Heard<Uuid>, (accepted, at): (Vec<Uuid>, Instant)) {
    lock(answers).extend(accepted.into_iter().map(|id| (id, at)));
}

/// Sends a batch: what was accepted, and when that was known.
async fn send(
    mut client: TraceServiceClient<Channel>,
    traces: Vec<panopticon_proto::v1::Trace>,
) -> anyhow::Result<(Vec<Uuid>, Instant)> {
    let answer = client.ingest_batch(traces::request(IngestBatchRequest { traces })?).await?.into_inner();
    let at = Instant::now();
    let accepted = answer.results.iter().filter(|result| result.outcome() == Outcome::Accepted);
    let ids = accepted.map(|result| result.event_id.parse()).collect::<Result<Vec<Uuid>, _>>()?;
    Ok((ids, at))
}

/// A fresh user every second who calls far too often: when each of them was answered.
async fn runaways(
    channel: Channel,
    delay: Duration,
    span: Duration,
    round: usize,
) -> anyhow::Result<Vec<(String, Instant)>> {
    let mut answered = Vec::new();
    let began = Instant::now() + delay;
    for n in 0..(span.as_secs_f64() / RUNAWAY_EVERY.as_secs_f64()) as u32 {
        // In the middle of the second, away from whatever happens at its turn.
        tokio::time::sleep_until((began + RUNAWAY_EVERY * n + RUNAWAY_EVERY / 2).into()).await;
        let user = format!("runaway_{round}_{n}");
        let now = jiff::Timestamp::now();
        let calls = (0..RUNAWAY_CALLS).map(|n| traces::of_user(user.clone(), n, now)).collect();
        let (accepted, at) = send(TraceServiceClient::new(channel.clone()), calls).await?;
        anyhow::ensure!(accepted.len() as u64 == RUNAWAY_CALLS, "{user}: only {} accepted", accepted.len());
        answered.push((user, at));
    }
    Ok(answered)
}

async fn channel(system: &System) -> anyhow::Result<Channel> {
    Ok(tonic::transport::Endpoint::new(format!("http://{}", system.gateway))?.connect().await?)
}

/// Notes when each trace of the app comes by.
async fn watch(room: crate::room::Room, seen: Heard<Uuid>) -> anyhow::Result<()> {
    let mut answer = room.open(&format!("/apps/{CLIENT_ID}/live")).await?;
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        let at = Instant::now();
        text.extend_from_slice(&chunk);
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in text[..whole].split(|byte| *byte == b'\n') {
            if let Some(id) = event_id(line) {
                lock(&seen).entry(id).or_insert(at);
            }
        }
        text.drain(..whole);
    }
    Ok(())
}

/// The id in a line of data that tells of a trace.
fn event_id(line: &[u8]) -> Option<Uuid> {
    let data = std::str::from_utf8(line).ok()?.strip_prefix("data:")?;
    let (_, rest) = data.split_once(r#""event_id":""#)?;
    rest.get(..36)?.parse().ok()
}

/// A receiver of webhooks that notes when it was told of a runaway user; its URL.
async fn receiver(webhooks: Heard<String>) -> anyhow::Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new().route("/", post(take)).with_state(webhooks);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(format!("http://{address}/"))
}

async fn take(State(webhooks): State<Heard<String>>, body: Bytes) -> StatusCode {
    let at = Instant::now();
    let told = serde_json::from_slice::<Value>(&body).context("no JSON");
    if let Ok(told) = told
        && told["data"]["rule"] == "rate_limit"
        && let Some(user) = told["data"]["user_sub"].as_str()
    {
        lock(&webhooks).entry(user.to_owned()).or_insert(at);
    }
    StatusCode::NO_CONTENT
}

fn lock<K>(heard: &Heard<K>) -> std::sync::MutexGuard<'_, HashMap<K, Instant>> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_found_in_its_line() {
        let id = Uuid::now_v7();
        let line = format!(r#"data: {{"client_id":"bench","event_id":"{id}","late":false}}"#);
        assert_eq!(event_id(line.as_bytes()), Some(id));
        assert_eq!(event_id(b"data: {\"count\":3}"), None);
        assert_eq!(event_id(format!(r#"id: "event_id":"{id}""#).as_bytes()), None);
    }
}
