//! The bare engines that the product stands on, doing the same work in the same run.
//!
//! Those whose CPU time counts run as processes of their own, as the product's do: this program starts itself
//! again in their role.

mod handlers;
pub mod inserts;
mod producer;
mod relay;
pub mod set;
pub mod sqlite;

use std::{net::SocketAddr, process::Stdio};

use anyhow::Context as _;
use clap::Subcommand;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::process::Process;

/// What this program can be.
#[derive(Debug, Clone, Subcommand)]
pub enum Role {
    /// An axum handler that answers every trace at once.
    Axum,
    /// A tonic handler that answers every trace at once.
    Tonic,
    /// A Kafka producer, one record a trace.
    Producer(producer::Args),
    /// Consumes, transforms and produces in transactions.
    Relay(relay::Args),
}

impl Role {
    /// Does it; the result goes to standard output as a line of JSON.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Axum => handlers::axum().await,
            Self::Tonic => handlers::tonic().await,
            Self::Producer(args) => say(&producer::run(args).await?),
            Self::Relay(args) => say(&tokio::task::spawn_blocking(move || relay::run(&args)).await??),
        }
    }
}

/// What a bare engine did.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Done {
    /// Traces.
    pub traces: u64,
    /// In which time.
    pub seconds: f64,
    /// With how much CPU time of its own.
    pub cpu_seconds: f64,
    /// Largest resident memory, in MiB.
    pub peak_mib: f64,
}

impl Done {
    /// Traces a second.
    pub fn per_second(&self) -> f64 {
        self.traces as f64 / self.seconds
    }

    /// CPU seconds for each million of the traces.
    pub fn cpu_per_million(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.traces as f64
    }
}

/// Runs a bare engine to its end.
pub async fn run(arguments: &[String]) -> anyhow::Result<Done> {
    let (mut child, done) = start(arguments).await?;
    child.wait().await?;
    Ok(done)
}

/// A handler of requests in a process of its own; killed when dropped.
pub struct Handler {
    /// Where it listens.
    pub address: SocketAddr,
    /// What the kernel says of it.
    pub process: Process,
    _child: Child,
}

impl Handler {
    /// Starts the handler of this name.
    pub async fn start(name: &str) -> anyhow::Result<Self> {
        let (child, address) = start(&[name.to_owned()]).await?;
        let process = Process::new(child.id().context("the handler ended at once")?);
        Ok(Self { address, process, _child: child })
    }
}

/// Starts this program as something else, and reads the first line that it says.
async fn start<T: DeserializeOwned>(arguments: &[String]) -> anyhow::Result<(Child, T)> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("be")
        .args(arguments)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = child.stdout.take().context("no output")?;
    let said = BufReader::new(output).lines().next_line().await?;
    let said = said.with_context(|| format!("the bare {} ended without a word", arguments.join(" ")))?;
    Ok((child, serde_json::from_str(&said)?))
}

fn say<T: Serialize>(what: &T) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(what)?);
    Ok(())
}
