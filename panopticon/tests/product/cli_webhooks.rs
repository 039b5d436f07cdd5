//! `logi panopticon webhook …` against a real server.

use serde_json::{Value, json};

use crate::support::{Receiver, System, eventually, logi, logi::program, on_both_engines};

on_both_engines!(
    an_endpoint_is_added_tested_rotated_and_removed,
    a_delivery_is_listed_and_replayed,
    a_listener_registers_itself_verifies_and_prints,
);

async fn an_endpoint_is_added_tested_rotated_and_removed(s: &System) {
    let app = s.app().await;
    let receiver = Receiver::start().await;
    let kind = "panopticon.test";
    let added = logi(s, &["webhook", "add", &app.id, &receiver.url, "--type", kind, "--json"]).await.json();
    let (id, secret) = (added["id"].as_str().unwrap(), added["secret"].as_str().unwrap());
    let list = logi(s, &["webhook", "list", &app.id, "--json"]).await.json();
    assert!(list[0]["id"] == id && list[0].get("secret").is_none(), "{list}");
    let sent = logi(s, &["webhook", "test", &app.id, id, "--json"]).await.json();
    let message = receiver.until(1).await.remove(0);
    message.verify(secret);
    assert!(sent.to_string().contains(message.id()), "{sent}");
    let rotated = logi(s, &["webhook", "rotate", &app.id, id, "--json"]).await.json();
    assert_ne!(rotated["secret"], secret);
    logi(s, &["webhook", "remove", &app.id, id]).await.done();
    assert_eq!(logi(s, &["webhook", "list", &app.id, "--json"]).await.json(), json!([]));
    let error = logi(s, &["webhook", "remove", &app.id, id]).await.failed();
    assert!(error.contains("not_found"), "{error}");
    let error = logi(s, &["webhook", "add", &app.id, "http://10.0.0.1/"]).await.failed();
    assert!(error.contains("10.0.0.1"), "{error}");
}

async fn a_delivery_is_listed_and_replayed(s: &System) {
    let app = s.app().await;
    let (receiver, hook) = Receiver::of(s, &app).await;
    logi(s, &["webhook", "test", &app.id]).await.done();
    receiver.until(1).await;
    let delivery = eventually("the delivery", async || {
        let rows = logi(s, &["webhook", "deliveries", &app.id, &hook.id, "--json"]).await.json();
        if rows[0]["state"] == "delivered" { Ok(rows[0].clone()) } else { Err(rows) }
    })
    .await;
    logi(s, &["webhook", "replay", delivery["delivery_id"].as_str().unwrap()]).await.done();
    let messages = receiver.until(2).await;
    assert_eq!(messages[0].id(), messages[1].id());
    assert!(logi(s, &["webhook", "deliveries", &app.id]).await.done().contains("delivered"));
}

async fn a_listener_registers_itself_verifies_and_prints(s: &System) {
    let app = s.app().await;
    let words = ["logi", "panopticon", "webhook", "listen", &app.id, "--json"];
    let mut listener = program(s, &words);
    listener.name = format!("listen-{}", app.id);
    let process = listener.start();
    let endpoints = async || s.list_once(&format!("/apps/{}/webhooks", app.id)).await;
    eventually("the endpoint of the listener", async || {
        let found = endpoints().await;
        if found.len() == 1 { Ok(()) } else { Err(process.log()) }
    })
    .await;
    logi(s, &["kill", &app.id, "--reason", "listen"]).await.done();
    let message: Value = eventually("the printed message", async || {
        let log = process.log();
        let printed =
            log.lines().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(Value::is_object));
        printed.ok_or(log)
    })
    .await;
    assert_eq!((&message["type"], &message["verified"]), (&json!("panopticon.kill_switch"), &json!(true)));
    assert_eq!(message["data"]["reason"], "listen");
    assert!(process.terminate().await.success());
    assert!(endpoints().await.is_empty(), "it takes its endpoint away with it");
}
