//! The command line against a real server: what it prints with `--json`, and its exit status.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    App, System, eventually, logi,
    logi::{program, run},
    on_both_engines,
};

on_both_engines!(
    an_app_is_enabled_sent_to_and_looked_at,
    a_rotated_and_a_disabled_app,
    a_policy_is_shown_and_set,
    a_kill_and_its_end,
    tokens_are_made_listed_and_revoked,
    traces_are_replayed_and_replayed_again,
    a_timeline_is_followed,
    failures_are_status_1_and_wrong_usage_is_status_2,
);

fn fresh() -> String {
    format!("cli-{}", Uuid::new_v4().simple())
}

/// Enables an app and waits until the gateway knows it.
async fn enabled(s: &System, id: &str, more: &[&str]) -> (Value, App) {
    let shown = logi(s, &[&["enable", id, "--json"], more].concat()).await.json();
    let secret = shown["pak_secret"].as_str().unwrap_or_default().to_owned();
    let app = App::new(&s.ingest, id).with_keys(shown["pak"].as_str().unwrap(), &secret);
    app.until_admitted().await;
    (shown, app)
}

async fn an_app_is_enabled_sent_to_and_looked_at(s: &System) {
    let id = fresh();
    let (shown, _) = enabled(s, &id, &["--name", "By hand", "--scopes", "a,b"]).await;
    assert_eq!(
        (&shown["client_id"], &shown["name"], &shown["scopes"]),
        (&json!(id), &json!("By hand"), &json!(["a", "b"]))
    );
    assert!(shown["pak"].as_str().unwrap().starts_with("pano_pak_"));

    let sent = logi(s, &["send", &id, "--count", "3", "--user", "alice", "--status", "error", "--json"])
        .await
        .json();
    assert_eq!((&sent["accepted"], &sent["rejected"]), (&json!(3), &json!(0)));
    let sent: Vec<&Value> = sent["results"].as_array().unwrap().iter().collect();
    assert!(sent.len() == 3 && sent.iter().all(|trace| trace["status"] == "accepted"), "{sent:?}");
    let event_id = sent[0]["event_id"].as_str().unwrap().to_owned();

    let timeline = eventually("three traces", async || {
        let rows = logi(s, &["timeline", &id, "--user", "alice", "--json"]).await.json();
        if rows.as_array().unwrap().len() == 3 { Ok(rows) } else { Err(rows) }
    })
    .await;
    assert!(
        timeline.as_array().unwrap().iter().all(|row| row["status"] == "error" && row["agent"] == "logi")
    );
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date().to_string();
    let usage = eventually("the usage", async || {
        let rows = logi(s, &["usage", &id, "--since", "2026-01-01", "--json"]).await.json();
        if rows[0]["traces"] == 3 { Ok(rows) } else { Err(rows) }
    })
    .await;
    assert_eq!(usage, json!([{"date": today, "traces": 3, "errors": 3, "hitl_requests": 0, "kills": 0}]));
    let road = logi(s, &["trace", &event_id, "--json"]).await.json();
    assert_eq!((&road["event_id"], &road["steps"][0]["step"]), (&json!(event_id), &json!("accepted")));
    let status = logi(s, &["status", &id, "--json"]).await.json();
    assert!(status["client_id"] == id && status["last_received_at"].is_string(), "{status}");
    assert_eq!(logi(s, &["detections", &id, "--json"]).await.json(), json!([]));
    assert_eq!(logi(s, &["actions", &id, "--json"]).await.json(), json!([]));
    let apps = logi(s, &["apps", "--json"]).await.json();
    assert!(apps.as_array().unwrap().iter().any(|app| app["client_id"] == id));
    let audit = eventually("the audit record", async || {
        let rows = logi(s, &["audit", "--client-id", &id, "--json"]).await.json();
        if rows[0]["action"] == "app.enable" { Ok(rows) } else { Err(rows) }
    })
    .await;
    assert_eq!(audit.as_array().unwrap().len(), 1);
    assert_eq!(logi(s, &["dead-letters", "list", "--json"]).await.json(), json!([]));
    // The same for people.
    for words in [&["timeline", &id][..], &["usage", &id], &["status", &id], &["trace", &event_id], &["apps"]]
    {
        let shown = logi(s, words).await.done();
        assert!(shown.lines().count() > 1 || words[0] == "status", "{words:?}: {shown}");
    }
}

