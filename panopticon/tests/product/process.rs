//! The processes: how they start, tell their condition, end and start again.

use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use http::Method;
use panopticon_proto::v1::{IngestBatchRequest, Outcome};
use serde_json::json;

use crate::support::{
    Answer, Engine, Receiver, System, alone_on_both_engines,
    app::proto_trace,
    eventually,
    logi::{self, run},
    on_both_engines,
    process::{free_port, new_folder},
    refused, run_alone, within,
};

on_both_engines!(every_process_tells_its_condition_and_metrics);
alone_on_both_engines!(a_restart_keeps_everything_and_sigterm_ends_in_order);

async fn every_process_tells_its_condition_and_metrics(s: &System) {
    let app = s.app().await;
    app.accepted(&app.trace()).await;
    s.timeline(&app, 1).await;
    let get = async |url: String| s.bare(Method::GET, url).await;
    for condition in s.conditions() {
        assert_eq!(get(format!("{condition}/healthz")).await.expect(200)["status"], "alive");
        let ready = get(format!("{condition}/readyz")).await.expect(200);
        assert_eq!(ready["status"], "ready");
        assert!(!ready["parts"].as_array().unwrap().is_empty());
        let metrics = get(format!("{condition}/metrics")).await;
        assert_eq!(metrics.status, 200);
        assert!(metrics.header("content-type").starts_with("text/plain; version=0.0.4"), "{metrics:?}");
        assert!(metrics.text.contains("# TYPE panopticon_"), "{condition}: {}", metrics.text);
    }
    for url in [&s.ingest, &s.control] {
        assert_eq!(get(format!("{url}/healthz")).await.status, 200);
        assert_eq!(get(format!("{url}/readyz")).await.status, 200);
        assert_eq!(get(format!("{url}/metrics")).await.status, 404, "metrics are on an address of their own");
    }
}

async fn a_restart_keeps_everything_and_sigterm_ends_in_order(engine: Engine) {
    let s = System::start(engine, &[]).await;
    let app = s.app_with(json!({"name": "Kept", "scopes": ["mail:read"]})).await;
    let signing = s.app_with(json!({"hmac": true})).await;
    let (receiver, hook) = Receiver::of(&s, &app).await;
    let of_app = |rest: &str| format!("/apps/{}{rest}", app.id);
    s.patch(&of_app("/policy"), json!({"rate_limit": {"per_minute": 33}})).await.expect(200);
    s.post(&of_app("/kill"), json!({"user_sub": "alice", "reason": "kept"})).await.expect(200);
    let token = s.post("/tokens", json!({"name": "kept", "role": "read"})).await.expect(201);
    let traces: Vec<_> = (0..25).map(|_| app.trace()).collect();
    app.send_batch(&traces).await.expect(200);
    s.timeline(&app, 25).await;
    receiver.until(2).await;
    s.until_at_rest(&app).await;
    let paths = [
        of_app(""),
        of_app("/policy"),
        of_app("/timeline"),
        of_app("/usage"),
        of_app("/detections"),
        of_app("/webhooks"),
    ];
    let before =
        futures::future::join_all(paths.iter().map(async |path| s.get(path).await.expect(200))).await;
    assert_eq!(before[4]["items"].as_array().unwrap().len(), 1, "one runaway loop");

    // Traces that are answered in the moment of the end are kept too.
    let last = app.trace();
    app.accepted(&last).await;
    for (name, status) in s.stop().await {
        assert!(status.success(), "{name} ended with {status}");
    }
    s.start_again().await;

    for (path, before) in paths.iter().zip(&before) {
        if !path.ends_with("/timeline") && !path.ends_with("/usage") {
            assert_eq!(s.get(path).await.expect(200), *before, "{path}");
        }
    }
    assert_eq!(s.timeline(&app, 26).await.len(), 26);
    let old = crate::support::http_client(None)
        .get(format!("{}/api/v1/panopticon/apps", s.control))
        .bearer_auth(token["token"].as_str().unwrap());
    assert_eq!(old.send().await.unwrap().status(), 200, "tokens are kept");
    app.until_admitted().await;
    signing.until_admitted().await;
    assert_eq!(app.send(&last).await.status, 200, "what was sent before is a duplicate");
    let killed = app.send(&app.trace_with(json!({"user_sub": "alice"}))).await;
    assert_eq!((killed.status, killed.guard()), (202, Some("killed; scope=user")));
    // The loop goes on: its episode is known, and nobody is told again.
    app.send_batch(&(0..10).map(|_| app.trace()).collect::<Vec<_>>()).await.expect(200);
    s.timeline(&app, 37).await;
    s.until_at_rest(&app).await;
    assert_eq!(s.list(&of_app("/detections")).await.len(), 1);
    assert_eq!(receiver.messages().len(), 2);
    s.post(&of_app(&format!("/webhooks/{}/test", hook.id)), json!({})).await.expect(202);
    receiver.until(3).await[2].verify(&hook.secret);
    assert!(s.stop().await.iter().all(|(_, status)| status.success()));
}

