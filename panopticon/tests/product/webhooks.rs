//! Webhooks: endpoints, signatures, deliveries, and where they may go.

use serde_json::{Value, json};

use crate::support::{App, Receiver, System, eventually, on_both_engines, receiver::Hook, refused};

on_both_engines!(
    a_test_message_comes_signed_to_its_endpoint_alone,
    an_endpoint_gets_the_types_that_it_wants,
    a_message_is_tried_again_under_the_same_id,
    a_redirect_is_not_followed,
    a_delivery_can_be_made_again,
    a_rotated_secret_and_the_old_one_both_sign,
    endpoints_are_added_changed_and_removed,
    addresses_that_are_not_public_are_refused,
);

const TYPES: [&str; 4] = [
    "panopticon.anomaly_detected",
    "panopticon.anomaly_resolved",
    "panopticon.kill_switch",
    "panopticon.test",
];

fn path(app: &App, hook: &Hook, rest: &str) -> String {
    format!("/apps/{}/webhooks/{}{rest}", app.id, hook.id)
}

/// The endpoint's deliveries, once one is in this state.
async fn delivery(s: &System, app: &App, hook: &Hook, state: &str) -> Value {
    eventually(&format!("a delivery that is {state}"), async || {
        let rows = s.list(&path(app, hook, "/deliveries")).await;
        rows.iter().find(|row| row["state"] == state).cloned().ok_or(rows)
    })
    .await
}

async fn test(s: &System, app: &App, hook: &Hook) -> String {
    let sent = s.post(&path(app, hook, "/test"), json!({})).await.expect(202);
    sent["webhook_id"].as_str().unwrap().to_owned()
}

async fn a_test_message_comes_signed_to_its_endpoint_alone(s: &System) {
    let app = s.app().await;
    let (receiver, hook) = Receiver::of(s, &app).await;
    let (other, _) = Receiver::of(s, &app).await;
    let id = test(s, &app, &hook).await;
    let message = receiver.until(1).await.remove(0);
    message.verify(&hook.secret);
    assert!(!message.is_signed_with("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"));
    assert_eq!(
        (message.id(), message.kind().as_str(), message.path.as_str()),
        (&*id, "panopticon.test", "/hook")
    );
    assert_eq!(message.json()["data"]["client_id"], app.id);
    let made = delivery(s, &app, &hook, "delivered").await;
    assert_eq!(
        (&made["webhook_id"], &made["last_status"], &made["attempts"]),
        (&json!(id), &json!(204), &json!(1))
    );
    assert_eq!(made["body"].as_str().unwrap().as_bytes(), &*message.body, "what is told is what was sent");
    s.until_at_rest(&app).await;
    assert!(other.messages().is_empty());
}

async fn an_endpoint_gets_the_types_that_it_wants(s: &System) {
    let app = s.app().await;
    let (all, kills, anomalies) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    all.register(s, &app, json!({"types": []})).await;
    kills.register(s, &app, json!({"types": [TYPES[2]]})).await;
    anomalies.register(s, &app, json!({"types": [TYPES[0], TYPES[1]]})).await;
    let loop_of_alice: Vec<Value> = (0..25).map(|_| app.trace_with(json!({"user_sub": "alice"}))).collect();
    app.send_batch(&loop_of_alice).await.expect(200);
    s.post(&format!("/apps/{}/kill", app.id), json!({"user_sub": "alice"})).await.expect(200);
    let messages = all.until(2).await;
    kills.until(1).await;
    anomalies.until(1).await;
    s.until_at_rest(&app).await;
    assert_eq!((kills.messages().len(), anomalies.messages().len(), messages.len()), (1, 1, 2));
    assert_eq!(kills.messages()[0].kind(), TYPES[2]);
    assert_eq!(anomalies.messages()[0].kind(), TYPES[0]);
    // The same message has the same id wherever it goes.
    let id_of = |kind: &str| messages.iter().find(|message| message.kind() == kind).unwrap().id().to_owned();
    assert_eq!(id_of(TYPES[2]), kills.messages()[0].id());
    assert_eq!(id_of(TYPES[0]), anomalies.messages()[0].id());
}

async fn a_message_is_tried_again_under_the_same_id(s: &System) {
    let app = s.app().await;
    let (receiver, hook) = Receiver::of(s, &app).await;
    receiver.answer_with(&[500, 429]);
    let id = test(s, &app, &hook).await;
    let messages = receiver.until(3).await;
    assert!(messages.iter().all(|message| message.id() == id && message.body == messages[0].body));
    for message in &messages {
        message.verify(&hook.secret);
    }
    let made = delivery(s, &app, &hook, "delivered").await;
    assert_eq!((&made["attempts"], &made["last_status"]), (&json!(3), &json!(204)));
}

async fn a_redirect_is_not_followed(s: &System) {
    let app = s.app().await;
    let (receiver, hook) = Receiver::of(s, &app).await;
    let elsewhere = Receiver::start().await;
    receiver.redirect_to(&elsewhere.url);
    test(s, &app, &hook).await;
    receiver.until(2).await;
    let made = delivery(s, &app, &hook, "delivered").await;
    assert_eq!(made["attempts"], 2, "a redirect is a failed attempt");
    assert!(elsewhere.messages().is_empty());
}

