//! Partitions that move between members.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use panopticon_core::{
    log::{Commit, EventLog, Lease, LogError, Poll},
    topic::Topic,
};
use panopticon_distributed::kafka::KafkaLog;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaResult,
    producer::{BaseProducer, Producer},
};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bed::{
    Bed, PATIENCE, STAGE, commit_next, lease, leases, limits, message, output, read_all, take, text, texts,
    within,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_revoke_waits_for_the_lease_and_the_next_owner_goes_on_behind_it() {
    let Some(bed) = Bed::new(2).await else { return };
    for partition in 0..2 {
        for i in 0..10 {
            bed.append(Topic::TracesRaw, partition, &format!("{i}")).await;
        }
    }
    let mut first = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut held = leases(&mut first, 2).await;
    for lease in &mut held {
        take(&mut **lease, 3).await;
    }
    let other = bed.another().await;
    let mut second = other.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let (revoked, _) = {
        let (a, b) = held.split_at_mut(1);
        within(async {
            tokio::select! {
                () = a[0].revoked() => (0, ()),
                () = b[0].revoked() => (1, ()),
            }
        })
        .await
    };
    let mut lease_of_it = held.remove(revoked);
    let partition = lease_of_it.partition();
    assert!(matches!(lease_of_it.poll(limits(1, Duration::ZERO)).await, Ok(Poll::Revoked)));
    assert!(matches!(lease_of_it.rewind().await, Err(LogError::Fenced(_))));
    // Work that is under way may end: the member still counts for its generation.
    let before = Instant::now();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let last = commit_next(&mut *lease_of_it, 3, vec![output(Topic::Traces, partition, "last words")]).await;
    drop(lease_of_it);
    let mut taken = lease(&mut second).await;
    assert!(before.elapsed() >= Duration::from_millis(700));
    assert_eq!(taken.partition(), partition);
    let expected = if last.is_ok() { (Some(3), 1) } else { (None, 0) };
    assert_eq!((taken.committed().offset, bed.texts(Topic::Traces, partition).await.len()), expected);
    let next = take(&mut *taken, 1).await[0].offset;
    assert_eq!(next, expected.0.unwrap_or(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_cannot_commit_once_the_partition_has_a_new_owner() {
    let Some(bed) = Bed::new(1).await else { return };
    bed.append(Topic::TracesRaw, 0, "a").await;
    let mut first = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut zombie = lease(&mut first).await;
    take(&mut *zombie, 1).await;
    // The zombie does not give its lease back; after the time for that the partition goes without it.
    drop(first);
    let other = bed.another().await;
    let mut second = other.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut owner = lease(&mut second).await;
    let late = commit_next(&mut *zombie, 1, vec![output(Topic::Traces, 0, "from the dead")]).await;
    assert!(matches!(late, Err(LogError::Fenced(_))), "{late:?}");
    assert_eq!(texts(&take(&mut *owner, 1).await), ["a"]);
    commit_next(&mut *owner, 1, vec![output(Topic::Traces, 0, "alive")]).await.unwrap();
    assert_eq!(bed.texts(Topic::Traces, 0).await, ["alive"]);
}

/// Commits as another process does that has taken the partition over, without the group of the one before hearing of
/// it: as when that one was frozen, and does not know yet.
fn succeed(bed: &Bed, next: i64) -> KafkaResult<()> {
    let id = |name: &str| format!("{}{name}", bed.config.kafka.topic_prefix);
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", &bed.config.kafka.brokers);
    let member: BaseConsumer = settings.clone().set("group.id", id(STAGE)).create()?;
    let member = member.group_metadata().expect("a member of no generation");
    let transactional = format!("{STAGE}-{}-0", Topic::TracesRaw);
    let producer: BaseProducer = settings.set("transactional.id", id(&transactional)).create()?;
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(&id(Topic::TracesRaw.name()), 0, Offset::Offset(next))?;
    producer.init_transactions(PATIENCE)?;
    producer.begin_transaction()?;
    producer.send_offsets_to_transaction(&offsets, &member, PATIENCE)?;
    producer.commit_transaction(PATIENCE)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_does_not_begin_anew_at_its_successors_commit() {
    let Some(bed) = Bed::new(1).await else { return };
    for text in ["a", "b"] {
        bed.append(Topic::TracesRaw, 0, text).await;
    }
    let mut subscription = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut zombie = lease(&mut subscription).await;
    take(&mut *zombie, 1).await;
    commit_next(&mut *zombie, 1, vec![]).await.unwrap();
    within(zombie.rewind()).await.expect("nobody has taken over yet");
    assert_eq!(zombie.committed().metadata, "up to 1");
    tokio::task::block_in_place(|| succeed(&bed, 2)).expect("the successor's commit");
    let rewound = within(zombie.rewind()).await;
    assert!(matches!(rewound, Err(LogError::Fenced(_))), "{rewound:?}, {:?}", zombie.committed());
}

/// What the loops have done together.
#[derive(Debug, Default)]
struct Tally {
    records: AtomicU64,
    commits: AtomicU64,
    leases: AtomicU64,
    undone: AtomicU64,
    fenced: AtomicU64,
}

/// One consume-transform-produce loop, as a stage does it; ends when its lease is revoked or `until`.
async fn process(mut lease: Box<dyn Lease>, until: Instant, tally: Arc<Tally>) {
    let partition = lease.partition();
    tally.leases.fetch_add(1, Ordering::Relaxed);
    while Instant::now() < until {
        let records = match lease.poll(limits(40, Duration::from_millis(100))).await {
            Ok(Poll::Records(records)) => records,
            Ok(Poll::Revoked) => return,
            Err(error) => panic!("poll: {error}"),
        };
        let Some(last) = records.last() else { continue };
        let next = Some(last.offset + 1);
        let outputs: Vec<_> =
            records.iter().map(|r| output(Topic::Traces, partition, &text(&r.record))).collect();
        let count = outputs.len() as u64;
        match lease.commit(Commit { outputs, next, metadata: String::new() }).await {
            Ok(()) => {
                tally.records.fetch_add(count, Ordering::Relaxed);
                tally.commits.fetch_add(1, Ordering::Relaxed);
            }
            Err(LogError::Fenced(_)) => {
                tally.fenced.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(_) => {
                tally.undone.fetch_add(1, Ordering::Relaxed);
                if lease.rewind().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// A member that lives until `until`, with a loop for each lease.
async fn member(log: Arc<KafkaLog>, until: Instant, tally: Arc<Tally>) {
    let mut subscription = log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut loops = JoinSet::new();
    loop {
        tokio::select! {
            lease = subscription.next_lease() => {
                loops.spawn(process(lease.unwrap(), until, Arc::clone(&tally)));
            }
            Some(ended) = loops.join_next() => ended.unwrap(),
            () = tokio::time::sleep_until(until) => break,
        }
    }
    while let Some(ended) = loops.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_records_come_through_once_while_members_come_and_go() {
    let Some(bed) = Bed::new(4).await else { return };
    const PER_PARTITION: u64 = 5_000;
    let tally = Arc::new(Tally::default());
    let begin = Instant::now();
    let mut members = JoinSet::new();
    // One stays; the others come and go, some while records are still being written.
    let steady_until = begin + Duration::from_secs(300);
    let steady = tokio::spawn(member(Arc::clone(&bed.log), steady_until, Arc::clone(&tally)));
    for i in 0..5_u64 {
        let (log, tally) = (bed.another().await, Arc::clone(&tally));
        members.spawn(async move {
            tokio::time::sleep(Duration::from_millis(1_500 * i)).await;
            let until = Instant::now() + Duration::from_millis(2_500 + 300 * i);
            member(log, until, tally).await;
        });
    }
    let feeder = {
        let log = Arc::clone(&bed.log);
        tokio::spawn(async move {
            for chunk in (0..PER_PARTITION).collect::<Vec<_>>().chunks(25) {
                // In order, since each is handed over before the next.
                let appends = chunk.iter().flat_map(|i| {
                    let log = &log;
                    (0..4).map(move |p| log.append(Topic::TracesRaw, p, message(&format!("{p}/{i}"))))
                });
                for append in futures::future::join_all(appends).await {
                    append.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(35)).await;
            }
        })
    };
    feeder.await.unwrap();
    println!("fed after {:?}: {tally:?}", begin.elapsed());
    while let Some(ended) = members.join_next().await {
        ended.unwrap();
    }
    println!("alone after {:?}: {tally:?}", begin.elapsed());
    let far = Instant::now() + PATIENCE;
    while tally.records.load(Ordering::Relaxed) < 4 * PER_PARTITION && Instant::now() < far {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    steady.abort();
    println!("through after {:?}: {tally:?}", begin.elapsed());
    for partition in 0..4 {
        let seen = texts(&read_all(&*bed.log, Topic::Traces, partition).await);
        let expected: Vec<String> = (0..PER_PARTITION).map(|i| format!("{partition}/{i}")).collect();
        assert_eq!(seen.len(), expected.len(), "partition {partition}");
        assert_eq!(seen, expected, "each once, in order");
    }
}
