//! Appends, reads, tables, tails and exclusive writers.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::StreamExt;
use panopticon_core::{
    log::{EventLog, LogError, Output, Record, Replay, TailFrom},
    topic::Topic,
};
use panopticon_distributed::kafka::{KafkaLog, OpenError, migrate};

use crate::bed::{Bed, config, message, output, read_all, text, texts, within};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_appended_is_read_as_it_was_in_the_order_of_offsets() {
    let Some(bed) = Bed::new(2).await else { return };
    let records = [
        message("plain"),
        Record::keyed("key", "value"),
        Record::tombstone("key"),
        Record { replay: Some(Replay { stage: "store".to_owned(), first_offset: 3 }), ..message("replayed") },
        message(""),
    ];
    let mut offsets = Vec::new();
    for record in &records {
        offsets.push(bed.log.append(Topic::Traces, 1, record.clone()).await.unwrap().unwrap());
    }
    let stored = read_all(&*bed.log, Topic::Traces, 1).await;
    assert_eq!(stored.iter().map(|s| s.offset).collect::<Vec<_>>(), offsets);
    assert_eq!(stored.into_iter().map(|s| s.record).collect::<Vec<_>>(), records);
    assert!(bed.texts(Topic::Traces, 0).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_appends_at_once_all_get_offsets_of_their_own() {
    let Some(bed) = Bed::new(1).await else { return };
    let mut appends = Vec::new();
    for i in 0..500 {
        let log = Arc::clone(&bed.log);
        appends.push(tokio::spawn(async move {
            (i, log.append(Topic::TracesRaw, 0, message(&format!("{i}"))).await.unwrap().unwrap())
        }));
    }
    let mut by_offset = HashMap::new();
    for append in appends {
        let (i, offset) = append.await.unwrap();
        by_offset.insert(offset, format!("{i}"));
    }
    assert_eq!(by_offset.len(), 500);
    for stored in read_all(&*bed.log, Topic::TracesRaw, 0).await {
        assert_eq!(by_offset.remove(&stored.offset), Some(text(&stored.record)));
    }
    assert!(by_offset.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_keeps_to_its_range_and_its_size_but_brings_at_least_one_record() {
    let Some(bed) = Bed::new(1).await else { return };
    for i in 0..10 {
        bed.append(Topic::Traces, 0, &format!("record {i}")).await;
    }
    let read = |from, to, bytes| bed.log.read(Topic::Traces, 0, from, to, bytes);
    assert_eq!(texts(&read(3, 5, 1 << 20).await.unwrap()), ["record 3", "record 4"]);
    assert_eq!(texts(&read(3, 9, 1).await.unwrap()), ["record 3"]);
    assert_eq!(texts(&read(3, 9, 17).await.unwrap()), ["record 3", "record 4"]);
    assert!(read(5, 5, 100).await.unwrap().is_empty());
    // Beyond the end there is nothing, and that is found out.
    assert!(within(read(10, 20, 100)).await.unwrap().is_empty());
    assert!(within(read(15, 20, 100)).await.unwrap().is_empty());
    assert_eq!(within(read(8, 1_000, 1 << 20)).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_beyond_the_limit_is_refused_with_its_size_and_the_limit_itself_fits() {
    let Some(bed) = Bed::new(1).await else { return };
    let limit = bed.config.kafka.max_record_bytes;
    let refused = bed.log.append(Topic::Traces, 0, Record::message(vec![7; limit + 1])).await;
    assert!(matches!(refused, Err(LogError::TooLarge { bytes, .. }) if bytes == limit + 1), "{refused:?}");
    // Bytes that do not compress.
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(limit)
    .collect();
    bed.log.append(Topic::Traces, 0, Record::message(noise.clone())).await.unwrap();
    let mut writer = bed.log.writer("big").await.unwrap();
    let record = Record::message(noise);
    writer.commit(vec![Output { topic: Topic::Traces, partition: 0, record }]).await.unwrap();
    assert_eq!(read_all(&*bed.log, Topic::Traces, 0).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_has_the_latest_record_of_each_key_and_no_tombstones() {
    let Some(bed) = Bed::new(1).await else { return };
    let before = bed.log.table(Topic::WebhookDeliveries, 0).await.unwrap();
    assert!(before.is_empty());
    for record in [
        Record::keyed("a", "1"),
        Record::keyed("b", "1"),
        Record::keyed("a", "2"),
        Record::tombstone("b"),
        Record::keyed("c", "1"),
    ] {
        bed.log.append(Topic::WebhookDeliveries, 0, record).await.unwrap();
    }
    let table = bed.log.table(Topic::WebhookDeliveries, 0).await.unwrap();
    assert_eq!(table, [("a".into(), "2".into()), ("c".into(), "1".into())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writers_records_appear_together_and_a_newer_writer_fences_it() {
    let Some(bed) = Bed::new(2).await else { return };
    let mut first = bed.log.writer("control-writer").await.unwrap();
    let both =
        vec![output(Topic::Traces, 0, "a"), output(Topic::Audit, 0, "b"), output(Topic::Traces, 0, "c")];
    let offsets = first.commit(both).await.unwrap();
    assert_eq!((offsets[0], offsets[1], offsets[2]), (0, 0, 1));
    assert_eq!(bed.texts(Topic::Traces, 0).await, ["a", "c"]);
    assert_eq!(bed.texts(Topic::Audit, 0).await, ["b"]);

    let mut second = bed.another().await.writer("control-writer").await.unwrap();
    let fenced = first.commit(vec![output(Topic::Audit, 0, "too late")]).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    second.commit(vec![output(Topic::Audit, 0, "d")]).await.unwrap();
    assert_eq!(bed.texts(Topic::Audit, 0).await, ["b", "d"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_cannot_be_whole_leaves_nothing() {
    let Some(bed) = Bed::new(1).await else { return };
    let mut writer = bed.log.writer("w").await.unwrap();
    let large = Record::message(vec![0; bed.config.kafka.max_record_bytes + 1]);
    let outputs =
        vec![output(Topic::Traces, 0, "half"), Output { topic: Topic::Traces, partition: 0, record: large }];
    assert!(matches!(writer.commit(outputs).await, Err(LogError::TooLarge { .. })));
    assert!(bed.texts(Topic::Traces, 0).await.is_empty());
    writer.commit(vec![output(Topic::Traces, 0, "whole")]).await.unwrap();
    assert_eq!(bed.texts(Topic::Traces, 0).await, ["whole"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_has_what_comes_after_its_beginning_from_all_partitions() {
    let Some(bed) = Bed::new(2).await else { return };
    bed.append(Topic::Traces, 0, "old").await;
    let mut from_end = bed.log.tail(Topic::Traces, TailFrom::End).await.unwrap();
    let mut from_start = bed.log.tail(Topic::Traces, TailFrom::Start).await.unwrap();
    let mut from_offsets = bed.log.tail(Topic::Traces, TailFrom::Offsets(vec![0, 1])).await.unwrap();
    bed.append(Topic::Traces, 1, "zero").await;
    bed.append(Topic::Traces, 1, "one").await;
    bed.log.writer("w").await.unwrap().commit(vec![output(Topic::Traces, 0, "new")]).await.unwrap();

    let next = async |tail: &mut panopticon_core::log::Tail, count| {
        let mut found = Vec::new();
        for _ in 0..count {
            let (partition, stored) = within(tail.next()).await.unwrap().unwrap();
            found.push(format!("{partition} {}", text(&stored.record)));
        }
        found.sort();
        found
    };
    assert_eq!(next(&mut from_end, 3).await, ["0 new", "1 one", "1 zero"]);
    assert_eq!(next(&mut from_start, 4).await, ["0 new", "0 old", "1 one", "1 zero"]);
    assert_eq!(next(&mut from_offsets, 3).await, ["0 new", "0 old", "1 one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_broker_is_named_soon() {
    let Some(mut config) = config(1) else { return };
    config.kafka.brokers = "127.0.0.1:9".to_owned();
    let error = tokio::time::timeout(Duration::from_secs(10), KafkaLog::connect(&config)).await.unwrap();
    let error = error.err().expect("nobody listens there");
    assert!(matches!(error, OpenError::Unreachable { .. }));
    let text = error.to_string();
    assert!(text.contains("127.0.0.1:9") && text.to_lowercase().contains("refused"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_migration_there_is_no_topic() {
    let Some(config) = config(1) else { return };
    let log = KafkaLog::connect(&config).await.unwrap();
    assert!(matches!(log.topic(Topic::Traces).await, Err(LogError::NoTopic(Topic::Traces))));
    assert!(matches!(log.append(Topic::Traces, 0, message("x")).await, Err(LogError::NoTopic(_))));
    assert!(matches!(log.subscribe("stage", Topic::Traces).await.err(), Some(LogError::NoTopic(_))));
    assert!(matches!(log.tail(Topic::Traces, TailFrom::End).await.err(), Some(LogError::NoTopic(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_at_once_agree_on_one_identity_for_each_topic() {
    let Some(config) = config(3) else { return };
    let migrations = (0..6).map(|_| migrate(&config));
    let reports: Vec<_> =
        futures::future::join_all(migrations).await.into_iter().map(|report| report.unwrap()).collect();
    let created: usize = reports.iter().map(|report| report.created.len()).sum();
    assert_eq!(created, Topic::ALL.len());
    let given: HashMap<_, _> = reports.iter().flat_map(|report| report.identified.clone()).collect();
    let identities: usize = reports.iter().map(|report| report.identified.len()).sum();
    assert_eq!((given.len(), identities), (Topic::ALL.len(), Topic::ALL.len()), "each given once");

    let log = KafkaLog::connect(&config).await.unwrap();
    for topic in Topic::ALL {
        let info = log.topic(topic).await.unwrap();
        assert_eq!(info.log_id, given[&topic]);
    }
    assert_eq!(log.topic(Topic::Traces).await.unwrap().partitions, 3);
    assert_eq!(log.topic(Topic::Control).await.unwrap().partitions, 1);
    let again = migrate(&config).await.unwrap();
    assert!(again.created.is_empty() && again.identified.is_empty());
}
