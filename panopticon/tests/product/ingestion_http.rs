//! `POST /panopticon/trace` and `POST /panopticon/traces`.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Answer, App, System, on_both_engines, refused};

on_both_engines!(
    the_first_trace_is_accepted_and_sent_again_it_is_a_duplicate,
    a_trace_comes_back_as_it_was_sent,
    what_is_optional_may_be_null_or_absent,
    old_traces_are_taken_and_late,
    one_id_sent_by_many_at_once_is_accepted_once,
    the_same_id_in_two_apps_is_two_traces,
    a_batch_is_answered_in_order_and_a_bad_trace_hurts_no_neighbour,
    ndjson_is_a_trace_a_line,
    gzip_and_zstd_are_undone,
    all_frames_of_a_packed_body_are_read,
    a_batch_has_at_most_a_thousand_traces,
    a_body_is_small_before_and_after_unpacking,
    what_is_not_json_is_refused_by_its_type,
    paths_and_methods_that_are_not_there_are_told,
);

async fn the_first_trace_is_accepted_and_sent_again_it_is_a_duplicate(s: &System) {
    let app = s.app().await;
    let id = Uuid::new_v4().to_string();
    let trace = app.trace_with(json!({"event_id": id.to_uppercase()}));
    let first = app.send(&trace).await;
    let expected = format!(r#"{{"event_id":"{id}","status":"accepted"}}"#);
    assert_eq!((first.status, first.text.as_str()), (202, expected.as_str()));
    assert_eq!(first.header("content-type"), "application/json");
    assert!(Uuid::parse_str(first.header("x-logi-request-id")).is_ok());
    assert_eq!(first.guard(), None);

    let again = app.send(&app.trace_with(json!({"event_id": id}))).await;
    let expected = format!(r#"{{"event_id":"{id}","status":"duplicate"}}"#);
    assert_eq!((again.status, again.text.as_str()), (200, expected.as_str()));
    assert_ne!(first.header("x-logi-request-id"), again.header("x-logi-request-id"));

    s.timeline(&app, 1).await;
    s.until_at_rest(&app).await;
    assert_eq!(s.timeline(&app, 1).await.len(), 1);
    assert_eq!(s.usage(&app).await, [1, 0, 0, 0]);
}

async fn a_trace_comes_back_as_it_was_sent(s: &System) {
    let app = s.app().await;
    let sent = app.trace_with(json!({
        "user_sub": "Zoë|auth0", "tool": "mail.senden – grün", "scope_used": "mail:read mail:send", "status": "error",
        "duration_ms": 86_400_000_u64, "session_id": "s-1", "agent": "claude", "source_ip": "2001:db8::7",
        "error_code": "timeout", "attributes": {"model": "x", "": "empty key", "emoji": "🦀"},
        "started_at": "2026-01-31T23:59:59.123456+09:00",
    }));
    app.accepted(&sent).await;
    let stored = s.timeline(&app, 1).await.remove(0);
    for (name, value) in sent.as_object().unwrap() {
        let expected =
            if name == "started_at" { json!("2026-01-31T14:59:59.123456Z") } else { value.clone() };
        assert_eq!(stored[name], expected, "{name}");
    }
    assert_eq!(stored["late"], true);
    assert!(stored["received_at"].as_str().unwrap().parse::<Timestamp>().unwrap() <= Timestamp::now());
}

async fn what_is_optional_may_be_null_or_absent(s: &System) {
    let app = s.app().await;
    let optional = ["scope_used", "user_sub", "session_id", "agent", "source_ip", "error_code"];
    let nulls: Value =
        optional.iter().chain(&["attributes"]).map(|name| ((*name).to_owned(), Value::Null)).collect();
    app.accepted(&app.trace_with(nulls)).await;
    let mut bare = app.trace_with(json!({"duration_ms": 0}));
    bare.as_object_mut().unwrap().remove("user_sub");
    app.accepted(&bare).await;
    for stored in s.timeline(&app, 2).await {
        assert!(optional.iter().all(|name| stored[*name] == ""), "{stored}");
        assert_eq!(stored["attributes"], json!({}));
        assert_eq!(stored["late"], false);
    }
}

async fn old_traces_are_taken_and_late(s: &System) {
    let app = s.app().await;
    let now = Timestamp::now();
    for (started_at, duration_ms, late) in [
        ("2000-01-01T00:00:00Z".to_owned(), 1, true),
        ((now - SignedDuration::from_secs(90)).to_string(), 1, true),
        // A long call that ended just now is not late, however long ago it began.
        ((now - SignedDuration::from_secs(3_600)).to_string(), 3_595_000, false),
        ((now + SignedDuration::from_secs(200)).to_string(), 1, false),
    ] {
        let user = format!("{started_at}/{late}");
        let trace =
            app.trace_with(json!({"started_at": started_at, "duration_ms": duration_ms, "user_sub": user}));
        app.accepted(&trace).await;
        assert_eq!(app.send(&trace).await.status, 200, "an old trace is known again too");
    }
    for stored in s.timeline(&app, 4).await {
        let late = stored["user_sub"].as_str().unwrap().ends_with("/true");
        assert_eq!(stored["late"], late, "{stored}");
    }
}

async fn one_id_sent_by_many_at_once_is_accepted_once(s: &System) {
    let app = s.app().await;
    let trace = app.trace();
    let sends = (0..40).map(|_| app.send(&trace));
    let mut statuses: Vec<u16> =
        futures::future::join_all(sends).await.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses.iter().filter(|status| **status == 202).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 202].contains(status)), "{statuses:?}");
    s.timeline(&app, 1).await;
    s.until_at_rest(&app).await;
    assert_eq!(s.timeline(&app, 1).await.len(), 1);
    assert_eq!(s.usage(&app).await, [1, 0, 0, 0]);
}

