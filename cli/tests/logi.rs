//! `logi` as people and scripts meet it: what it asks, prints and exits with.

#![allow(missing_docs, clippy::unwrap_used)]

mod stub;

use std::{os::unix::fs::PermissionsExt as _, process::Stdio};

use serde_json::{Value, json as value};
use stub::{Stub, all_accepted, error, json, logi, ran};

const APP: &str = r#"{"client_id":"my-app","name":"","scopes":[],"hmac":false,"disabled":false,"kills":[],"paks":1,
    "created_at":"2026-06-30T12:00:00.000000Z","updated_at":"2026-06-30T12:00:00.000000Z"}"#;

fn app_with_pak(secret: Option<&str>) -> String {
    let mut app: Value = serde_json::from_str(APP).unwrap();
    app["pak"] = "pano_pak_one".into();
    if let Some(secret) = secret {
        app["pak_secret"] = secret.into();
    }
    app.to_string()
}

fn one_trace(tool: &str) -> Value {
    value!({"event_id": "0190b0a0-7b1a-7c3e-9d2a-000000000001", "client_id": "my-app", "user_sub": "alice",
        "tool": tool, "scope_used": "", "status": "ok", "started_at": "2026-06-30T12:00:00.000000Z",
        "duration_ms": 5, "session_id": "", "agent": "", "source_ip": "", "error_code": "", "attributes": {},
        "received_at": "2026-06-30T12:00:01.000000Z", "late": false})
}

#[tokio::test]
async fn a_refusal_is_status_1_and_one_clear_line() {
    let stub = Stub::start(|_, _| error(404, "not_found", "app `x` does not exist")).await;
    let folder = tempfile::tempdir().unwrap();
    for command in ["status", "timeline", "usage", "kill", "rotate", "disable", "policy", "detections"] {
        let ran = stub.logi(folder.path(), &["panopticon", command, "x"]).await;
        let expected = format!(
            "logi: app `x` does not exist (not_found); enable it with: {} panopticon enable x [request 0190-r]\n",
            env!("CARGO_BIN_EXE_logi")
        );
        assert_eq!((ran.status, ran.err, ran.out.as_str()), (1, expected, ""), "{command}");
    }
}

#[tokio::test]
async fn wrong_usage_is_status_2() {
    let stub = Stub::always(200, "{}").await;
    let folder = tempfile::tempdir().unwrap();
    for words in [
        &["panopticon", "nonsense"][..],
        &["panopticon", "enable"],
        &["panopticon", "timeline", "x", "--since", "yesterday"],
        &["panopticon", "policy", "x", "--rate-limit", "{\"per_minute\":1}"],
        &["panopticon", "trace", "not-a-uuid"],
        &["panopticon", "token", "create", "--name", "n", "--role", "king"],
        &["panopticon", "enable", "caf\u{e9}"],
        &["panopticon", "send", "x", "--count", "0"],
    ] {
        let ran = stub.logi(folder.path(), words).await;
        assert_eq!(ran.status, 2, "{words:?}: {ran:?}");
    }
    assert!(stub.asked().is_empty());
}

#[tokio::test]
async fn what_is_not_there_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let mut gone = logi(folder.path(), &["panopticon", "apps"]);
    gone.env("LOGI_URL", "http://127.0.0.1:9").env("LOGI_TOKEN", "t");
    let gone = ran(gone).await;
    assert_eq!(gone.status, 1);
    assert!(
        gone.err.starts_with("logi: cannot reach http://127.0.0.1:9: Connection refused"),
        "{}",
        gone.err
    );
    assert!(gone.err.contains("panopticon serve") && gone.err.lines().count() == 1, "{}", gone.err);

    let no_token = ran(logi(folder.path(), &["panopticon", "apps"])).await;
    assert_eq!(no_token.status, 1);
    assert!(no_token.err.contains("no API token for http://127.0.0.1:7420"), "{}", no_token.err);

    let stranger = Stub::always(404, "<html>\x1b[2Jnginx</html>").await;
    let strange = stranger.logi(folder.path(), &["panopticon", "apps"]).await;
    assert!(strange.status == 1 && strange.err.contains("is LOGI_URL right?"), "{}", strange.err);
    assert!(!strange.err.contains('\x1b'), "{}", strange.err);

    let approvals = ran(logi(folder.path(), &["panopticon", "approvals"])).await;
    assert_eq!(
        (approvals.status, approvals.err.as_str()),
        (1, "logi: this build does not have approvals yet\n")
    );
}

