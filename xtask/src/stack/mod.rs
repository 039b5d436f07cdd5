//! Real servers without Docker: one Kafka, one Redis, one ClickHouse, in a folder of their own.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let stack = xtask::stack::TemporaryStack::up()?;
//! let brokers = stack.kafka.address().to_string();
//! stack.kafka.kill()?; // as a crash would
//! stack.kafka.start()?; // ready again, same port, same data
//! # Ok(())
//! # }
//! ```
//!
//! A folder holds everything of its stack: `data/`, `conf/`, `log/`, `run/` (pid files), `ports.json`, and the
//! environment for clients in `env` and `test.env`. The servers belong to the folder, not to the program that
//! started them: they run on when it ends, and any program can find them again with [`Stack::open`]. What is
//! large is installed once, in `target/stack/dist`, and shared.

mod clickhouse;
mod control;
mod dist;
mod kafka;
mod lock;
mod ports;
mod probe;
mod process;
mod redis;
mod secured;
mod server;
mod temporary;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};

pub use self::clickhouse::HOST_SUBCOMMAND as CLICKHOUSE_HOST_SUBCOMMAND;
pub use self::probe::clickhouse_query;
pub use self::server::{Kind, Server, State, Status};
pub use self::temporary::TemporaryStack;
pub use self::tools::find as find_program;

use self::dist::Dist;
use self::lock::FileLock;
use self::ports::Ports;

/// The three servers of one folder.
#[derive(Clone, Debug)]
pub struct Stack {
    dir: PathBuf,
    ports: Ports,
    /// The event log.
    pub kafka: Server,
    /// The seen set.
    pub redis: Server,
    /// The trace store.
    pub clickhouse: Server,
}

impl Stack {
    /// The folder of the stack that `cargo xtask stack` works on.
    pub fn default_dir() -> PathBuf {
        crate::workspace_root().join("target/stack")
    }

    /// The folder that holds everything of it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts what is not running in this folder, and waits until all three servers answer. Does nothing but
    /// look where everything runs already.
    pub fn up(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let _lock = FileLock::acquire(&dir.join("run/stack.lock"))?;
        if let Some(stack) = Self::find(&dir)
            && stack.status()?.iter().all(|server| server.state == State::Ready)
        {
            return Ok(stack);
        }
        let dist = Dist::of_workspace();
        let _ports = dist.port_lock()?;
        let stack = Self::with_usable_ports(&dir, dist)?;
        secured::Files::of(&stack.dir).make()?;
        stack.start_all()?;
        stack.write_env()?;
        Ok(stack)
    }