async fn a_rotated_and_a_disabled_app(s: &System) {
    let id = fresh();
    let (_, app) = enabled(s, &id, &["--hmac"]).await;
    assert!(app.secret.starts_with("pano_sec_"));
    let sent = logi(s, &["send", &id, "--json"]).await.json();
    assert_eq!(sent["accepted"], 1, "signed with the secret that `enable` kept");
    let rotated = logi(s, &["rotate", &id, "--grace", "0s", "--json"]).await.json();
    assert_ne!(rotated["pak"], app.pak);
    eventually("the end of the old PAK", async || {
        let answer = app.elsewhere().send(&app.trace()).await;
        if answer.json()["error"] == "invalid_token" { Ok(()) } else { Err(answer.text) }
    })
    .await;
    eventually("the new PAK", async || {
        let ran = logi(s, &["send", &id, "--json"]).await;
        if ran.status == 0 { Ok(()) } else { Err(ran) }
    })
    .await;
    logi(s, &["disable", &id, "--json"]).await.json();
    let error = eventually("the refusal", async || {
        let ran = logi(s, &["send", &id]).await;
        if ran.status == 1 { Ok(ran.failed()) } else { Err(ran) }
    })
    .await;
    assert!(error.contains("app_disabled"), "{error}");
    logi(s, &["enable", &id]).await.done();
    eventually("the app is back", async || {
        let ran = logi(s, &["send", &id]).await;
        if ran.status == 0 { Ok(()) } else { Err(ran) }
    })
    .await;
}

