//! What the gateway does not take, each with its code and field, over HTTP and over gRPC.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{Answer, System, app::proto_trace, on_both_engines, refused};

on_both_engines!(
    a_bad_value_is_refused_by_the_name_of_its_field,
    a_missing_field_is_refused_by_its_name,
    values_at_the_limit_are_taken,
    a_body_that_is_no_trace_is_refused,
    credentials_that_are_none_are_refused,
    repeated_bad_credentials_from_one_address_are_turned_away,
    grpc_names_the_field_in_its_details,
    nothing_of_what_was_refused_is_stored,
    no_bytes_are_answered_otherwise_than_by_the_rules,
);

fn ahead(secs: i64) -> String {
    (Timestamp::now() + SignedDuration::from_secs(secs)).to_string()
}

/// Field at fault, and a value that makes it so.
fn bad_values() -> Vec<(&'static str, Value)> {
    let many: Value = (0..1_000).map(|i| (format!("key-{i:04}"), json!("0"))).collect();
    vec![
        ("event_id", json!("")),
        ("event_id", json!("1")),
        ("event_id", json!(7)),
        ("event_id", Value::Null),
        ("event_id", json!("0190b0a07b1a7c3e9d2a000000000001")),
        ("event_id", json!("{0190b0a0-7b1a-7c3e-9d2a-000000000001}")),
        ("event_id", json!("urn:uuid:0190b0a0-7b1a-7c3e-9d2a-000000000001")),
        ("event_id", json!("0190b0a0-7b1a-7c3e-9d2a-00000000000g")),
        ("event_id", json!(" 0190b0a0-7b1a-7c3e-9d2a-000000000001")),
        ("client_id", json!("")),
        ("client_id", json!("a\tb")),
        ("client_id", json!("naïve")),
        ("client_id", json!("a".repeat(256))),
        ("client_id", json!(["app"])),
        ("client_id", Value::Null),
        ("tool", json!("")),
        ("tool", json!("t".repeat(257))),
        ("tool", json!("bell\u{7}")),
        ("tool", json!("line\nbreak")),
        ("tool", json!({})),
        ("tool", Value::Null),
        ("status", json!("OK")),
        ("status", json!("failed")),
        ("status", json!(1)),
        ("status", Value::Null),
        ("started_at", json!("")),
        ("started_at", json!("yesterday")),
        ("started_at", json!("2026-06-30")),
        ("started_at", json!("2026-06-30T12:00:00")),
        ("started_at", json!("2026-13-30T12:00:00Z")),
        ("started_at", json!("2026-02-30T12:00:00Z")),
        ("started_at", json!("1999-12-31T23:59:59Z")),
        ("started_at", json!(ahead(330))),
        ("started_at", json!(1_751_284_800)),
        ("started_at", Value::Null),
        ("duration_ms", json!(-1)),
        ("duration_ms", json!(1.5)),
        ("duration_ms", json!("12")),
        ("duration_ms", json!(86_400_001)),
        ("duration_ms", json!(1e30)),
        ("duration_ms", Value::Null),
        ("scope_used", json!("s".repeat(1_025))),
        ("scope_used", json!(["mail:read"])),
        ("user_sub", json!("u".repeat(256))),
        ("user_sub", json!(42)),
        ("session_id", json!("s".repeat(256))),
        ("agent", json!("ä".repeat(128))),
        ("error_code", json!("e".repeat(256))),
        ("error_code", json!(401)),
        ("source_ip", json!("10.0.0.1:80")),
        ("source_ip", json!("10.0.0.256")),
        ("source_ip", json!("[::1]")),
        ("source_ip", json!("localhost")),
        ("attributes", json!([])),
        ("attributes", json!("text")),
        ("attributes", json!({"nested": {"a": "b"}})),
        ("attributes", json!({"number": 1})),
        ("attributes", json!({"null": null})),
        ("attributes", json!({"a": "x".repeat(8_192)})),
        ("attributes", many),
        ("colour", json!("red")),
        ("Tool", json!("search")),
        ("received_at", json!("2026-06-30T12:00:00Z")),
        ("late", json!(false)),
    ]
}

async fn a_bad_value_is_refused_by_the_name_of_its_field(s: &System) {
    let app = s.app().await;
    for (field, value) in bad_values() {
        let answer = app.send(&app.trace_with(json!({field: value}))).await;
        refused(&answer, 400, "invalid_request", Some(field));
    }
    let mismatch = app.send(&app.trace_with(json!({"client_id": "another-app"}))).await;
    refused(&mismatch, 403, "client_mismatch", Some("client_id"));
}

async fn a_missing_field_is_refused_by_its_name(s: &System) {
    let app = s.app().await;
    for field in ["event_id", "client_id", "tool", "status", "started_at", "duration_ms"] {
        let mut trace = app.trace();
        trace.as_object_mut().unwrap().remove(field);
        refused(&app.send(&trace).await, 400, "invalid_request", Some(field));
    }
}