    /// The stack of a folder where one was started before, whatever its servers are doing now.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        Self::find(dir)
            .with_context(|| format!("no stack in {}: start one with `cargo xtask stack up`", dir.display()))
    }

    /// Stops all three servers; their data stays.
    pub fn down(&self) -> Result<()> {
        self.on_each(Server::stop)
    }

    /// Kills all three servers, for when nobody wants their data any more.
    pub fn kill(&self) -> Result<()> {
        self.on_each(Server::kill)
    }

    /// Removes the data of all three servers, which must not be running.
    pub fn remove_data(&self) -> Result<()> {
        let data = self.dir.join("data");
        if data.exists() {
            fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
        }
        Ok(())
    }

    /// The three servers.
    pub fn servers(&self) -> [&Server; 3] {
        [&self.kafka, &self.redis, &self.clickhouse]
    }

    /// One of them.
    pub fn server(&self, kind: Kind) -> &Server {
        match kind {
            Kind::Kafka => &self.kafka,
            Kind::Redis => &self.redis,
            Kind::ClickHouse => &self.clickhouse,
        }
    }

    /// What each server is doing.
    pub fn status(&self) -> Result<Vec<Status>> {
        self.servers().into_iter().map(Server::status).collect()
    }

    /// For `kafka.brokers`.
    pub fn kafka_brokers(&self) -> String {
        self.kafka.address().to_string()
    }

    /// For `redis.url`.
    pub fn redis_url(&self) -> String {
        format!("redis://{}", self.redis.address())
    }

    /// For `clickhouse.url`.
    pub fn clickhouse_url(&self) -> String {
        format!("http://{}", self.clickhouse.address())
    }

    /// The environment that makes Panopticon use this stack.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("PANOPTICON_ENGINE", "distributed".to_owned()),
            ("PANOPTICON_KAFKA__BROKERS", self.kafka_brokers()),
            ("PANOPTICON_REDIS__URL", self.redis_url()),
            ("PANOPTICON_CLICKHOUSE__URL", self.clickhouse_url()),
            ("PANOPTICON_CLICKHOUSE__DATABASE", "panopticon".to_owned()),
            ("PANOPTICON_CLICKHOUSE__USER", "default".to_owned()),
            ("PANOPTICON_CLICKHOUSE__PASSWORD", String::new()),
        ]
    }

    /// The environment that makes tests use this stack; its names configure nothing in the product.
    pub fn test_env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("PANOPTICON_TEST_STACK", "1".to_owned()),
            ("PANOPTICON_TEST_KAFKA_BROKERS", self.kafka_brokers()),
            ("PANOPTICON_TEST_REDIS_URL", self.redis_url()),
            ("PANOPTICON_TEST_CLICKHOUSE_URL", self.clickhouse_url()),
            ("PANOPTICON_TEST_KAFKA_SASL", format!("127.0.0.1:{}", self.ports.kafka_sasl)),
            ("PANOPTICON_TEST_KAFKA_SASL_TLS", format!("127.0.0.1:{}", self.ports.kafka_sasl_tls)),
            ("PANOPTICON_TEST_REDIS_TLS", format!("rediss://127.0.0.1:{}", self.ports.redis_tls)),
            ("PANOPTICON_TEST_TLS", self.dir.join("conf/tls").display().to_string()),
            ("PANOPTICON_TEST_USER", secured::USER.to_owned()),
            ("PANOPTICON_TEST_PASSWORD", secured::PASSWORD.to_owned()),
        ]
    }

    fn find(dir: &Path) -> Option<Self> {
        let dir = dir.canonicalize().ok()?;
        let ports = Ports::read(&ports_file(&dir))?;
        Some(Self::new(&dir, ports, Dist::of_workspace()))
    }

    fn new(dir: &Path, ports: Ports, dist: Dist) -> Self {
        let server = |kind| Server::new(kind, dir, ports, dist.clone());
        Self {
            kafka: server(Kind::Kafka),
            redis: server(Kind::Redis),
            clickhouse: server(Kind::ClickHouse),
            dir: dir.to_owned(),
            ports,
        }
    }

    /// Keeps the ports of the last time, except those that somebody else took since.
    fn with_usable_ports(dir: &Path, dist: Dist) -> Result<Self> {
        let fresh = Ports::choose()?;
        let mut ports = fresh;
        if let Some(last) = Ports::read(&ports_file(dir)) {
            let former = Self::new(dir, last, dist.clone());
            let usable = |server: &Server, ports: &[u16]| -> Result<bool> {
                Ok(server.is_alive()? || ports.iter().all(|port| ports::is_free(*port)))
            };
            ports = last;
            if !usable(&former.kafka, &last.kafka_all())? {
                ports.kafka = fresh.kafka;
                ports.kafka_controller = fresh.kafka_controller;
                ports.kafka_sasl = fresh.kafka_sasl;
                ports.kafka_sasl_tls = fresh.kafka_sasl_tls;
            }
            if !usable(&former.redis, &[last.redis, last.redis_tls])? {
                ports.redis = fresh.redis;
                ports.redis_tls = fresh.redis_tls;
            }
            if !usable(&former.clickhouse, &[last.clickhouse_http, last.clickhouse_tcp])? {
                ports.clickhouse_http = fresh.clickhouse_http;
                ports.clickhouse_tcp = fresh.clickhouse_tcp;
            }
        }
        ports.write(&ports_file(dir))?;
        Ok(Self::new(dir, ports, dist))
    }

    fn start_all(&self) -> Result<()> {
        self.on_each(Server::start)
    }

    /// Does something to all three servers at once; the first error is returned after all have ended.
    fn on_each(&self, action: impl Fn(&Server) -> Result<()> + Sync) -> Result<()> {
        let action = &action;
        thread::scope(|scope| {
            let running = self.servers().map(|server| scope.spawn(move || action(server)));
            let results = running.map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
            results.into_iter().collect()
        })
    }

    fn write_env(&self) -> Result<()> {
        for (name, variables) in [("env", self.env()), ("test.env", self.test_env())] {
            let file = self.dir.join(name);
            fs::write(&file, shell_exports(&variables))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }
}

/// Variables as lines for `sh`. The values are addresses and plain words, which need no quoting.
pub fn shell_exports(variables: &[(&'static str, String)]) -> String {
    variables.iter().map(|(name, value)| format!("export {name}={value}\n")).collect()
}

fn ports_file(dir: &Path) -> PathBuf {
    dir.join("ports.json")
}
