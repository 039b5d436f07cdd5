//! Compacted topics.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use panopticon_core::{
    log::{Record, Replay, TailFrom},
    topic::Topic,
};

use crate::{EngineUnderTest, Ports, fixtures::within};

async fn write(ports: &Ports, topic: Topic, key: &str, value: Option<&str>) {
    let record = match value {
        Some(value) => Record::keyed(key.as_bytes().to_vec(), value.as_bytes().to_vec()),
        None => Record::tombstone(key.as_bytes().to_vec()),
    };
    ports.log.append(topic, 0, record).await.unwrap();
}

async fn table(ports: &Ports, topic: Topic, partition: u32) -> BTreeMap<String, String> {
    let text = |bytes: bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let rows = ports.log.table(topic, partition).await.unwrap();
    let count = rows.len();
    let table: BTreeMap<_, _> = rows.into_iter().map(|(key, value)| (text(key), text(value))).collect();
    assert_eq!(table.len(), count, "a key is there twice");
    table
}

async fn fill(ports: &Ports, topic: Topic) {
    for n in 0..5 {
        write(ports, topic, "a", Some(&format!("a{n}"))).await;
    }
    write(ports, topic, "b", Some("b0")).await;
    write(ports, topic, "c", Some("c0")).await;
    write(ports, topic, "b", None).await;
    write(ports, topic, "d", None).await;
    write(ports, topic, "e", None).await;
    write(ports, topic, "e", Some("again")).await;
}

fn filled() -> BTreeMap<String, String> {
    [("a", "a4"), ("c", "c0"), ("e", "again")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

/// No older value, and nothing that was taken out.
pub async fn a_table_holds_the_latest_value_of_each_key<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    // Not `control`: an engine may keep rows of its own there.
    for topic in [Topic::DetectorState, Topic::EnforcerState, Topic::WebhookDeliveries] {
        assert!(table(&ports, topic, 0).await.is_empty());
        fill(&ports, topic).await;
        assert_eq!(table(&ports, topic, 0).await, filled(), "{topic}");
    }
    assert!(table(&ports, Topic::DetectorState, 1).await.is_empty());
}

/// Tables are what the log says, not what a process remembers.
pub async fn a_table_is_the_same_after_a_reopen<E: EngineUnderTest>(engine: E) {
    fill(&engine.ports(), Topic::WebhookDeliveries).await;
    fill(&engine.ports(), Topic::DetectorState).await;
    let engine = engine.reopen().await;
    let ports = engine.ports();
    assert_eq!(table(&ports, Topic::WebhookDeliveries, 0).await, filled());
    assert_eq!(table(&ports, Topic::DetectorState, 0).await, filled());
    write(&ports, Topic::WebhookDeliveries, "c", Some("c1")).await;
    assert_eq!(table(&ports, Topic::WebhookDeliveries, 0).await["c"], "c1");
}

/// An old value that is replayed for a stage does not undo a newer one.
pub async fn a_replayed_record_is_read_but_is_no_row_of_a_table<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    fill(&ports, Topic::WebhookDeliveries).await;
    let replay = Some(Replay { stage: "store".to_owned(), first_offset: 0 });
    for key in ["c", "f"] {
        let old = Record { replay: replay.clone(), ..Record::keyed(key, "old") };
        ports.log.append(Topic::WebhookDeliveries, 0, old).await.unwrap();
    }
    assert_eq!(table(&ports, Topic::WebhookDeliveries, 0).await, filled());
    let read = ports.read_all(Topic::WebhookDeliveries, 0).await;
    assert_eq!(read.iter().filter(|stored| stored.record.replay == replay).count(), 2);
}

/// Whoever follows ends with the same table, deletions included.
pub async fn a_tail_of_a_compacted_topic_brings_the_latest_of_each_key_and_tombstones<E: EngineUnderTest>(
    engine: E,
) {
    let ports = engine.ports();
    fill(&ports, Topic::WebhookDeliveries).await;
    let mut tail = ports.log.tail(Topic::WebhookDeliveries, TailFrom::Start).await.unwrap();
    write(&ports, Topic::WebhookDeliveries, "c", None).await;
    write(&ports, Topic::WebhookDeliveries, "end", Some("")).await;
    let mut followed = BTreeMap::new();
    loop {
        let (_, stored) = within("the tail", tail.next()).await.unwrap().unwrap();
        let key = String::from_utf8(stored.record.key.to_vec()).unwrap();
        if key == "end" {
            break;
        }
        match stored.record.payload {
            Some(value) => followed.insert(key, String::from_utf8(value.to_vec()).unwrap()),
            None => followed.remove(&key),
        };
    }
    let mut wanted = filled();
    wanted.remove("c");
    assert_eq!(followed, wanted);
}
