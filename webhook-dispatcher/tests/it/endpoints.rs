//! What becomes of endpoints that want or take nothing any more, and of old deliveries.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use panopticon_core::{ids::partition_of, topic::Topic};

use crate::world::{Receiver, Reply, World, quick};

#[tokio::test]
async fn an_endpoint_that_is_gone_is_disabled_and_hears_nothing_more() {
    let world = World::new(quick()).await;
    let mut receiver = Receiver::new([Reply::With(503, "retry-after", "600"), Reply::Status(410)]).await;
    world.endpoint("e1", "app", &receiver.url(), 1).await;
    world.kill("waits", "app", "").await;
    receiver.next().await;
    world.kill("a1", "app", "").await;
    let dead = world.until_state("a1", "dead").await;
    assert_eq!((dead.attempts, dead.last_status), (1, 410));
    let entry = world.until_disabled("e1").await;
    assert_eq!((entry.actor.as_str(), entry.client_id.as_str()), ("webhook-dispatcher", "app"));
    let endpoint = world.stored("e1");
    assert!(endpoint.disabled && endpoint.disabled_reason.contains("410"), "{}", endpoint.disabled_reason);
    let cancelled = world.until_state("waits", "cancelled").await;
    assert_eq!(cancelled.last_error, "the endpoint is disabled");

    let mut other = Receiver::new([]).await;
    world.endpoint("e2", "app", &other.url(), 1).await;
    world.kill("a2", "app", "").await;
    assert_eq!(other.next().await.id(), "a2");
    receiver.next().await;
    assert!(receiver.nothing_more());
}

#[tokio::test]
async fn an_endpoint_on_which_everything_fails_is_disabled_also_across_a_restart() {
    let mut config = quick();
    config.webhooks.give_up_after_secs = 30 * 86_400;
    let world = World::new(config).await;
    let receiver = Receiver::choosing([], |_| Reply::Status(500)).await;
    world.endpoint("e1", "app", &receiver.url(), 1).await;
    world.kill("a1", "app", "").await;
    world.until("a second failure", |delivery| delivery.attempts == 2).await;
    assert!(!world.stored("e1").disabled);
    let world = world.restart_after(6).await;
    world.until_disabled("e1").await;
    assert!(world.stored("e1").disabled_reason.contains("failed since"));
    world.until_state("a1", "cancelled").await;
}

#[tokio::test]
async fn an_endpoint_stays_enabled_while_messages_of_another_partition_come_through() {
    let mut config = quick();
    config.webhooks.disable_after_secs = 1;
    config.webhooks.give_up_after_secs = 2;
    let world = World::new(config).await;
    let is_bad = |body: &[u8]| body.windows(7).any(|part| part == b"unhappy");
    let mut receiver =
        Receiver::choosing(
            [],
            move |received| {
                if is_bad(&received.body) { Reply::Status(500) } else { Reply::Status(200) }
            },
        )
        .await;
    world.endpoint("e1", "app", &receiver.url(), 1).await;
    let partition = |user: &str| partition_of(&["app", user], world.config.embedded.partitions);
    let happy = (0..).map(|n| format!("user{n}")).find(|user| partition(user) != partition("unhappy"));
    let happy = happy.unwrap();

    world.kill("bad", "app", "unhappy").await;
    let dead = world.until_state("bad", "dead");
    // Each failure is followed by a success elsewhere.
    let successes = async {
        for n in 0.. {
            while !is_bad(&receiver.next().await.body) {}
            world.kill(&format!("good{n}"), "app", &happy).await;
        }
    };
    tokio::select! {
        dead = dead => assert!(dead.updated_at - dead.first_failed_at > 1_000_000),
        () = successes => {}
    }
    assert!(!world.stored("e1").disabled);

    world.kill("worse", "app", "unhappy").await;
    world.until_disabled("e1").await;
}

