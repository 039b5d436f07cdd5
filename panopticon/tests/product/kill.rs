//! The kill switch.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{App, Receiver, System, on_both_engines, refused, within};

on_both_engines!(
    a_killed_app_is_told_within_a_second_and_its_traces_are_recorded,
    a_killed_user_is_told_by_name_and_others_are_not,
    a_kill_is_told_to_the_webhooks_once,
    kills_that_make_no_sense_are_refused,
);

/// Sends traces of a user until the answer says this; answers how long that took.
async fn until_guard(app: &App, user: &str, guard: Option<&str>) -> Duration {
    let begun = Instant::now();
    within(Duration::from_secs(15), &format!("the guard {guard:?}"), async || {
        let answer = app.send(&app.trace_with(json!({"user_sub": user}))).await;
        assert_eq!(answer.status, 202);
        assert_eq!(answer.json().as_object().unwrap().len(), 2, "the answer stays as it is");
        if answer.guard() == guard { Ok(()) } else { Err(answer.guard().map(str::to_owned)) }
    })
    .await;
    begun.elapsed()
}

fn path(app: &App) -> String {
    format!("/apps/{}/kill", app.id)
}

async fn a_killed_app_is_told_within_a_second_and_its_traces_are_recorded(s: &System) {
    let app = s.app().await;
    until_guard(&app, "alice", None).await;
    let killed = s.post(&path(&app), json!({"reason": "runaway loop"})).await.expect(200);
    for (name, value) in [
        ("client_id", json!(app.id)),
        ("user_sub", Value::Null),
        ("state", json!("killed")),
        ("reason", json!("runaway loop")),
        ("actor", json!("admin")),
    ] {
        assert_eq!(killed[name], value, "{name}");
    }
    let took = until_guard(&app, "alice", Some("killed")).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    let trace = app.trace();
    let (first, again) = (app.accepted(&trace).await, app.send(&trace).await);
    assert_eq!((first.guard(), again.status, again.guard()), (Some("killed"), 200, Some("killed")));
    let batch = app.send_batch(&[app.trace(), json!({})]).await;
    assert_eq!(batch.guard(), Some("killed"));
    let results = batch.expect(200);
    assert_eq!(results["results"][0]["guard"], "killed");
    let kills = s.get(&format!("/apps/{}", app.id)).await.expect(200)["kills"].clone();
    assert_eq!((kills[0]["state"].as_str(), kills.as_array().unwrap().len()), (Some("killed"), 1));

    let lifted = s.call(http::Method::DELETE, &path(&app), json!({"reason": "fixed"})).await.expect(200);
    assert_eq!((&lifted["state"], &lifted["reason"]), (&json!("lifted"), &json!("fixed")));
    let took = until_guard(&app, "alice", None).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    let road = s.timeline(&app, 4).await;
    assert!(road.iter().any(|row| row["event_id"] == trace["event_id"]), "a trace under a kill is recorded");
}

async fn a_killed_user_is_told_by_name_and_others_are_not(s: &System) {
    let app = s.app().await;
    let user = "auth0|Zoë /?&";
    s.post(&path(&app), json!({"user_sub": user})).await.expect(200);
    until_guard(&app, user, Some("killed; scope=user")).await;
    until_guard(&app, "another", None).await;
    let batch = [app.trace_with(json!({"user_sub": user})), app.trace_with(json!({"user_sub": "another"}))];
    let results = app.send_batch(&batch).await.expect(200);
    assert_eq!(results["results"][0]["guard"], "killed; scope=user");
    assert!(results["results"][1].get("guard").is_none(), "{results}");

    // The app's kill and that of its user are lifted each by itself.
    s.post(&path(&app), json!({})).await.expect(200);
    until_guard(&app, "another", Some("killed")).await;
    s.delete(&path(&app)).await.expect(200);
    until_guard(&app, "another", None).await;
    until_guard(&app, user, Some("killed; scope=user")).await;
    s.delete(&format!("{}?user_sub=auth0%7CZo%C3%AB%20%2F%3F%26", path(&app))).await.expect(200);
    until_guard(&app, user, None).await;
}

async fn a_kill_is_told_to_the_webhooks_once(s: &System) {
    let app = s.app().await;
    let (receiver, hook) = Receiver::of(s, &app).await;
    let first = s.post(&path(&app), json!({"user_sub": "alice", "reason": "loop"})).await.expect(200);
    // Again it stays as it is.
    let again = s.post(&path(&app), json!({"user_sub": "alice", "reason": "another"})).await.expect(200);
    assert_eq!(first, again);
    s.post(&path(&app), json!({})).await.expect(200);
    s.call(http::Method::DELETE, &path(&app), json!({"user_sub": "alice", "reason": "done"}))
        .await
        .expect(200);
    receiver.until(3).await;
    s.until_at_rest(&app).await;
    let messages = receiver.messages();
    let mut told: Vec<Value> = messages.iter().map(|message| message.json()["data"].clone()).collect();
    told.sort_by_key(|data| data["reason"].to_string());
    assert_eq!(
        told,
        [
            json!({"client_id": app.id, "state": "killed", "reason": "", "actor": "admin"}),
            json!({"client_id": app.id, "user_sub": "alice", "state": "lifted", "reason": "done", "actor": "admin"}),
            json!({"client_id": app.id, "user_sub": "alice", "state": "killed", "reason": "loop", "actor": "admin"}),
        ]
    );
    for message in &messages {
        message.verify(&hook.secret);
        assert_eq!(message.kind(), "panopticon.kill_switch");
    }
}

async fn kills_that_make_no_sense_are_refused(s: &System) {
    let app = s.app().await;
    refused(&s.post(&path(&app), json!({"user_sub": ""})).await, 400, "invalid_request", Some("user_sub"));
    refused(&s.post(&path(&app), json!({"user": "alice"})).await, 400, "invalid_request", Some("user"));
    refused(&s.post("/apps/no-such-app/kill", json!({})).await, 404, "not_found", None);
    refused(&s.delete(&path(&app)).await, 404, "not_found", None);
}
