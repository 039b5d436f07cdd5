//! One server of a stack: started, watched, stopped, and hurt for fault tests.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde::Serialize;

use super::dist::Dist;
use super::lock::FileLock;
use super::ports::Ports;
use super::process::{Liveness, ProcessId};
use super::{clickhouse, kafka, probe, redis, tools};

/// How long a server may take from its start to its first answer, on a busy machine too.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
/// How often a starting server is asked whether it is ready.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long a server may take to end by itself before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the operating system may take to end a killed process, or to stop a paused one.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(10);
/// A log that is longer than this when its server starts is put aside as `….log.old`.
const MAX_LOG_BYTES: u64 = 32 * 1024 * 1024;
/// The line in a log before the output of each start.
const LOG_START: &str = "=== start of";
/// How much of a log an error shows, at most, and only of the last start.
const SHOWN_LOG_LINES: usize = 30;
const SHOWN_LOG_BYTES: u64 = 16 * 1024;

/// The servers that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Apache Kafka.
    Kafka,
    /// Redis.
    Redis,
    /// ClickHouse.
    ClickHouse,
}

impl Kind {
    /// The name in commands, files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Redis => "redis",
            Self::ClickHouse => "clickhouse",
        }
    }
}

/// What a server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It answers.
    Ready,
    /// It runs, and does not answer (yet).
    Silent,
    /// It was paused.
    Paused,
    /// It was never started, or was stopped or killed on purpose.
    Stopped,
    /// It ended by itself, or somebody else ended it.
    Died,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::Silent => "silent",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Died => "died",
        })
    }
}

/// A row of `stack status`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Which server.
    pub name: &'static str,
    /// Its process, if it runs.
    pub pid: Option<i32>,
    /// Where clients connect.
    pub address: String,
    /// What it is doing.
    pub state: State,
}

/// One server of a stack. The value is only a description: dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Server {
    kind: Kind,
    dir: PathBuf,
    ports: Ports,
    dist: Dist,
}

impl Server {
    pub(super) fn new(kind: Kind, dir: &Path, ports: Ports, dist: Dist) -> Self {
        Self { kind, dir: dir.to_owned(), ports, dist }
    }

