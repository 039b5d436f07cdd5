//! A running system: its processes and its API, the same for both engines.

use std::{
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Mutex,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::FutureExt as _;
use http::Method;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::{
    Answer, App, eventually, http_client, leftovers,
    process::{Process, Program, free_port, new_folder},
};

/// Where the control API begins.
pub const BASE: &str = "/api/v1/panopticon";

/// So that a second attempt of a webhook does not take seconds.
const SHARED_SETTINGS: &[(&str, &str)] = &[
    ("PANOPTICON_WEBHOOKS__RETRY_FIRST_MS", "200"),
    // On a busy machine an answer without the seen set would be right, but not the word that is asked for.
    ("PANOPTICON_GATEWAY__MARK_TIMEOUT_MS", "15000"),
    ("PANOPTICON_GATEWAY__APPEND_TIMEOUT_MS", "15000"),
    ("PANOPTICON_REDIS__TIMEOUT_MS", "15000"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// One process.
    Embedded,
    /// A process for each role.
    Distributed,
}

/// The servers of the distributed engine, as `cargo xtask stack up` tells them.
struct Servers {
    kafka: String,
    redis: String,
    clickhouse: String,
}

impl Servers {
    fn of_environment() -> Option<Self> {
        let server = |name: &str| std::env::var(format!("PANOPTICON_TEST_{name}")).ok();
        Some(Self {
            kafka: server("KAFKA_BROKERS")?,
            redis: server("REDIS_URL")?,
            clickhouse: server("CLICKHOUSE_URL")?,
        })
    }
}

impl Engine {
    /// Whether its servers are known.
    pub fn is_there(self) -> bool {
        self == Self::Embedded || Servers::of_environment().is_some()
    }
}

/// A running system.
#[derive(Debug)]
pub struct System {
    pub engine: Engine,
    /// URL of the gateway.
    pub ingest: String,
    /// URL of the control room.
    pub control: String,
    /// With the role admin.
    pub token: String,
    /// Homes, logs and data of its processes.
    pub folder: PathBuf,
    http: Client,
    programs: Vec<Program>,
    /// Where each program tells its condition, in their order.
    conditions: Vec<String>,
    running: Mutex<Vec<Process>>,
}

impl System {
    /// The system that all tests of an engine share.
    pub async fn shared(engine: Engine) -> &'static Self {
        static EMBEDDED: OnceCell<Option<System>> = OnceCell::const_new();
        static DISTRIBUTED: OnceCell<Option<System>> = OnceCell::const_new();
        let cell = if engine == Engine::Embedded { &EMBEDDED } else { &DISTRIBUTED };
        // A start that fails is told by the test that tried it, and not tried again by each of the others.
        let start = async || AssertUnwindSafe(Self::start(engine, SHARED_SETTINGS)).catch_unwind().await.ok();
        cell.get_or_init(start)
            .await
            .as_ref()
            .expect("the shared system did not start; an earlier test says why")
    }

    /// A system of its own; `settings` are for every process of it.
    pub async fn start(engine: Engine, settings: &[(&str, &str)]) -> Self {
        let system = Self::prepare(engine, settings).await;
        system.start_again().await;
        system
    }

    /// The same without starting it.
    pub async fn prepare(engine: Engine, settings: &[(&str, &str)]) -> Self {
        let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let given = settings.iter().map(|(name, value)| own(name, value));
        match engine {
            Engine::Embedded => Self::embedded(given.collect()),
            Engine::Distributed => {
                leftovers::remove().await;
                let servers = Servers::of_environment().unwrap();
                let name = format!("product_{}_{}", std::process::id(), Uuid::new_v4().simple());
                let mut all = vec![
                    own("PANOPTICON_ENGINE", "distributed"),
                    own("PANOPTICON_KAFKA__BROKERS", &servers.kafka),
                    own("PANOPTICON_KAFKA__TOPIC_PREFIX", &format!("{name}.")),
                    own("PANOPTICON_KAFKA__PARTITIONS", "2"),
                    own("PANOPTICON_KAFKA__REPLICATION", "1"),
                    own("PANOPTICON_KAFKA__ALLOW_UNREPLICATED", "true"),
                    own("PANOPTICON_REDIS__URL", &servers.redis),
                    own("PANOPTICON_REDIS__KEY_PREFIX", &format!("{name}:")),
                    own("PANOPTICON_CLICKHOUSE__URL", &servers.clickhouse),
                    own("PANOPTICON_CLICKHOUSE__DATABASE", &name),
                    own(
                        "PANOPTICON_SECRETS__KEY",
                        &STANDARD.encode([Uuid::new_v4(), Uuid::new_v4()].map(Uuid::into_bytes).concat()),
                    ),
                    own("PANOPTICON_ADMIN_TOKEN", &format!("pano_tok_{}", Uuid::new_v4().simple())),
                    own("PANOPTICON_WEBHOOKS__ALLOW_LOOPBACK", "true"),
                ];
                all.extend(given);
                Self::distributed(all)
            }
        }
    }

    fn embedded(mut settings: Vec<(String, String)>) -> Self {
        let folder = new_folder("embedded");
        let (listen, metrics) = (address(), address());
        settings.push(("PANOPTICON_LISTEN".to_owned(), listen.clone()));
        settings.push(("PANOPTICON_METRICS_LISTEN".to_owned(), metrics.clone()));
        let program = Program {
            name: "panopticon".to_owned(),
            path: env!("CARGO_BIN_EXE_panopticon").into(),
            arguments: vec!["serve".to_owned()],
            settings,
            folder: folder.clone(),
        };
        let url = format!("http://{listen}");
        Self {
            engine: Engine::Embedded,
            ingest: url.clone(),
            control: url,
            token: String::new(),
            folder,
            http: http_client(None),
            programs: vec![program],
            conditions: vec![format!("http://{metrics}")],
            running: Mutex::default(),
        }
    }

    fn distributed(settings: Vec<(String, String)>) -> Self {
        let folder = new_folder("distributed");
        let (ingest, control) = (address(), address());
        let role = |name: &str, program: &str, arguments: &[&str], listen: Option<&str>| {
            let (metrics, mut settings) = (address(), settings.clone());
            settings.push(("PANOPTICON_METRICS_LISTEN".to_owned(), metrics.clone()));
            settings.extend(listen.map(|listen| ("PANOPTICON_LISTEN".to_owned(), listen.to_owned())));
            let program = Program {
                name: name.to_owned(),
                path: program_beside(program),
                arguments: arguments.iter().map(ToString::to_string).collect(),
                settings,
                folder: folder.clone(),
            };
            (program, format!("http://{metrics}"))
        };
        let (programs, conditions) = [
            role("ingest-gateway", "ingest-gateway", &[], Some(&ingest)),
            role("dedupe", "stream-workers", &["--role", "dedupe"], None),
            role("store", "stream-workers", &["--role", "store"], None),
            role("anomaly-detector", "anomaly-detector", &[], None),
            role("guard-enforcer", "guard-enforcer", &[], None),
            role("webhook-dispatcher", "webhook-dispatcher", &[], None),
            role("control-room", "control-room", &[], Some(&control)),
        ]
        .into_iter()
        .unzip();
        let token = settings.iter().rfind(|(name, _)| name == "PANOPTICON_ADMIN_TOKEN").unwrap().1.clone();
        Self {
            engine: Engine::Distributed,
            ingest: format!("http://{ingest}"),
            control: format!("http://{control}"),
            token,
            folder,
            http: http_client(None),
            programs,
            conditions,
            running: Mutex::default(),
        }
    }

    /// The same system, run by the programs of another build.
    pub fn with_programs_in(mut self, folder: &Path) -> Self {
        for program in &mut self.programs {
            program.path = folder.join(program.path.file_name().unwrap());
        }
        self
    }

    /// The same system, in which the program with this name has other arguments.
    pub fn with_arguments(mut self, name: &str, arguments: &[&str]) -> Self {
        let program = self.programs.iter_mut().find(|program| program.name == name).unwrap();
        program.arguments = arguments.iter().map(ToString::to_string).collect();
        self
    }

    /// Starts all programs and waits until each says that it is ready.
    pub async fn start_again(&self) {
        self.start_programs();
        self.until_ready().await;
    }

    /// Starts all programs.
    pub fn start_programs(&self) {
        *self.running.lock().unwrap() = self.programs.iter().map(Program::start).collect();
    }

    /// Until every process says that it is ready.
    pub async fn until_ready(&self) {
        self.until_ready_but(&[]).await;
    }

    /// The same but for those with these names.
    pub async fn until_ready_but(&self, waiting: &[&str]) {
        for (program, condition) in self.programs.iter().zip(&self.conditions) {
            if waiting.contains(&program.name.as_str()) {
                continue;
            }
            eventually(&format!("readiness at {condition}"), async || {
                self.running.lock().unwrap().iter_mut().for_each(Process::must_be_running);
                let answer = self.http.get(format!("{condition}/readyz")).send().await;
                let answer = Answer::read(answer.map_err(|error| error.to_string())?).await;
                if answer.status == 200 { Ok(()) } else { Err(answer.text) }
            })
            .await;
        }
    }

    /// SIGTERM for all, and how each of them ended.
    pub async fn stop(&self) -> Vec<(String, ExitStatus)> {
        let running = std::mem::take(&mut *self.running.lock().unwrap());
        let ends = running.into_iter().map(async |process| {
            let name = process.program.name.clone();
            (name, process.terminate().await)
        });
        futures::future::join_all(ends).await
    }

    /// SIGKILL for the process with this name, which is started again at once.
    pub fn crash(&self, name: &str) {
        let mut running = self.running.lock().unwrap();
        let position = running.iter().position(|process| process.program.name == name).unwrap();
        let program = running.remove(position).crash();
        running.push(program.start());
    }

    /// Where its processes tell their condition and metrics.
    pub fn conditions(&self) -> &[String] {
        &self.conditions
    }

    /// Where the process with this name tells them.
    pub fn condition(&self, name: &str) -> &str {
        &self.conditions[self.programs.iter().position(|program| program.name == name).unwrap()]
    }

    /// The program with this name.
    pub fn program(&self, name: &str) -> &Program {
        self.programs.iter().find(|program| program.name == name).unwrap()
    }

    /// What all processes have written so far.
    pub fn log(&self) -> String {
        self.running.lock().unwrap().iter().map(Process::log).collect()
    }

    /// The embedded engine's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("panopticon-data")
    }

    /// The admin's token: configured, or the one that `serve` made.
    pub fn token(&self) -> String {
        if !self.token.is_empty() {
            return self.token.clone();
        }
        std::fs::read_to_string(self.data_dir().join("admin.token")).unwrap().trim().to_owned()
    }

    /// A request to the control API.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{BASE}{path}", self.control)).bearer_auth(self.token())
    }

    pub async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        Answer::read(self.request(method, path).json(&body).send().await.unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::read(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, body).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, body).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PATCH, path, body).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        Answer::read(self.request(Method::DELETE, path).send().await.unwrap()).await
    }

    /// A request anywhere on the control room's address, without a token.
    pub async fn bare(&self, method: Method, url: String) -> Answer {
        Answer::read(self.http.request(method, url).send().await.unwrap()).await
    }

    /// All rows of a list, over all its pages.
    pub async fn list(&self, path: &str) -> Vec<Value> {
        let (mut rows, mut cursor) = (Vec::new(), String::new());
        loop {
            let mark = if path.contains('?') { '&' } else { '?' };
            let page = self.get(&format!("{path}{mark}limit=1000{cursor}")).await.expect(200);
            rows.extend(page["items"].as_array().unwrap().iter().cloned());
            let Some(next) = page["next_cursor"].as_str() else { return rows };
            cursor = format!("&cursor={next}");
        }
    }

    /// A new app with a random id.
    pub async fn app(&self) -> App {
        self.app_with(json!({})).await
    }

    /// A new app with these settings.
    pub async fn app_with(&self, settings: Value) -> App {
        self.app_named(&format!("app-{}", Uuid::new_v4().simple()), settings).await
    }

    /// A new app with this id, known to the gateway.
    pub async fn app_named(&self, id: &str, settings: Value) -> App {
        let app = App::new(&self.ingest, id);
        let made = self.put(&format!("/apps/{}", app.in_path()), settings).await.expect(201);
        let text = |name: &str| made[name].as_str().unwrap_or_default().to_owned();
        let app = app.with_keys(&text("pak"), &text("pak_secret"));
        app.until_admitted().await;
        app
    }

    /// The app's stored traces, newest first; once there are so many.
    pub async fn timeline(&self, app: &App, traces: usize) -> Vec<Value> {
        let path = format!("/apps/{}/timeline", app.in_path());
        eventually(&format!("{traces} traces on the timeline"), async || {
            let rows = self.list(&path).await;
            if rows.len() >= traces { Ok(rows) } else { Err(rows.len()) }
        })
        .await
    }

    /// Of all dates together: traces, errors, approvals, kills.
    pub async fn usage(&self, app: &App) -> [u64; 4] {
        let rows = self.list_once(&format!("/apps/{}/usage", app.in_path())).await;
        ["traces", "errors", "hitl_requests", "kills"]
            .map(|name| rows.iter().map(|row| row[name].as_u64().unwrap()).sum())
    }

    /// A list without pages.
    pub async fn list_once(&self, path: &str) -> Vec<Value> {
        self.get(path).await.expect(200)["items"].as_array().unwrap().clone()
    }

    /// Until every stage has worked off what there is: what has not happened then, does not happen.
    pub async fn until_at_rest(&self, app: &App) {
        eventually("stages without lag", async || {
            let status = self.get(&format!("/apps/{}/status", app.in_path())).await.expect(200);
            let behind: Vec<Value> = status["stages"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|stage| stage["lag_records"] != 0)
                .cloned()
                .collect();
            if behind.is_empty() { Ok(()) } else { Err(behind) }
        })
        .await;
    }
}

fn address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// The product's program with this name, where cargo has put it.
fn program_beside(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_panopticon")).parent().unwrap();
    let path = folder.join(name);
    assert!(
        path.exists(),
        "there is no program `{name}` in {}; build it with `cargo build --workspace --bins`",
        folder.display()
    );
    path
}
