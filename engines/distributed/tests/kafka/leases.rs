//! Leases: positions, atomic commits, fencing, rewinding, back-pressure.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use panopticon_core::{
    log::{Commit, EventLog, LogError, Poll},
    topic::Topic,
};

use crate::bed::{Bed, STAGE, commit_next, lease, leases, limits, message, output, take, texts, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_group_begins_at_the_first_record_and_goes_on_after_what_it_committed() {
    let Some(bed) = Bed::new(1).await else { return };
    for text in ["a", "b", "c"] {
        bed.append(Topic::TracesRaw, 0, text).await;
    }
    {
        let mut subscription = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
        let mut lease = lease(&mut subscription).await;
        assert_eq!(lease.committed().offset, None);
        assert_eq!(texts(&take(&mut *lease, 3).await), ["a", "b", "c"]);
        commit_next(&mut *lease, 2, vec![output(Topic::Traces, 0, "A B")]).await.unwrap();
    }
    let other = bed.another().await;
    let mut subscription = other.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut lease = lease(&mut subscription).await;
    assert_eq!(lease.committed().offset, Some(2));
    assert_eq!(lease.committed().metadata, "up to 2");
    assert_eq!(texts(&take(&mut *lease, 1).await), ["c"]);
    assert_eq!(bed.texts(Topic::Traces, 0).await, ["A B"]);
    let lag = bed.log.lag(STAGE, Topic::TracesRaw).await.unwrap();
    assert_eq!((lag[0].committed.offset, lag[0].bounds.low, lag[0].bounds.high), (Some(2), 0, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_of_nothing_waits_as_long_as_it_was_told_and_can_be_cancelled() {
    let Some(bed) = Bed::new(1).await else { return };
    let mut subscription = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut lease = lease(&mut subscription).await;
    let begin = Instant::now();
    let empty = lease.poll(limits(10, Duration::from_millis(200))).await.unwrap();
    assert!(matches!(empty, Poll::Records(records) if records.is_empty()));
    assert!(begin.elapsed() >= Duration::from_millis(190));
    for i in 0..50 {
        bed.append(Topic::TracesRaw, 0, &format!("{i}")).await;
        let _ = tokio::time::timeout(Duration::from_micros(i * 20), std::future::pending::<()>()).await;
        // Dropped at some point: nothing that it would have brought is lost.
        tokio::select! {
            biased;
            polled = lease.poll(limits(1, Duration::from_secs(1))) => {
                assert!(matches!(polled, Ok(Poll::Records(records)) if records[0].offset == i));
                continue;
            }
            () = tokio::time::sleep(Duration::from_micros(i * 10)) => {}
        }
        assert_eq!(take(&mut *lease, 1).await[0].offset, i);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_commit_shows_nothing_and_after_a_rewind_the_batch_comes_again() {
    let Some(bed) = Bed::new(1).await else { return };
    for i in 0..20 {
        bed.append(Topic::TracesRaw, 0, &format!("{i}")).await;
    }
    let mut subscription = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut lease = lease(&mut subscription).await;
    take(&mut *lease, 5).await;
    commit_next(&mut *lease, 5, vec![]).await.unwrap();
    take(&mut *lease, 7).await;
    let large = panopticon_core::log::Record::message(vec![0; bed.config.kafka.max_record_bytes + 1]);
    let mut outputs = vec![output(Topic::Traces, 0, "never seen")];
    outputs.push(panopticon_core::log::Output { topic: Topic::Traces, partition: 0, record: large });
    assert!(matches!(commit_next(&mut *lease, 12, outputs).await, Err(LogError::TooLarge { .. })));

    within(lease.rewind()).await.unwrap();
    assert_eq!(lease.committed().offset, Some(5));
    let records = take(&mut *lease, 15).await;
    assert_eq!(records.iter().map(|r| r.offset).collect::<Vec<_>>(), (5..20).collect::<Vec<_>>());
    commit_next(&mut *lease, 20, vec![output(Topic::Traces, 0, "seen")]).await.unwrap();
    assert_eq!(bed.texts(Topic::Traces, 0).await, ["seen"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewind_before_the_first_commit_begins_anew() {
    let Some(bed) = Bed::new(1).await else { return };
    for i in 0..3 {
        bed.append(Topic::TracesRaw, 0, &format!("{i}")).await;
    }
    let mut subscription = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut lease = lease(&mut subscription).await;
    for _ in 0..3 {
        assert_eq!(texts(&take(&mut *lease, 3).await), ["0", "1", "2"]);
        within(lease.rewind()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_nothing_changes_nothing_and_one_without_a_position_only_writes() {
    let Some(bed) = Bed::new(1).await else { return };
    bed.append(Topic::TracesRaw, 0, "a").await;
    let mut subscription = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut lease = lease(&mut subscription).await;
    take(&mut *lease, 1).await;
    lease.commit(Commit::default()).await.unwrap();
    let outputs = vec![output(Topic::Traces, 0, "x")];
    lease.commit(Commit { outputs, next: None, metadata: String::new() }).await.unwrap();
    let lag = bed.log.lag(STAGE, Topic::TracesRaw).await.unwrap();
    assert_eq!(lag[0].committed.offset, None);
    assert_eq!(bed.texts(Topic::Traces, 0).await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_future_is_dropped_is_settled_by_a_rewind() {
    let Some(bed) = Bed::new(1).await else { return };
    for i in 0..30 {
        bed.append(Topic::TracesRaw, 0, &format!("{i}")).await;
    }
    let mut subscription = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut lease = lease(&mut subscription).await;
    // So that a commit begins with its first poll.
    bed.log.topic(Topic::Traces).await.unwrap();
    for patience in 0..10 {
        let next = lease.committed().offset.unwrap_or(0) + 1;
        take(&mut *lease, 1).await;
        let outputs = vec![output(Topic::Traces, 0, &format!("{next}"))];
        let commit = commit_next(&mut *lease, next, outputs);
        let cut = tokio::time::timeout(Duration::from_millis(patience), commit).await.is_err();
        if cut {
            let refused = commit_next(&mut *lease, next, vec![]).await;
            assert!(matches!(refused, Err(LogError::Aborted(_))), "{refused:?}");
        }
        within(lease.rewind()).await.unwrap();
    }
    let written = bed.texts(Topic::Traces, 0).await;
    let committed = lease.committed().offset.unwrap_or(0);
    assert_eq!(written, (1..=committed).map(|n| format!("{n}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_given_back_unasked_comes_again() {
    let Some(bed) = Bed::new(2).await else { return };
    bed.append(Topic::TracesRaw, 0, "a").await;
    let mut subscription = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut all = leases(&mut subscription, 2).await;
    let mut first = all.remove(0);
    take(&mut *first, 1).await;
    drop(first);
    let mut again = lease(&mut subscription).await;
    assert_eq!(again.partition(), 0);
    assert_eq!(texts(&take(&mut *again, 1).await), ["a"]);
    commit_next(&mut *again, 1, vec![]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_partition_holds_up_no_other_and_loses_nothing() {
    let Some(bed) = Bed::new(2).await else { return };
    const COUNT: u64 = 3_000;
    let mut appends = Vec::new();
    for i in 0..COUNT {
        for partition in 0..2 {
            let log = Arc::clone(&bed.log);
            appends.push(async move {
                log.append(Topic::TracesRaw, partition, message(&format!("{i} {}", "x".repeat(500)))).await
            });
        }
    }
    for append in futures::future::join_all(appends).await {
        append.unwrap();
    }
    let mut subscription = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut all = leases(&mut subscription, 2).await;
    let (mut slow, mut fast) = (all.remove(0), all.remove(0));
    // The queue of the slow one fills up and stops; the fast one goes through meanwhile.
    let head = take(&mut *slow, 1).await;
    let begin = Instant::now();
    assert_eq!(take(&mut *fast, COUNT as usize).await.len(), COUNT as usize);
    println!("the fast partition took {:?}", begin.elapsed());
    let mut seen: Vec<u64> = head.iter().map(|r| r.offset).collect();
    while seen.len() < COUNT as usize {
        seen.extend(take(&mut *slow, 100.min(COUNT as usize - seen.len())).await.iter().map(|r| r.offset));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut in_order = seen.clone();
    in_order.sort_unstable();
    in_order.dedup();
    assert_eq!(seen, in_order);
    assert_eq!(seen.len(), COUNT as usize);
}