    /// Which server this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where clients connect: `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        let port = match self.kind {
            Kind::Kafka => self.ports.kafka,
            Kind::Redis => self.ports.redis,
            Kind::ClickHouse => self.ports.clickhouse_http,
        };
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    /// Installs the server if need be, starts it and waits until it answers. A server that is ready already is
    /// left alone, a paused one goes on.
    pub fn start(&self) -> Result<()> {
        let _lock = self.lock()?;
        let process = match self.process()? {
            Some(process) if process.liveness() != Liveness::Dead => {
                process.signal(Signal::CONT)?;
                process
            }
            _ => self.spawn().with_context(|| format!("cannot start {}", self.kind.name()))?,
        };
        self.wait_ready(process)
    }

    /// Asks the server to end and waits until it has; kills it if it does not.
    pub fn stop(&self) -> Result<()> {
        let _lock = self.lock()?;
        let Some(process) = self.process()? else { return Ok(()) };
        process.signal(Signal::TERM)?;
        // A paused process gets its signals only when it goes on.
        process.signal(Signal::CONT)?;
        if !process.wait_dead(STOP_TIMEOUT) {
            self.kill_process(process)?;
        }
        self.forget_process()
    }

    /// Ends the server as a crash would (SIGKILL): it gets no chance to write or to say goodbye.
    pub fn kill(&self) -> Result<()> {
        let _lock = self.lock()?;
        let Some(process) = self.process()? else { return Ok(()) };
        self.kill_process(process)?;
        self.forget_process()
    }

    /// Stops the server and starts it again on the same port with the same data.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// Freezes the server (SIGSTOP) and waits until it has stopped: its connections stay open, and nobody
    /// answers.
    pub fn pause(&self) -> Result<()> {
        let process = self.living_process()?;
        process.signal(Signal::STOP)?;
        let name = self.kind.name();
        ensure!(process.wait_paused(SIGNAL_TIMEOUT), "{name} (process {}) cannot be paused", process.pid);
        Ok(())
    }

    /// Lets a paused server go on.
    pub fn resume(&self) -> Result<()> {
        self.living_process()?.signal(Signal::CONT)
    }

    /// What the server is doing.
    pub fn status(&self) -> Result<Status> {
        let process = self.process()?;
        let (pid, state) = match process.map(|p| (p.pid, p.liveness())) {
            None => (None, State::Stopped),
            Some((_, Liveness::Dead)) => (None, State::Died),
            Some((pid, Liveness::Paused)) => (Some(pid), State::Paused),
            Some((pid, Liveness::Alive)) => {
                (Some(pid), if self.probe().is_ok() { State::Ready } else { State::Silent })
            }
        };
        Ok(Status { name: self.kind.name(), pid, address: self.address().to_string(), state })
    }

    /// The file that the server's output is appended to.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("log").join(self.kind.name()).with_extension("log")
    }

    /// Whether a process of this server lives, paused ones included.
    pub(super) fn is_alive(&self) -> Result<bool> {
        Ok(self.process()?.is_some_and(|process| process.liveness() != Liveness::Dead))
    }

    /// Asks the server the question that only a ready server answers.
    fn probe(&self) -> Result<String> {
        let port = self.address().port();
        match self.kind {
            Kind::Kafka => probe::kafka(port),
            Kind::Redis => probe::redis(port),
            Kind::ClickHouse => probe::clickhouse(port),
        }
    }

    fn spawn(&self) -> Result<ProcessId> {
        let mut command = match self.kind {
            Kind::Kafka => kafka::prepare(&self.dist, &self.dir, &self.ports),
            Kind::Redis => redis::prepare(&self.dir, &self.ports),
            Kind::ClickHouse => clickhouse::prepare(&self.dist, &self.dir, &self.ports),
        }?;
        let mut log = self.open_log()?;
        writeln!(log, "{LOG_START} {}", self.kind.name())?;
        self.detach(&mut command, log)?;
        let mut child = command.spawn().with_context(|| format!("cannot run {:?}", command.get_program()))?;
        let pid = i32::try_from(child.id()).context("the process id is out of range")?;
        let process = ProcessId::of(pid).context("the process ended at once")?;
        process.write(&self.pid_file())?;
        // Where the program that started it goes on (a test), somebody has to collect the dead child.
        thread::spawn(move || child.wait());
        Ok(process)
    }

    /// Makes the command independent of the terminal and of whoever started it.
    fn detach(&self, command: &mut Command, log: File) -> Result<()> {
        command
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: Ctrl-C and a closed terminal do not reach it.
            .process_group(0);
        Ok(())
    }

    fn open_log(&self) -> Result<File> {
        let file = self.log_file();
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        if file.metadata().is_ok_and(|metadata| metadata.len() > MAX_LOG_BYTES) {
            fs::rename(&file, file.with_extension("log.old"))?;
        }
        File::options()
            .create(true)
            .append(true)
            .open(&file)
            .with_context(|| format!("cannot open {}", file.display()))
    }

    fn wait_ready(&self, process: ProcessId) -> Result<()> {
        let name = self.kind.name();
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let unready = match self.probe() {
                // Only if it is ours that answers, and not a stranger on the same port.
                Ok(_) if process.liveness() == Liveness::Alive => return Ok(()),
                Ok(_) => "another program answers at its address".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if process.liveness() == Liveness::Dead {
                bail!("{name} ended while starting; {}", self.log_tail());
            }
            if Instant::now() >= deadline {
                bail!("{name} is not ready after {READY_TIMEOUT:?} ({unready}); {}", self.log_tail());
            }
            thread::sleep(READY_POLL_INTERVAL);
        }
    }

    /// The end of the log, worded as the end of an error message.
    fn log_tail(&self) -> String {
        let file = self.log_file();
        let read = || -> std::io::Result<String> {
            let mut log = File::open(&file)?;
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(length.saturating_sub(SHOWN_LOG_BYTES)))?;
            let mut bytes = Vec::new();
            log.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        match read() {
            Ok(text) => {
                let text = text.rsplit_once(LOG_START).map_or(text.as_str(), |(_, since_start)| since_start);
                format!("the end of {}:\n{}", file.display(), tools::last_lines(text, SHOWN_LOG_LINES))
            }
            Err(error) => format!("its log {} cannot be read: {error}", file.display()),
        }
    }

    fn kill_process(&self, process: ProcessId) -> Result<()> {
        process.signal(Signal::KILL)?;
        let name = self.kind.name();
        ensure!(process.wait_dead(SIGNAL_TIMEOUT), "{name} (process {}) cannot be killed", process.pid);
        Ok(())
    }

    fn process(&self) -> Result<Option<ProcessId>> {
        ProcessId::read(&self.pid_file())
    }

    fn living_process(&self) -> Result<ProcessId> {
        self.process()?
            .filter(|process| process.liveness() != Liveness::Dead)
            .with_context(|| format!("{} is not running", self.kind.name()))
    }

    fn forget_process(&self) -> Result<()> {
        fs::remove_file(self.pid_file())
            .with_context(|| format!("cannot remove {}", self.pid_file().display()))
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("run").join(self.kind.name()).with_extension("pid")
    }

    /// Two programs that start or stop the same server do so one after the other.
    fn lock(&self) -> Result<FileLock> {
        FileLock::acquire(&self.dir.join("run").join(self.kind.name()).with_extension("lock"))
    }
}
