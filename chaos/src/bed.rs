//! Everything that runs: the servers, the proxies before them, two processes of every worker, the receiver.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    call::App,
    control::Control,
    ledger::Ledger,
    proxy::Proxy,
    receiver::Receiver,
    recovery::Calm,
    servers::{Act, Server, Servers},
    sql::Sql,
    wire::Gateway,
    worker::Worker,
};

/// Before every topic, group and transactional id.
pub const TOPIC_PREFIX: &str = "chaos.";
/// Partitions of the traces' topics.
pub const PARTITIONS: u32 = 4;
/// After how long without a heartbeat partitions move: the shortest that a broker allows by itself.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
/// The database.
const DATABASE: &str = "chaos";
/// Processes of each worker.
const PROCESSES: usize = 2;
/// The workers, by program.
pub const PROGRAMS: [&str; 6] = [
    "ingest-gateway",
    "stream-workers",
    "anomaly-detector",
    "guard-enforcer",
    "webhook-dispatcher",
    "control-room",
];
const READY_TIMEOUT: Duration = Duration::from_secs(90);
const SETUP_TIMEOUT: Duration = Duration::from_secs(30);

/// Where everything is.
pub struct Places {
    /// Folder of the product's programs.
    pub bin: PathBuf,
    /// Folder of this run's logs.
    pub folder: PathBuf,
    /// The program that controls the servers.
    pub control: PathBuf,
    /// The folder of the servers.
    pub stack: PathBuf,
}

/// A running system.
pub struct Bed {
    /// The servers.
    pub servers: Servers,
    /// Redis itself, behind its proxy.
    pub redis_address: String,
    /// Kafka, which has no proxy.
    pub brokers: String,
    /// ClickHouse itself, behind its proxy.
    pub sql: Sql,
    /// Between the workers and ClickHouse.
    pub clickhouse: Proxy,
    /// Between the workers and Redis.
    pub redis: Proxy,
    /// All processes.
    pub workers: Vec<Worker>,
    /// Clients of the gateways.
    pub gateways: Vec<Gateway>,
    /// The control API.
    pub control: Control,
    /// What was sent.
    pub ledger: Ledger,
    /// What was told.
    pub receiver: Receiver,
    /// When the run began.
    pub began: Instant,
    /// How much of it passed without a server being hurt.
    pub calm: Mutex<Calm>,
    /// By worker: resident memory at its first and its largest, in MiB.
    pub memory: Mutex<BTreeMap<String, (f64, f64)>>,
    /// How long processes took to end after SIGTERM.
    pub drains: Mutex<Vec<(String, Duration)>>,
    /// Whether poison was poured.
    pub poisoned: Mutex<bool>,
    /// What should not have happened, whatever the tables say.
    pub incidents: Mutex<Vec<String>>,
}

impl Bed {
    /// Starts everything but the servers, which run.
    pub async fn start(places: &Places, seed: u64) -> anyhow::Result<Self> {
        let server = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
        let brokers = server("PANOPTICON_KAFKA__BROKERS")?;
        let redis_address = server("PANOPTICON_REDIS__URL")?.trim_start_matches("redis://").to_owned();
        let clickhouse_url = server("PANOPTICON_CLICKHOUSE__URL")?;
        let clickhouse_address = clickhouse_url.trim_start_matches("http://").to_owned();
        let clickhouse = Proxy::start(clickhouse_address, b"insert_deduplication_token").await?;
        let redis = Proxy::start(redis_address.clone(), b"EVALSHA").await?;
        let token = "pano_tok_chaoschaoschaoschaoschaoschaoschaoschaos".to_owned();
        let settings = settings(&brokers, &redis, &clickhouse, &token, &places.folder);
        let workers = workers(&places.bin, &places.folder, &settings)?;
        let gateways =
            listening(&workers, "ingest-gateway").map(Gateway::new).collect::<anyhow::Result<_>>()?;
        let control = Control::new(listening(&workers, "control-room").collect(), token)?;
        let bed = Self {
            servers: Servers::new(places.control.clone(), places.stack.clone()),
            sql: Sql::new(&clickhouse_url, DATABASE)?,
            receiver: Receiver::start(seed).await?,
            ledger: Ledger::default(),
            began: Instant::now(),
            calm: Mutex::default(),
            memory: Mutex::default(),
            drains: Mutex::default(),
            poisoned: Mutex::default(),
            incidents: Mutex::default(),
            redis_address,
            brokers,
            clickhouse,
            redis,
            workers,
            gateways,
            control,
        };
        bed.start_workers()?;
        bed.until_ready().await?;
        bed.set_up().await?;
        Ok(bed)
    }

    /// Starts all processes that do not run.
    pub fn start_workers(&self) -> anyhow::Result<()> {
        self.workers.iter().try_for_each(Worker::start)
    }

    /// Starts all servers that do not run, and lets go on what was frozen or held.
    pub async fn heal(&self) -> anyhow::Result<()> {
        self.redis.set(crate::proxy::Mode::Pass);
        self.clickhouse.set(crate::proxy::Mode::Pass);
        for server in Server::ALL {
            self.servers.act(Act::Start, server).await?;
        }
        self.start_workers()?;
        self.until_ready().await
    }

