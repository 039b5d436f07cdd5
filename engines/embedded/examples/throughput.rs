//! How many traces a second the engine takes on the whole road: appended in envelopes of 250 to two
//! partitions, marked by the gateway, deduplicated into `traces`, inserted into the store.
//!
//! `cargo run --release -p panopticon-embedded --example throughput -- [traces] [data directory]`

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use panopticon_core::{
    config::Config,
    ids::{ClientId, EventId, Place, SeenKey},
    log::{Commit, Lease, Output, Poll, PollLimits, Record},
    seen::Mark,
    store::{Attempt, BatchRange, Row, Rows, TimelineQuery},
    time::{Clock as _, SystemClock},
    topic::Topic,
    trace::{AcceptedTrace, Status, Trace, decode_envelope, encode_envelope},
};
use panopticon_embedded::Embedded;
use uuid::Uuid;

const PER_ENVELOPE: usize = 250;
const LIMITS: PollLimits = PollLimits { records: 16, bytes: 4 << 20, wait: Duration::from_millis(100) };
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn trace(n: usize) -> AcceptedTrace {
    let now = SystemClock.now();
    let trace = Trace {
        event_id: EventId(Uuid::new_v4()),
        client_id: ClientId::new(&format!("client-{}", n % 20)).unwrap_or_else(|why| panic!("{why}")),
        user_sub: format!("user_{:06}", (n * 7_919) % 50_000),
        tool: format!("tool_{}", n % 15),
        scope_used: "calendar.read calendar.write".to_owned(),
        status: if n.is_multiple_of(20) { Status::Error } else { Status::Ok },
        started_at: now,
        duration_ms: (n % 900) as u32,
        session_id: format!("session-{}", n % 10_000),
        agent: "assistant".to_owned(),
        source_ip: "192.0.2.17".to_owned(),
        error_code: String::new(),
        attributes: BTreeMap::from([("region".to_owned(), "eu-west-1".to_owned())]),
    };
    AcceptedTrace { trace, received_at: now, late: false, place: None }
}

fn marks(traces: &[AcceptedTrace], place: impl Fn(u32) -> Place) -> Vec<Mark> {
    let key = |t: &AcceptedTrace| SeenKey::of(t.trace.client_id.as_str(), t.trace.event_id);
    traces.iter().zip(0..).map(|(trace, index)| Mark { key: key(trace), place: place(index) }).collect()
}

async fn gateway(engine: Arc<Embedded>, partition: u32, traces: usize) -> Result<Vec<Duration>, Failure> {
    let log_id = engine.log.topic(Topic::TracesRaw).await?.log_id;
    let mut waits = Vec::new();
    for n in (0..traces).step_by(PER_ENVELOPE) {
        let traces: Vec<_> = (n..n + PER_ENVELOPE).map(trace).collect();
        let started = Instant::now();
        let record = Record::message(encode_envelope(traces.iter().cloned()));
        let offset = engine.log.append(Topic::TracesRaw, partition, record).await?.unwrap_or(0);
        waits.push(started.elapsed());
        engine.seen.mark(marks(&traces, |index| Place { log_id, partition, offset, index }), None).await?;
    }
    Ok(waits)
}

async fn dedupe(engine: Arc<Embedded>, mut lease: Box<dyn Lease>, until: usize) -> Result<(), Failure> {
    let (partition, mut done) = (lease.partition(), 0);
    let log_id = engine.log.topic(Topic::TracesRaw).await?.log_id;
    while done < until {
        let Poll::Records(records) = lease.poll(LIMITS).await? else { break };
        let Some(last) = records.last() else { continue };
        let next = Some(last.offset + 1);
        let mut all = Vec::new();
        for stored in &records {
            let traces = decode_envelope(stored.record.bytes())?;
            done += traces.len();
            all.extend(marks(&traces, |index| Place { log_id, partition, offset: stored.offset, index }));
        }
        engine.seen.mark(all, None).await?;
        let outputs = records
            .into_iter()
            .map(|stored| Output { topic: Topic::Traces, partition, record: stored.record })
            .collect();
        lease.commit(Commit { outputs, next, metadata: String::new() }).await?;
    }
    Ok(())
}

