//! Live trace: server-sent events as traces happen.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{System, live::Live, on_both_engines, refused};

on_both_engines!(
    a_trace_is_seen_within_a_second_of_its_answer,
    one_users_traces_keep_their_order,
    a_viewer_sees_its_own_app_only,
    a_viewer_that_comes_back_misses_and_repeats_nothing,
    an_id_that_is_none_is_told_as_missed,
    a_duplicate_is_not_seen_again,
    a_viewer_needs_a_token_and_an_app,
);

async fn a_trace_is_seen_within_a_second_of_its_answer(s: &System) {
    let app = s.app().await;
    let (mut live, ping) = Live::open(s, &app).await;
    assert!(ping.id.is_some(), "one can resume from the first ping on");
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let trace = app.trace();
        app.accepted(&trace).await;
        let answered = Instant::now();
        let event = live.next_trace().await;
        best = best.min(answered.elapsed());
        assert_eq!(event.data["event_id"], trace["event_id"]);
        assert_eq!((&event.data["tool"], &event.data["late"]), (&json!("calendar.read"), &json!(false)));
        assert!(event.id.is_some() && event.data["received_at"].is_string());
    }
    // The machine that tests may be busy, so one of five counts.
    assert!(best < Duration::from_secs(1), "{best:?}");
}

async fn one_users_traces_keep_their_order(s: &System) {
    let app = s.app().await;
    let (mut live, _) = Live::open(s, &app).await;
    let traces: Vec<Value> = (0..200).map(|i| app.trace_with(json!({"tool": format!("step-{i}")}))).collect();
    for batch in traces.chunks(20) {
        app.send_batch(batch).await.expect(200);
    }
    for trace in &traces {
        assert_eq!(live.next_trace().await.data["tool"], trace["tool"]);
    }
}

async fn a_viewer_sees_its_own_app_only(s: &System) {
    let (app, other) = (s.app().await, s.app().await);
    let (mut live, _) = Live::open(s, &app).await;
    for _ in 0..5 {
        other.accepted(&other.trace()).await;
    }
    let own = app.trace();
    app.accepted(&own).await;
    assert_eq!(live.next_trace().await.data["event_id"], own["event_id"]);
}

async fn a_viewer_that_comes_back_misses_and_repeats_nothing(s: &System) {
    let app = s.app().await;
    let (mut live, ping) = Live::open(s, &app).await;
    let users = ["a", "b", "c", "d"];
    let traces: Vec<Value> = (0..40).map(|i| app.trace_with(json!({"user_sub": users[i % 4]}))).collect();
    app.send_batch(&traces[..20]).await.expect(200);
    let (mut seen, mut last) = (HashSet::new(), None);
    for _ in 0..7 {
        let event = live.next_trace().await;
        assert!(seen.insert(event.data["event_id"].to_string()));
        last = event.id;
    }
    drop(live);
    app.send_batch(&traces[20..]).await.expect(200);
    let mut live = Live::open_after(s, &app, last.as_deref()).await;
    while seen.len() < 40 {
        assert!(seen.insert(live.next_trace().await.data["event_id"].to_string()), "a trace came twice");
    }
    let one_more = app.trace();
    app.accepted(&one_more).await;
    assert_eq!(live.next_trace().await.data["event_id"], one_more["event_id"]);
    // From the first ping on it is all of them.
    let mut all = Live::open_after(s, &app, ping.id.as_deref()).await;
    for _ in 0..41 {
        all.next_trace().await;
    }
}

async fn an_id_that_is_none_is_told_as_missed(s: &System) {
    let app = s.app().await;
    let mut live = Live::open_after(s, &app, Some("nonsense")).await;
    let first = live.next().await;
    assert_eq!((first.name.as_str(), &first.data["count"]), ("missed", &json!(0)));
    let trace = app.trace();
    app.accepted(&trace).await;
    assert_eq!(live.next_trace().await.data["event_id"], trace["event_id"]);
}

async fn a_duplicate_is_not_seen_again(s: &System) {
    let app = s.app().await;
    let (mut live, _) = Live::open(s, &app).await;
    let (first, second) = (app.trace(), app.trace());
    app.accepted(&first).await;
    assert_eq!(app.send(&first).await.status, 200);
    app.accepted(&second).await;
    let seen = [live.next_trace().await, live.next_trace().await];
    assert_eq!(
        seen.map(|event| event.data["event_id"].clone()),
        [first["event_id"].clone(), second["event_id"].clone()]
    );
}

async fn a_viewer_needs_a_token_and_an_app(s: &System) {
    let app = s.app().await;
    let url = format!("{}/api/v1/panopticon/apps/{}/live", s.control, app.id);
    refused(&s.bare(http::Method::GET, url).await, 401, "invalid_token", None);
    refused(&s.get("/apps/no-such-app/live").await, 404, "not_found", None);
}
