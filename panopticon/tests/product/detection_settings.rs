//! What an app says about its alarms: rules that are off, quiet users, and changes while something is open.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{App, Receiver, System, eventually, on_both_engines, refused};

on_both_engines!(
    a_rule_that_is_off_says_nothing_to_its_app_and_speaks_to_the_neighbour,
    of_a_quiet_user_nothing_is_told,
    a_wrong_setting_is_refused_by_its_name_and_nothing_is_saved,
    an_episode_that_was_open_when_its_rule_went_off_gets_its_end_once,
);

/// Until every process knows the policy that was just changed: a second, as promised for all changes.
async fn detection(s: &System, app: &App, settings: Value) {
    s.patch(&format!("/apps/{}/policy", app.id), json!({"detection": settings})).await.expect(200);
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// Six refused calls of each user: enough for an alarm.
async fn refused_calls(app: &App, users: &[&str]) {
    let calls = users.iter().flat_map(|user| vec![json!({"user_sub": user, "status": "denied"}); 6]);
    let traces: Vec<Value> = calls.map(|call| app.trace_with(call)).collect();
    app.send_batch(&traces).await.expect(200);
}

/// Users of whom something was told, once all has been judged and stored.
async fn told(s: &System, app: &App, traces: usize) -> Vec<String> {
    s.timeline(app, traces).await;
    s.until_at_rest(app).await;
    let rows = s.list(&format!("/apps/{}/detections", app.id)).await;
    let mut users: Vec<_> = rows.iter().map(|row| row["user_sub"].as_str().unwrap().to_owned()).collect();
    users.sort();
    users
}

async fn a_rule_that_is_off_says_nothing_to_its_app_and_speaks_to_the_neighbour(s: &System) {
    let (silent, neighbour) = (s.app().await, s.app().await);
    detection(s, &silent, json!({"failed_auth": false})).await;
    for app in [&silent, &neighbour] {
        refused_calls(app, &["alice"]).await;
    }
    assert_eq!(told(s, &neighbour, 6).await, ["alice"]);
    assert!(told(s, &silent, 6).await.is_empty());
    // On again, it speaks of what comes then.
    detection(s, &silent, json!({"failed_auth": null})).await;
    refused_calls(&silent, &["bob"]).await;
    assert_eq!(told(s, &silent, 12).await, ["bob"]);
}

async fn of_a_quiet_user_nothing_is_told(s: &System) {
    let app = s.app().await;
    detection(s, &app, json!({"quiet_users": ["loadtest"]})).await;
    refused_calls(&app, &["loadtest", "alice"]).await;
    assert_eq!(told(s, &app, 12).await, ["alice"]);
}

async fn a_wrong_setting_is_refused_by_its_name_and_nothing_is_saved(s: &System) {
    let app = s.app().await;
    let path = format!("/apps/{}/policy", app.id);
    for (settings, field) in [
        (json!(false), "detection"),
        (json!({"bursts": false}), "detection.bursts"),
        (json!({"burst": 0}), "detection.burst"),
        (json!({"off_hour": true, "alarms_a_month": -1}), "detection.alarms_a_month"),
        (json!({"quiet_users": ["alice", 7]}), "detection.quiet_users[1]"),
    ] {
        let answer = s.patch(&path, json!({"rate_limit": {"per_minute": 7}, "detection": settings})).await;
        refused(&answer, 400, "invalid_request", Some(field));
    }
    assert_eq!(s.get(&path).await.expect(200)["version"], 0);
}

async fn an_episode_that_was_open_when_its_rule_went_off_gets_its_end_once(s: &System) {
    let app = s.app().await;
    let (receiver, _) = Receiver::of(s, &app).await;
    // Nine minutes ago, in event time: the episode ends ten minutes after its last refused call, and a
    // minute for disorder. The calls took that long, so they are not late.
    let began = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(650);
    let calls: Vec<Value> = (0..6)
        .map(|_| {
            app.trace_with(json!({"user_sub": "alice", "status": "denied",
                "started_at": began.to_string(), "duration_ms": 650_000}))
        })
        .collect();
    app.send_batch(&calls).await.expect(200);
    receiver.until(1).await;
    detection(s, &app, json!({"failed_auth": false})).await;
    let messages = eventually("the end", async || {
        let messages = receiver.messages();
        if messages.len() > 1 { Ok(messages) } else { Err(messages.len()) }
    })
    .await;
    s.until_at_rest(&app).await;
    let types: Vec<Value> = messages.iter().map(|message| message.json()["type"].clone()).collect();
    assert_eq!(types, ["panopticon.anomaly_detected", "panopticon.anomaly_resolved"]);
    let rows = s.list(&format!("/apps/{}/detections", app.id)).await;
    assert_eq!((rows.len(), &rows[0]["phase"]), (1, &json!("ended")));
}
