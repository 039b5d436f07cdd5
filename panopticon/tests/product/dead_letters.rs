//! Records that a stage could not take: seen, and brought back once the cause is mended.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Method;
use panopticon_core::{
    ids::{ClientId, EventId, partition_of},
    log::{Record, Replay},
    time::{Clock as _, SystemClock, Time},
    topic::Topic,
    trace::{AcceptedTrace, Status, Trace, decode_envelope, encode_envelope},
};
use panopticon_proto::log::DeadLetter;
use prost::Message as _;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{App, Engine, System, alone_on_both_engines, eventually, log::OpenLog, logi, run_alone};

alone_on_both_engines!(a_dead_letter_is_listed_and_replayed_once_and_fails_again_by_itself);

const USER: &str = "alice";

/// A trace as the gateway takes it in.
fn taken(app: &App, event_id: Uuid, received_at: Time) -> AcceptedTrace {
    let trace = Trace {
        event_id: EventId(event_id),
        client_id: ClientId::new(&app.id).unwrap(),
        user_sub: USER.to_owned(),
        tool: "calendar.read".to_owned(),
        scope_used: String::new(),
        status: Status::Ok,
        started_at: SystemClock.now(),
        duration_ms: 5,
        session_id: String::new(),
        agent: String::new(),
        source_ip: String::new(),
        error_code: String::new(),
        attributes: Default::default(),
    };
    AcceptedTrace::new(trace, received_at)
}

/// Lays a trace into the raw log that dedupe passes by, with the letter that tells of it, as an older version
/// that could not read it would have; and a record that nobody can read. Answers the trace's id.
async fn lay(s: &System, app: &App) -> Uuid {
    let open = OpenLog::of(s).await;
    let (event_id, log) = (Uuid::new_v4(), &open.log);
    let partitions = log.topic(Topic::TracesRaw).await.unwrap().partitions;
    let partition = partition_of(&[&app.id, USER], partitions);
    let payload = encode_envelope([taken(app, event_id, SystemClock.now())]);
    let replay = Some(Replay { stage: "an older version".to_owned(), first_offset: 0 });
    let passed_by = Record { replay, ..Record::message(payload.clone()) };
    let offset = log.append(Topic::TracesRaw, partition, passed_by).await.unwrap().unwrap();
    let letter = DeadLetter {
        dead_letter_id: Uuid::new_v4().to_string(),
        topic: "traces.raw".to_owned(),
        partition,
        offset,
        stage: "dedupe".to_owned(),
        error: "a field of a later version".to_owned(),
        payload,
        at: SystemClock.now().micros(),
        ..DeadLetter::default()
    };
    log.append(Topic::DeadLetters, 0, Record::message(letter.encode_to_vec())).await.unwrap();
    log.append(Topic::Audit, 0, Record::message(&b"\xff\xff no message"[..])).await.unwrap();
    open.close().await;
    event_id
}

async fn a_dead_letter_is_listed_and_replayed_once_and_fails_again_by_itself(engine: Engine) {
    let s = &System::start(engine, &[]).await;
    let app = s.app().await;
    s.stop().await;
    let event_id = lay(s, &app).await;
    s.start_again().await;

    let listed = async |stage: &str| -> Vec<Value> {
        let all = logi(s, &["dead-letters", "list", "--json"]).await.json();
        all.as_array().unwrap().iter().filter(|letter| letter["stage"] == stage).cloned().collect()
    };
    let only = async |stage: &str| {
        eventually("the dead letter", async || {
            let letters = listed(stage).await;
            if letters.len() == 1 { Ok(letters[0].clone()) } else { Err(letters) }
        })
        .await
    };
    let (trace, poison) = (only("dedupe").await, only("store-audit").await);
    assert_eq!((&trace["state"], &poison["state"]), (&json!("dead"), &json!("dead")));
    assert_eq!((&poison["topic"], &poison["size"]), (&json!("audit"), &json!(13)));

    // The trace comes in, and once only, whoever brings it again.
    let id = trace["dead_letter_id"].as_str().unwrap();
    let told = logi(s, &["dead-letters", "replay", id]).await.done();
    assert!(told.contains("traces.raw for dedupe"), "{told}");
    let rows = s.timeline(&app, 1).await;
    assert_eq!(rows[0]["event_id"], event_id.to_string());
    let again = s.call(Method::POST, &format!("/dead-letters/{id}/replay"), json!({})).await;
    assert_eq!(again.status, 200, "{}", again.text);
    let sent = app.trace_with(json!({"event_id": event_id.to_string(), "user_sub": USER}));
    assert_eq!(app.send(&sent).await.status, 200, "a duplicate");
    s.until_at_rest(&app).await;
    assert_eq!(s.timeline(&app, 1).await.len(), 1);
    let replayed = only("dedupe").await;
    assert_eq!((&replayed["state"], replayed["replayed_at"].is_string()), (&json!("replayed"), true));

    // What nobody can read is dead again, at its new place, and told of in the audit record.
    logi(s, &["dead-letters", "replay", "--all"]).await.done();
    let both = eventually("a second letter", async || {
        let letters = listed("store-audit").await;
        if letters.len() == 2 { Ok(letters) } else { Err(letters) }
    })
    .await;
    assert_eq!((&both[0]["state"], &both[1]["state"]), (&json!("dead"), &json!("replayed")));
    assert_eq!((&both[0]["first_offset"], &both[0]["payload"]), (&poison["offset"], &poison["payload"]));
    eventually("the audit record", async || {
        let audit = s.list("/audit").await;
        let replays = audit.iter().filter(|entry| entry["action"] == "dead_letter.replay").count();
        if replays == 2 { Ok(()) } else { Err(audit) }
    })
    .await;
    s.stop().await;
}

#[test]
fn a_row_that_clickhouse_refuses_is_a_dead_letter_of_its_own_and_its_neighbours_are_stored() {
    run_alone(Engine::Distributed, async |engine| {
        let s = &System::start(engine, &[]).await;
        let app = s.app().await;
        let ids = [0; 3].map(|_| Uuid::new_v4());
        // No date from 2100 on is kept.
        let never = Time::parse_rfc3339("2101-01-01T00:00:00Z").unwrap();
        let now = SystemClock.now();
        let traces = ids.into_iter().zip([now, never, now]).map(|(id, at)| taken(&app, id, at));
        let open = OpenLog::of(s).await;
        let partitions = open.log.topic(Topic::Traces).await.unwrap().partitions;
        let partition = partition_of(&[&app.id, USER], partitions);
        let record = Record::message(encode_envelope(traces));
        open.log.append(Topic::Traces, partition, record).await.unwrap();
        open.close().await;

        let letter = eventually("the dead letter", async || {
            let letters = logi(s, &["dead-letters", "list", "--json"]).await.json();
            match letters.as_array().unwrap().as_slice() {
                [letter] => Ok(letter.clone()),
                _ => Err(letters),
            }
        })
        .await;
        assert_eq!(letter["stage"], "store");
        assert!(letter["error"].as_str().unwrap().contains("received_at"), "{letter}");
        let payload = STANDARD.decode(letter["payload"].as_str().unwrap()).unwrap();
        let dead = decode_envelope(&payload).unwrap();
        assert_eq!(dead.iter().map(|trace| trace.trace.event_id.0).collect::<Vec<_>>(), [ids[1]]);
        let stored = s.timeline(&app, 2).await;
        assert!(stored.iter().all(|row| row["event_id"] != ids[1].to_string()), "{stored:?}");
        s.stop().await;
    });
}
