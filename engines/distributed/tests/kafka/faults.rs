//! Retention that overtakes a reader; a broker that goes away.

use std::time::{Duration, Instant};

use futures::StreamExt;
use panopticon_core::{
    log::{EventLog, LogError, Poll, TailFrom},
    topic::Topic,
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};

use crate::bed::{Bed, STAGE, commit_next, lease, limits, message, output, read_all, take, texts, within};

/// Does what retention does, at once.
async fn delete_before(bed: &Bed, topic: Topic, partition: i32, offset: i64) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &bed.config.kafka.brokers).create().unwrap();
    let mut list = TopicPartitionList::new();
    let name = format!("{}{topic}", bed.config.kafka.topic_prefix);
    list.add_partition_offset(&name, partition, Offset::Offset(offset)).unwrap();
    admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
}

fn is_hole(error: &LogError, from: u64, to: u64) -> bool {
    matches!(error, LogError::Hole { wanted, low, .. } if (*wanted, *low) == (from, to))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_has_taken_is_a_hole_and_never_a_jump() {
    let Some(bed) = Bed::new(1).await else { return };
    for i in 0..10 {
        bed.append(Topic::TracesRaw, 0, &format!("{i}")).await;
    }
    let mut subscription = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut first = lease(&mut subscription).await;
    take(&mut *first, 2).await;
    commit_next(&mut *first, 2, vec![]).await.unwrap();
    delete_before(&bed, Topic::TracesRaw, 0, 5).await;

    let read = bed.log.read(Topic::TracesRaw, 0, 3, 9, 1 << 20).await.unwrap_err();
    assert!(is_hole(&read, 3, 5), "{read}");
    let bounds = bed.log.bounds(Topic::TracesRaw, 0).await.unwrap();
    assert_eq!((bounds.low, bounds.high), (5, 10));
    let rewound = within(first.rewind()).await.unwrap_err();
    assert!(is_hole(&rewound, 2, 5), "{rewound}");
    drop((first, subscription));

    let other = bed.another().await;
    let mut subscription = other.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut lease = lease(&mut subscription).await;
    let polled = within(lease.poll(limits(1, Duration::from_secs(5)))).await.unwrap_err();
    assert!(is_hole(&polled, 2, 5), "{polled}");
    let mut tail = bed.log.tail(Topic::TracesRaw, TailFrom::Offsets(vec![3])).await.unwrap();
    let followed = within(tail.next()).await.unwrap().unwrap_err();
    assert!(is_hole(&followed, 3, 5), "{followed}");

    // A group that never committed begins where the partition begins.
    let mut fresh = bed.log.subscribe("another-stage", Topic::TracesRaw).await.unwrap();
    let mut lease = crate::bed::lease(&mut fresh).await;
    assert_eq!(texts(&take(&mut *lease, 1).await), ["5"]);
}

/// Controls the broker: `PANOPTICON_TEST_KAFKA_CONTROL` is a program that is given `kill`, `start`, `stop`
/// (SIGSTOP) or `continue`. Without it, or with other tests at the same broker, there is nothing to control.
fn control(what: &str) {
    let program = std::env::var("PANOPTICON_TEST_KAFKA_CONTROL").expect("checked before");
    assert!(std::process::Command::new(program).arg(what).status().unwrap().success());
}

fn is_controlled() -> bool {
    let given = std::env::var_os("PANOPTICON_TEST_KAFKA_CONTROL").is_some();
    if !given {
        eprintln!("skipped: PANOPTICON_TEST_KAFKA_CONTROL is not set");
    }
    given
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_kill_of_the_broker_and_everyone_goes_on() {
    if !is_controlled() {
        return;
    }
    let Some(bed) = Bed::new(1).await else { return };
    let mut tail = bed.log.tail(Topic::Traces, TailFrom::Start).await.unwrap();
    let mut subscription = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    let mut lease = lease(&mut subscription).await;
    let mut writer = bed.log.writer("w").await.unwrap();
    let mut acknowledged = Vec::new();
    let mut processed = Vec::new();
    for round in 0..3 {
        for i in 0..20 {
            acknowledged.push(bed.append(Topic::TracesRaw, 0, &format!("{round}/{i}")).await);
        }
        control("kill");
        let begin = Instant::now();
        let away = bed.log.append(Topic::TracesRaw, 0, message("perhaps")).await;
        println!("an append without a broker: {away:?} after {:?}", begin.elapsed());
        assert!(matches!(away, Err(LogError::Unavailable(_))));
        control("start");
        let begin = Instant::now();
        while let Err(error) = bed.log.append(Topic::TracesRaw, 0, message("back")).await {
            assert!(error.is_transient(), "{error}");
        }
        println!("appends again after {:?}", begin.elapsed());
        loop {
            let records = match within(lease.poll(limits(100, Duration::from_secs(3)))).await {
                Ok(Poll::Records(records)) if records.is_empty() => break,
                Ok(Poll::Records(records)) => records,
                // The broker was away for longer than the session: a member again, and a new lease.
                Ok(Poll::Revoked) => {
                    drop(lease);
                    lease = bed.lease_again(&mut subscription).await;
                    println!("a new lease after {:?}", begin.elapsed());
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let outputs = vec![output(Topic::Traces, 0, &format!("{}", records.len()))];
            match commit_next(&mut *lease, records[records.len() - 1].offset + 1, outputs).await {
                Ok(()) => processed.extend(records.iter().map(|r| r.offset)),
                Err(LogError::Fenced(why)) => {
                    println!("fenced: {why}");
                    drop(lease);
                    lease = bed.lease_again(&mut subscription).await;
                }
                Err(error) => {
                    println!("undone: {error}");
                    while let Err(error) = lease.rewind().await {
                        println!("not yet: {error}");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            }
        }
        println!("processed after {:?}", begin.elapsed());
        writer.commit(vec![output(Topic::Audit, 0, "still the writer")]).await.unwrap();
    }
    let stored: Vec<u64> =
        read_all(&*bed.log, Topic::TracesRaw, 0).await.iter().map(|stored| stored.offset).collect();
    assert!(acknowledged.iter().all(|offset| stored.contains(offset)));
    assert_eq!(processed, stored, "each once");
    let written = bed.texts(Topic::Traces, 0).await;
    for text in written {
        let (_, followed) = within(tail.next()).await.unwrap().unwrap();
        assert_eq!(crate::bed::text(&followed.record), text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_broker_is_given_up_within_the_message_timeout() {
    if !is_controlled() {
        return;
    }
    let Some(bed) = Bed::new(1).await else { return };
    bed.append(Topic::TracesRaw, 0, "before").await;
    control("stop");
    let begin = Instant::now();
    let hung = bed.log.append(Topic::TracesRaw, 0, message("perhaps")).await;
    let took = begin.elapsed();
    control("continue");
    println!("a hung broker: {hung:?} after {took:?}");
    assert!(matches!(hung, Err(LogError::Unavailable(_))));
    assert!(took < Duration::from_millis(bed.config.kafka.message_timeout_ms + 2_000));
    let begin = Instant::now();
    while bed.log.append(Topic::TracesRaw, 0, message("after")).await.is_err() {}
    println!("appends again after {:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_freeze_that_cost_the_broker_its_place_every_client_finds_it_again() {
    if !is_controlled() {
        return;
    }
    let Some(bed) = Bed::new(2).await else { return };
    let mut subscription = bed.log.subscribe(STAGE, Topic::TracesRaw).await.unwrap();
    for round in 0..3 {
        bed.append(Topic::TracesRaw, 1, "before").await;
        control("stop");
        // The controller lets go of the broker meanwhile; when it wakes, its partitions have no leader at first.
        let asked = tokio::join!(
            tokio::time::sleep(Duration::from_secs(5)),
            bed.log.bounds(Topic::TracesRaw, 1),
            bed.log.append(Topic::TracesRaw, 1, message("perhaps")),
        );
        control("continue");
        println!("round {round}: meanwhile {:?} {:?}", asked.1.is_ok(), asked.2.is_ok());
        let begin = Instant::now();
        let asks = async {
            while let Err(error) = bed.log.append(Topic::TracesRaw, 1, message("after")).await {
                assert!(error.is_transient(), "{error}");
            }
            while bed.log.bounds(Topic::TracesRaw, 1).await.is_err() {}
            let mut done = [false; 2];
            while done != [true; 2] {
                let mut lease = bed.lease_again(&mut subscription).await;
                let partition = lease.partition();
                let from = lease.committed().offset.unwrap_or(0);
                let outputs = vec![output(Topic::Traces, partition, "went on")];
                done[partition as usize] =
                    commit_next(&mut *lease, from, outputs).await.is_ok() || done[partition as usize];
            }
        };
        within(asks).await;
        println!("everyone goes on after {:?}", begin.elapsed());
    }
}
