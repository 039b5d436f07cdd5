//! Processes of the product: started with nothing of the developer's own settings, and gone with the tests.

use std::{
    collections::HashSet,
    fs::File,
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{LazyLock, Mutex},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{waiting::if_so, within};

/// How long a process may take to end after a signal.
const END_WITHIN: Duration = Duration::from_secs(30);
/// Kills what is left when the tests end, however they end: its input is then closed.
const WATCH: &str = r#"trap '' INT TERM HUP
while read -r line; do
  case $line in
    +*) left="$left ${line#+} " ;;
    -*) left=$(printf %s "$left" | sed "s/ ${line#-} / /") ;;
  esac
done
[ -z "$left" ] || kill -KILL $left"#;

static WATCHDOG: LazyLock<Mutex<Child>> = LazyLock::new(|| {
    Mutex::new(Command::new("sh").args(["-c", WATCH]).stdin(Stdio::piped()).spawn().unwrap())
});

fn tell_watchdog(line: String) {
    WATCHDOG.lock().unwrap().stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
}

/// A program with its settings, to be started any number of times.
#[derive(Debug, Clone)]
pub struct Program {
    /// For messages and for the names of its log files.
    pub name: String,
    pub path: PathBuf,
    pub arguments: Vec<String>,
    pub settings: Vec<(String, String)>,
    /// Its working directory and home.
    pub folder: PathBuf,
}

impl Program {
    /// A command that sees none of the settings around it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["PANOPTICON_", "LOGI_", "XDG_"].iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command
            .args(&self.arguments)
            .env("HOME", &self.folder)
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
    }

    /// Starts it; what it writes goes to a file.
    pub fn start(&self) -> Process {
        let log = self.folder.join(format!("{}.log", self.name));
        let out = File::options().create(true).append(true).open(&log).unwrap();
        let child = self
            .command()
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.path.display()));
        tell_watchdog(format!("+{}\n", child.id()));
        Process { program: self.clone(), child, log }
    }
}

/// A running process; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    pub program: Program,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Its standard output and error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// SIGTERM; answers how it ended.
    pub async fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.end().await
    }

    /// SIGINT, as Ctrl-C sends it; answers how it ended.
    pub async fn interrupt(mut self) -> ExitStatus {
        self.signal(Signal::INT);
        self.end().await
    }

    /// SIGKILL; what it had in hand is lost with it.
    pub fn crash(mut self) -> Program {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.program.clone()
    }

    /// Waits until it has ended.
    pub async fn end(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.program.name);
        within(END_WITHIN, &what, async || self.has_ended().ok_or_else(|| last_lines(&self.log()))).await
    }

    /// Panics with its last words if it has ended.
    pub fn must_be_running(&mut self) {
        if let Some(status) = self.has_ended() {
            panic!("{} has ended ({status}):\n{}", self.program.name, last_lines(&self.log()));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = self.child.id();
        let _ = self.child.kill();
        let _ = self.child.wait();
        tell_watchdog(format!("-{pid}\n"));
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Ports below those that the system gives to clients, so that none is taken in between.
pub fn free_port() -> u16 {
    static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    let mut given = GIVEN.lock().unwrap();
    loop {
        let random = uuid::Uuid::new_v4().as_u128();
        let port = 20_000 + (random % 12_000) as u16;
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return port;
        }
    }
}

/// A new folder below the build's own for tests; folders of runs that have ended are removed.
pub fn new_folder(name: &str) -> PathBuf {
    static FOLDERS: LazyLock<PathBuf> = LazyLock::new(|| {
        let folders = Path::new(env!("CARGO_TARGET_TMPDIR")).join("product");
        std::fs::create_dir_all(&folders).unwrap();
        for entry in std::fs::read_dir(&folders).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_running(name.split('-').next().unwrap_or_default()) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        folders
    });
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let folder = FOLDERS.join(format!("{}-{name}-{}", std::process::id(), &unique[..8]));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Whether the run of tests with this process id goes on.
pub fn is_running(pid: &str) -> bool {
    if_so(Path::new("/proc").join(pid).exists(), ()).is_ok()
}
