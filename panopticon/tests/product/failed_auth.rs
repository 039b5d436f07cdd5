//! The rule `failed_auth`: refused calls of one user, or from one address.

use serde_json::{Value, json};

use crate::support::{App, Receiver, System, eventually, on_both_engines};

on_both_engines!(
    five_refused_calls_of_a_user_are_told_once,
    an_error_code_of_that_family_counts_as_denied,
    refused_calls_of_several_users_from_one_address_are_told_by_source,
    fewer_refusals_and_other_errors_say_nothing,
);

async fn send(app: &App, calls: &[Value]) {
    let traces: Vec<Value> = calls.iter().map(|call| app.trace_with(call.clone())).collect();
    app.send_batch(&traces).await.expect(200);
}

/// What was found, as (rule, kind, user, source), once all has been judged.
async fn found(s: &System, app: &App, traces: usize) -> Vec<[String; 4]> {
    s.timeline(app, traces).await;
    s.until_at_rest(app).await;
    let rows = s.list(&format!("/apps/{}/detections", app.id)).await;
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let mut found: Vec<_> = rows
        .iter()
        .map(|row| ["rule", "kind", "user_sub", "source_ip"].map(|name| text(row, name)))
        .collect();
    found.sort();
    found
}

fn finding(kind: &str, user: &str, source: &str) -> [String; 4] {
    ["failed_auth", kind, user, source].map(str::to_owned)
}

async fn five_refused_calls_of_a_user_are_told_once(s: &System) {
    let app = s.app().await;
    let (receiver, hook) = Receiver::of(s, &app).await;
    send(&app, &vec![json!({"user_sub": "alice", "status": "denied"}); 4]).await;
    assert!(found(s, &app, 4).await.is_empty());
    send(&app, &vec![json!({"user_sub": "alice", "status": "denied"}); 5]).await;
    let message = receiver.until(1).await.remove(0);
    message.verify(&hook.secret);
    let data = message.json()["data"].clone();
    for (name, value) in [
        ("rule", json!("failed_auth")),
        ("kind", json!("by_user")),
        ("user_sub", json!("alice")),
        ("severity", json!("high")),
        ("observed", json!(5.0)),
        ("expected", json!(5.0)),
        ("score", json!(80.0)),
    ] {
        assert_eq!(data[name], value, "{name} of {data}");
    }
    assert_eq!(found(s, &app, 9).await, [finding("by_user", "alice", "")]);
    assert_eq!(receiver.messages().len(), 1);
    eventually("errors in the usage", async || {
        let usage = s.usage(&app).await;
        if usage == [9, 9, 0, 0] { Ok(()) } else { Err(usage) }
    })
    .await;
}

async fn an_error_code_of_that_family_counts_as_denied(s: &System) {
    let app = s.app().await;
    let codes = ["invalid_token", "insufficient_scope", "access_denied", "unauthorized", "forbidden"];
    let calls = codes.map(|code| json!({"user_sub": "alice", "status": "error", "error_code": code}));
    send(&app, &calls).await;
    assert_eq!(found(s, &app, 5).await, [finding("by_user", "alice", "")]);
}

async fn refused_calls_of_several_users_from_one_address_are_told_by_source(s: &System) {
    let app = s.app().await;
    let calls: Vec<Value> = (0..5)
        .map(|i| json!({"user_sub": format!("user-{i}"), "status": "denied", "source_ip": "198.51.100.7"}))
        .collect();
    send(&app, &calls).await;
    assert_eq!(found(s, &app, 5).await, [finding("spraying", "", "198.51.100.7")]);

    // One user from one address is one alarm that names both.
    let app = s.app().await;
    send(&app, &vec![json!({"user_sub": "alice", "status": "denied", "source_ip": "198.51.100.8"}); 6]).await;
    assert_eq!(found(s, &app, 6).await, [finding("by_user", "alice", "198.51.100.8")]);
}

async fn fewer_refusals_and_other_errors_say_nothing(s: &System) {
    let app = s.app().await;
    let mut calls = vec![json!({"user_sub": "alice", "status": "denied", "source_ip": "198.51.100.9"}); 2];
    calls.extend(vec![json!({"user_sub": "bob", "status": "denied", "source_ip": "198.51.100.9"}); 2]);
    calls.extend(vec![json!({"user_sub": "alice", "status": "error", "error_code": "timeout"}); 10]);
    calls.extend(vec![json!({"user_sub": "alice", "status": "ok", "error_code": "invalid_token"}); 5]);
    send(&app, &calls).await;
    assert!(found(s, &app, 19).await.is_empty());
}
