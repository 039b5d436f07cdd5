//! Speed, and crashes of the server. Run by hand.

use std::time::{Duration, Instant};

use panopticon_core::{
    store::{Attempt, Row, Rows, StoreError, TimelineQuery, TraceStore},
    topic::Topic,
    trace::AcceptedTrace,
};

use crate::fixture::{Fixture, app, now, rows, sums};

/// Run with `--ignored --nocapture` while the server is killed and started again as often as you like: for
/// `PANOPTICON_TEST_CRASH_SECS` seconds two writers insert; then every row and count must be there once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs somebody who kills the server meanwhile"]
async fn no_crash_of_the_server_loses_or_doubles_anything() {
    let Some(f) = Fixture::new().await else { return };
    let secs = std::env::var("PANOPTICON_TEST_CRASH_SECS").map_or(30, |text| text.parse().unwrap());
    let until = Instant::now() + Duration::from_secs(secs);
    let write = async |partition: u32| {
        let (mut from, mut sent, mut settled) = (0, Vec::new(), 0);
        while Instant::now() < until {
            let batch = rows(from, 900, now());
            let mut attempt = Attempt::First;
            while let Err(error) = f.try_traces(partition, from, &batch, attempt).await {
                assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
                attempt = Attempt::Again;
                settled += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            from += 300;
            sent.extend(batch);
        }
        println!("partition {partition}: {} rows, {settled} attempts after the first", sent.len());
        sent
    };
    let (mut sent, other) = futures::join!(write(0), write(1));
    sent.extend(other);
    assert_eq!(f.counts().await, sums(&sent));
    assert_eq!(
        f.count("(SELECT uniqExact(log_partition, log_offset, log_index) FROM traces)").await,
        sums(&sent)[0]
    );
    println!("{} rows were put in by repairs", f.count("(SELECT countIf(repaired) FROM traces)").await);
}

/// Run with `--ignored --nocapture`: what an insert of 50,000 rows takes, and how much of it is the writer's.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure() {
    let Some(f) = Fixture::new().await else { return };
    let cpu = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    };
    const ROWS: u64 = 50_000;
    let at = now();
    let batches: Vec<Vec<Row<AcceptedTrace>>> = (0..20)
        .map(|n| {
            let mut batch = rows(n * 20_000, ROWS, at);
            for (i, row) in (0..).zip(&mut batch) {
                row.value.trace.started_at = at.plus(Duration::from_millis(n * ROWS + i));
            }
            batch
        })
        .collect();
    let (start, before) = (Instant::now(), cpu());
    for (n, batch) in (0..).zip(batches) {
        let range = f.range(Topic::Traces, 0, n * 20_000, (n + 1) * 20_000);
        f.store.insert(range, Rows::of_traces(batch), Attempt::First).await.unwrap();
    }
    let took = start.elapsed().as_secs_f64();
    println!("1,000,000 rows: {:.0} rows/s, {:.2} CPU s of the writer", 1e6 / took, cpu() - before);
    assert_eq!(f.counts().await[..3], [1_000_000; 3]);
    let start = Instant::now();
    let page = f.store.timeline(&app(), &TimelineQuery { limit: 100, ..Default::default() }).await.unwrap();
    println!("timeline of 100: {:?}", start.elapsed());
    let ids: Vec<_> = page.items.iter().map(|item| (app(), item.trace.event_id)).collect();
    let start = Instant::now();
    f.store.known(&ids).await.unwrap();
    println!("known of 100: {:?}", start.elapsed());
    let start = Instant::now();
    f.store.find(ids[50].1).await.unwrap();
    println!("find: {:?}", start.elapsed());

    // The same bytes, ready-made, into the same tables.
    let columns = "event_id, client_id, user_sub, tool, scope_used, status, started_at, duration_ms, \
        session_id, agent, source_ip, error_code, attributes, received_at, late, log_id, log_partition, \
        log_offset, log_index, repaired";
    let mut bytes = Vec::new();
    for n in 0..20 {
        let select = format!(
            "SELECT {columns} FROM traces WHERE log_offset >= {} AND log_offset < {}",
            n * 20_000,
            (n + 1) * 20_000
        );
        let mut cursor = f.client.query_raw(&select).fetch_bytes("RowBinary").unwrap();
        bytes.push(cursor.collect().await.unwrap());
    }
    for table in ["traces", "usage_15m", "usage_daily"] {
        f.sql(&format!("TRUNCATE TABLE {table}")).await;
    }
    let start = Instant::now();
    for (n, bytes) in bytes.into_iter().enumerate() {
        let mut raw = f
            .client
            .insert_formatted_with(format!("INSERT INTO traces ({columns}) FORMAT RowBinary"))
            .with_setting("async_insert", "0")
            .with_setting("insert_deduplication_token", n.to_string());
        raw.send(bytes).await.unwrap();
        raw.end().await.unwrap();
    }
    println!("ready-made RowBinary: {:.0} rows/s", 1e6 / start.elapsed().as_secs_f64());
}