async fn the_same_id_in_two_apps_is_two_traces(s: &System) {
    let (one, other) = (s.app().await, s.app().await);
    let id = Uuid::new_v4().to_string();
    for app in [&one, &other] {
        app.accepted(&app.trace_with(json!({"event_id": id}))).await;
    }
    for app in [&one, &other] {
        assert_eq!(s.timeline(app, 1).await[0]["event_id"], id);
    }
}

/// The results of a batch, as (event_id, status, error, field).
fn results(answer: &Answer) -> Vec<(String, String, String, String)> {
    let body = answer.expect(200);
    let text = |result: &Value, name: &str| result[name].as_str().unwrap_or_default().to_owned();
    let results = body["results"].as_array().unwrap().iter();
    results.map(|r| (text(r, "event_id"), text(r, "status"), text(r, "error"), text(r, "field"))).collect()
}

async fn a_batch_is_answered_in_order_and_a_bad_trace_hurts_no_neighbour(s: &System) {
    let app = s.app().await;
    let known = app.trace();
    app.accepted(&known).await;
    let twice = app.trace_with(json!({"user_sub": "another"}));
    let last = app.trace();
    let batch = [
        app.trace_with(json!({"event_id": Uuid::new_v4().to_string().to_uppercase()})),
        known.clone(),
        app.trace_with(json!({"duration_ms": -1})),
        twice.clone(),
        twice.clone(),
        json!("not a trace"),
        app.trace_with(json!({"event_id": "seven"})),
        app.trace_with(json!({"client_id": "another-app"})),
        app.trace_with(json!({"colour": "red"})),
        json!({"a": [[[[{"b": null}]]]]}),
        last.clone(),
    ];
    let answer = app.send_batch(&batch).await;
    let found = results(&answer);
    let expected = [
        ("accepted", "", ""),
        ("duplicate", "", ""),
        ("rejected", "invalid_request", "duration_ms"),
        ("accepted", "", ""),
        ("duplicate", "", ""),
        ("rejected", "invalid_request", ""),
        ("rejected", "invalid_request", "event_id"),
        ("rejected", "client_mismatch", "client_id"),
        ("rejected", "invalid_request", "colour"),
        ("rejected", "invalid_request", "a"),
        ("accepted", "", ""),
    ];
    let seen: Vec<_> =
        found.iter().map(|(_, status, error, field)| (&**status, &**error, &**field)).collect();
    assert_eq!(seen, expected);
    for (sent, (id, status, ..)) in batch.iter().zip(&found) {
        if status != "rejected" {
            assert_eq!(*id, sent["event_id"].as_str().unwrap().to_lowercase());
        }
    }
    assert_eq!(
        (found[6].0.as_str(), found[5].0.as_str()),
        ("seven", ""),
        "what is no id is shown as it was sent"
    );
    // What went well says nothing more than that.
    let first = &answer.json()["results"][0];
    assert_eq!(first.as_object().unwrap().len(), 2, "{first}");

    s.timeline(&app, 4).await;
    s.until_at_rest(&app).await;
    assert_eq!(s.timeline(&app, 4).await.len(), 4);
    assert_eq!(results(&app.send_batch(&[]).await), []);
}

