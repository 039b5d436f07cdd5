//! How messages get to receivers.

use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit as _, Mac as _};
use panopticon_core::topic::Topic;
use panopticon_proto::log::{DeadLetter, GuardAction, ReplayDelivery, TestMessage};
use panopticon_webhook_dispatcher::REPLAY_TYPE;
use prost::Message as _;
use sha2::Sha256;
use standardwebhooks::Webhook;

use crate::world::{Receiver, Reply, World, quick};

#[tokio::test]
async fn a_message_is_delivered_once_signed_as_standard_webhooks_and_for_logi() {
    let (world, mut receiver) = (World::new(quick()).await, Receiver::new([]).await);
    let secret = world.endpoint("e1", "app", &receiver.url(), 1).await.remove(0);
    let begun = Instant::now();
    world.kill("a1", "app", "user").await;
    let received = receiver.next().await;
    assert!(received.at - begun < Duration::from_millis(500), "{:?}", received.at - begun);
    assert_eq!(received.id(), "a1");
    assert_eq!(received.headers["content-type"], "application/json");
    assert!(received.headers["user-agent"].to_str().unwrap().starts_with("panopticon-webhooks/"));
    let body: serde_json::Value = serde_json::from_slice(&received.body).unwrap();
    assert_eq!((&body["type"], &body["data"]["state"]), (&"panopticon.kill_switch".into(), &"killed".into()));

    Webhook::new(secret.expose()).unwrap().verify(&received.body, &received.headers).unwrap();
    let timestamp = received.headers["webhook-timestamp"].to_str().unwrap();
    let encoded = secret.expose().strip_prefix("whsec_").unwrap();
    let key = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, encoded).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    mac.update(&[timestamp.as_bytes(), b".", &received.body].concat());
    let expected = format!("t={timestamp},kid=k0,v1={}", hex::encode(mac.finalize().into_bytes()));
    assert_eq!(received.headers["x-logi-signature"], expected);

    let delivered = world.until_state("a1", "delivered").await;
    assert_eq!((delivered.attempts, delivered.last_status), (1, 200));
    // The same action again, as after a replay of the log: no second message.
    world.kill("a1", "app", "user").await;
    world.kill("a2", "app", "user").await;
    assert_eq!(receiver.next().await.id(), "a2");
    world.until_state("a2", "delivered").await;
    assert!(receiver.nothing_more());
}

#[tokio::test]
async fn a_retry_carries_the_same_id_and_the_same_bytes() {
    let world = World::new(quick()).await;
    let mut receiver = Receiver::new([Reply::Status(500), Reply::Status(404)]).await;
    let secret = world.endpoint("e1", "app", &receiver.url(), 1).await.remove(0);
    world.kill("a1", "app", "").await;
    let attempts = [receiver.next().await, receiver.next().await, receiver.next().await];
    for attempt in &attempts {
        assert_eq!((attempt.id(), &attempt.body), ("a1", &attempts[0].body));
        Webhook::new(secret.expose()).unwrap().verify(&attempt.body, &attempt.headers).unwrap();
    }
    let delivered = world.until_state("a1", "delivered").await;
    assert_eq!((delivered.attempts, delivered.last_error.as_str()), (3, ""));
}

#[tokio::test]
async fn every_endpoint_gets_the_message_under_the_same_id_and_a_test_goes_to_one() {
    let world = World::new(quick()).await;
    let (mut one, mut two) = (Receiver::new([]).await, Receiver::new([]).await);
    world.endpoint("e1", "app", &one.url(), 1).await;
    world.endpoint("e2", "app", &two.url(), 1).await;
    let test = TestMessage { endpoint_id: "e2".to_owned(), note: "hello".to_owned() };
    let action = GuardAction {
        action_id: "t1".to_owned(),
        r#type: "panopticon.test".to_owned(),
        client_id: "app".to_owned(),
        test: Some(test),
        ..GuardAction::default()
    };
    world.act(&action).await;
    world.kill("a1", "app", "").await;
    assert_eq!(one.next().await.id(), "a1");
    let mut ids = [two.next().await.id().to_owned(), two.next().await.id().to_owned()];
    ids.sort();
    assert_eq!(ids, ["a1", "t1"]);
}

