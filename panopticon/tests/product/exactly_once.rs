//! Exactly once, from the 202 to the row: under resends by all roads, and under crashes.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use panopticon_proto::v1::{IngestBatchRequest, Outcome};
use serde_json::{Value, json};

use crate::support::{
    App, Engine, System, alone_on_both_engines, app::proto_trace, eventually, on_both_engines,
};

on_both_engines!(five_thousand_traces_sent_again_and_again_are_five_thousand_rows);
alone_on_both_engines!(a_crash_under_load_loses_nothing_that_was_answered_and_repeats_nothing);

const TRACES: usize = 5_000;
const BATCH: usize = 100;

/// Ids that were answered as accepted, each time that they were.
type Accepted = Arc<Mutex<Vec<String>>>;

async fn by_http(app: &App, batch: &[Value], accepted: &Accepted) {
    let lines: String = batch.iter().map(|trace| format!("{trace}\n")).collect();
    let request = app.post("/panopticon/traces").header("content-type", "application/x-ndjson").body(lines);
    let answer: Value = request.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
    for result in answer["results"].as_array().unwrap() {
        match result["status"].as_str() {
            Some("accepted") => {
                accepted.lock().unwrap().push(result["event_id"].as_str().unwrap().to_owned())
            }
            Some("duplicate") => {}
            _ => panic!("{result}"),
        }
    }
}

async fn by_grpc_stream(app: &App, batches: Vec<Vec<Value>>, accepted: &Accepted) {
    let of = |batch: Vec<Value>| IngestBatchRequest { traces: batch.iter().map(proto_trace).collect() };
    let requests: Vec<IngestBatchRequest> = batches.into_iter().map(of).collect();
    let asked = app.ask(futures::stream::iter(requests));
    let mut answers = app.grpc().await.ingest_stream(asked).await.unwrap().into_inner();
    while let Some(answer) = answers.message().await.unwrap() {
        for result in answer.results {
            match result.outcome() {
                Outcome::Accepted => accepted.lock().unwrap().push(result.event_id),
                Outcome::Duplicate => {}
                _ => panic!("{result:?}"),
            }
        }
    }
}

/// Every trace is a row of the timeline once, and counted once.
async fn is_stored_once(s: &System, app: &App, expected: &HashSet<String>) {
    s.timeline(app, expected.len()).await;
    s.until_at_rest(app).await;
    let rows = s.timeline(app, expected.len()).await;
    assert_eq!(rows.len(), expected.len(), "rows");
    let stored: HashSet<String> =
        rows.iter().map(|row| row["event_id"].as_str().unwrap().to_owned()).collect();
    assert!(stored == *expected, "the rows are not the traces that were answered");
    let expected = expected.len() as u64;
    eventually("exact usage", async || {
        let usage = s.usage(app).await;
        if usage == [expected, 0, 0, 0] { Ok(()) } else { Err(usage) }
    })
    .await;
}

async fn five_thousand_traces_sent_again_and_again_are_five_thousand_rows(s: &System) {
    let app = s.app().await;
    let unlimited = json!({"rate_limit": {"per_minute": 0, "per_tool_per_minute": 0}});
    s.patch(&format!("/apps/{}/policy", app.id), unlimited).await.expect(200);
    let traces: Vec<Value> = (0..TRACES)
        .map(|i| {
            app.trace_with(json!({"user_sub": format!("user-{}", i % 17), "tool": format!("tool-{}", i % 5)}))
        })
        .collect();
    let accepted = Accepted::default();
    let http = async |app: App, batches: Vec<&[Value]>| {
        for batch in batches {
            by_http(&app, batch, &accepted).await;
        }
    };
    let forward: Vec<&[Value]> = traces.chunks(BATCH).collect();
    let backward: Vec<&[Value]> = traces.rchunks(BATCH / 2).collect();
    let streamed: Vec<Vec<Value>> = traces.chunks(BATCH * 2).map(<[Value]>::to_vec).collect();
    let singles = async {
        for trace in traces.iter().step_by(25) {
            let answer = app.send(trace).await;
            match answer.status {
                202 => accepted.lock().unwrap().push(trace["event_id"].as_str().unwrap().to_owned()),
                status => assert_eq!(status, 200),
            }
        }
    };
    futures::join!(
        http(app.elsewhere(), forward.clone()),
        http(app.elsewhere(), backward),
        by_grpc_stream(&app, streamed, &accepted),
        singles,
    );
    let accepted = accepted.lock().unwrap().clone();
    let ids: HashSet<String> = accepted.iter().cloned().collect();
    assert_eq!((accepted.len(), ids.len()), (TRACES, TRACES), "each id is accepted once, whoever sends it");
    is_stored_once(s, &app, &ids).await;
}

/// Sends batches until told to stop, each again and again until it is answered; what was answered is kept.
async fn send_through_everything(app: App, stop: Arc<AtomicBool>, answered: Arc<Mutex<HashSet<String>>>) {
    while !stop.load(Ordering::Relaxed) {
        let batch: Vec<Value> =
            (0..20).map(|i| app.trace_with(json!({"user_sub": format!("user-{}", i % 5)}))).collect();
        let mut left = batch;
        while !left.is_empty() {
            let sent =
                app.post("/panopticon/traces").json(&left).timeout(Duration::from_secs(10)).send().await;
            let answer: Value = match sent {
                Ok(answer) if answer.status() == 200 => answer.json().await.unwrap_or_default(),
                // Not confirmed: the same again is always safe.
                _ => Value::Null,
            };
            let Some(results) = answer["results"].as_array() else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let mut again = Vec::new();
            for (trace, result) in left.into_iter().zip(results) {
                match result["status"].as_str() {
                    Some("accepted" | "duplicate") => {
                        answered.lock().unwrap().insert(result["event_id"].as_str().unwrap().to_owned());
                    }
                    _ if result["error"] == "unavailable" => again.push(trace),
                    _ => panic!("{result}"),
                }
            }
            left = again;
        }
    }
}

async fn a_crash_under_load_loses_nothing_that_was_answered_and_repeats_nothing(engine: Engine) {
    let s = System::start(engine, &[]).await;
    let app = s.app().await;
    let unlimited = json!({"rate_limit": {"per_minute": 0, "per_tool_per_minute": 0}});
    s.patch(&format!("/apps/{}/policy", app.id), unlimited).await.expect(200);
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(HashSet::new())));
    let senders: Vec<_> = (0..4)
        .map(|_| tokio::spawn(send_through_everything(app.elsewhere(), stop.clone(), answered.clone())))
        .collect();
    let crashes: &[&[&str]] = match engine {
        Engine::Embedded => &[&["panopticon"], &["panopticon"], &["panopticon"]],
        Engine::Distributed => &[
            &["dedupe"],
            &["store"],
            &["ingest-gateway"],
            &["store", "dedupe"],
            &["dedupe", "store", "ingest-gateway"],
        ],
    };
    for names in crashes {
        let before = answered.lock().unwrap().len();
        eventually("traces that are answered", async || {
            let now = answered.lock().unwrap().len();
            if now >= before + 400 { Ok(()) } else { Err(now) }
        })
        .await;
        names.iter().for_each(|name| s.crash(name));
        s.until_ready().await;
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
    let answered = answered.lock().unwrap().clone();
    is_stored_once(&s, &app, &answered).await;
    app.until_admitted().await;
    app.accepted(&app.trace()).await;
}