async fn store(engine: Arc<Embedded>, mut lease: Box<dyn Lease>, until: usize) -> Result<(), Failure> {
    let (partition, mut done) = (lease.partition(), 0);
    let log_id = engine.log.topic(Topic::Traces).await?.log_id;
    while done < until {
        let Poll::Records(records) = lease.poll(LIMITS).await? else { break };
        let (Some(first), Some(last)) = (records.first(), records.last()) else { continue };
        let (from, to) = (first.offset, last.offset + 1);
        let mut rows = Vec::new();
        for stored in &records {
            let traces = decode_envelope(stored.record.bytes())?;
            done += traces.len();
            let row = |(value, index)| Row { offset: stored.offset, index, value };
            rows.extend(traces.into_iter().zip(0..).map(row));
        }
        let range = BatchRange { topic: Topic::Traces, log_id, partition, from, to };
        engine.store.insert(range, Rows::of_traces(rows), Attempt::First).await?;
        lease.commit(Commit { next: Some(to), ..Commit::default() }).await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let traces: usize = arguments.next().map_or(Ok(1_000_000), |n| n.parse())?;
    let directory = arguments.next().map(PathBuf::from);
    let temporary = tempfile::tempdir()?;
    let data_dir = directory.unwrap_or_else(|| temporary.path().to_owned());
    let config = Config { data_dir: data_dir.clone(), ..Config::default() };
    let engine = Arc::new(Embedded::open(&config, Arc::new(SystemClock))?);

    let each = traces / 2 / PER_ENVELOPE * PER_ENVELOPE;
    let started = Instant::now();
    let mut stages = tokio::task::JoinSet::new();
    let mut raw = engine.log.subscribe("dedupe", Topic::TracesRaw).await?;
    let mut clean = engine.log.subscribe("store", Topic::Traces).await?;
    for _ in 0..2 {
        stages.spawn(dedupe(Arc::clone(&engine), raw.next_lease().await?, each));
        stages.spawn(store(Arc::clone(&engine), clean.next_lease().await?, each));
    }
    let gateways = (0..2).map(|partition| tokio::spawn(gateway(Arc::clone(&engine), partition, each)));
    let mut waits = Vec::new();
    for gateway in gateways.collect::<Vec<_>>() {
        waits.extend(gateway.await??);
    }
    let taken = started.elapsed();
    while let Some(stage) = stages.join_next().await {
        stage??;
    }
    let stored = started.elapsed();
    waits.sort_unstable();
    let rate = |time: Duration| (2 * each) as f64 / time.as_secs_f64();
    println!("{} traces: taken at {:.0}/s, stored at {:.0}/s", 2 * each, rate(taken), rate(stored));
    println!(
        "append p50 {:?}, p99 {:?}, max {:?}",
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
        waits[waits.len() - 1]
    );

    let app = ClientId::new("client-3")?;
    let query = TimelineQuery { limit: 100, ..TimelineQuery::default() };
    let user = TimelineQuery { user_sub: Some("user_000003".to_owned()), ..query.clone() };
    for (name, query) in [("timeline", &query), ("timeline of a user", &user)] {
        let started = Instant::now();
        let page = engine.store.timeline(&app, query).await?;
        println!("{name}: {} rows in {:?}", page.items.len(), started.elapsed());
    }
    let page = engine.store.timeline(&app, &query).await?;
    let ids: Vec<_> = page.items.iter().map(|t| (app.clone(), t.trace.event_id)).collect();
    let started = Instant::now();
    let known = engine.store.known(&ids).await?;
    println!("known: {} of {} in {:?}", known.iter().filter(|k| **k).count(), ids.len(), started.elapsed());

    let started = Instant::now();
    engine.close().await;
    println!("closed in {:?}", started.elapsed());
    drop(engine);
    let started = Instant::now();
    let engine = Embedded::open(&config, Arc::new(SystemClock))?;
    println!("opened in {:?}", started.elapsed());
    engine.close().await;
    println!("{} MB", std::fs::metadata(data_dir.join("panopticon.db"))?.len() >> 20);
    Ok(())
}