#[tokio::test]
async fn a_pause_that_the_receiver_asks_for_is_kept() {
    let world = World::new(quick()).await;
    let mut receiver = Receiver::new([Reply::With(429, "retry-after", "1")]).await;
    world.endpoint("e1", "app", &receiver.url(), 1).await;
    world.kill("a1", "app", "").await;
    let (first, second) = (receiver.next().await, receiver.next().await);
    assert!(second.at - first.at > Duration::from_millis(950), "{:?}", second.at - first.at);
}

#[tokio::test]
async fn a_message_is_dead_when_it_is_given_up_and_a_replay_delivers_it() {
    let mut config = quick();
    config.webhooks.give_up_after_secs = 1;
    let world = World::new(config).await;
    let (failing, mut receiver) =
        (Receiver::choosing([], |_| Reply::Status(500)).await, Receiver::new([]).await);
    world.endpoint("e1", "app", &failing.url(), 1).await;
    world.kill("a1", "app", "user").await;
    let dead = world.until_state("a1", "dead").await;
    assert_eq!((dead.last_status, dead.replayed), (500, false));
    assert!(dead.attempts > 1 && dead.updated_at - dead.created_at >= 1_000_000);

    world.endpoint("e1", "app", &receiver.url(), 1).await;
    let replay = |delivery_id: &str| GuardAction {
        r#type: REPLAY_TYPE.to_owned(),
        client_id: dead.client_id.clone(),
        user_sub: dead.user_sub.clone(),
        replay: Some(ReplayDelivery {
            delivery_id: delivery_id.to_owned(),
            endpoint_id: dead.endpoint_id.clone(),
        }),
        ..GuardAction::default()
    };
    world.act(&replay("8d1f1e1c-7a61-4d3f-9a53-1f6d3d0c9b1a")).await;
    world.act(&replay(&dead.delivery_id)).await;
    let received = receiver.next().await;
    assert_eq!((received.id(), &received.body), ("a1", &dead.body));
    let delivered = world.until_state("a1", "delivered").await;
    assert_eq!((delivered.attempts, &delivered.delivery_id), (1, &dead.delivery_id));
    world.act(&replay(&dead.delivery_id)).await;
    assert_eq!(receiver.next().await.id(), "a1", "a delivered one can be replayed too");
}

