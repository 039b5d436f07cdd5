//! What the driver does where it finds no coordinator.

use panopticon_core::config::Config;
use rdkafka::{
    Offset,
    consumer::{BaseConsumer, Consumer},
    mocking::{MockCluster, MockCoordinator},
};

use super::*;

/// Of the driver's own cluster, since a real one names its coordinators again sooner or later.
#[test]
fn a_commit_ends_though_the_driver_does_not_find_the_coordinator_of_the_group() {
    let cluster = MockCluster::new(2).expect("a cluster of two brokers");
    let mut config = Config::default();
    config.kafka.brokers = cluster.bootstrap_servers();
    config.kafka.transaction_timeout_ms = 1_000;
    let clients = Clients::new(&config).expect("the configuration is sound");
    let (id, group, topic) = (clients.id("writer"), clients.id("group"), clients.topic(Topic::Traces));
    for named in [Topic::Traces, Topic::Control] {
        cluster.create_topic(&clients.topic(named), 1, 1).expect("a topic");
    }
    cluster.partition_leader(&topic, 0, Some(1)).expect("a leader");
    cluster.coordinator(MockCoordinator::Transaction(id.clone()), 1).expect("a coordinator");
    cluster.coordinator(MockCoordinator::Group(group.clone()), 2).expect("a coordinator");

    let mut producer = TxnProducer::open(&clients, &id).expect("the id is free");
    let consumer: BaseConsumer = clients.consumer("test", &group).create().expect("the settings are sound");
    let member = Arc::new(consumer.group_metadata().expect("a member of no generation"));
    let position = |next| {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&topic, 0, Offset::Offset(next)).expect("an offset");
        Some(Position { offsets, member: Arc::clone(&member) })
    };
    producer.commit(&[], position(1)).expect("both coordinators are there");

    cluster.broker_down(2).expect("a broker that can go");
    let gone = producer.commit(&[], position(2)).expect_err("nobody takes the position");
    assert!(matches!(gone, LogError::Fenced(_)), "{gone}");
    assert!(matches!(producer.settle(), Err(LogError::Fenced(_))), "it can never be used again");

    cluster.broker_up(2).expect("a broker that comes back");
    let mut next = TxnProducer::open(&clients, &id).expect("whoever is stuck is fenced");
    next.commit(&[], position(2)).expect("both coordinators are there");
}
