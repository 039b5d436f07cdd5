//! One process of the product: started, killed, frozen, ended.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use parking_lot::Mutex;
use rand::RngExt as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// How long a process may take beyond its own deadline to end after SIGTERM.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(12);

/// A program with its settings, to be started any number of times.
pub struct Worker {
    /// Such as `dispatcher-1`.
    pub name: String,
    /// Such as `webhook-dispatcher`.
    pub program: &'static str,
    /// Where it serves, if it does.
    pub listen: SocketAddr,
    metrics: SocketAddr,
    path: PathBuf,
    settings: Vec<(String, String)>,
    log: PathBuf,
    child: Mutex<Option<Child>>,
    /// Held by the fault that concerns it: one at a time.
    pub fault: tokio::sync::Mutex<()>,
    http: reqwest::Client,
}

impl Worker {
    /// A program in `bin` that writes its log to `logs`.
    pub fn new(
        name: String,
        program: &'static str,
        bin: &std::path::Path,
        logs: &std::path::Path,
        settings: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let (listen, metrics) = (free_address()?, free_address()?);
        let mut settings = settings.to_vec();
        settings.push(("PANOPTICON_LISTEN".to_owned(), listen.to_string()));
        settings.push(("PANOPTICON_METRICS_LISTEN".to_owned(), metrics.to_string()));
        Ok(Self {
            program,
            listen,
            metrics,
            path: bin.join(program),
            settings,
            log: logs.join(format!("{name}.log")),
            name,
            child: Mutex::new(None),
            fault: tokio::sync::Mutex::new(()),
            http: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?,
        })
    }

    /// Starts it unless it runs.
    pub fn start(&self) -> anyhow::Result<()> {
        let mut running = self.child.lock();
        if running.is_some() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.path);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PANOPTICON_") {
                command.env_remove(name);
            }
        }
        let child = command
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.path.display()))?;
        *running = Some(child);
        Ok(())
    }

    /// SIGKILL; what it had in hand is lost with it.
    pub async fn kill(&self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.lock().take() else { return Ok(()) };
        child.start_kill()?;
        child.wait().await?;
        Ok(())
    }

    /// SIGSTOP or SIGCONT.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self.child.lock().as_ref().and_then(Child::id);
        let pid = id.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        kill_process(pid.with_context(|| format!("{} does not run", self.name))?, signal)?;
        Ok(())
    }

    /// SIGTERM; how long it took to end. An error if it had to be killed, or ended with another status than 0.
    pub async fn terminate(&self) -> anyhow::Result<Duration> {
        self.signal(Signal::TERM)?;
        let Some(mut child) = self.child.lock().take() else { bail!("{} does not run", self.name) };
        let began = Instant::now();
        match tokio::time::timeout(DRAIN_LIMIT, child.wait()).await {
            Ok(status) => {
                let status = status?;
                ensure!(status.success(), "{} ended with {status} after SIGTERM", self.name);
                Ok(began.elapsed())
            }
            Err(_) => {
                child.start_kill()?;
                child.wait().await?;
                bail!("{} had not ended {DRAIN_LIMIT:?} after SIGTERM", self.name)
            }
        }
    }

    /// How it ended, if it ended by itself.
    pub fn ended(&self) -> Option<ExitStatus> {
        let mut running = self.child.lock();
        let status = running.as_mut()?.try_wait().ok().flatten()?;
        *running = None;
        Some(status)
    }

    /// Why it is not ready; `None` if it is.
    pub async fn unready(&self) -> Option<String> {
        match self.http.get(format!("http://{}/readyz", self.metrics)).send().await {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(answer.text().await.unwrap_or_default()),
            Err(error) => Some(format!("{error:#}")),
        }
    }

    /// Resident memory now, in MiB; `None` while it does not run.
    pub fn resident_mib(&self) -> Option<f64> {
        let id = self.child.lock().as_ref().and_then(Child::id)?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib / 1024.0)
    }
}

/// Below the ports that the system gives to clients, so that a process that is away for a moment finds its
/// own again.
fn free_address() -> anyhow::Result<SocketAddr> {
    for _ in 0..1_000 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rand::rng().random_range(20_000..32_000)));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port")
}