async fn ndjson_is_a_trace_a_line(s: &System) {
    let app = s.app().await;
    for kind in ["application/x-ndjson", "application/x-ndjson; charset=utf-8"] {
        let lines = format!("{}\r\n\n  {}  \nnonsense\n{}", app.trace(), app.trace(), app.trace());
        let sent =
            app.post("/panopticon/traces").header("content-type", kind).body(lines).send().await.unwrap();
        let found = results(&Answer::read(sent).await);
        let statuses: Vec<&str> = found.iter().map(|result| &*result.1).collect();
        assert_eq!(statuses, ["accepted", "accepted", "rejected", "accepted"]);
    }
    assert_eq!(s.timeline(&app, 6).await.len(), 6);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

async fn post(app: &App, path: &str, encoding: &str, body: Vec<u8>) -> Answer {
    let request =
        app.post(path).header("content-type", "application/json").header("content-encoding", encoding);
    Answer::read(request.body(body).send().await.unwrap()).await
}

async fn gzip_and_zstd_are_undone(s: &System) {
    let app = s.app().await;
    for (encoding, pack) in
        [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("zstd", zstd), ("identity", |bytes| bytes.to_vec())]
    {
        let one = pack(app.trace().to_string().as_bytes());
        assert_eq!(post(&app, "/panopticon/trace", encoding, one).await.status, 202, "{encoding}");
        let batch: Vec<Value> = (0..200).map(|_| app.trace()).collect();
        let answer =
            post(&app, "/panopticon/traces", encoding, pack(json!(batch).to_string().as_bytes())).await;
        assert!(results(&answer).iter().all(|result| result.1 == "accepted"), "{encoding}");
        if encoding != "identity" {
            let garbage = post(&app, "/panopticon/traces", encoding, b"not packed at all".to_vec()).await;
            refused(&garbage, 400, "invalid_request", None);
            let mut cut = pack(json!(batch).to_string().as_bytes());
            cut.truncate(cut.len() / 2);
            refused(&post(&app, "/panopticon/traces", encoding, cut).await, 400, "invalid_request", None);
        }
    }
    assert_eq!(s.timeline(&app, 603).await.len(), 603);
}

async fn all_frames_of_a_packed_body_are_read(s: &System) {
    let app = s.app().await;
    let (first, second) = (format!("[{},", app.trace()), format!("{}]", app.trace()));
    for (encoding, pack) in [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("zstd", zstd)] {
        let mut body = pack(first.as_bytes());
        body.extend(pack(second.as_bytes()));
        assert_eq!(
            results(&post(&app, "/panopticon/traces", encoding, body.clone()).await).len(),
            2,
            "{encoding}"
        );
        body.extend(b"and something else");
        refused(&post(&app, "/panopticon/traces", encoding, body).await, 400, "invalid_request", None);
    }
}

async fn a_batch_has_at_most_a_thousand_traces(s: &System) {
    let app = s.app().await;
    let batch: Vec<Value> = (0..1_001).map(|_| app.trace()).collect();
    refused(&app.send_batch(&batch).await, 413, "request_too_large", None);
    let lines: String = batch.iter().map(|trace| format!("{trace}\n")).collect();
    let sent = app.post("/panopticon/traces").header("content-type", "application/x-ndjson").body(lines);
    refused(&Answer::read(sent.send().await.unwrap()).await, 413, "request_too_large", None);
    assert!(results(&app.send_batch(&batch[..1_000]).await).iter().all(|result| result.1 == "accepted"));
    assert_eq!(s.timeline(&app, 1_000).await.len(), 1_000);
}

async fn a_body_is_small_before_and_after_unpacking(s: &System) {
    let app = s.app().await;
    let filled = |bytes: usize| {
        let mut body = b"[".to_vec();
        body.resize(bytes - 1, b' ');
        body.push(b']');
        body
    };
    let four_mib = 4 << 20;
    refused(
        &post(&app, "/panopticon/traces", "identity", filled(four_mib + 1)).await,
        413,
        "request_too_large",
        None,
    );
    assert_eq!(results(&post(&app, "/panopticon/traces", "identity", filled(four_mib)).await), []);
    for (encoding, pack) in [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("zstd", zstd)] {
        let bomb = pack(&filled(200 << 20));
        assert!(bomb.len() < four_mib);
        refused(&post(&app, "/panopticon/traces", encoding, bomb).await, 413, "request_too_large", None);
        let fits = post(&app, "/panopticon/traces", encoding, pack(&filled(four_mib))).await;
        assert_eq!(results(&fits), [], "{encoding}");
    }
    // A single trace has no need of so much.
    let one = app.trace_with(json!({"attributes": {"a": "x".repeat(70_000)}}));
    refused(&app.send(&one).await, 413, "request_too_large", None);
}

async fn what_is_not_json_is_refused_by_its_type(s: &System) {
    let app = s.app().await;
    for (path, kind, encoding) in [
        ("/panopticon/trace", "text/plain", "identity"),
        ("/panopticon/trace", "application/x-www-form-urlencoded", "identity"),
        ("/panopticon/trace", "application/x-ndjson", "identity"),
        ("/panopticon/traces", "application/xml", "identity"),
        ("/panopticon/traces", "application/json", "br"),
        ("/panopticon/trace", "application/json", "gzip, gzip"),
    ] {
        let request = app.post(path).header("content-type", kind).header("content-encoding", encoding);
        let answer = Answer::read(request.body(app.trace().to_string()).send().await.unwrap()).await;
        refused(&answer, 415, "unsupported_media_type", None);
    }
    let charset = app.post("/panopticon/trace").header("content-type", "Application/JSON; charset=UTF-8");
    assert_eq!(charset.body(app.trace().to_string()).send().await.unwrap().status(), 202);
    let untold = app.post("/panopticon/trace").body(app.trace().to_string());
    assert_eq!(untold.send().await.unwrap().status(), 202, "a body without a type is taken as JSON");
}

async fn paths_and_methods_that_are_not_there_are_told(s: &System) {
    let app = s.app().await;
    for path in ["/panopticon/trace", "/panopticon/traces"] {
        let answer = app.request(http::Method::GET, path).send().await.unwrap();
        let answer = Answer::read(answer).await;
        refused(&answer, 405, "method_not_allowed", None);
        assert_eq!(answer.header("allow"), "POST");
    }
    for path in ["/panopticon", "/panopticon/tracess", "/nothing"] {
        refused(&Answer::read(app.post(path).send().await.unwrap()).await, 404, "not_found", None);
    }
}
