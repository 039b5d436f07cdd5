//! Data that an earlier state of the project has written, opened with today's programs.
//!
//! `tests/older/` has it: the embedded engine's data directory, and the data directories of the three servers,
//! each with `known.json`, which says what is in it. `docs/operations.md` says how they are made anew, by
//! [`make_older_data`].

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use xtask::stack::TemporaryStack;

use crate::support::{
    App, Engine, Receiver, System, alone_on_both_engines, eventually, http_client, logi::run, receiver::Hook,
    run_alone,
};

alone_on_both_engines!(what_an_earlier_state_has_written_is_there_and_goes_on);

/// The folder of the programs that [`make_older_data`] runs.
const OLDER_PROGRAMS: &str = "PANOPTICON_TEST_OLDER_PROGRAMS";

const APP: &str = "older-app";
const TRACES: usize = 40;
/// Calls of a user in a minute that are allowed; one more is an episode.
const PER_MINUTE: usize = 10;
const KILLED: &str = "mallory";

/// What holds for those who wrote the data and those who open it, on whichever servers; nothing of it is to
/// run out while the archives lie in the repository.
const SETTINGS: &[(&str, &str)] = &[
    ("PANOPTICON_ADMIN_TOKEN", "pano_tok_of_older_data_0123456789abcdef"),
    ("PANOPTICON_SECRETS__KEY", "b2xkZXIgZGF0YSBvbGRlciBkYXRhIG9sZGVyIGRhdGE="),
    ("PANOPTICON_WEBHOOKS__ALLOW_LOOPBACK", "true"),
    ("PANOPTICON_RETENTION__RAW_DAYS", "10000"),
    ("PANOPTICON_RETENTION__LOG_HOURS", "2160"),
    ("PANOPTICON_RETENTION__DELIVERIES_DAYS", "10000"),
    ("PANOPTICON_KAFKA__TOPIC_PREFIX", "older."),
    ("PANOPTICON_REDIS__KEY_PREFIX", "older:"),
    ("PANOPTICON_CLICKHOUSE__DATABASE", "older"),
];

fn archive(engine: Engine) -> PathBuf {
    let name = if engine == Engine::Embedded { "embedded.tar.gz" } else { "distributed.tar.gz" };
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/older").join(name)
}

fn tar(arguments: &[&str], archive: &Path, folder: &Path) {
    let mut command = Command::new("tar");
    command.args(arguments).arg(archive).arg("-C").arg(folder);
    let contents: &[&str] = match arguments {
        ["-x", ..] => &[],
        _ if folder.join("panopticon-data").exists() => &["known.json", "panopticon-data"],
        _ => &["known.json", "data"],
    };
    assert!(command.args(contents).status().unwrap().success());
}

/// A system on data of its own, and its servers where it has any.
struct Bed {
    system: System,
    servers: Option<TemporaryStack>,
    /// Where the data lies.
    folder: PathBuf,
}

impl Bed {
    /// On the data of the archive, or on none.
    async fn new(engine: Engine, archive: Option<&Path>) -> Self {
        let unpack = |folder: &Path| archive.into_iter().for_each(|file| tar(&["-x", "-zf"], file, folder));
        let on_data = |folder: &Path| {
            unpack(folder);
            Ok(())
        };
        let servers = (engine == Engine::Distributed).then(|| TemporaryStack::up_on(on_data).unwrap());
        let mut settings: Vec<(&str, String)> =
            SETTINGS.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        if let Some(servers) = &servers {
            let addresses = servers.env();
            settings.extend(addresses.into_iter().filter(|(name, _)| !name.contains("DATABASE")));
        }
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut system = System::prepare(engine, &settings).await;
        system.token = SETTINGS[0].1.to_owned();
        let folder = servers.as_ref().map_or(system.folder.clone(), |servers| servers.dir().to_owned());
        if servers.is_none() {
            unpack(&folder);
        }
        Self { system, servers, folder }
    }
}

/// Makes the archives with the programs of an earlier state.
#[test]
#[ignore = "only to make the archives anew"]
fn make_older_data() {
    let programs = PathBuf::from(std::env::var(OLDER_PROGRAMS).expect(OLDER_PROGRAMS));
    for engine in [Engine::Embedded, Engine::Distributed] {
        let programs = programs.clone();
        run_alone(engine, async move |engine| {
            let Bed { system, servers, folder } = Bed::new(engine, None).await;
            let system = system.with_programs_in(&programs);
            system.start_again().await;
            let known = live(&system).await;
            assert!(system.stop().await.iter().all(|(_, status)| status.success()));
            if let Some(servers) = servers.as_ref() {
                servers.down().unwrap();
            }
            std::fs::write(folder.join("known.json"), known.to_string()).unwrap();
            tar(&["-c", "--sparse", "--owner=0", "--group=0", "-zf"], &archive(engine), &folder);
        });
    }
}

