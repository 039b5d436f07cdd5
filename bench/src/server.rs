//! A process under measurement.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::process::{Child, Command};

/// The app that sends.
pub const CLIENT_ID: &str = "bench";
/// Its PAK.
pub const PAK: &str = "pano_pak_benchbenchbenchbenchbenchbenchbenchbench000";
/// The admin token.
pub const TOKEN: &str = "pano_tok_benchbenchbenchbenchbenchbenchbenchbench0";
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A started process; killed when dropped.
pub struct Server {
    /// Where it serves HTTP and gRPC.
    pub address: SocketAddr,
    child: Child,
    /// How long it took from start to ready.
    pub started_in: Duration,
}

impl Server {
    /// Starts `program` with `arguments` and waits until it is ready.
    pub async fn start(
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let (address, metrics) = (free_address()?, free_address()?);
        let began = Instant::now();
        let child = Command::new(program)
            .args(arguments)
            .env("PANOPTICON_LISTEN", address.to_string())
            .env("PANOPTICON_METRICS_LISTEN", metrics.to_string())
            .env("PANOPTICON_LOG", "warn")
            .env("PANOPTICON_ADMIN_TOKEN", TOKEN)
            .env("PANOPTICON_APPS", format!(r#"[{{client_id="{CLIENT_ID}",name="Bench",pak="{PAK}"}}]"#))
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}; build it with --release", program.display()))?;
        let mut server = Self { address, child, started_in: Duration::ZERO };
        let client = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://{metrics}/readyz");
        loop {
            if let Ok(answer) = client.get(&url).send().await
                && answer.status().is_success()
            {
                server.started_in = began.elapsed();
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                anyhow::bail!("{} ended with {status}", program.display());
            }
            anyhow::ensure!(began.elapsed() < START_TIMEOUT, "{} does not become ready", program.display());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// User and system CPU seconds so far.
    pub fn cpu_seconds(&self) -> f64 {
        let Some(pid) = self.child.id() else { return 0.0 };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Fields 14 and 15, counted after the command's closing parenthesis; in ticks of 10 ms.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: f64 = rest.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
        ticks / 100.0
    }

    /// Largest resident memory so far, in MiB.
    pub fn peak_mib(&self) -> f64 {
        self.status_kib("VmHWM:") / 1024.0
    }

    /// Resident memory now, in MiB.
    pub fn resident_mib(&self) -> f64 {
        self.status_kib("VmRSS:") / 1024.0
    }

    fn status_kib(&self, name: &str) -> f64 {
        let Some(pid) = self.child.id() else { return 0.0 };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0.0)
    }

    /// Ends it in order.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id() {
            Command::new("kill").arg(pid.to_string()).status().await?;
        }
        self.child.wait().await?;
        Ok(())
    }
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
