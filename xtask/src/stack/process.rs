//! Processes that outlive the program that started them: found again by a pid file, signalled by id.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often a wait looks again.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A process by id and start time. The start time is what tells it from a stranger who was given the same id
/// later; without it a stale pid file could get somebody else's process killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId {
    /// The process id.
    pub pid: i32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`.
    started_ticks: u64,
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Running or sleeping.
    Alive,
    /// Stopped by SIGSTOP.
    Paused,
    /// Gone, or dead and not yet waited for.
    Dead,
}

impl ProcessId {
    /// The process that has this id now; `None` if there is none.
    pub fn of(pid: i32) -> Option<Self> {
        let (_, started_ticks) = read_stat(pid)?;
        Some(Self { pid, started_ticks })
    }

    /// Reads a pid file; `None` if there is none, or if it holds nothing usable.
    pub fn read(file: &Path) -> Result<Option<Self>> {
        match fs::read_to_string(file) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    /// Writes a pid file, whole or not at all.
    pub fn write(&self, file: &Path) -> Result<()> {
        let unfinished = file.with_extension("pid.new");
        fs::write(&unfinished, format!("{self}\n"))
            .and_then(|()| fs::rename(&unfinished, file))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Whether the process still lives.
    pub fn liveness(&self) -> Liveness {
        match read_stat(self.pid) {
            Some((state, started_ticks)) if started_ticks == self.started_ticks => match state {
                'T' | 't' => Liveness::Paused,
                // Its files and ports are given back with its last thread, which may outlive the first.
                'Z' | 'X' if !has_running_thread(self.pid) => Liveness::Dead,
                _ => Liveness::Alive,
            },
            _ => Liveness::Dead,
        }
    }

    /// Sends a signal; a process that is already gone is not an error.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.liveness() == Liveness::Dead {
            return Ok(());
        }
        let Some(pid) = Pid::from_raw(self.pid) else { bail!("{} is not a process id", self.pid) };
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot signal process {}", self.pid)),
        }
    }

    /// Waits until the process is dead; `false` if it still lives after `limit`.
    pub fn wait_dead(&self, limit: Duration) -> bool {
        wait_until(limit, || self.liveness() == Liveness::Dead)
    }

    /// Waits until SIGSTOP has reached every thread of the process; `false` if it has not after `limit`.
    pub fn wait_paused(&self, limit: Duration) -> bool {
        wait_until(limit, || self.liveness() == Liveness::Paused && all_threads_paused(self.pid))
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.started_ticks)
    }
}

impl FromStr for ProcessId {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (pid, started) = text.split_once(' ').context("expected: PID START_TICKS")?;
        Ok(Self { pid: pid.parse()?, started_ticks: started.parse()? })
    }
}

fn wait_until(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !is_so() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(POLL_INTERVAL);
    }
    true
}

fn all_threads_paused(pid: i32) -> bool {
    let mut threads = threads(pid).peekable();
    threads.peek().is_some() && threads.all(|state| matches!(state, 'T' | 't'))
}

fn has_running_thread(pid: i32) -> bool {
    threads(pid).any(|state| !matches!(state, 'Z' | 'X'))
}

/// State letters of a process's threads.
fn threads(pid: i32) -> impl Iterator<Item = char> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| Some(parse_stat(&fs::read_to_string(thread.path().join("stat")).ok()?)?.0))
}

/// State letter and start time of a process.
fn read_stat(pid: i32) -> Option<(char, u64)> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// State letter and start time of a process or thread, from its `stat` file; see proc_pid_stat(5).
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    // The second field is the program's name in parentheses, which may itself hold spaces and parentheses.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let started_ticks = fields.nth(18)?.parse().ok()?;
    Some((state, started_ticks))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_followed_through_pause_and_death() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(child.id() as i32).unwrap();
        assert_eq!(process.liveness(), Liveness::Alive);

        process.signal(Signal::STOP).unwrap();
        while process.liveness() != Liveness::Paused {
            thread::sleep(POLL_INTERVAL);
        }
        process.signal(Signal::CONT).unwrap();
        process.signal(Signal::KILL).unwrap();
        assert!(
            process.wait_dead(Duration::from_secs(5)),
            "a dead child that nobody waited for counts as dead"
        );
        child.wait().unwrap();
    }

    #[test]
    fn another_process_with_the_same_id_is_not_taken_for_it() {
        let me = ProcessId::of(std::process::id() as i32).unwrap();
        let predecessor = ProcessId { started_ticks: me.started_ticks - 1, ..me };
        assert_eq!(predecessor.liveness(), Liveness::Dead);
        predecessor.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn a_pid_file_gives_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.pid");
        assert_eq!(ProcessId::read(&file).unwrap(), None);
        let me = ProcessId::of(std::process::id() as i32).unwrap();
        me.write(&file).unwrap();
        assert_eq!(ProcessId::read(&file).unwrap(), Some(me));
    }
}