#[tokio::test]
async fn the_recorded_server_is_found_from_any_directory() {
    let stub = Stub::always(200, r#"{"items":[],"next_cursor":null}"#).await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("admin.token");
    std::fs::write(&token, "pano_tok_recorded\n").unwrap();
    std::fs::create_dir(folder.path().join("logi")).unwrap();
    // A later server whose data directory is gone, as a demo's is.
    let records = format!(
        "[[server]]\nurl = \"{}\"\ntoken_file = \"{}\"\nrecorded_at = \"2026-06-30T12:00:00Z\"\n\
         [[server]]\nurl = \"http://127.0.0.1:9\"\ntoken_file = \"/gone/admin.token\"\n\
         recorded_at = \"2026-06-30T13:00:00Z\"\n",
        stub.url,
        token.display()
    );
    std::fs::write(folder.path().join("logi/servers.toml"), records).unwrap();
    let listed = ran(logi(folder.path(), &["panopticon", "apps", "--json"])).await;
    assert_eq!((listed.status, listed.out.as_str()), (0, "[]\n"), "{listed:?}");
    assert_eq!(stub.asked()[0].header("authorization"), "Bearer pano_tok_recorded");
}

#[tokio::test]
async fn the_printed_pak_is_kept_privately_and_send_uses_it_and_signs() {
    let stub = Stub::start(|asked, _| match asked.line.as_str() {
        "POST /panopticon/traces" => all_accepted(asked),
        _ => json(200, &app_with_pak(Some("pano_sec_two"))),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let enabled = stub.logi(folder.path(), &["panopticon", "enable", "my-app", "--hmac"]).await;
    assert_eq!(enabled.status, 0, "{enabled:?}");
    assert_eq!(stub.asked()[0].line, "PUT /api/v1/panopticon/apps/my-app");
    assert_eq!(stub.asked()[0].json(), value!({"hmac": true, "disabled": false}));
    assert!(enabled.out.contains("pano_pak_one") && enabled.out.contains("curl "), "{}", enabled.out);
    let mode = std::fs::metadata(folder.path().join("logi/paks.toml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let sent = stub.logi(folder.path(), &["panopticon", "send", "my-app", "--count", "3"]).await;
    assert_eq!(sent.status, 0, "{sent:?}");
    let asked = &stub.asked()[1];
    assert_eq!((asked.traces().len(), asked.header("authorization")), (3, "Bearer pano_pak_one"));
    use hmac::{KeyInit as _, Mac as _};
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(b"pano_sec_two").unwrap();
    mac.update(format!("{}.", asked.header("x-panopticon-timestamp")).as_bytes());
    mac.update(&asked.body);
    assert_eq!(asked.header("x-panopticon-signature"), hex::encode(mac.finalize().into_bytes()));
}

#[tokio::test]
async fn without_a_pak_send_says_how_to_get_one() {
    let stub = Stub::always(200, &app_with_pak(None)).await;
    let folder = tempfile::tempdir().unwrap();
    let enabled = stub.logi(folder.path(), &["panopticon", "enable", "my-app", "--no-save"]).await;
    assert_eq!(enabled.status, 0);
    let sent = stub.logi(folder.path(), &["panopticon", "send", "my-app"]).await;
    assert_eq!(sent.status, 1);
    assert!(sent.err.contains("logi panopticon rotate my-app --grace 1w"), "{}", sent.err);
}

#[tokio::test]
async fn a_rejected_test_trace_is_status_1() {
    let stub = Stub::start(|asked, _| stub::results(asked, |_| "rejected")).await;
    let folder = tempfile::tempdir().unwrap();
    let sent = stub.logi(folder.path(), &["panopticon", "send", "my-app", "--pak", "pano_pak_x"]).await;
    assert_eq!((sent.status, sent.err.as_str()), (1, "logi: 1 trace rejected: tool: is required\n"));
}

#[tokio::test]
async fn a_list_is_read_over_its_pages_and_printed_as_an_array() {
    let stub = Stub::start(|asked, _| {
        let page = |id: &str, next: Value| {
            let mut app: Value = serde_json::from_str(APP).unwrap();
            app["client_id"] = id.into();
            json(200, &value!({"items": [app], "next_cursor": next}).to_string())
        };
        match asked.line.contains("cursor=a%2Fb") {
            false => page("one", "a/b".into()),
            true => page("two", Value::Null),
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let listed = stub.logi(folder.path(), &["panopticon", "apps", "--json"]).await;
    let apps: Vec<Value> = serde_json::from_str(&listed.out).unwrap();
    assert_eq!(apps.iter().map(|app| &app["client_id"]).collect::<Vec<_>>(), ["one", "two"]);
    let table = stub.logi(folder.path(), &["panopticon", "apps"]).await;
    let lines: Vec<&str> = table.out.lines().collect();
    assert_eq!(lines.len(), 3, "{}", table.out);
    let column = lines[0].find("STATE").unwrap();
    assert!(lines[1..].iter().all(|line| line[column..].starts_with("enabled")), "{}", table.out);
}

#[tokio::test]
async fn usage_asks_for_days_of_the_zone_and_prints_rows_as_promised() {
    let row = r#"{"date":"2026-06-30","traces":7,"errors":2,"hitl_requests":0,"kills":1}"#;
    let stub = Stub::always(200, &format!(r#"{{"items":[{row}],"next_cursor":null}}"#)).await;
    let folder = tempfile::tempdir().unwrap();
    let words = ["panopticon", "usage", "my-app", "--since", "2026-06-30T23:30:00Z", "--until", "2026-07-02"];
    let used = stub.logi(folder.path(), &[&words[..], &["--tz", "Europe/Berlin", "--json"]].concat()).await;
    assert_eq!((used.status, used.out.as_str()), (0, format!("[{row}]\n").as_str()));
    assert_eq!(
        stub.asked()[0].line,
        "GET /api/v1/panopticon/apps/my-app/usage?since=2026-07-01&until=2026-07-02&tz=Europe%2FBerlin"
    );
}

#[tokio::test]
async fn no_tool_name_can_play_with_the_terminal() {
    let tool = "evil\u{1b}[2J\u{9b}1m\u{202e}";
    let page = value!({"items": [one_trace(tool)], "next_cursor": null}).to_string();
    let stub = Stub::always(200, &page).await;
    let folder = tempfile::tempdir().unwrap();
    let shown = stub.logi(folder.path(), &["panopticon", "timeline", "my-app"]).await;
    assert!(shown.out.contains(r"evil\u{1b}[2J\u{9b}1m\u{202e}"), "{}", shown.out);
    let as_json = stub.logi(folder.path(), &["panopticon", "timeline", "my-app", "--json"]).await;
    assert!(
        !as_json.out.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'),
        "{}",
        as_json.out
    );
    let traces: Vec<Value> = serde_json::from_str(&as_json.out).unwrap();
    assert_eq!(traces[0]["tool"], tool);
}

#[tokio::test]
async fn a_policy_is_changed_only_as_it_was_seen() {
    let stub = Stub::start(|asked, _| {
        let policy = r#"{"client_id":"my-app","rate_limit":{"per_minute":60,"per_tool_per_minute":20},
            "version":3,"updated_at":"2026-06-30T12:00:00.000000Z"}"#;
        let mut answer = json(200, policy);
        if asked.line.starts_with("PATCH") && asked.json().get("drift").is_some() {
            answer = error(400, "not_supported", "this build does not enforce `drift`");
        }
        answer.headers_mut().insert("etag", "\"3\"".parse().unwrap());
        answer
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let limits = r#"{"per_minute":60,"per_tool_per_minute":20}"#;
    let changed = stub.logi(folder.path(), &["panopticon", "policy", "my-app", "--rate-limit", limits]).await;
    assert_eq!(changed.status, 0, "{changed:?}");
    let patch = &stub.asked()[1];
    assert_eq!(patch.header("if-match"), "\"3\"");
    assert_eq!(patch.json(), value!({"rate_limit": {"per_minute": 60, "per_tool_per_minute": 20}}));
    let refused = stub.logi(folder.path(), &["panopticon", "policy", "my-app", "--drift", "block"]).await;
    assert!(refused.status == 1 && refused.err.contains("(not_supported)"), "{refused:?}");
}

#[tokio::test]
async fn all_dead_letters_of_a_stage_are_replayed_oldest_first_and_only_once() {
    let letter = |id: &str, stage: &str, state: &str| {
        value!({"dead_letter_id": id, "topic": "traces", "partition": 1, "offset": 7, "stage": stage,
            "error": "no", "at": "2026-06-30T12:00:00.000000Z", "size": 12, "state": state})
    };
    let page = value!({"next_cursor": null, "items": [letter("new", "store", "dead"),
        letter("done", "store", "replayed"), letter("other", "rate-limit", "dead"),
        letter("o/ld", "store", "dead")]});
    let stub = Stub::start(move |asked, _| {
        if asked.line.starts_with("GET") {
            return json(200, &page.to_string());
        }
        let id = if asked.line.contains("new") { "new" } else { "o/ld" };
        let replayed = value!({"dead_letter_id": id, "topic": "traces", "partition": 1, "stage": "store",
            "replayed_at": "2026-06-30T12:05:00.000000Z"});
        json(202, &replayed.to_string())
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let listed = stub.logi(folder.path(), &["panopticon", "dead-letters", "list"]).await;
    let words: Vec<&str> = listed.out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(words, ["2026-06-30T12:00:00Z", "store", "traces", "1/7", "12", "dead", "no", "new"]);
    let all = ["panopticon", "dead-letters", "replay", "--all", "--stage", "store"];
    let replayed = stub.logi(folder.path(), &all).await;
    assert_eq!(replayed.status, 0, "{replayed:?}");
    assert!(replayed.out.ends_with("replayed 2 dead letters\n"), "{}", replayed.out);
    let posts: Vec<String> =
        stub.asked().into_iter().map(|asked| asked.line).filter(|line| line.starts_with("POST")).collect();
    assert_eq!(
        posts,
        ["o%2Fld", "new"].map(|id| format!("POST /api/v1/panopticon/dead-letters/{id}/replay"))
    );
    let as_json = stub.logi(folder.path(), &["panopticon", "dead-letters", "replay", "new", "--json"]).await;
    let rows: Vec<Value> = serde_json::from_str(&as_json.out).unwrap();
    assert_eq!((rows.len(), &rows[0]["stage"]), (1, &value!("store")));
    let neither = stub.logi(folder.path(), &["panopticon", "dead-letters", "replay"]).await;
    assert_eq!(neither.status, 2, "{neither:?}");
}

#[tokio::test]
async fn an_erasure_says_what_was_done_and_what_is_left() {
    let erased = value!({"client_id": "my-app", "erasure_id": "0190-e", "complete": false,
        "erased": {"traces": 7, "usage": 9, "detections": 1, "actions": 2, "deliveries": 4,
            "pending_deliveries": 1, "usage_left": 0},
        "log_copies_gone_by": "2026-07-07T14:00:00.000000Z",
        "delivery_copies_gone_by": "2026-07-12T12:00:00.000000Z", "notes": ["1 webhook delivery is tried"]});
    let stub = Stub::always(200, &erased.to_string()).await;
    let folder = tempfile::tempdir().unwrap();
    let words = ["panopticon", "erase", "my-app", "--user", "al/ice"];
    let ran = stub.logi(folder.path(), &words).await;
    assert_eq!(ran.status, 0, "{ran:?}");
    let asked = &stub.asked()[0];
    assert_eq!(asked.line, "POST /api/v1/panopticon/apps/my-app/erase");
    assert_eq!(asked.json(), value!({"user_sub": "al/ice"}));
    for part in ["raw traces removed", "2026-07-07T14:00:00Z", "1 webhook delivery is tried", "not complete"]
    {
        assert!(ran.out.contains(part), "{part}: {}", ran.out);
    }
    let as_json = stub.logi(folder.path(), &[&words[..], &["--json"]].concat()).await;
    assert_eq!(serde_json::from_str::<Value>(&as_json.out).unwrap(), erased);
    assert_eq!(stub.logi(folder.path(), &words[..3]).await.status, 2, "nobody is named");
}

#[tokio::test]
async fn agent_revoke_is_kill() {
    let kill = r#"{"client_id":"my-app","user_sub":"al/ice","state":"killed","reason":"loop","actor":"me",
        "at":"2026-06-30T12:00:00.000000Z"}"#;
    let stub = Stub::always(200, kill).await;
    let folder = tempfile::tempdir().unwrap();
    let flags = ["my-app", "--user", "al/ice", "--reason", "loop"];
    for words in [["panopticon", "kill"], ["agent", "revoke"]] {
        let killed = stub.logi(folder.path(), &[&words[..], &flags].concat()).await;
        assert_eq!(killed.status, 0, "{killed:?}");
    }
    for asked in stub.asked() {
        assert_eq!(asked.line, "POST /api/v1/panopticon/apps/my-app/kill");
        assert_eq!(asked.json(), value!({"user_sub": "al/ice", "reason": "loop"}));
    }
}

#[tokio::test]
async fn lifting_a_users_kill_names_the_user_in_path_and_body() {
    let stub = Stub::always(204, "").await;
    let folder = tempfile::tempdir().unwrap();
    let lifted = stub.logi(folder.path(), &["panopticon", "unkill", "my-app", "--user", "al/ice"]).await;
    assert_eq!((lifted.status, lifted.out.as_str()), (0, "user `al/ice` of app `my-app`: lifted\n"));
    let asked = &stub.asked()[0];
    assert_eq!(asked.line, "DELETE /api/v1/panopticon/apps/my-app/kill?user_sub=al%2Fice");
    assert_eq!(asked.json(), value!({"user_sub": "al/ice"}));
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_failure() {
    let traces: Vec<Value> = (0..20_000).map(|_| one_trace("t")).collect();
    let stub = Stub::always(200, &value!({"items": traces, "next_cursor": null}).to_string()).await;
    let folder = tempfile::tempdir().unwrap();
    let words = ["panopticon", "timeline", "my-app", "--json", "--limit", "20000"];
    let mut logi = stub.command(folder.path(), &words);
    let mut child = logi.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
