//! A program of the product, started and under measurement.

use std::{
    fs::File,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::process::{Child, Command};

use crate::process::Process;

/// The app that sends.
pub const CLIENT_ID: &str = "bench";
/// Its PAK.
pub const PAK: &str = "pano_pak_benchbenchbenchbenchbenchbenchbenchbench000";
/// The admin token.
pub const TOKEN: &str = "pano_tok_benchbenchbenchbenchbenchbenchbenchbench0";
/// A million apps are read before a gateway is ready.
const START_TIMEOUT: Duration = Duration::from_secs(180);
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// The environment of a process.
pub type Environment = Vec<(&'static str, String)>;

/// A started process; killed when dropped.
pub struct Server {
    /// Where it serves HTTP and gRPC, if it does.
    pub address: SocketAddr,
    /// What the kernel says of it.
    pub process: Process,
    /// How long it took from start to ready.
    pub started_in: Duration,
    child: Child,
}

impl Server {
    /// Starts `program` with `arguments` and waits until it is ready.
    pub async fn start(
        program: &Path,
        arguments: &[&str],
        environment: &[(&'static str, String)],
    ) -> anyhow::Result<Self> {
        let (address, metrics) = (free_address()?, free_address()?);
        let began = Instant::now();
        let mut child = Command::new(program)
            .args(arguments)
            .env("PANOPTICON_LISTEN", address.to_string())
            .env("PANOPTICON_METRICS_LISTEN", metrics.to_string())
            .env("PANOPTICON_LOG", "warn")
            .env("PANOPTICON_ADMIN_TOKEN", TOKEN)
            .env("PANOPTICON_APPS", format!(r#"[{{client_id="{CLIENT_ID}",name="Bench",pak="{PAK}"}}]"#))
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            .stdout(Stdio::null())
            .stderr(log_file(program, arguments)?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}; build it with --release", program.display()))?;
        let process = Process::new(child.id().context("it ended at once")?);
        let client = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://{metrics}/readyz");
        loop {
            if let Ok(answer) = client.get(&url).send().await
                && answer.status().is_success()
            {
                return Ok(Self { address, process, started_in: began.elapsed(), child });
            }
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("{} ended with {status}", program.display());
            }
            anyhow::ensure!(began.elapsed() < START_TIMEOUT, "{} does not become ready", program.display());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it in order.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id() {
            Command::new("kill").arg(pid.to_string()).status().await?;
        }
        if tokio::time::timeout(END_TIMEOUT, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }
}

/// Where a process writes its log: beside the programs, so that a run that looks wrong can be understood.
fn log_file(program: &Path, arguments: &[&str]) -> anyhow::Result<File> {
    let folder = program.with_file_name("../bench/log");
    std::fs::create_dir_all(&folder)?;
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let words = [&[&*name], arguments].concat();
    Ok(File::options().create(true).append(true).open(folder.join(format!("{}.log", words.join(" "))))?)
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
