//! The real servers: hurt and healed by the program that started them.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};

/// How long the control program may take: a start waits until the server answers.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(120);

/// One of the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// The event log.
    Kafka,
    /// The seen set.
    Redis,
    /// The trace store.
    Clickhouse,
}

impl Server {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Kafka, Self::Redis, Self::Clickhouse];

    /// Its name in commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Redis => "redis",
            Self::Clickhouse => "clickhouse",
        }
    }
}

/// What can be done to a server.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    /// Start it, or let it go on, and wait until it answers.
    Start,
    /// Ask it to end.
    Stop,
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Pause,
    /// SIGCONT.
    Resume,
}

/// The stack of servers in a folder.
#[derive(Debug, Clone)]
pub struct Servers {
    program: PathBuf,
    folder: PathBuf,
}

impl Servers {
    /// Controlled by `program stack --dir folder …`.
    pub fn new(program: PathBuf, folder: PathBuf) -> Self {
        Self { program, folder }
    }

    /// Does something to a server and returns when it is done.
    pub async fn act(&self, act: Act, server: Server) -> anyhow::Result<()> {
        let what = match act {
            Act::Start => "start",
            Act::Stop => "stop",
            Act::Kill => "kill",
            Act::Pause => "pause",
            Act::Resume => "resume",
        };
        self.run(&[what, server.name()]).await.map(drop)
    }

    /// The process of a server, for a signal that must come at once.
    pub async fn pid(&self, server: Server) -> anyhow::Result<Pid> {
        let status: Value = serde_json::from_str(&self.run(&["status", "--json"]).await?)?;
        let servers = status.as_array().context("no list of servers")?;
        let found = servers.iter().find(|one| one["name"] == server.name());
        let pid = found.and_then(|one| one["pid"].as_i64()).and_then(|pid| i32::try_from(pid).ok());
        pid.and_then(Pid::from_raw).with_context(|| format!("{} does not run", server.name()))
    }

    /// Servers that have ended though nobody ended them.
    pub async fn died(&self) -> anyhow::Result<Vec<Server>> {
        let status: Vec<Value> = serde_json::from_str(&self.run(&["status", "--json"]).await?)?;
        let has_died =
            |server: &Server| status.iter().any(|one| one["name"] == server.name() && one["state"] == "died");
        Ok(Server::ALL.into_iter().filter(has_died).collect())
    }

    /// Puts Redis back to what it held `ago`; it is away in between.
    pub async fn redis_back_to_older(&self, ago: Duration) -> anyhow::Result<()> {
        let data = self.folder.join("data/redis/appendonlydir");
        let copy = self.folder.join("data/redis-older");
        let _ = std::fs::remove_dir_all(&copy);
        std::fs::create_dir_all(&copy)?;
        copy_files(&data, &copy).context("cannot copy the append-only file")?;
        tokio::time::sleep(ago).await;
        self.act(Act::Kill, Server::Redis).await?;
        std::fs::remove_dir_all(&data)?;
        std::fs::rename(&copy, &data)?;
        self.act(Act::Start, Server::Redis).await
    }

    async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command.arg("stack").arg("--dir").arg(&self.folder).args(arguments);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = tokio::time::timeout(CONTROL_TIMEOUT, output).await??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`stack {}`: {}", arguments.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// SIGKILL for a process that may just have ended.
pub fn kill_now(pid: Pid) {
    let _ = kill_process(pid, Signal::KILL);
}

/// Empties Redis.
pub async fn flush_redis(address: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"FLUSHALL\r\n").await?;
    let mut answer = [0; 64];
    let length = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut answer)).await??;
    let answer = String::from_utf8_lossy(&answer[..length]);
    ensure!(answer.starts_with("+OK"), "FLUSHALL: {answer}");
    Ok(())
}

fn copy_files(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