#[tokio::test]
async fn messages_to_a_removed_endpoint_are_cancelled() {
    let world = World::new(quick()).await;
    let mut receiver = Receiver::new([Reply::With(503, "retry-after", "600")]).await;
    world.endpoint("e1", "app", &receiver.url(), 1).await;
    world.kill("a1", "app", "").await;
    receiver.next().await;
    world.until("a failure", |delivery| delivery.attempts == 1).await;
    world.put("e1", None).await;
    assert_eq!(world.until_state("a1", "cancelled").await.last_error, "the endpoint was removed");
}

#[tokio::test]
async fn finished_deliveries_leave_the_table_after_their_time_and_pending_ones_stay() {
    let mut config = quick();
    config.webhooks.give_up_after_secs = 90 * 86_400;
    let world = World::new(config).await;
    let mut receiver = Receiver::new([Reply::Status(200), Reply::With(503, "retry-after", "3000000")]).await;
    world.endpoint("e1", "app", &receiver.url(), 1).await;
    world.kill("old", "app", "").await;
    let old = world.until_state("old", "delivered").await;
    world.kill("waits", "app", "").await;
    receiver.next().await;
    receiver.next().await;
    world.until("a failure", |delivery| delivery.webhook_id == "waits" && delivery.attempts == 1).await;
    world.clock.forward(6);
    world.kill("between", "app", "").await;
    world.until_state("between", "delivered").await;
    assert_eq!(world.table().await.len(), 3);
    world.clock.forward(2);
    let forgotten =
        world.first(Topic::WebhookDeliveries, |record| record.payload.is_none().then_some(record.key)).await;
    assert_eq!(forgotten, old.delivery_id);
    let left: Vec<String> = world.table().await.into_iter().map(|delivery| delivery.webhook_id).collect();
    assert!(left.len() == 2 && !left.contains(&"old".to_owned()), "{left:?}");
}

#[tokio::test]
async fn with_too_much_pending_new_actions_wait_in_the_log() {
    let mut config = quick();
    config.webhooks.max_pending = 2;
    let world = World::new(config).await;
    let fails = Arc::new(AtomicBool::new(true));
    let failing = fails.clone();
    let receiver = Receiver::choosing([], move |_| {
        if failing.load(Ordering::SeqCst) { Reply::Status(500) } else { Reply::Status(200) }
    })
    .await;
    world.endpoint("e1", "app", &receiver.url(), 1).await;
    for id in ["a1", "a2"] {
        world.kill(id, "app", "").await;
    }
    for id in ["a1", "a2"] {
        world.until("a failure", |delivery| delivery.webhook_id == id && delivery.attempts > 1).await;
    }
    world.kill("a3", "app", "").await;
    world.until("a failure", |delivery| delivery.attempts > 5).await;
    assert_eq!(world.table().await.len(), 2);
    fails.store(false, Ordering::SeqCst);
    let third = world.until_state("a3", "delivered").await;
    let ended = world.table().await.iter().map(|delivery| delivery.updated_at).min().unwrap();
    assert!(third.created_at >= ended);
}

#[tokio::test]
async fn an_endpoint_with_too_much_pending_loses_its_turn_and_the_others_do_not() {
    let mut config = quick();
    config.webhooks.max_pending_per_endpoint = 1;
    let world = World::new(config).await;
    let away = Receiver::choosing([], |_| Reply::Status(500)).await;
    let mut other = Receiver::new([]).await;
    world.endpoint("away", "app", &away.url(), 1).await;
    world.endpoint("other", "app", &other.url(), 1).await;
    world.kill("a1", "app", "").await;
    other.next().await;
    world.until_state("a1", "delivered").await;
    world.kill("a2", "app", "").await;
    assert_eq!(other.next().await.id(), "a2");
    let dead = world.until_state("a2", "dead").await;
    assert!(dead.endpoint_id == "away" && dead.last_error.starts_with("backlog_full"), "{}", dead.last_error);
}
