//! Commits: all or nothing, and by the newest owner alone.

use panopticon_core::{
    log::{Commit, Committed, LogError, Output, Record},
    topic::Topic,
};

use crate::{
    EngineUnderTest, Ports,
    fixtures::{STAGE, output, texts},
};

async fn committed(ports: &Ports, partition: u32) -> Committed {
    let lag = ports.log.lag(STAGE, Topic::TracesRaw).await.unwrap();
    lag.into_iter().find(|lag| lag.partition == partition).unwrap().committed
}

/// What a stage does with a batch: outputs to several topics, the next offset, and a note beside it.
pub async fn outputs_offset_and_metadata_become_visible_together<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    for n in 0..3 {
        ports.append(Topic::TracesRaw, 0, &format!("in{n}")).await;
    }
    let mut held = ports.lease(Topic::TracesRaw, 0).await;
    assert_eq!(*held.lease.committed(), Committed::default());
    let batch = held.take(3).await;
    let next = batch[2].offset + 1;
    let outputs =
        vec![output(Topic::Traces, 0, "x"), output(Topic::Detections, 1, "y"), output(Topic::Traces, 0, "z")];
    let commit = Commit { outputs, next: Some(next), metadata: "up to here".to_owned() };
    held.lease.commit(commit).await.unwrap();

    assert_eq!(texts(&ports.read_all(Topic::Traces, 0).await), ["x", "z"]);
    assert_eq!(texts(&ports.read_all(Topic::Detections, 1).await), ["y"]);
    let wanted = Committed { offset: Some(next), metadata: "up to here".to_owned() };
    assert_eq!(committed(&ports, 0).await, wanted);

    drop((held, ports));
    let engine = engine.reopen().await;
    let held = engine.ports().lease(Topic::TracesRaw, 0).await;
    assert_eq!(*held.lease.committed(), wanted);
}

/// A commit that cannot be as a whole is not at all; the lease goes on from what is committed.
pub async fn nothing_of_a_failed_commit_is_visible<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    ports.append(Topic::TracesRaw, 0, "in").await;
    let mut held = ports.lease(Topic::TracesRaw, 0).await;
    let next = held.take(1).await[0].offset + 1;
    let large = Output { topic: Topic::Traces, partition: 0, record: Record::message(vec![0; 64 << 20]) };
    let commit = Commit {
        outputs: vec![output(Topic::Traces, 0, "half"), large],
        next: Some(next),
        metadata: "never".to_owned(),
    };
    assert!(held.lease.commit(commit).await.is_err());
    assert!(ports.read_all(Topic::Traces, 0).await.is_empty());
    assert_eq!(committed(&ports, 0).await, Committed::default());

    held.lease.rewind().await.unwrap();
    assert_eq!(texts(&held.take(1).await), ["in"]);
    let outputs = vec![output(Topic::Traces, 0, "whole")];
    held.lease.commit(Commit { outputs, next: Some(next), metadata: String::new() }).await.unwrap();
    assert_eq!(texts(&ports.read_all(Topic::Traces, 0).await), ["whole"]);
}

/// A member that lost its partition without noticing cannot write any more.
pub async fn nothing_of_a_commit_after_the_lease_was_taken_is_visible<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    ports.append(Topic::TracesRaw, 0, "in").await;
    let mut old = ports.lease(Topic::TracesRaw, 0).await;
    let next = old.take(1).await[0].offset + 1;
    if !engine.take_leases(STAGE, Topic::TracesRaw).await {
        return;
    }
    let mut new = ports.lease(Topic::TracesRaw, 0).await;
    let commit = |text: &str| Commit {
        outputs: vec![output(Topic::Traces, 0, text)],
        next: Some(next),
        metadata: text.to_owned(),
    };
    let fenced = old.lease.commit(commit("old")).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    assert!(matches!(old.lease.rewind().await, Err(LogError::Fenced(_))));
    assert!(ports.read_all(Topic::Traces, 0).await.is_empty());

    assert_eq!(texts(&new.take(1).await), ["in"]);
    new.lease.commit(commit("new")).await.unwrap();
    assert_eq!(texts(&ports.read_all(Topic::Traces, 0).await), ["new"]);
    drop(old);
    assert_eq!(committed(&ports, 0).await.metadata, "new");
}

