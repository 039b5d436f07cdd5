//! The trace store: exactly-once inserts.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use panopticon_core::{
    store::{Attempt, Rows, TimelineQuery, UsageCounts},
    time::Time,
    topic::Topic,
    trace::{AcceptedTrace, Status},
};

use crate::{
    EngineUnderTest, Ports,
    fixtures::{client, put_traces, rows, trace},
};

async fn all(ports: &Ports, app: &str) -> Vec<AcceptedTrace> {
    let query = TimelineQuery { limit: 1_000, ..TimelineQuery::default() };
    ports.store.timeline(&client(app), &query).await.unwrap().items
}

async fn usage(ports: &Ports, app: &str) -> Vec<(Date, UsageCounts)> {
    let (first, last) = (Date::constant(2000, 1, 1), Date::constant(2099, 12, 31));
    ports.store.usage(&client(app), first, last, "UTC").await.unwrap()
}

fn hundred(ports: &Ports, first: u128) -> Vec<AcceptedTrace> {
    let now = ports.now();
    (first..first + 100).map(|n| trace(&client("app"), n, now, now)).collect()
}

/// Whether the one who sends it knows that it is there or not; neighbouring ranges are not touched.
pub async fn a_batch_is_in_once_however_often_it_is_sent<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let (first, second) = (hundred(&ports, 0), hundred(&ports, 100));
    let insert = async |traces: &[AcceptedTrace], from, attempt| {
        let range = ports.range(Topic::Traces, 0, from, from + 10).await;
        ports.store.insert(range, Rows::of_traces(rows(traces, from, 10)), attempt).await.unwrap();
    };
    insert(&first, 5, Attempt::First).await;
    insert(&first, 5, Attempt::Again).await;
    insert(&second, 15, Attempt::First).await;
    insert(&second, 15, Attempt::Again).await;
    insert(&second, 15, Attempt::Again).await;

    let found = all(&ports, "app").await;
    assert_eq!(found.len(), 200);
    let ids: BTreeSet<_> = found.iter().map(|trace| trace.trace.event_id).collect();
    assert_eq!(ids.len(), 200);
    assert_eq!(usage(&ports, "app").await.iter().map(|(_, counts)| counts.traces).sum::<u64>(), 200);
}

/// As after a crash between the insert and the commit of the offset.
pub async fn a_batch_is_in_once_even_after_a_reopen<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let traces = hundred(&ports, 0);
    let range = ports.range(Topic::Traces, 1, 0, 100).await;
    let batch = Rows::of_traces(rows(&traces, 0, 1));
    ports.store.insert(range, batch.clone(), Attempt::First).await.unwrap();
    drop(ports);
    let engine = engine.reopen().await;
    let ports = engine.ports();
    ports.store.insert(range, batch, Attempt::Again).await.unwrap();
    assert_eq!(all(&ports, "app").await.len(), 100);
    assert_eq!(usage(&ports, "app").await.iter().map(|(_, counts)| counts.traces).sum::<u64>(), 100);
}

/// The same offsets of two partitions are two batches.
pub async fn batches_of_several_partitions_do_not_mix<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    for partition in 0..2 {
        let traces = hundred(&ports, u128::from(partition) * 100);
        let range = ports.range(Topic::Traces, partition, 0, 100).await;
        ports.store.insert(range, Rows::of_traces(rows(&traces, 0, 1)), Attempt::First).await.unwrap();
    }
    assert_eq!(all(&ports, "app").await.len(), 200);
}

/// Every field, and every absent one.
pub async fn a_trace_comes_back_as_it_was_put_in<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now();
    let app = client("https://rp.example/client?x=1#y");
    let mut full = trace(&app, 1, Time::from_micros(now.micros() - 1), now);
    full.late = true;
    full.trace.duration_ms = 86_400_000;
    full.trace.session_id = "s'1\" \\ \u{e4}\u{1f600}".to_owned();
    full.trace.agent = "agent".to_owned();
    full.trace.source_ip = "2001:db8::1".to_owned();
    full.trace.error_code = "invalid_token".to_owned();
    full.trace.user_sub = "a user".to_owned();
    full.trace.attributes =
        BTreeMap::from([("k\n\t".to_owned(), "v'\"\\".to_owned()), ("empty".to_owned(), String::new())]);
    let mut bare = trace(&app, 2, now, now);
    bare.trace.user_sub = String::new();
    bare.trace.scope_used = String::new();
    let old = trace(&app, 3, Time::parse_rfc3339("2000-01-01T00:00:00Z").unwrap(), now);
    put_traces(&ports, 0, &[full.clone(), bare.clone(), old.clone()]).await;

    let query = TimelineQuery { limit: 10, ..TimelineQuery::default() };
    let mut found = ports.store.timeline(&app, &query).await.unwrap().items;
    // Where it lies is the engine's own affair.
    found.iter_mut().for_each(|trace| trace.place = None);
    assert_eq!(found, [bare, full, old]);
}

/// Per date: all traces, and those with status error or denied.
pub async fn usage_equals_a_count_over_the_rows<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let now = ports.now();
    let start = Time::parse_rfc3339("2026-02-27T21:00:00Z").unwrap();
    let traces: Vec<_> = (0..2_000_u128)
        .map(|n| {
            let minutes = (n * 7_919) % (4 * 24 * 60);
            let started_at = Time::from_secs(start.secs() + (minutes * 60) as i64);
            trace(&client(if n % 5 == 0 { "other" } else { "app" }), n, started_at, now)
        })
        .collect();
    for (i, part) in traces.chunks(700).enumerate() {
        put_traces(&ports, (i * 700) as u64, part).await;
    }
    for app in ["app", "other"] {
        let mut wanted: BTreeMap<Date, UsageCounts> = BTreeMap::new();
        for trace in traces.iter().filter(|trace| trace.trace.client_id.as_str() == app) {
            let date = trace.trace.started_at.to_jiff().to_zoned(jiff::tz::TimeZone::UTC).date();
            let counts = wanted.entry(date).or_default();
            counts.traces += 1;
            counts.errors += u64::from(trace.trace.status != Status::Ok);
        }
        assert_eq!(usage(&ports, app).await, wanted.into_iter().collect::<Vec<_>>(), "{app}");
    }
    assert_eq!(usage(&ports, "nobody").await, []);
}
