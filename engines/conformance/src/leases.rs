//! Membership: who processes which partition, and how records come to them.

use std::time::{Duration, Instant};

use panopticon_core::{
    log::{Commit, Poll, PollLimits},
    topic::Topic,
};

use crate::{
    EngineUnderTest,
    fixtures::{PATIENCE, QUIET, READ_BYTES, message, texts, within},
};

/// A second member gets nothing while the first has everything and does not let go, and all once it has.
pub async fn a_partition_has_one_lease_in_a_group_at_a_time<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let partitions = ports.log.topic(Topic::TracesRaw).await.unwrap().partitions;
    let mut first = ports.subscribe(Topic::TracesRaw).await;
    let mut leases = Vec::new();
    for _ in 0..partitions {
        leases.push(within("a lease", first.next_lease()).await.unwrap());
    }
    let mut held: Vec<_> = leases.iter().map(|lease| lease.partition()).collect();
    held.sort_unstable();
    assert_eq!(held, (0..partitions).collect::<Vec<_>>());

    let mut second = ports.subscribe(Topic::TracesRaw).await;
    assert!(tokio::time::timeout(QUIET, second.next_lease()).await.is_err());
    drop((leases, first));
    let mut held = Vec::new();
    for _ in 0..partitions {
        held.push(within("a freed lease", second.next_lease()).await.unwrap());
    }
    let mut moved: Vec<_> = held.iter().map(|lease| lease.partition()).collect();
    moved.sort_unstable();
    assert_eq!(moved, (0..partitions).collect::<Vec<_>>());
}

/// Two stages read the same topic, each at its own pace.
pub async fn groups_do_not_share_positions<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    ports.append(Topic::TracesRaw, 0, "once").await;
    let mut held = ports.lease(Topic::TracesRaw, 0).await;
    let next = held.take(1).await[0].offset + 1;
    held.lease.commit(Commit { next: Some(next), ..Commit::default() }).await.unwrap();
    let other = ports.log.lag("conformance-other", Topic::TracesRaw).await.unwrap();
    assert!(other.iter().all(|lag| lag.committed.offset.is_none()));
    let mut subscription = ports.log.subscribe("conformance-other", Topic::TracesRaw).await.unwrap();
    let mut leases = Vec::new();
    for _ in 0..other.len() {
        leases.push(within("a lease", subscription.next_lease()).await.unwrap());
    }
    let lease = leases.iter_mut().find(|lease| lease.partition() == 0).unwrap();
    let limits = PollLimits { records: 10, bytes: READ_BYTES, wait: PATIENCE };
    match lease.poll(limits).await.unwrap() {
        Poll::Records(records) => assert_eq!(texts(&records), ["once"]),
        Poll::Revoked => panic!("revoked"),
    }
}

/// It ends empty when nothing comes, and at once when something does.
pub async fn a_poll_waits_for_a_record_and_no_longer_than_it_may<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    let mut held = ports.lease(Topic::TracesRaw, 0).await;
    let limits = PollLimits { records: 10, bytes: READ_BYTES, wait: QUIET };
    let started = Instant::now();
    match held.lease.poll(limits).await.unwrap() {
        Poll::Records(records) => assert!(records.is_empty()),
        Poll::Revoked => panic!("revoked"),
    }
    assert!(started.elapsed() >= QUIET / 2 && started.elapsed() < PATIENCE, "{:?}", started.elapsed());

    let log = ports.log.clone();
    let append = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        log.append(Topic::TracesRaw, 0, message("late")).await.unwrap();
    });
    let started = Instant::now();
    match held.lease.poll(PollLimits { wait: PATIENCE, ..limits }).await.unwrap() {
        Poll::Records(records) => assert_eq!(texts(&records), ["late"]),
        Poll::Revoked => panic!("revoked"),
    }
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    append.await.unwrap();
}

/// As many records as asked for, and none after the one that reaches the size.
pub async fn a_poll_keeps_to_its_limits<E: EngineUnderTest>(engine: E) {
    let ports = engine.ports();
    for n in 0..6 {
        ports.append(Topic::TracesRaw, 0, &format!("{n}").repeat(100)).await;
    }
    let mut held = ports.lease(Topic::TracesRaw, 0).await;
    let mut seen = 0;
    for (records, bytes, most) in [(2, READ_BYTES, 2), (10, 150, 2), (10, 1, 1)] {
        let limits = PollLimits { records, bytes, wait: PATIENCE };
        match held.lease.poll(limits).await.unwrap() {
            Poll::Records(records) => {
                assert!((1..=most).contains(&records.len()), "{} for {limits:?}", records.len());
                seen += records.len();
            }
            Poll::Revoked => panic!("revoked"),
        }
    }
    let rest = held.take(6 - seen).await;
    assert_eq!(texts(&rest).last().unwrap(), &"5".repeat(100));
}