async fn a_policy_is_shown_and_set(s: &System) {
    let id = s.app().await.id;
    let shown = logi(s, &["policy", &id, "--json"]).await.json();
    assert_eq!(shown["rate_limit"], json!({"per_minute": 60, "per_tool_per_minute": 20}));
    let limit = r#"{"per_minute":7,"per_tool_per_minute":3}"#;
    let set = logi(s, &["policy", &id, "--rate-limit", limit, "--json"]).await.json();
    assert_eq!(
        (&set["rate_limit"], &set["version"]),
        (&json!({"per_minute": 7, "per_tool_per_minute": 3}), &json!(1))
    );
    assert_eq!(logi(s, &["policy", &id, "--json"]).await.json(), set);
    for words in [&["--hitl", "mail.send"][..], &["--drift", "block"]] {
        let error = logi(s, &[&["policy", &id], words].concat()).await.failed();
        assert!(error.contains("not_supported"), "{error}");
    }
    let detection = r#"{"off_hour":false,"alarms_a_month":0.5,"quiet_users":["loadtest"]}"#;
    let set = logi(s, &["policy", &id, "--detection", detection, "--json"]).await.json();
    let in_force = json!({"burst": true, "off_hour": false, "failed_auth": true, "alarms_a_month": 0.5,
        "quiet_users": ["loadtest"]});
    assert_eq!(set["detection"], in_force);
    let table = logi(s, &["policy", &id]).await.done();
    for line in ["rule off_hour                  off", "quiet users                    loadtest"] {
        assert!(table.contains(line), "{table}");
    }
    let ran = logi(s, &["policy", &id, "--detection", r#"{"alarms_a_month":0}"#]).await;
    assert!(ran.status == 2 && ran.err.contains("alarms_a_month"), "{ran:?}");
    let back = logi(s, &["policy", &id, "--rate-limit", "null", "--json"]).await.json();
    assert_eq!(back["rate_limit"]["per_minute"], 60);
}

async fn a_kill_and_its_end(s: &System) {
    let app = s.app().await;
    let killed = logi(s, &["kill", &app.id, "--user", "alice", "--reason", "loop", "--json"]).await.json();
    assert_eq!(
        (&killed["state"], &killed["user_sub"], &killed["reason"]),
        (&json!("killed"), &json!("alice"), &json!("loop"))
    );
    // `logi agent revoke` is the same command, for the whole app here.
    let revoked = run(program(s, &["logi", "agent", "revoke", &app.id, "--json"])).await.json();
    assert!(revoked["state"] == "killed" && revoked["user_sub"].is_null(), "{revoked}");
    let lifted = logi(s, &["unkill", &app.id, "--user", "alice", "--json"]).await.json();
    assert_eq!((&lifted["state"], &lifted["user_sub"]), (&json!("lifted"), &json!("alice")));
    logi(s, &["unkill", &app.id]).await.done();
    let error = logi(s, &["unkill", &app.id]).await.failed();
    assert!(error.contains("not_found"), "{error}");
}

async fn tokens_are_made_listed_and_revoked(s: &System) {
    let app = s.app().await;
    let words = [
        "token",
        "create",
        "--name",
        "ci",
        "--role",
        "owner",
        "--app",
        &app.id,
        "--expires-in-days",
        "7",
        "--json",
    ];
    let made = logi(s, &words).await.json();
    let id = made["id"].as_str().unwrap();
    let as_owner = |words: &[&str]| {
        let mut program = program(s, &[&["logi", "panopticon"], words].concat());
        program.settings.retain(|(name, _)| name != "LOGI_TOKEN");
        program.settings.push(("LOGI_TOKEN".to_owned(), made["token"].as_str().unwrap().to_owned()));
        run(program)
    };
    as_owner(&["timeline", &app.id]).await.done();
    let error = as_owner(&["token", "list"]).await.failed();
    assert!(error.contains("insufficient_scope"), "{error}");
    let list = logi(s, &["token", "list", "--json"]).await.json();
    let found = list.as_array().unwrap().iter().find(|token| token["id"] == id).unwrap();
    assert!(found["name"] == "ci" && found.get("token").is_none());
    logi(s, &["token", "revoke", id]).await.done();
    let error = as_owner(&["timeline", &app.id]).await.failed();
    assert!(error.contains("invalid_token"), "{error}");
}

async fn traces_are_replayed_and_replayed_again(s: &System) {
    let app = s.app().await;
    let file = s.folder.join(format!("{}.ndjson", app.id));
    let lines: Vec<String> = (0..1_500).map(|_| app.trace().to_string()).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let file = file.display().to_string();
    let replay = |more: &'static [&'static str]| {
        run(program(s, &[&["replay", &file, "--url", &s.ingest, "--pak", &app.pak, "--max"], more].concat()))
    };
    for more in [&[][..], &["--grpc"]] {
        let ran = replay(more).await;
        assert_eq!(ran.status, 0, "{ran:?}");
        assert_eq!(s.timeline(&app, 1_500).await.len(), 1_500);
    }
    s.until_at_rest(&app).await;
    assert_eq!(s.usage(&app).await, [1_500, 0, 0, 0], "what came before is not counted twice");
    let refused =
        run(program(s, &["replay", &file, "--url", &s.ingest, "--pak", "pano_pak_wrong", "--max"])).await;
    assert!(refused.status == 1 && refused.err.contains("invalid_token"), "{refused:?}");
}

async fn a_timeline_is_followed(s: &System) {
    let app = s.app().await;
    app.accepted(&app.trace_with(json!({"tool": "before"}))).await;
    s.timeline(&app, 1).await;
    let mut following = program(s, &["logi", "panopticon", "timeline", &app.id, "--follow", "--json"]);
    following.name = format!("follow-{}", app.id);
    let process = following.start();
    let shown = async |tool: &str| {
        eventually(tool, async || {
            let log = process.log();
            if log.contains(&format!("\"tool\":\"{tool}\"")) { Ok(()) } else { Err(log) }
        })
        .await;
    };
    shown("before").await;
    app.accepted(&app.trace_with(json!({"tool": "after"}))).await;
    shown("after").await;
    let log = process.log();
    let rows: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(rows.len(), 2, "one trace a line: {log}");
    assert!(process.interrupt().await.success(), "Ctrl-C is its end");
}

async fn failures_are_status_1_and_wrong_usage_is_status_2(s: &System) {
    for words in
        [&["timeline", "no-such-app"][..], &["kill", "no-such-app"], &["send", "no-such-app"], &["approvals"]]
    {
        logi(s, words).await.failed();
    }
    let unknown = Uuid::new_v4().to_string();
    assert_eq!(logi(s, &["trace", &unknown]).await.status, 1);
    for words in [&["timeline"][..], &["nonsense"], &["trace", "seven"], &["usage", "x", "--since", "soon"]] {
        let ran = logi(s, words).await;
        assert!(ran.status == 2 && ran.out.is_empty(), "{words:?}: {ran:?}");
    }
    let mut stray = program(s, &["logi", "panopticon", "apps"]);
    stray.settings.retain(|(name, _)| name == "LOGI_TOKEN");
    stray.settings.push(("LOGI_URL".to_owned(), "http://127.0.0.1:1".to_owned()));
    let error = run(stray).await.failed();
    assert!(error.contains("127.0.0.1:1"), "{error}");
}
