//! The file as people who ask in SQL see it.

// Tests may, and so may what they share.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc};

use panopticon_core::{
    config::Config,
    erasure::{Erasure, TracesEnd},
    ids::{ClientId, EventId},
    proto::log::{AuditEntry, Delivery, Detection, GuardAction, KillSwitch},
    store::{Attempt, BatchRange, Row, Rows},
    time::{Clock as _, SystemClock, Time},
    topic::Topic,
    trace::{AcceptedTrace, Status, Trace},
};
use panopticon_embedded::Embedded;
use rusqlite::{Connection, OpenFlags, types::Value};
use tempfile::TempDir;
use uuid::Uuid;

fn trace(n: u128, status: Status) -> AcceptedTrace {
    let trace = Trace {
        event_id: EventId(Uuid::from_u128(n)),
        client_id: ClientId::new("x").unwrap(),
        user_sub: format!("user_{n}"),
        tool: if n < 3 { "search".to_owned() } else { "book".to_owned() },
        scope_used: "read".to_owned(),
        status,
        started_at: Time::parse_rfc3339("2026-06-30T12:16:00.000123Z").unwrap(),
        duration_ms: 10,
        session_id: String::new(),
        agent: String::new(),
        source_ip: String::new(),
        error_code: String::new(),
        attributes: BTreeMap::from([("region".to_owned(), "eu".to_owned())]),
    };
    AcceptedTrace { trace, received_at: SystemClock.now(), late: true, place: None }
}

fn rows(conn: &Connection, sql: &str) -> Vec<Vec<String>> {
    let mut statement = conn.prepare(sql).unwrap();
    let columns = statement.column_count();
    let text = |value: Value| match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(n) => n.to_string(),
        Value::Real(n) => n.to_string(),
        Value::Text(text) => text,
        Value::Blob(_) => "a blob".to_owned(),
    };
    let rows = statement.query_map([], |row| (0..columns).map(|i| Ok(text(row.get(i)?))).collect());
    rows.unwrap().map(Result::unwrap).collect()
}