/// Outputs alone do not move the group.
pub async fn a_commit_without_an_offset_leaves_the_position<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    for n in 0..2 {
        ports.append(Topic::TracesRaw, 0, &format!("in{n}")).await;
    }
    let mut held = ports.lease(Topic::TracesRaw, 0).await;
    let next = held.take(2).await[0].offset + 1;
    let set = Commit { next: Some(next), metadata: "note".to_owned(), ..Commit::default() };
    held.lease.commit(set).await.unwrap();
    let outputs = vec![output(Topic::Traces, 0, "out")];
    held.lease.commit(Commit { outputs, ..Commit::default() }).await.unwrap();
    assert_eq!(texts(&ports.read_all(Topic::Traces, 0).await), ["out"]);
    let wanted = Committed { offset: Some(next), metadata: "note".to_owned() };
    assert_eq!(committed(&ports, 0).await, wanted);
}

/// One writer a name; the older one's records stay out.
pub async fn a_newer_writer_fences_the_older<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let control = |key: &str| {
        vec![Output {
            topic: Topic::WebhookDeliveries,
            partition: 0,
            record: Record::keyed(key.as_bytes().to_vec(), "v"),
        }]
    };
    let mut other = ports.log.writer("another").await.unwrap();
    let mut old = ports.log.writer("conformance").await.unwrap();
    old.commit(control("before")).await.unwrap();
    let mut new = ports.log.writer("conformance").await.unwrap();
    let fenced = old.commit(control("lost")).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    new.commit(control("after")).await.unwrap();
    other.commit(control("other")).await.unwrap();
    let keys: Vec<_> = ports
        .read_all(Topic::WebhookDeliveries, 0)
        .await
        .into_iter()
        .map(|stored| stored.record.key)
        .collect();
    assert_eq!(keys, ["before", "after", "other"]);
}

/// Answered with the offsets, in the order of the records, and readable at once.
pub async fn a_writers_records_are_visible_once_it_is_answered<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let mut writer = ports.log.writer("conformance").await.unwrap();
    let outputs =
        vec![output(Topic::Audit, 0, "a"), output(Topic::GuardActions, 1, "b"), output(Topic::Audit, 0, "c")];
    let offsets = writer.commit(outputs).await.unwrap();
    let audit = ports.read_all(Topic::Audit, 0).await;
    let actions = ports.read_all(Topic::GuardActions, 1).await;
    assert_eq!(
        (texts(&audit), texts(&actions)),
        (vec!["a".to_owned(), "c".to_owned()], vec!["b".to_owned()])
    );
    assert_eq!(offsets, [audit[0].offset, actions[0].offset, audit[1].offset]);
}

/// Read, but not committed: the next member has it again, and so has this one after a rewind.
pub async fn what_was_not_committed_is_processed_again<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    for n in 0..4 {
        ports.append(Topic::TracesRaw, 0, &format!("{n}")).await;
    }
    let mut held = ports.lease(Topic::TracesRaw, 0).await;
    let batch = held.take(2).await;
    held.lease.commit(Commit { next: Some(batch[1].offset + 1), ..Commit::default() }).await.unwrap();
    assert_eq!(texts(&held.take(2).await), ["2", "3"]);
    held.lease.rewind().await.unwrap();
    assert_eq!(held.lease.committed().offset, Some(batch[1].offset + 1));
    assert_eq!(texts(&held.take(2).await), ["2", "3"]);
    drop(held);
    let mut held = ports.lease(Topic::TracesRaw, 0).await;
    assert_eq!(texts(&held.take(2).await), ["2", "3"]);
}

/// Every partition is there, those without a commit too.
pub async fn lag_is_what_is_left_to_process<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    for n in 0..3 {
        ports.append(Topic::TracesRaw, 1, &format!("{n}")).await;
    }
    let mut held = ports.lease(Topic::TracesRaw, 1).await;
    let next = held.take(2).await[1].offset + 1;
    held.lease.commit(Commit { next: Some(next), ..Commit::default() }).await.unwrap();
    let lag = ports.log.lag(STAGE, Topic::TracesRaw).await.unwrap();
    let partitions = ports.log.topic(Topic::TracesRaw).await.unwrap().partitions;
    assert_eq!(lag.iter().map(|lag| lag.partition).collect::<Vec<_>>(), (0..partitions).collect::<Vec<_>>());
    assert_eq!(lag[0].committed.offset, None);
    assert_eq!(lag[1].committed.offset, Some(next));
    assert!(lag[1].bounds.high > next);
    assert_eq!(lag[1].bounds, ports.log.bounds(Topic::TracesRaw, 1).await.unwrap());
}