async fn values_at_the_limit_are_taken(s: &System) {
    let id = format!("https://rp.example/~!*'();:@&=+$,?#[]%-{}", uuid::Uuid::new_v4());
    let id = format!("{id}{}", "x".repeat(255 - id.len()));
    let app = s.app_named(&id, json!({})).await;
    let long = "ü".repeat(127) + "x";
    let trace = app.trace_with(json!({
        "tool": "t".repeat(256), "scope_used": "s".repeat(1_024), "user_sub": long, "session_id": long, "agent": long,
        "error_code": long, "source_ip": "::ffff:10.0.0.1", "attributes": {"a": "x".repeat(8_191)},
        "started_at": ahead(290), "duration_ms": 86_400_000,
    }));
    app.accepted(&trace).await;
    let stored = s.timeline(&app, 1).await;
    assert_eq!((&stored[0]["client_id"], &stored[0]["user_sub"]), (&json!(id), &json!(long)));
}

async fn a_body_that_is_no_trace_is_refused(s: &System) {
    let app = s.app().await;
    let (good, deep) = (app.trace().to_string(), format!("{}{}", "[".repeat(30_000), "]".repeat(30_000)));
    let cut = &good[..good.len() - 1];
    let bodies: [&[u8]; 12] = [
        b"",
        b"{",
        b"null",
        b"7",
        b"[]",
        b"\"text\"",
        b"\xff\xfe",
        b"{'event_id': 1}",
        b"event_id=1&tool=2",
        cut.as_bytes(),
        &[good.as_bytes(), good.as_bytes()].concat(),
        deep.as_bytes(),
    ];
    for body in bodies {
        let request = app.post("/panopticon/trace").header("content-type", "application/json");
        let answer = Answer::read(request.body(body.to_vec()).send().await.unwrap()).await;
        refused(&answer, 400, "invalid_request", None);
    }
    for body in ["", "{", "{}", "7", &good, &format!("[{good}"), &format!("[{good},]")] {
        let request = app.post("/panopticon/traces").header("content-type", "application/json");
        let answer = Answer::read(request.body(body.to_owned()).send().await.unwrap()).await;
        refused(&answer, 400, "invalid_request", None);
    }
}

async fn credentials_that_are_none_are_refused(s: &System) {
    let app = s.app().await;
    let trace = app.trace();
    let token = s.token();
    for authorization in [
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        &app.pak,
        "Bearer pano_pak_",
        &format!("Bearer {}x", app.pak),
        &format!("Bearer {}", &app.pak[..app.pak.len() - 1]),
        &format!("Bearer {token}"),
        &format!("Bearer {} {}", app.pak, app.pak),
    ] {
        for path in ["/panopticon/trace", "/panopticon/traces"] {
            let mut request = app.request(http::Method::POST, path).json(&trace);
            if !authorization.is_empty() {
                request = request.header("authorization", authorization);
            }
            refused(&Answer::read(request.send().await.unwrap()).await, 401, "invalid_token", None);
        }
    }
    let lower = app
        .request(http::Method::POST, "/panopticon/trace")
        .header("authorization", format!("bearer {}", app.pak));
    assert_eq!(lower.json(&trace).send().await.unwrap().status(), 202, "the scheme's case does not matter");
}

