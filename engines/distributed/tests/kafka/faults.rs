//! Retention that overtakes a reader; a broker that goes away.

use std::time::Duration;

use futures::StreamExt;
use panopticon_core::{
    log::{EventLog, LogError, TailFrom},
    topic::Topic,
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};

use crate::bed::{Bed, STAGE, commit_next, lease, limits, take, texts, within};

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