#[test]
fn a_second_server_on_the_same_data_is_refused() {
    run_alone(Engine::Embedded, async |engine| {
        let s = System::start(engine, &[]).await;
        let mut second = s.program("panopticon").clone();
        let data = s.data_dir().display().to_string();
        second.arguments.extend([
            "--data-dir".to_owned(),
            data,
            "--listen".to_owned(),
            format!("127.0.0.1:{}", free_port()),
        ]);
        second.settings.push(("PANOPTICON_METRICS_LISTEN".to_owned(), format!("127.0.0.1:{}", free_port())));
        second.name = "second".to_owned();
        let mut process = second.start();
        assert_eq!(process.end().await.code(), Some(1));
        let said = process.log();
        let line =
            said.lines().find(|line| line.starts_with("panopticon: ")).unwrap_or_else(|| panic!("{said}"));
        assert!(line.contains("panopticon-data") && line.contains("another process"), "{line}");
        assert!(!said.contains("panicked"), "{said}");
        // The first is not disturbed.
        let app = s.app().await;
        app.accepted(&app.trace()).await;
        s.timeline(&app, 1).await;
    });
}

#[test]
fn an_address_that_is_taken_is_named_with_its_setting() {
    run_alone(Engine::Embedded, async |engine| {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        for (name, setting) in
            [("PANOPTICON_LISTEN", "`listen`"), ("PANOPTICON_METRICS_LISTEN", "`metrics_listen`")]
        {
            let s = System::prepare(engine, &[]).await;
            let mut program = s.program("panopticon").clone();
            program.settings.push((name.to_owned(), address.clone()));
            let ran = run(program).await;
            assert_eq!(ran.status, 1, "{ran:?}");
            assert!(ran.err.contains(&address) && ran.err.contains(setting), "{ran:?}");
        }
    });
}

#[test]
fn a_server_tells_the_commands_for_a_first_trace_and_they_work() {
    run_alone(Engine::Embedded, async |engine| {
        let s = System::start(engine, &[]).await;
        let told = s.bare(Method::GET, format!("{}/", s.ingest)).await;
        assert_eq!(told.status, 200);
        let printed = eventually("the commands on standard output", async || {
            let log = s.log();
            if log.contains("logi panopticon enable") { Ok(log) } else { Err(log) }
        })
        .await;
        assert!(told.text.lines().all(|line| printed.contains(line)), "the same is printed at start");

        // As a newcomer pastes them, in any directory: the server is found by what it recorded.
        let folder = new_folder("newcomer");
        let paste = |script: &str| {
            let mut shell = logi::program(&s, &["-c", script]);
            shell.path = "sh".into();
            shell.settings = vec![("HOME".to_owned(), s.folder.display().to_string())];
            shell.folder = folder.clone();
            run(shell)
        };
        let command = |start: &str| told.text.lines().find(|line| line.contains(start)).unwrap().to_owned();
        let enabled = paste(&format!("{} --json", command("logi panopticon enable my-app"))).await.json();
        let pak = enabled["pak"].as_str().unwrap();
        let curl = &told.text[told.text.find("curl -i").unwrap()..told.text.find("See it:").unwrap()];
        let answer = paste(&format!("PAK={pak}\n{curl}")).await.done();
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
        assert!(answer.ends_with("\"status\":\"accepted\"}"), "{answer}");
        eventually("the trace on the timeline", async || {
            let shown = paste(&format!("{} --json", command("logi panopticon timeline my-app"))).await.json();
            if shown[0]["tool"] == "calendar.read" { Ok(()) } else { Err(shown) }
        })
        .await;
        paste(&command("logi panopticon status my-app")).await.done();
    });
}