async fn repeated_bad_credentials_from_one_address_are_turned_away(s: &System) {
    let app = s.app().await;
    let guesser = app.elsewhere().with_pak("pano_pak_guessed");
    let mut answers = Vec::new();
    for _ in 0..100 {
        let answer = guesser.send(&app.trace()).await;
        let last = answer.status == 429;
        answers.push(answer);
        if last {
            break;
        }
    }
    let (last, before) = answers.split_last().unwrap();
    refused(last, 429, "too_many_requests", None);
    assert!((50..=99).contains(&before.len()), "{} guesses went before", before.len());
    before.iter().for_each(|answer| refused(answer, 401, "invalid_token", None));
    // Neither a good PAK from there nor anyone elsewhere pays for it.
    app.accepted(&app.trace()).await;
    refused(&guesser.elsewhere().send(&app.trace()).await, 401, "invalid_token", None);
    assert_eq!(guesser.with_pak(&app.pak).send(&app.trace()).await.status, 202);

    let mut client = guesser.grpc().await;
    let request = panopticon_proto::v1::IngestRequest { trace: Some(proto_trace(&app.trace())) };
    let status = client.ingest(guesser.ask(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let after = status.get_details_retry_info().expect("RetryInfo").retry_delay.unwrap();
    assert!(after.as_secs() > 0);
}

async fn grpc_names_the_field_in_its_details(s: &System) {
    let app = s.app().await;
    let mut client = app.grpc().await;
    for (field, change) in [
        ("event_id", (|trace| trace.event_id = "1".to_owned()) as fn(&mut panopticon_proto::v1::Trace)),
        ("event_id", |trace| trace.event_id.clear()),
        ("client_id", |trace| trace.client_id.clear()),
        ("tool", |trace| trace.tool.clear()),
        ("tool", |trace| trace.tool = "\u{0}".to_owned()),
        ("status", |trace| trace.status = 0),
        ("status", |trace| trace.status = 99),
        ("started_at", |trace| trace.started_at = None),
        ("started_at", |trace| trace.started_at.as_mut().unwrap().nanos = -1),
        ("started_at", |trace| trace.started_at.as_mut().unwrap().seconds = i64::MAX),
        ("started_at", |trace| trace.started_at.as_mut().unwrap().seconds = 0),
        ("duration_ms", |trace| trace.duration_ms = None),
        ("duration_ms", |trace| trace.duration_ms = Some(86_400_001)),
        ("source_ip", |trace| trace.source_ip = "here".to_owned()),
        ("user_sub", |trace| trace.user_sub = "u".repeat(256)),
        ("attributes", |trace| drop(trace.attributes.insert("a".to_owned(), "x".repeat(9_000)))),
    ] {
        let mut trace = proto_trace(&app.trace());
        change(&mut trace);
        let request = panopticon_proto::v1::IngestRequest { trace: Some(trace) };
        let status = client.ingest(app.ask(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
        let details = status.get_details_bad_request().expect("BadRequest");
        let named: Vec<&str> = details.field_violations.iter().map(|violation| &*violation.field).collect();
        assert_eq!(named, [field], "{status:?}");
        assert!(!details.field_violations[0].description.is_empty());
    }
    let empty = panopticon_proto::v1::IngestRequest { trace: None };
    let status = client.ingest(app.ask(empty)).await.unwrap_err();
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "trace");
}

async fn nothing_of_what_was_refused_is_stored(s: &System) {
    let app = s.app().await;
    for (field, value) in bad_values() {
        assert_eq!(app.send(&app.trace_with(json!({field: value}))).await.status, 400);
    }
    app.accepted(&app.trace()).await;
    s.timeline(&app, 1).await;
    s.until_at_rest(&app).await;
    assert_eq!(s.timeline(&app, 1).await.len(), 1);
    assert_eq!(s.usage(&app).await, [1, 0, 0, 0]);
    if s.engine == crate::support::Engine::Embedded {
        // Where the control room runs beside the gateway, it can say what was refused and why.
        let status = s.get(&format!("/apps/{}/status", app.id)).await.expect(200);
        let refusals = status["gateway"]["refused"].as_array().unwrap();
        let count = |field: &str| refusals.iter().find(|r| r["field"] == field).map(|r| r["count"].clone());
        assert_eq!((count("tool"), count("status")), (Some(json!(6)), Some(json!(4))), "{status}");
        assert_eq!(status["gateway"]["accepted"], 1);
    }
}

/// Good bodies with a few bytes changed, cut or doubled, each time others.
fn spoilt(body: &[u8], rounds: usize) -> Vec<Vec<u8>> {
    let random = || uuid::Uuid::new_v4().as_u128() as usize;
    let spoil = |_| {
        let mut spoilt = body.to_vec();
        for _ in 0..=random() % 4 {
            let at = random() % spoilt.len().max(1);
            match random() % 4 {
                0 => spoilt.truncate(at.max(1)),
                1 => spoilt.insert(at, random() as u8),
                2 => spoilt.extend_from_within(at..),
                _ => spoilt[at] ^= 1 << (random() % 8),
            }
        }
        spoilt
    };
    (0..rounds).map(spoil).collect()
}

async fn no_bytes_are_answered_otherwise_than_by_the_rules(s: &System) {
    let app = s.app().await;
    let (one, batch) = (app.trace().to_string(), json!([app.trace(), app.trace()]).to_string());
    let packed = zstd::encode_all(batch.as_bytes(), 3).unwrap();
    for (path, encoding, body) in [
        ("/panopticon/trace", "identity", one.as_bytes()),
        ("/panopticon/traces", "identity", batch.as_bytes()),
        ("/panopticon/traces", "zstd", &packed),
    ] {
        for body in spoilt(body, 60) {
            let request = app
                .post(path)
                .header("content-type", "application/json")
                .header("content-encoding", encoding);
            let answer = Answer::read(request.body(body.clone()).send().await.unwrap()).await;
            match answer.status {
                200 | 202 => assert!(answer.json().is_object()),
                400 => {
                    let field = answer.json()["field"].as_str().map(str::to_owned);
                    refused(&answer, 400, "invalid_request", field.as_deref());
                }
                403 => refused(&answer, 403, "client_mismatch", Some("client_id")),
                _ => panic!("{path} {encoding} {}: {answer:?}", hex::encode(body)),
            }
        }
    }
}
