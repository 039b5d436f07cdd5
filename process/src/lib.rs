//! What every process of Panopticon shares: it reads its configuration, waits for its servers, tells its
//! condition and its metrics on an address of its own, and ends in order on SIGTERM.

mod connections;
mod export;
mod http;
mod ports;
mod requests;
mod signals;
mod stages;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use metrics_exporter_prometheus::PrometheusHandle;
use panopticon_core::{
    config::{Config, Secret},
    control::ControlView,
    health::Health,
    log::LogError,
    secrets::{self, Sealer},
    stage::{Backoff, Runtime},
    telemetry,
    time::{SharedClock, SystemClock},
};
use tokio::runtime;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::export::Export;
pub use self::{
    connections::serve,
    http::{bind, condition},
    ports::{NeedOfSeen, NeedOfStore, Needs, Ports, arrivals, check_connections, migrate},
    stages::run_stages,
};

/// Traces are many small strings that live for milliseconds, often freed by another thread than made them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Has this process use memory in small pages from here on, where the system is Linux. Buffers of requests and batches
/// come and go by the hundred kilobytes: in huge pages, 2 MiB are cleared for each that comes back after the allocator
/// has returned it, and memory that is hardly used stays. Tables that stay are better off in huge pages.
pub fn use_small_pages() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        // Before logging starts; it works without.
        eprintln!("cannot turn off transparent huge pages: {error}");
    }
}

/// A process that has started.
#[derive(Clone)]
pub struct Process {
    /// Its configuration.
    pub config: Arc<Config>,
    /// Its clock.
    pub clock: SharedClock,
    /// The condition of its parts.
    pub health: Health,
    /// Cancelled when it shall end.
    pub shutdown: CancellationToken,
    metrics: PrometheusHandle,
    export: Export,
}

impl Process {
    /// Starts logging, metrics, the export of spans and the address that tells the process's condition; spans are
    /// those of `name`.
    pub async fn start(config: Config, name: &str) -> anyhow::Result<Self> {
        let (export, spans) = Export::start(&config.telemetry, name)?;
        telemetry::start_logging(&config, spans)?;
        let metrics = telemetry::start_metrics()?;
        let process = Self {
            config: Arc::new(config),
            clock: Arc::new(SystemClock),
            health: Health::default(),
            shutdown: CancellationToken::new(),
            metrics,
            export,
        };
        signals::cancel_on_signal(process.shutdown.clone())?;
        http::serve_condition(&process).await?;
        Ok(process)
    }

    /// Sends what is still to be told of this process, as its last act.
    pub async fn end(&self) {
        self.export.end().await;
    }

    /// What stages need.
    pub fn runtime(&self, ports: &Ports) -> Runtime {
        Runtime {
            log: ports.log.clone(),
            clock: self.clock.clone(),
            health: self.health.clone(),
            limits: self.config.stages.clone(),
            shutdown: self.shutdown.clone(),
        }
    }

    /// The control table, once it can be read; waits for the log with a clear message.
    pub async fn control(&self, ports: &Ports) -> anyhow::Result<ControlView> {
        self.wait_for("the control table", || {
            ControlView::open(ports.log.clone(), &self.health, self.shutdown.clone())
        })
        .await
    }

