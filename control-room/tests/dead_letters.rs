//! Dead letters: listed with what became of them, replayed once.

#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use panopticon_core::{
    log::{Record, Replay},
    proto::log::{AuditEntry, DeadLetter},
    topic::Topic,
};
use prost::Message as _;
use serde_json::{Value, json};
use support::House;

async fn lay(house: &House, id: &str, topic: Topic, offset: u64) {
    let letter = DeadLetter {
        dead_letter_id: id.to_owned(),
        topic: topic.name().to_owned(),
        partition: 1,
        offset,
        stage: "store".to_owned(),
        error: "no".to_owned(),
        key: Bytes::from_static(b"k"),
        payload: Bytes::from_static(&[0xff, 0x00]),
        at: house.now().micros(),
        ..DeadLetter::default()
    };
    house.log.append(Topic::DeadLetters, 0, Record::message(letter.encode_to_vec())).await.unwrap();
}

/// The states in the list, newest first.
async fn states(house: &House) -> Vec<(Value, Value)> {
    let list = house.get("/dead-letters").await;
    list.items().iter().map(|letter| (letter["state"].clone(), letter["replayed_at"].clone())).collect()
}

#[tokio::test]
async fn a_replay_appends_the_bytes_for_the_stage_once_and_is_audited() {
    let house = House::open().await;
    lay(&house, "first", Topic::Traces, 7).await;
    lay(&house, "second", Topic::Traces, 8).await;
    assert_eq!(states(&house).await, [(json!("dead"), Value::Null), (json!("dead"), Value::Null)]);

    let answer = house.post("/dead-letters/first/replay", Value::Null).await;
    assert_eq!(answer.status, 202, "{}", answer.json);
    let wanted = json!({"dead_letter_id": "first", "topic": "traces", "partition": 1, "stage": "store",
        "replayed_at": support::NOW.replace('Z', ".000000Z")});
    assert_eq!(answer.json, wanted);
    house.pass_secs(60);
    let again = house.post("/dead-letters/first/replay", Value::Null).await;
    assert_eq!((again.status.as_u16(), &again.json), (200, &wanted), "the second time changes nothing");

    let bounds = house.log.bounds(Topic::Traces, 1).await.unwrap();
    let records = house.log.read(Topic::Traces, 1, bounds.low, bounds.high, 1 << 20).await.unwrap();
    let record = Record {
        key: Bytes::from_static(b"k"),
        payload: Some(Bytes::from_static(&[0xff, 0x00])),
        replay: Some(Replay { stage: "store".to_owned(), first_offset: 7 }),
    };
    assert_eq!(records.into_iter().map(|stored| stored.record).collect::<Vec<_>>(), [record]);
    assert_eq!(
        states(&house).await,
        [(json!("dead"), Value::Null), (json!("replayed"), wanted["replayed_at"].clone())]
    );
    let list = house.get("/dead-letters").await;
    assert_eq!((&list.items()[0]["size"], &list.items()[0]["offset"]), (&json!(3), &json!(8)));

    let audit: Vec<AuditEntry> = house.messages(Topic::Audit).await;
    let replays: Vec<_> = audit.iter().filter(|entry| entry.action == "dead_letter.replay").collect();
    assert_eq!(replays.len(), 1);
    assert_eq!((replays[0].actor.as_str(), replays[0].target.as_str()), ("admin", "first"));
}

#[tokio::test]
async fn a_letter_that_is_not_there_is_a_404() {
    let house = House::open().await;
    lay(&house, "first", Topic::Traces, 7).await;
    let answer = house.post("/dead-letters/none/replay", Value::Null).await;
    assert_eq!(answer.refusal(), (404, "not_found", ""));
}