#[test]
fn secrets_are_the_owners_alone() {
    run_alone(Engine::Embedded, async |engine| {
        let s = System::start(engine, &[]).await;
        s.app_with(json!({"hmac": true})).await;
        for name in ["admin.token", "secrets.key"] {
            let mode = std::fs::metadata(s.data_dir().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let token = s.token();
        assert!(token.starts_with("pano_tok_"));
        s.stop().await;
        s.start_again().await;
        assert_eq!(s.token(), token, "the token stays");
    });
}

#[test]
fn a_full_queue_is_answered_at_once_and_in_its_place() {
    run_alone(Engine::Embedded, async |engine| {
        let s = System::start(engine, &[("PANOPTICON_GATEWAY__QUEUE_TRACES", "1")]).await;
        let app = s.app().await;
        // Two traces of one user go to one partition, whose queue has room for one.
        let pair = [app.trace(), app.trace()];
        refused(&app.send_batch(&pair).await, 503, "unavailable", None);
        let mut client = app.grpc().await;
        let batch = IngestBatchRequest { traces: pair.iter().map(proto_trace).collect() };
        let status = client.ingest_batch(app.ask(batch));
        let results = status.await.unwrap().into_inner().results;
        assert!(results.iter().all(|result| result.outcome() == Outcome::Unavailable));
        // A user of the other partition is not hurt by it.
        let mut both = None;
        for i in 0..20 {
            let alone = app.trace_with(json!({"user_sub": format!("other-{i}")}));
            let answer = app.send_batch(&[pair[0].clone(), alone, pair[1].clone()]).await;
            if answer.status == 200 {
                both = Some(answer.json()["results"].clone());
                break;
            }
        }
        let results = both.expect("no user of another partition");
        let told: Vec<_> =
            (0..3).map(|i| (results[i]["status"].as_str().unwrap(), results[i]["error"].as_str())).collect();
        assert!(told.iter().filter(|(_, error)| *error == Some("unavailable")).count() >= 1, "{results}");
        assert!(told.iter().any(|(status, _)| *status == "accepted"), "{results}");
        // Sent again one by one, all are taken.
        for trace in &pair {
            eventually("room", async || {
                let answer = app.send(trace).await;
                if answer.status == 503 { Err(answer.text) } else { Ok(()) }
            })
            .await;
        }
        within(Duration::from_secs(10), "the count of full queues", async || {
            let metrics = Answer::read(reqwest::get(format!("{}/metrics", s.conditions()[0])).await.unwrap())
                .await
                .text;
            if metrics.contains("panopticon_gateway_queue_full_total") { Ok(()) } else { Err(()) }
        })
        .await;
    });
}

#[test]
fn an_id_is_known_for_as_long_as_its_trace_is_kept() {
    run_alone(Engine::Embedded, async |engine| {
        let s = System::start(engine, &[("PANOPTICON_RETENTION__SEEN_SECS", "2")]).await;
        let app = s.app().await;
        let old = app.trace_with(json!({"started_at": "2026-01-01T00:00:00Z"}));
        app.accepted(&old).await;
        s.timeline(&app, 1).await;
        // Well past the window of the seen set: the trace store knows it still.
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(app.send(&old).await.status, 200);
        s.until_at_rest(&app).await;
        assert_eq!(s.timeline(&app, 1).await.len(), 1);
    });
}

#[test]
fn the_demo_ends_with_status_0_only_if_what_was_sent_is_stored() {
    run_alone(Engine::Embedded, async |engine| {
        let s = System::prepare(engine, &[]).await;
        let mut demo = s.program("panopticon").clone();
        demo.arguments = vec!["demo".to_owned(), "--exit".to_owned()];
        let shown = run(demo).await.done();
        for part in ["rate_limit", "http://127.0.0.1:"] {
            assert!(shown.contains(part), "{shown}");
        }
    });
}
