//! `panopticon backtest` over stored traces, beside the running system that stored them.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    App, Engine, System,
    logi::{Ran, logi, program, run},
    on_both_engines,
};

on_both_engines!(
    stored_traces_give_what_the_same_traces_give_from_a_file,
    settings_and_policies_are_tried_on_stored_traces,
    a_period_and_an_app_without_traces_say_so,
    where_there_is_no_database_it_is_said_what_to_do,
);

/// Runs `backtest` with the settings of the system's processes.
async fn backtest(s: &System, words: &[&str]) -> Ran {
    let role = if s.engine == Engine::Embedded { "panopticon" } else { "control-room" };
    let mut program = program(s, &[&["backtest"], words].concat());
    program.settings.extend(s.program(role).settings.iter().cloned());
    run(program).await
}

/// Traces of many users with two incidents, in batches, so that many are received at the same time.
async fn incidents(s: &System, app: &App) -> usize {
    let mut sent = 0;
    for batch in 0..4 {
        let calls = (0..60).map(|n| match n % 12 {
            0 => json!({"user_sub": "alice", "status": "denied", "source_ip": "198.51.100.4"}),
            1..=4 => json!({"user_sub": "loop", "tool": "search"}),
            n => json!({"user_sub": format!("user-{batch}-{n}"), "attributes": {"n": "1"}}),
        });
        let traces: Vec<Value> = calls.map(|call| app.trace_with(call)).collect();
        app.send_batch(&traces).await.expect(200);
        sent += traces.len();
    }
    s.timeline(app, sent).await;
    sent
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn stored_traces_give_what_the_same_traces_give_from_a_file(s: &System) {
    let app = s.app().await;
    let sent = incidents(s, &app).await;
    let stored = backtest(s, &["--app", &app.id, "--since", "1h", "--json"]).await;
    assert!(stored.err.contains(&format!("{sent} traces (0 late), 2 episodes began")), "{stored:?}");
    let stored = stored.done();
    let found = lines(&stored);
    let mut rules: Vec<&str> = found.iter().map(|found| found["rule"].as_str().unwrap()).collect();
    rules.sort_unstable();
    assert_eq!(rules, ["failed_auth", "rate_limit"]);

    // The same traces, as the API tells them, in a file.
    let mut rows = s.timeline(&app, sent).await;
    rows.reverse();
    for row in &mut rows {
        row.as_object_mut().unwrap().remove("late");
    }
    let file = s.folder.join(format!("{}.ndjson", app.id));
    fs::write(&file, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    let out = s.folder.join(format!("{}.found", app.id));
    let (file, out) = (file.display().to_string(), out.display().to_string());
    backtest(s, &["--traces", &file, "--out", &out]).await.done();
    assert_eq!(fs::read_to_string(&out).unwrap(), stored);
    // And again.
    let again = backtest(s, &["--app", &app.id, "--since", "1h", "--out", "-"]).await.done();
    assert_eq!(again, stored);
    // The detections are those that the running system has told.
    s.until_at_rest(&app).await;
    let live = s.list(&format!("/apps/{}/detections", app.id)).await;
    let ids = |rows: &[Value]| {
        let mut ids: Vec<String> = rows.iter().map(|row| row["detection_id"].to_string()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&live), ids(&found));
}

async fn settings_and_policies_are_tried_on_stored_traces(s: &System) {
    let app = s.app().await;
    incidents(s, &app).await;
    let file = |name: &str, text: &str| {
        let path = s.folder.join(format!("{}-{name}", app.id));
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let tried = async |option: &str, path: &str| {
        backtest(s, &["--app", &app.id, "--since", "1h", option, path]).await
    };
    let quiet = tried("--rules", &file("rules.toml", "quiet_users = [\"alice\"]\n")).await.done();
    assert!(quiet.contains("loop called search") && !quiet.contains("alice"), "{quiet}");
    // A policy as it is printed.
    let limits = r#"{"per_minute":0,"per_tool_per_minute":0}"#;
    logi(s, &["policy", &app.id, "--rate-limit", limits]).await.done();
    let policy = logi(s, &["policy", &app.id, "--json"]).await.done();
    let unlimited = tried("--policy", &file("policy.json", &policy)).await.done();
    assert!(unlimited.contains("alice was refused") && !unlimited.contains("loop"), "{unlimited}");
    for (option, text, why) in [
        ("--rules", "bursts = false", "bursts"),
        ("--rules", "alarms_a_month = 0", "alarms_a_month"),
        ("--policy", "{\"detection\":{\"quiet_users\":[\"\"]}}", "quiet_users[0]"),
    ] {
        let error = tried(option, &file("wrong", text)).await;
        assert!(error.status == 1 && error.err.contains(why), "{error:?}");
    }
}

async fn a_period_and_an_app_without_traces_say_so(s: &System) {
    let app = s.app().await;
    incidents(s, &app).await;
    for words in [
        &["--app", &app.id, "--since", "2020-01-01", "--until", "2020-12-31"][..],
        &["--app", "nobody", "--since", "1h"],
    ] {
        let ran = backtest(s, words).await;
        assert!(ran.err.contains("no stored trace of"), "{ran:?}");
        assert_eq!(ran.done(), "");
    }
    let ran = backtest(s, &["--app", &app.id]).await;
    assert!(ran.status == 2 && ran.err.contains("--since"), "{ran:?}");
    let backwards = ["--app", &app.id, "--since", "2021-01-01", "--until", "2020-01-01"];
    assert!(backtest(s, &backwards).await.failed().contains("--since"));
}

async fn where_there_is_no_database_it_is_said_what_to_do(s: &System) {
    let mut program = program(s, &["backtest", "--app", "my-app", "--since", "1h", "--data-dir", "nowhere"]);
    let away = match s.engine {
        Engine::Embedded => "--data-dir",
        Engine::Distributed => {
            let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            program.settings.extend(s.program("control-room").settings.iter().cloned());
            program.settings.push(own("PANOPTICON_CLICKHOUSE__URL", "http://127.0.0.1:9"));
            "127.0.0.1:9"
        }
    };
    let error = run(program).await.failed();
    assert!(error.contains(away), "{error}");
    assert!(!s.folder.join("nowhere").exists());
}