async fn a_delivery_can_be_made_again(s: &System) {
    let app = s.app().await;
    let (receiver, hook) = Receiver::of(s, &app).await;
    let id = test(s, &app, &hook).await;
    let made = delivery(s, &app, &hook, "delivered").await;
    let delivery_id = made["delivery_id"].as_str().unwrap();
    let again = s.post(&format!("/deliveries/{delivery_id}/replay"), json!({})).await.expect(202);
    assert_eq!((&again["delivery_id"], &again["webhook_id"]), (&json!(delivery_id), &json!(id)));
    let messages = receiver.until(2).await;
    assert!(messages.iter().all(|message| message.id() == id));
    messages[1].verify(&hook.secret);
    refused(&s.post("/deliveries/no-such/replay", json!({})).await, 404, "not_found", None);
}

async fn a_rotated_secret_and_the_old_one_both_sign(s: &System) {
    let app = s.app().await;
    let (receiver, hook) = Receiver::of(s, &app).await;
    let before = s.get(&path(&app, &hook, "")).await.expect(200);
    assert!(before.get("secret").is_none(), "a secret is shown once");
    let rotated = s.post(&path(&app, &hook, "/secret"), json!({})).await.expect(200);
    let new = rotated["secret"].as_str().unwrap();
    assert!(new.starts_with("whsec_") && new != hook.secret);
    assert_ne!(rotated["kid"], before["kid"]);
    eventually("both secrets sign", async || {
        let already = receiver.messages().len();
        test(s, &app, &hook).await;
        let message = receiver.until(already + 1).await.pop().unwrap();
        let both = message.is_signed_with(new) && message.is_signed_with(&hook.secret);
        if both { Ok(message) } else { Err(message.header("webhook-signature").to_owned()) }
    })
    .await
    .verify(new);
}

async fn endpoints_are_added_changed_and_removed(s: &System) {
    let app = s.app().await;
    let (receiver, hook) = Receiver::of(s, &app).await;
    assert!(hook.secret.starts_with("whsec_"));
    let list = s.list_once(&format!("/apps/{}/webhooks", app.id)).await;
    assert_eq!((&list[0]["id"], &list[0]["url"], list.len()), (&json!(hook.id), &json!(receiver.url), 1));
    let disabled =
        s.patch(&path(&app, &hook, ""), json!({"disabled": true, "types": [TYPES[3]]})).await.expect(200);
    assert_eq!((&disabled["disabled"], &disabled["types"]), (&json!(true), &json!([TYPES[3]])));
    refused(&s.post(&path(&app, &hook, "/test"), json!({})).await, 409, "conflict", None);
    s.patch(&path(&app, &hook, ""), json!({"disabled": false})).await.expect(200);
    test(s, &app, &hook).await;
    receiver.until(1).await;

    for (body, field) in [
        (json!({}), "url"),
        (json!({"url": "not a url"}), "url"),
        (json!({"url": "ftp://127.0.0.1/hook"}), "url"),
        (json!({"url": receiver.url, "types": ["panopticon.unknown"]}), "types[0]"),
        (json!({"url": receiver.url, "secret": "whsec_mine"}), "secret"),
    ] {
        let answer = s.post(&format!("/apps/{}/webhooks", app.id), body).await;
        refused(&answer, 400, "invalid_request", Some(field));
    }
    for _ in 1..10 {
        receiver.register(s, &app, json!({})).await;
    }
    let one_more = s.post(&format!("/apps/{}/webhooks", app.id), json!({"url": receiver.url})).await;
    refused(&one_more, 409, "limit_reached", None);
    assert_eq!(s.delete(&path(&app, &hook, "")).await.status, 204);
    refused(&s.get(&path(&app, &hook, "")).await, 404, "not_found", None);
    let other = s.app().await;
    let foreign = s.list_once(&format!("/apps/{}/webhooks", app.id)).await.remove(0);
    let foreign = Hook { id: foreign["id"].as_str().unwrap().to_owned(), ..hook };
    refused(&s.get(&path(&other, &foreign, "")).await, 404, "not_found", None);
}

async fn addresses_that_are_not_public_are_refused(s: &System) {
    let app = s.app().await;
    for url in [
        "http://10.0.0.1/hook",
        "https://10.0.0.1/hook",
        "https://192.168.1.1/hook",
        "https://172.16.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://100.64.0.1/",
        "https://[fe80::1]/",
        "https://[fd00::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://0.0.0.0/",
        "https://224.0.0.1/",
        "http://example.com/hook",
    ] {
        let answer = s.post(&format!("/apps/{}/webhooks", app.id), json!({"url": url})).await;
        refused(&answer, 400, "invalid_request", Some("url"));
    }
    // Loopback is open to tests, as it is to `serve` on a loopback address.
    for url in ["http://127.0.0.1:9/", "http://[::1]:9/", "https://rp.example/hook"] {
        s.post(&format!("/apps/{}/webhooks", app.id), json!({"url": url})).await.expect(201);
    }
}
