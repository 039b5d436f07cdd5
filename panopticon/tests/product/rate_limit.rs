//! The rule `rate_limit`: a runaway loop is told once.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{App, Receiver, System, eventually, on_both_engines, receiver::Message};

on_both_engines!(
    a_runaway_loop_is_told_once_and_signed,
    a_second_limit_within_the_same_episode_says_nothing_more,
    calls_of_all_tools_together_have_a_limit_too,
    an_apps_own_limit_counts,
    without_a_limit_nothing_is_told,
    each_user_has_limits_of_its_own,
    late_traces_raise_no_alarm,
);

const DETECTED: &str = "panopticon.anomaly_detected";

/// So many calls of a user with a tool, one after the other.
async fn call(app: &App, calls: usize, user: &str, tool: &str) {
    let traces: Vec<Value> =
        (0..calls).map(|_| app.trace_with(json!({"user_sub": user, "tool": tool}))).collect();
    app.send_batch(&traces).await.expect(200);
}

async fn detections(s: &System, app: &App) -> Vec<Value> {
    s.list(&format!("/apps/{}/detections", app.id)).await
}

/// What was told once everything that was sent has been judged and every message delivered.
async fn told(s: &System, app: &App, receiver: &Receiver, at_least: usize) -> Vec<Message> {
    receiver.until(at_least).await;
    s.until_at_rest(app).await;
    eventually("no delivery under way", async || {
        let status = s.get(&format!("/apps/{}/status", app.id)).await.expect(200);
        let pending = &status["webhooks"][0]["pending"];
        if *pending == 0 { Ok(()) } else { Err(pending.clone()) }
    })
    .await;
    receiver.messages()
}

/// Until every process knows the policy that was just changed: a second, as promised for all changes.
async fn policy(s: &System, app: &App, rate_limit: Value) {
    s.patch(&format!("/apps/{}/policy", app.id), json!({"rate_limit": rate_limit})).await.expect(200);
    tokio::time::sleep(Duration::from_secs(1)).await;
}