    /// Until every process says that it is ready.
    pub async fn until_ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        for worker in &self.workers {
            while let Some(why) = worker.unready().await {
                if Instant::now() >= deadline {
                    bail!("{} is not ready after {READY_TIMEOUT:?}: {why}", worker.name);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    /// Takes down something that should not have happened.
    pub fn incident(&self, what: String) {
        eprintln!("{:7.1} s  INCIDENT: {what}", self.began.elapsed().as_secs_f64());
        self.incidents.lock().push(what);
    }

    /// The processes of a program, by number.
    pub fn processes(&self, program: &str) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(move |worker| worker.program == program)
    }

    /// Watches memory, and processes that end by themselves, until cancelled.
    pub async fn watch(&self) {
        loop {
            for worker in &self.workers {
                if let Some(status) = worker.ended() {
                    self.incident(format!("{} ended by itself: {status}", worker.name));
                    if let Err(error) = worker.start() {
                        self.incident(format!("{error:#}"));
                    }
                }
                if let Some(mib) = worker.resident_mib() {
                    let mut memory = self.memory.lock();
                    let (_, peak) = memory.entry(worker.name.clone()).or_insert((mib, mib));
                    *peak = peak.max(mib);
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Policies and webhook endpoints.
    async fn set_up(&self) -> anyhow::Result<()> {
        let unlimited = json!({"rate_limit": {"per_minute": 0, "per_tool_per_minute": 0}});
        for app in App::ALL {
            let path = format!("/apps/{}", app.id());
            if app != App::Watched {
                let policy = format!("{path}/policy");
                self.control.insist(Method::PATCH, &policy, unlimited.clone(), SETUP_TIMEOUT).await?;
            }
            let endpoint = json!({"url": self.receiver.url(app.id())});
            let hooks = format!("{path}/webhooks");
            let made: Value = self.control.insist(Method::POST, &hooks, endpoint, SETUP_TIMEOUT).await?;
            let secret = made["secret"].as_str().context("an endpoint without a secret")?;
            self.receiver.expect(app.id(), secret);
        }
        // A change is known everywhere within a second.
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(())
    }
}

fn listening(workers: &[Worker], program: &'static str) -> impl Iterator<Item = SocketAddr> {
    workers.iter().filter(move |worker| worker.program == program).map(|worker| worker.listen)
}

fn workers(bin: &Path, folder: &Path, settings: &[(String, String)]) -> anyhow::Result<Vec<Worker>> {
    let logs = folder.join("workers");
    std::fs::create_dir_all(&logs)?;
    let mut workers = Vec::new();
    for program in PROGRAMS {
        for number in 0..PROCESSES {
            workers.push(Worker::new(format!("{program}-{number}"), program, bin, &logs, settings)?);
        }
    }
    Ok(workers)
}

fn settings(
    brokers: &str,
    redis: &Proxy,
    clickhouse: &Proxy,
    token: &str,
    folder: &Path,
) -> Vec<(String, String)> {
    let apps: Vec<String> = App::ALL
        .iter()
        .map(|app| format!(r#"{{client_id="{}",name="{}",pak="{}"}}"#, app.id(), app.id(), app.pak()))
        .collect();
    [
        ("PANOPTICON_ENGINE", "distributed".to_owned()),
        ("PANOPTICON_DATA_DIR", folder.display().to_string()),
        ("PANOPTICON_ADMIN_TOKEN", token.to_owned()),
        ("PANOPTICON_APPS", format!("[{}]", apps.join(","))),
        ("PANOPTICON_SECRETS__KEY", STANDARD.encode([7_u8; 32])),
        ("PANOPTICON_KAFKA__BROKERS", brokers.to_owned()),
        ("PANOPTICON_KAFKA__TOPIC_PREFIX", TOPIC_PREFIX.to_owned()),
        ("PANOPTICON_KAFKA__PARTITIONS", PARTITIONS.to_string()),
        ("PANOPTICON_KAFKA__REPLICATION", "1".to_owned()),
        ("PANOPTICON_KAFKA__ALLOW_UNREPLICATED", "true".to_owned()),
        ("PANOPTICON_KAFKA__SESSION_TIMEOUT_MS", SESSION_TIMEOUT.as_millis().to_string()),
        ("PANOPTICON_REDIS__URL", format!("redis://{}", redis.address)),
        ("PANOPTICON_REDIS__KEY_PREFIX", "chaos:".to_owned()),
        ("PANOPTICON_CLICKHOUSE__URL", format!("http://{}", clickhouse.address)),
        ("PANOPTICON_CLICKHOUSE__DATABASE", DATABASE.to_owned()),
        ("PANOPTICON_WEBHOOKS__ALLOW_LOOPBACK", "true".to_owned()),
        ("PANOPTICON_WEBHOOKS__RETRY_FIRST_MS", "200".to_owned()),
        ("PANOPTICON_WEBHOOKS__RETRY_MAX_MS", "2000".to_owned()),
        ("PANOPTICON_WEBHOOKS__TIMEOUT_MS", "3000".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}