    /// Tries until it works or the process is told to end; only errors of the log that may pass are waited
    /// for, and so is a topic that is not there yet.
    pub async fn wait_for<T, F>(&self, what: &str, mut attempt: impl FnMut() -> F) -> anyhow::Result<T>
    where
        F: Future<Output = Result<T, LogError>>,
    {
        let mut pause = Backoff::new(&self.config.stages);
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) if error.is_transient() || matches!(error, LogError::NoTopic(_)) => {
                    warn!(%error, "waiting for {what}");
                }
                Err(error) => return Err(error).with_context(|| format!("cannot open {what}")),
            }
            pause.wait(&self.shutdown).await;
            anyhow::ensure!(!self.shutdown.is_cancelled(), "told to end while waiting for {what}");
        }
    }

    /// Opens what is sealed with `secrets.key`; the embedded engine makes the key.
    pub fn sealer(&self) -> anyhow::Result<Sealer> {
        let config = &self.config;
        let key =
            if config.secrets.key.is_empty() && config.engine == panopticon_core::config::Engine::Embedded {
                secrets::file_or_make(&config.data_dir.join("secrets.key"), secrets::random_seal_key)?
            } else {
                config.secrets.key.clone()
            };
        Ok(Sealer::new(&key)?)
    }

    /// The token with the role admin: configured, or kept in the file `admin.token` of the data directory,
    /// which is made (mode 0600) where it does not exist.
    pub fn admin_token(&self) -> anyhow::Result<Secret> {
        if !self.config.admin_token.is_empty() {
            return Ok(self.config.admin_token.clone());
        }
        std::fs::create_dir_all(&self.config.data_dir)
            .with_context(|| format!("cannot make {}", self.config.data_dir.display()))?;
        Ok(secrets::file_or_make(&self.admin_token_file(), || secrets::random_key(secrets::TOKEN_PREFIX))?)
    }

    /// Where [`Process::admin_token`] keeps it.
    pub fn admin_token_file(&self) -> PathBuf {
        self.config.data_dir.join("admin.token")
    }

    /// Deletes what is past its time, every minute until the end.
    pub fn keep_house(&self, ports: &Ports) {
        let (process, ports) = (self.clone(), ports.clone());
        tokio::spawn(async move {
            let mut minute = tokio::time::interval(Duration::from_secs(60));
            loop {
                tokio::select! {
                    _ = minute.tick() => {}
                    () = process.shutdown.cancelled() => return,
                }
                if let Some(seen) = ports.reached_seen()
                    && let Err(error) = seen.expire().await
                {
                    warn!(%error, "cannot forget old event ids now");
                }
                if let Some(store) = &ports.store
                    && let Err(error) = store.expire(process.clock.now()).await
                {
                    warn!(%error, "cannot delete expired rows now");
                }
            }
        });
    }
}

/// The arguments of every worker.
#[derive(Debug, clap::Args)]
pub struct CommonArgs {
    /// Configuration file; without it `panopticon.toml` of the working directory, where there is one.
    #[arg(long, value_name = "FILE", env = "PANOPTICON_CONFIG", global = true)]
    pub config: Option<PathBuf>,
}

/// Runs a worker on all cores: everything that can go wrong before it runs is one clear line and exit status 1.
pub fn worker<F>(args: &CommonArgs, name: &str, body: impl FnOnce(Process) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    worker_on(|_| runtime::Builder::new_multi_thread(), args, name, body)
}

/// The same on threads that follow from the configuration.
pub fn worker_on<F>(
    threads: impl FnOnce(&Config) -> runtime::Builder,
    args: &CommonArgs,
    name: &str,
    body: impl FnOnce(Process) -> F,
) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    let run = || -> anyhow::Result<()> {
        let config = Config::load(args.config.as_deref())?;
        anyhow::ensure!(
            config.engine == panopticon_core::config::Engine::Distributed,
            "separate workers need the distributed engine: set PANOPTICON_ENGINE=distributed with \
             PANOPTICON_KAFKA__BROKERS, PANOPTICON_REDIS__URL and PANOPTICON_CLICKHOUSE__URL, \
             or run everything in one process with `panopticon serve`"
        );
        let runtime = threads(&config).enable_all().build()?;
        let ended = runtime.block_on(async {
            let process = Process::start(config, name).await?;
            info!(worker = name, config = %serde_json::to_string(&*process.config).unwrap_or_default(), "starting");
            let ended = body(process.clone()).await;
            process.end().await;
            if process.shutdown.is_cancelled() {
                info!(worker = name, "ended");
                return Ok(());
            }
            ended
        });
        // What still asks a server that is away may block its thread for longer than the drain may take.
        runtime.shutdown_background();
        ended
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