async fn a_runaway_loop_is_told_once_and_signed(s: &System) {
    let app = s.app().await;
    let (receiver, hook) = Receiver::of(s, &app).await;
    call(&app, 20, "alice", "search").await;
    s.timeline(&app, 20).await;
    s.until_at_rest(&app).await;
    assert!(detections(s, &app).await.is_empty(), "as many as allowed are no anomaly");

    let deciding = app.trace_with(json!({"user_sub": "alice", "tool": "search"}));
    app.accepted(&deciding).await;
    for _ in 0..3 {
        call(&app, 10, "alice", "search").await;
    }
    let messages = told(s, &app, &receiver, 1).await;
    assert_eq!(messages.len(), 1, "{messages:?}");
    messages[0].verify(&hook.secret);
    let body = messages[0].json();
    assert_eq!(body["type"], DETECTED);
    let data = &body["data"];
    for (name, value) in [
        ("rule", json!("rate_limit")),
        ("kind", json!("per_tool")),
        ("client_id", json!(app.id)),
        ("user_sub", json!("alice")),
        ("tool", json!("search")),
        ("severity", json!("high")),
        ("observed", json!(21.0)),
        ("expected", json!(20.0)),
        ("deciding_event_id", deciding["event_id"].clone()),
        ("action_id", json!(messages[0].id())),
    ] {
        assert_eq!(data[name], value, "{name} of {data}");
    }
    let score = data["score"].as_f64().unwrap();
    assert!((0.0..=100.0).contains(&score), "{score}");
    assert_eq!(uuid::Uuid::parse_str(data["detection_id"].as_str().unwrap()).unwrap().get_version_num(), 5);
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(time(&data["window"]["start"]) <= time(&data["window"]["end"]));
    assert!(time(&data["detected_at"]) <= time(&data["emitted_at"]));
    assert!(data["explanation"].as_str().unwrap().contains("alice called search 21 times"), "{data}");

    let stored = eventually("the stored detection", async || {
        let found = detections(s, &app).await;
        if found.len() == 1 { Ok(found) } else { Err(found) }
    })
    .await;
    assert_eq!(stored[0]["detection_id"], data["detection_id"]);
    // The road of the deciding trace leads to the delivery.
    let road = s.get(&format!("/traces/{}", deciding["event_id"].as_str().unwrap())).await.expect(200);
    let steps: Vec<&str> =
        road["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["accepted", "stored", "detection", "action", "delivery"], "{road}");
}

async fn a_second_limit_within_the_same_episode_says_nothing_more(s: &System) {
    let app = s.app().await;
    let (receiver, _) = Receiver::of(s, &app).await;
    call(&app, 25, "alice", "search").await;
    receiver.until(1).await;
    // The limit of all calls, 60, and that of another tool.
    call(&app, 45, "alice", "mail.send").await;
    s.timeline(&app, 70).await;
    let messages = told(s, &app, &receiver, 1).await;
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert_eq!(detections(s, &app).await.len(), 1);
}

async fn calls_of_all_tools_together_have_a_limit_too(s: &System) {
    let app = s.app().await;
    let (receiver, _) = Receiver::of(s, &app).await;
    for tool in 0..7 {
        call(&app, 9, "alice", &format!("tool-{tool}")).await;
    }
    let messages = told(s, &app, &receiver, 1).await;
    assert_eq!(messages.len(), 1, "{messages:?}");
    let data = messages[0].json()["data"].clone();
    assert_eq!(
        (&data["kind"], &data["observed"], &data["expected"]),
        (&json!("per_user"), &json!(61.0), &json!(60.0))
    );
    assert!(data.get("tool").is_none(), "{data}");
}

async fn an_apps_own_limit_counts(s: &System) {
    let app = s.app().await;
    let (receiver, _) = Receiver::of(s, &app).await;
    policy(s, &app, json!({"per_minute": 5})).await;
    call(&app, 5, "alice", "search").await;
    call(&app, 5, "bob", "search").await;
    call(&app, 1, "bob", "mail.send").await;
    let messages = told(s, &app, &receiver, 1).await;
    assert_eq!(messages.len(), 1, "{messages:?}");
    let data = messages[0].json()["data"].clone();
    assert_eq!(
        (&data["user_sub"], &data["observed"], &data["expected"]),
        (&json!("bob"), &json!(6.0), &json!(5.0))
    );
}

async fn without_a_limit_nothing_is_told(s: &System) {
    let app = s.app().await;
    let (receiver, _) = Receiver::of(s, &app).await;
    policy(s, &app, json!({"per_minute": 0, "per_tool_per_minute": 0})).await;
    call(&app, 300, "alice", "search").await;
    s.timeline(&app, 300).await;
    assert!(told(s, &app, &receiver, 0).await.is_empty());
}

async fn each_user_has_limits_of_its_own(s: &System) {
    let app = s.app().await;
    let (receiver, _) = Receiver::of(s, &app).await;
    for user in 0..5 {
        call(&app, 18, &format!("user-{user}"), "search").await;
    }
    call(&app, 18, "", "search").await;
    s.timeline(&app, 108).await;
    assert!(told(s, &app, &receiver, 0).await.is_empty());
    for user in ["user-1", "user-3"] {
        call(&app, 3, user, "search").await;
    }
    let messages = told(s, &app, &receiver, 2).await;
    let mut users: Vec<String> = messages.iter().map(|m| m.json()["data"]["user_sub"].to_string()).collect();
    users.sort_unstable();
    assert_eq!(users, ["\"user-1\"", "\"user-3\""]);
}

async fn late_traces_raise_no_alarm(s: &System) {
    let app = s.app().await;
    let (receiver, _) = Receiver::of(s, &app).await;
    let late: Vec<Value> = (0..200)
        .map(|i| {
            app.trace_with(json!({"started_at": format!("2026-06-01T10:00:00.{i:03}Z"), "status": "denied"}))
        })
        .collect();
    app.send_batch(&late).await.expect(200);
    s.timeline(&app, 200).await;
    assert!(told(s, &app, &receiver, 0).await.is_empty());
    let june = s.list_once(&format!("/apps/{}/usage?since=2026-06-01&until=2026-06-01", app.id)).await;
    assert_eq!((&june[0]["traces"], &june[0]["errors"]), (&json!(200), &json!(200)), "but they are counted");
}
