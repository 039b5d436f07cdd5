//! The product as it runs: one process on one file, or every worker as a process of its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use clap::ValueEnum;
use tempfile::TempDir;

use crate::{
    process::Process,
    room::Room,
    server::{Environment, Server},
};

/// The workers behind the gateway and beside the control room.
const WORKERS: [(&str, &[&str]); 5] = [
    ("dedupe", &["stream-workers", "--role", "dedupe"]),
    ("store", &["stream-workers", "--role", "store"]),
    ("detector", &["anomaly-detector"]),
    ("enforcer", &["guard-enforcer"]),
    ("dispatcher", &["webhook-dispatcher"]),
];

/// On what the product runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// One process on one SQLite file.
    Embedded,
    /// Separate workers on the servers that the environment names.
    Distributed,
}

/// A running system with all its workers.
pub struct System {
    /// Where traces go.
    pub gateway: SocketAddr,
    /// The control API.
    pub room: Room,
    servers: Vec<(&'static str, Server)>,
    /// The data of the embedded engine.
    _folder: Option<TempDir>,
}

impl System {
    /// Starts it on `engine`.
    pub async fn start(engine: Engine, bin: &Path) -> anyhow::Result<Self> {
        match engine {
            Engine::Embedded => Self::embedded(bin).await,
            Engine::Distributed => Self::distributed(&Installation::new(bin), 1).await,
        }
    }

    async fn embedded(bin: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let environment = embedded_environment(folder.path());
        let server = Server::start(&bin.join("panopticon"), &["serve"], &environment).await?;
        let (gateway, room) = (server.address, Room::at(server.address)?);
        Ok(Self { gateway, room, servers: vec![("panopticon", server)], _folder: Some(folder) })
    }

    /// Starts an installation with so many processes of each worker behind the gateway.
    pub async fn distributed(installation: &Installation, processes: u32) -> anyhow::Result<Self> {
        let room = installation.start(&["control-room"]).await?;
        let gateway = installation.start(&["ingest-gateway"]).await?;
        let (at, room_at) = (gateway.address, Room::at(room.address)?);
        let mut servers = vec![("gateway", gateway), ("control room", room)];
        for (name, command) in WORKERS {
            for _ in 0..processes {
                servers.push((name, installation.start(command).await?));
            }
        }
        Ok(Self { gateway: at, room: room_at, servers, _folder: None })
    }

    /// Every process by what it does.
    pub fn processes(&self) -> Vec<(String, Process)> {
        self.servers.iter().map(|(name, server)| ((*name).to_owned(), server.process)).collect()
    }

    /// Ends all of it, front first.
    pub async fn stop(self) -> anyhow::Result<()> {
        for (_, server) in self.servers {
            server.stop().await?;
        }
        Ok(())
    }
}

/// The environment of a process on a file of its own.
pub fn embedded_environment(folder: &Path) -> Environment {
    vec![
        ("PANOPTICON_ENGINE", "embedded".to_owned()),
        ("PANOPTICON_DATA_DIR", folder.display().to_string()),
        ("PANOPTICON_WEBHOOKS__ALLOW_LOOPBACK", "true".to_owned()),
    ]
}

/// Topics, keys and tables of its own on the servers that the environment names.
pub struct Installation {
    /// Before every topic.
    pub topic_prefix: String,
    /// The database.
    pub database: String,
    bin: PathBuf,
    environment: Environment,
}

impl Installation {
    /// A new one with so many partitions in each topic that carries traces.
    pub fn with_partitions(bin: &Path, partitions: u32) -> Self {
        let mut installation = Self::new(bin);
        installation.environment.push(("PANOPTICON_KAFKA__PARTITIONS", partitions.to_string()));
        installation
    }

    /// A new one.
    pub fn new(bin: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bench{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let topic_prefix = format!("{name}.");
        let environment = vec![
            ("PANOPTICON_ENGINE", "distributed".to_owned()),
            ("PANOPTICON_KAFKA__TOPIC_PREFIX", topic_prefix.clone()),
            ("PANOPTICON_KAFKA__ALLOW_UNREPLICATED", "true".to_owned()),
            ("PANOPTICON_KAFKA__REPLICATION", "1".to_owned()),
            ("PANOPTICON_REDIS__KEY_PREFIX", format!("{name}:")),
            ("PANOPTICON_CLICKHOUSE__DATABASE", name.clone()),
            ("PANOPTICON_SECRETS__KEY", "YmVuY2hiZW5jaGJlbmNoYmVuY2hiZW5jaGJlbmNoISE=".to_owned()),
            ("PANOPTICON_WEBHOOKS__ALLOW_LOOPBACK", "true".to_owned()),
        ];
        Self { topic_prefix, database: name, bin: bin.to_owned(), environment }
    }

    /// Starts a program with its arguments.
    pub async fn start(&self, command: &[&str]) -> anyhow::Result<Server> {
        let (program, arguments) =
            command.split_first().map_or(("", &[][..]), |(first, rest)| (*first, rest));
        Server::start(&self.bin.join(program), arguments, &self.environment).await
    }
}
