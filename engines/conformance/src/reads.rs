//! Appending and reading.

use std::time::Duration;

use bytes::Bytes;
use panopticon_core::{
    log::{Commit, LogError, PollLimits, Record, Replay},
    topic::{Cut, Topic},
};

use crate::{
    EngineUnderTest,
    fixtures::{PATIENCE, READ_BYTES, message, text, texts},
};

/// A little more than topics that carry traces are kept by default.
const LOG_RETENTION: Duration = Duration::from_secs(8 * 86_400);

/// Offsets grow, records come in their order, and a partition has nothing of another.
pub async fn appended_records_are_read_back_in_order_with_growing_offsets<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let mut offsets = Vec::new();
    for n in 0..10 {
        offsets.push(ports.append(Topic::TracesRaw, 0, &format!("a{n}")).await);
        ports.append(Topic::TracesRaw, 1, &format!("b{n}")).await;
    }
    assert!(offsets.is_sorted_by(|a, b| a < b), "{offsets:?}");

    let read = ports.read_all(Topic::TracesRaw, 0).await;
    assert_eq!(texts(&read), (0..10).map(|n| format!("a{n}")).collect::<Vec<_>>());
    assert_eq!(read.iter().map(|stored| stored.offset).collect::<Vec<_>>(), offsets);
    let bounds = ports.log.bounds(Topic::TracesRaw, 0).await.unwrap();
    assert!(bounds.low <= offsets[0] && bounds.high > offsets[9], "{bounds:?} of {offsets:?}");
    assert_eq!(texts(&ports.read_all(Topic::TracesRaw, 1).await)[9], "b9");
    assert!(ports.read_all(Topic::Traces, 0).await.is_empty());
}

/// An answered append outlives the process.
pub async fn an_appended_record_is_there_after_a_reopen<E: EngineUnderTest>(engine: E) {
    let before = engine.ports();
    let first = before.append(Topic::TracesRaw, 0, "kept").await;
    drop(before);
    let engine = engine.reopen().await;
    let ports = engine.ports();
    let read = ports.read_all(Topic::TracesRaw, 0).await;
    assert_eq!(texts(&read), ["kept"]);
    assert_eq!(read[0].offset, first);
    assert!(ports.append(Topic::TracesRaw, 0, "next").await > first);
}

/// Partitions and the log id stay; no two topics share an id.
pub async fn a_topic_keeps_its_partitions_and_identity<E: EngineUnderTest>(engine: E) {
    let mut before = Vec::new();
    for topic in Topic::ALL {
        let info = engine.ports().log.topic(topic).await.unwrap();
        match topic.cut() {
            Cut::Single => assert_eq!(info.partitions, 1, "{topic}"),
            Cut::AsConfigured => assert!(info.partitions >= 2, "{topic}"),
        }
        assert!(!before.iter().any(|(_, other): &(Topic, _)| *other == info), "{topic}");
        before.push((topic, info));
    }
    let engine = engine.reopen().await;
    for (topic, info) in before {
        assert_eq!(engine.ports().log.topic(topic).await.unwrap(), info, "{topic}");
    }
}

/// Appends at the same time are all in, once, and answered with their own offsets.
pub async fn concurrent_appends_are_all_kept_once<E: EngineUnderTest>(engine: E) {
    const APPENDS: usize = 200;
    let log = engine.ports().log;
    let appends = (0..APPENDS).map(|n| {
        let log = log.clone();
        tokio::spawn(async move {
            let offset = log.append(Topic::TracesRaw, 0, message(&n.to_string())).await.unwrap();
            (offset, n.to_string())
        })
    });
    let mut answered = Vec::new();
    for append in appends.collect::<Vec<_>>() {
        answered.push(append.await.unwrap());
    }
    let read = engine.ports().read_all(Topic::TracesRaw, 0).await;
    assert_eq!(read.len(), APPENDS);
    for (offset, wanted) in answered {
        let found: Vec<_> = read.iter().filter(|stored| text(stored) == wanted).collect();
        assert_eq!(found.len(), 1, "{wanted}");
        assert!(offset.is_none_or(|offset| offset == found[0].offset), "{wanted}");
    }
}