async fn insert<T: Clone>(engine: &Embedded, topic: Topic, values: &[T], kind: fn(Vec<Row<T>>) -> Rows) {
    let log_id = engine.log.topic(topic).await.unwrap().log_id;
    let range = BatchRange { topic, log_id, partition: 0, from: 0, to: values.len() as u64 };
    let rows = values.iter().zip(0..).map(|(value, offset)| Row { offset, index: 0, value: value.clone() });
    engine.store.insert(range, kind(rows.collect()), Attempt::First).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn simple_sql_works_and_times_and_ids_are_readable() {
    let directory = TempDir::new().unwrap();
    let config = Config { data_dir: directory.path().to_owned(), ..Config::default() };
    let engine = Embedded::open(&config, Arc::new(SystemClock)).unwrap();
    let at = Time::parse_rfc3339("2026-06-30T12:16:00Z").unwrap().micros();
    let traces = [trace(1, Status::Ok), trace(2, Status::Error), trace(3, Status::Denied)];
    insert(&engine, Topic::Traces, &traces, Rows::of_traces).await;
    let found = Detection {
        detection_id: "d".to_owned(),
        client_id: "x".to_owned(),
        phase: "started".to_owned(),
        detected_at: at,
        ..Detection::default()
    };
    let ended = Detection { phase: "ended".to_owned(), ended_at: at, ..found.clone() };
    insert(&engine, Topic::Detections, &[found, ended], Rows::Detections).await;
    let kill = KillSwitch { state: "killed".to_owned(), ..KillSwitch::default() };
    let action =
        GuardAction { action_id: "a".to_owned(), kill: Some(kill), created_at: at, ..GuardAction::default() };
    insert(&engine, Topic::GuardActions, &[action], Rows::GuardActions).await;
    let delivery = Delivery {
        delivery_id: "w".to_owned(),
        body: "{}".into(),
        created_at: SystemClock.now().micros(),
        ..Delivery::default()
    };
    insert(&engine, Topic::WebhookDeliveries, &[delivery.clone(), delivery], Rows::Deliveries).await;
    let entry = AuditEntry { audit_id: "e".to_owned(), at, ..AuditEntry::default() };
    insert(&engine, Topic::Audit, &[entry], Rows::Audit).await;

    // Beside the running process.
    let file = directory.path().join("panopticon.db");
    let conn = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let ask = |sql| rows(&conn, sql);
    assert_eq!(
        ask("SELECT tool, count(*) FROM traces WHERE client_id = 'x' GROUP BY tool ORDER BY tool"),
        [["book", "1"], ["search", "2"]]
    );
    assert_eq!(
        ask("SELECT event_id, started_at, status, late, log_offset, attributes ->> 'region' FROM traces
             WHERE event_id = '00000000-0000-0000-0000-000000000002'"),
        [["00000000-0000-0000-0000-000000000002", "2026-06-30T12:16:00.000123Z", "error", "1", "1", "eu"]]
    );
    assert_eq!(
        ask("SELECT DISTINCT bucket FROM usage_15m"),
        [["2026-06-30T12:15:00Z"]],
        "15 minutes that hold the call"
    );
    assert_eq!(
        ask("SELECT client_id, date, traces, errors, denied, duration_ms FROM usage_by_app_day"),
        [["x", "2026-06-30", "3", "2", "1", "30"]]
    );
    assert_eq!(
        ask("SELECT date, tool, traces FROM usage_daily WHERE status = 'ok'"),
        [["2026-06-30", "search", "1"]]
    );
    assert_eq!(ask("SELECT tool, sum(traces) FROM usage_by_tool_day GROUP BY tool").len(), 2);
    assert_eq!(ask("SELECT scope_used, traces FROM usage_by_scope_day"), [["read", "3"]]);
    assert_eq!(ask("SELECT user_sub FROM usage_by_user_day").len(), 3);
    assert_eq!(
        ask(
            "SELECT phase, detected_at, ended_at, data ->> 'detection_id' FROM detections ORDER BY log_offset"
        ),
        [
            ["started", "2026-06-30T12:16:00.000000Z", "NULL", "d"],
            ["ended", "2026-06-30T12:16:00.000000Z", "2026-06-30T12:16:00.000000Z", "d"]
        ]
    );
    assert_eq!(ask("SELECT action_id, kill_state FROM guard_actions"), [["a", "killed"]]);
    assert_eq!(ask("SELECT count(*), max(body) FROM webhook_deliveries"), [["2", "{}"]]);
    assert_eq!(ask("SELECT audit_id, at FROM audit"), [["e", "2026-06-30T12:16:00.000000Z"]]);
    // The index of the timeline is of use to them, too.
    let plan = ask("EXPLAIN QUERY PLAN SELECT count(*) FROM traces WHERE client_id = 'x'");
    assert!(plan.iter().any(|step| step[3].contains("traces_rows_timeline")), "{plan:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_person_is_a_pseudonym_in_the_aggregates() {
    let directory = TempDir::new().unwrap();
    let config = Config { data_dir: directory.path().to_owned(), ..Config::default() };
    let engine = Embedded::open(&config, Arc::new(SystemClock)).unwrap();
    let traces = [trace(1, Status::Ok), trace(2, Status::Error), trace(2, Status::Denied)];
    insert(&engine, Topic::Traces, &traces, Rows::of_traces).await;
    let erasure = Erasure {
        client_id: ClientId::new("x").unwrap(),
        user_sub: "user_2".to_owned(),
        pseudonym: "erased-1".to_owned(),
        until: TracesEnd {
            log_id: engine.log.topic(Topic::Traces).await.unwrap().log_id,
            partition: 0,
            offset: 3,
        },
    };
    engine.store.erase(&erasure).await.unwrap();
    let file = directory.path().join("panopticon.db");
    let conn = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    assert_eq!(
        rows(&conn, "SELECT user_sub, traces, errors, denied FROM usage_by_user_day ORDER BY user_sub"),
        [["erased-1", "2", "2", "1"], ["user_1", "1", "0", "0"]]
    );
    assert_eq!(rows(&conn, "SELECT user_sub FROM traces"), [["user_1"]]);
    assert_eq!(rows(&conn, "SELECT traces FROM usage_by_app_day"), [["3"]]);
}