/// Some of everything that is kept; answers what there is.
async fn live(s: &System) -> Value {
    let app = s.app_named(APP, json!({"name": "Older app", "scopes": ["mail:read"]})).await;
    let limits = json!({"rate_limit": {"per_minute": PER_MINUTE, "per_tool_per_minute": 0}});
    s.patch(&format!("/apps/{APP}/policy"), limits).await.expect(200);
    s.post(&format!("/apps/{APP}/kill"), json!({"user_sub": KILLED, "reason": "stolen"})).await.expect(200);
    let token = json!({"name": "reader", "role": "read", "expires_in_days": 3650});
    let token = s.post("/tokens", token).await.expect(201)["token"].clone();
    let (receiver, hook) = Receiver::of(s, &app).await;
    // Until every process knows the policy.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;

    let loops = (0..=PER_MINUTE).map(|_| app.trace_with(json!({"user_sub": "alice", "tool": "search"})));
    let others = (PER_MINUTE + 1..TRACES).map(|n| {
        let started_at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(n as i64);
        let status = ["ok", "error", "denied"][n % 3];
        app.trace_with(json!({
            "user_sub": format!("user_{}", n % 5), "tool": format!("tool_{}", n % 3), "duration_ms": n,
            "started_at": started_at.to_string(), "status": status,
            "source_ip": "192.0.2.7", "session_id": format!("s{n}"), "attributes": {"n": n.to_string()},
        }))
    });
    let traces: Vec<Value> = loops.chain(others).collect();
    app.send_batch(&traces).await.expect(200);
    s.timeline(&app, TRACES).await;
    receiver.until(1).await;
    s.until_at_rest(&app).await;

    let since = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * 10);
    let day = |time: jiff::Timestamp| time.to_string()[..10].to_owned();
    let paths = [
        format!("/apps/{APP}"),
        format!("/apps/{APP}/policy"),
        format!("/apps/{APP}/timeline?limit=1000"),
        format!("/apps/{APP}/usage?since={}&until={}", day(since), day(jiff::Timestamp::now())),
        format!("/apps/{APP}/detections"),
        format!("/apps/{APP}/actions"),
        format!("/apps/{APP}/webhooks"),
        format!("/apps/{APP}/webhooks/{}/deliveries", hook.id),
        "/tokens".to_owned(),
        "/audit".to_owned(),
    ];
    let mut answers = serde_json::Map::new();
    for path in paths {
        let answer = s.get(&path).await.expect(200);
        answers.insert(path, answer);
    }
    json!({
        "written_at": jiff::Timestamp::now().to_string(), "pak": app.pak, "token": token,
        "hook": {"id": hook.id, "secret": hook.secret}, "traces": traces, "answers": answers,
    })
}

/// Whether `now` has all that `then` had; what was added since does not matter.
fn has_all(now: &Value, then: &Value) -> bool {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            then.iter().all(|(name, value)| now.get(name).is_some_and(|now| has_all(now, value)))
        }
        (Value::Array(now), Value::Array(then)) => {
            now.len() == then.len() && now.iter().zip(then).all(|(now, then)| has_all(now, then))
        }
        _ => now == then,
    }
}

async fn what_an_earlier_state_has_written_is_there_and_goes_on(engine: Engine) {
    let Bed { system: s, servers, folder } = Bed::new(engine, Some(&archive(engine))).await;
    let known = std::fs::read_to_string(folder.join("known.json")).unwrap();
    let known: Value = serde_json::from_str(&known).unwrap();

    // As replicas do that are started at once; the embedded file has one process at a time.
    let at_once = if engine == Engine::Distributed { 4 } else { 1 };
    let migrate = async || {
        let mut program =
            s.program(if engine == Engine::Distributed { "control-room" } else { "panopticon" }).clone();
        program.path = env!("CARGO_BIN_EXE_panopticon").into();
        program.arguments = vec!["migrate".to_owned()];
        run(program).await.done()
    };
    futures::future::join_all((0..at_once).map(|_| migrate())).await;
    migrate().await;
    s.start_again().await;

    for (path, then) in known["answers"].as_object().unwrap() {
        let now = s.get(path).await.expect(200);
        assert!(has_all(&now, then), "{path}: now {now}\nthen {then}");
    }
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let reader = http_client(None).get(format!("{}/api/v1/panopticon/apps", s.control));
    assert_eq!(reader.bearer_auth(text(&known["token"])).send().await.unwrap().status(), 200);

    let app = App::new(&s.ingest, APP).with_pak(&text(&known["pak"]));
    for trace in known["traces"].as_array().unwrap() {
        assert_eq!(app.send(trace).await.status, 200, "what was taken before is a duplicate: {trace}");
    }
    let killed = app.send(&app.trace_with(json!({"user_sub": KILLED}))).await;
    assert_eq!((killed.status, killed.guard()), (202, Some("killed; scope=user")));
    app.accepted(&app.trace_with(json!({"user_sub": "alice", "tool": "search"}))).await;
    let rows = s.timeline(&app, TRACES + 2).await;
    assert_eq!(rows.len(), TRACES + 2);

    // The episode that was open when the data was written ends with the first call after it, unless this
    // machine's clock is behind the data.
    let written_at: jiff::Timestamp = known["written_at"].as_str().unwrap().parse().unwrap();
    if jiff::Timestamp::now() > written_at + jiff::SignedDuration::from_mins(10) {
        eventually("the end of the episode", async || {
            let found = s.list(&format!("/apps/{APP}/detections")).await;
            if found.len() == 1 && !found[0]["ended_at"].is_null() { Ok(()) } else { Err(found) }
        })
        .await;
    }

    // The endpoint and its sealed secret.
    let receiver = Receiver::start().await;
    let hook = Hook { id: text(&known["hook"]["id"]), secret: text(&known["hook"]["secret"]) };
    let endpoint = format!("/apps/{APP}/webhooks/{}", hook.id);
    s.patch(&endpoint, json!({"url": receiver.url})).await.expect(200);
    s.post(&format!("{endpoint}/test"), json!({})).await.expect(202);
    let told = eventually("a webhook", async || {
        receiver.messages().into_iter().find(|message| message.kind() == "panopticon.test").ok_or(())
    });
    told.await.verify(&hook.secret);
    assert!(s.stop().await.iter().all(|(_, status)| status.success()));
    drop(servers);
}