#[tokio::test]
async fn after_a_restart_pending_messages_are_delivered() {
    let world = World::new(quick()).await;
    let mut receiver = Receiver::new([Reply::Status(500), Reply::Silence]).await;
    world.endpoint("e1", "app", &receiver.url(), 1).await;
    world.kill("a1", "app", "").await;
    let first = receiver.next().await;
    receiver.next().await;
    // The second attempt is under way when the process ends; nobody knows what became of it.
    let world = world.restart().await;
    let third = receiver.next().await;
    assert_eq!((third.id(), &third.body), ("a1", &first.body));
    let delivered = world.until_state("a1", "delivered").await;
    assert_eq!(delivered.attempts, 2, "the interrupted one was not written down");
    let world = world.restart().await;
    world.kill("a2", "app", "").await;
    assert_eq!(receiver.next().await.id(), "a2", "what was delivered stays delivered");
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_delays_no_other() {
    let mut config = quick();
    (config.webhooks.in_flight_per_endpoint, config.webhooks.in_flight) = (2, 3);
    let world = World::new(config).await;
    let mut slow = Receiver::choosing([], |_| Reply::Silence).await;
    let mut fast = Receiver::new([]).await;
    world.endpoint("slow", "app", &slow.url(), 1).await;
    world.endpoint("fast", "app", &fast.url(), 1).await;
    let begun = Instant::now();
    for n in 0..6 {
        world.kill(&format!("a{n}"), "app", "").await;
    }
    for _ in 0..6 {
        fast.next().await;
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    slow.next().await;
    slow.next().await;
    assert!(slow.nothing_more(), "two at once, as configured");
}

#[tokio::test]
async fn while_a_secret_is_rotated_receivers_verify_with_either() {
    let (world, mut receiver) = (World::new(quick()).await, Receiver::new([]).await);
    let secrets = world.endpoint("e1", "app", &receiver.url(), 2).await;
    world.kill("a1", "app", "").await;
    let received = receiver.next().await;
    for secret in &secrets {
        Webhook::new(secret.expose()).unwrap().verify(&received.body, &received.headers).unwrap();
    }
    assert!(received.headers["x-logi-signature"].to_str().unwrap().contains("kid=k0"));
}

#[tokio::test]
async fn redirects_and_silence_are_failures_and_long_answers_are_not() {
    let mut config = quick();
    config.webhooks.timeout_ms = 300;
    let world = World::new(config).await;
    let mut elsewhere = Receiver::new([]).await;
    let location: &'static str = elsewhere.url().leak();
    let replies = [Reply::With(307, "location", location), Reply::Silence, Reply::Long];
    let mut receiver = Receiver::new(replies).await;
    world.endpoint("e1", "app", &receiver.url(), 1).await;
    world.kill("a1", "app", "").await;
    let redirected = world.until("a redirect", |delivery| delivery.last_status == 307).await;
    assert!(redirected.last_error.contains("not followed"), "{}", redirected.last_error);
    let silent = world.until("a timeout", |delivery| delivery.attempts == 2).await;
    assert!(silent.last_status == 0 && silent.last_error.starts_with("timeout"), "{}", silent.last_error);
    assert_eq!(world.until_state("a1", "delivered").await.attempts, 3);
    for _ in 0..3 {
        receiver.next().await;
    }
    assert!(elsewhere.nothing_more());
}

#[tokio::test]
async fn messages_share_a_connection() {
    let (world, mut receiver) = (World::new(quick()).await, Receiver::new([]).await);
    world.endpoint("e1", "app", &receiver.url(), 1).await;
    world.kill("a1", "app", "").await;
    world.until_state("a1", "delivered").await;
    world.kill("a2", "app", "").await;
    assert_eq!(receiver.next().await.peer, receiver.next().await.peer);
}

#[tokio::test]
async fn nothing_is_sent_to_addresses_that_are_not_allowed() {
    let mut config = quick();
    config.webhooks.allow_loopback = Some(false);
    let (world, mut receiver) = (World::new(config).await, Receiver::new([]).await);
    let https = format!("https://localhost:{}/", receiver.address.port());
    world.endpoint("literal", "app", &receiver.url(), 1).await;
    world.endpoint("name", "app", &https, 1).await;
    world.kill("a1", "app", "").await;
    for endpoint in ["literal", "name"] {
        let tried = world
            .until("an attempt", |delivery| delivery.endpoint_id == endpoint && delivery.attempts > 0)
            .await;
        assert!(tried.last_error.starts_with("ssrf_blocked"), "{}", tried.last_error);
        assert_eq!(tried.state, "pending");
    }
    assert!(receiver.nothing_more());
}

#[tokio::test]
async fn a_record_that_is_no_action_goes_to_dead_letters_and_the_next_is_delivered() {
    let (world, mut receiver) = (World::new(quick()).await, Receiver::new([]).await);
    world.endpoint("e1", "app", &receiver.url(), 1).await;
    world.append("app", "", b"\xff\xff\xff".to_vec()).await;
    world.kill("a1", "app", "").await;
    assert_eq!(receiver.next().await.id(), "a1");
    let letter =
        world.first(Topic::DeadLetters, |record| Some(DeadLetter::decode(record.bytes()).unwrap())).await;
    assert_eq!((letter.stage.as_str(), &letter.payload[..]), ("webhook-dispatcher", &b"\xff\xff\xff"[..]));
}