/// All parts of a record survive.
pub async fn a_key_a_tombstone_and_the_replay_come_back_as_written<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let bytes: Vec<u8> = (0..=255).collect();
    let replayed = Record {
        key: Bytes::from(bytes.clone()),
        payload: Some(Bytes::from(bytes)),
        replay: Some(Replay { stage: "store".to_owned(), first_offset: u64::from(u32::MAX) + 7 }),
    };
    let empty = Record::message(Bytes::new());
    let tombstone = Record::tombstone("gone");
    for record in [&replayed, &empty] {
        ports.log.append(Topic::TracesRaw, 0, record.clone()).await.unwrap();
    }
    ports.log.append(Topic::WebhookDeliveries, 0, tombstone.clone()).await.unwrap();

    let read: Vec<_> =
        ports.read_all(Topic::TracesRaw, 0).await.into_iter().map(|stored| stored.record).collect();
    assert_eq!(read, [replayed, empty]);
    assert_eq!(ports.read_all(Topic::WebhookDeliveries, 0).await[0].record, tombstone);
}

/// `from` is included, `to` is not; one record always comes, more only while they fit.
pub async fn a_read_keeps_to_its_range_and_its_bytes<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let mut offsets = Vec::new();
    for n in 0..6 {
        offsets.push(ports.append(Topic::TracesRaw, 0, &format!("{n}").repeat(1_000)).await);
    }
    let read = async |from, to, bytes| ports.log.read(Topic::TracesRaw, 0, from, to, bytes).await.unwrap();

    let middle = read(offsets[1], offsets[4], READ_BYTES).await;
    assert_eq!(middle.iter().map(|stored| stored.offset).collect::<Vec<_>>(), offsets[1..4]);
    assert_eq!(read(offsets[2], u64::MAX, 1).await.len(), 1);
    let some = read(offsets[0], u64::MAX, 2_500).await;
    assert!((1..=2).contains(&some.len()), "{} records", some.len());
    assert!(read(offsets[3], offsets[3], READ_BYTES).await.is_empty());
    let high = ports.log.bounds(Topic::TracesRaw, 0).await.unwrap().high;
    assert!(read(high, u64::MAX, READ_BYTES).await.is_empty());
}

/// The answer is an error, and the next append goes on.
pub async fn a_record_that_is_too_large_is_refused_and_hurts_nobody<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let large = Record::message(vec![0; 64 << 20]);
    let (refused, taken) = tokio::join!(
        ports.log.append(Topic::TracesRaw, 0, large),
        ports.log.append(Topic::TracesRaw, 0, message("small"))
    );
    assert!(matches!(refused, Err(LogError::TooLarge { .. })), "{refused:?}");
    taken.unwrap();
    assert_eq!(texts(&ports.read_all(Topic::TracesRaw, 0).await), ["small"]);
}

/// Never a jump over what is gone.
pub async fn reading_what_is_gone_is_a_hole<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let mut offsets = Vec::new();
    for n in 0..6 {
        if n == 3 {
            engine.let_time_pass(LOG_RETENTION).await;
        }
        offsets.push(ports.append(Topic::TracesRaw, 0, &format!("{n}")).await);
    }
    let mut held = ports.lease(Topic::TracesRaw, 0).await;
    held.take(1).await;
    let next = offsets[0] + 1;
    held.lease.commit(Commit { next: Some(next), ..Commit::default() }).await.unwrap();
    drop(held);
    if !engine.delete_before(Topic::TracesRaw, 0, offsets[3]).await {
        return;
    }
    let hole = ports.log.read(Topic::TracesRaw, 0, offsets[1], u64::MAX, READ_BYTES).await;
    assert!(matches!(hole, Err(LogError::Hole { low, .. }) if low > offsets[1] && low <= offsets[3]));
    assert_eq!(texts(&ports.read_all(Topic::TracesRaw, 0).await), ["3", "4", "5"]);

    let mut held = ports.lease(Topic::TracesRaw, 0).await;
    let limits = PollLimits { records: 10, bytes: READ_BYTES, wait: PATIENCE };
    let hole = held.lease.poll(limits).await;
    assert!(matches!(hole, Err(LogError::Hole { wanted, .. }) if wanted == next), "{hole:?}");
}
