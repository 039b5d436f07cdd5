//! Commands that end with us: Ctrl-C and SIGTERM reach the command and all that it started, and this program
//! lives on to clean up.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How often a running command and the signals are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long a command may take to end after it was told to.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether somebody wants this program to end.
#[derive(Clone, Debug)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
}

impl Interrupt {
    /// From now on SIGINT, SIGTERM and SIGHUP only set a flag.
    pub fn catch() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("cannot catch signals")?;
        }
        Ok(Self { flag })
    }

    /// Whether a signal has come.
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Runs a command to its end. An error if it fails, or if a signal came before.
    pub fn run(&self, command: &mut Command) -> Result<()> {
        let name = command.get_program().to_string_lossy().into_owned();
        ensure!(!self.is_set(), "interrupted");
        // A group of its own, so that what the command starts can be ended with it; such a group cannot read
        // from the terminal.
        let mut child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        loop {
            if let Some(status) = child.try_wait()? {
                ensure!(status.success(), "{name} failed ({status})");
                return Ok(());
            }
            if self.is_set() {
                end_group(&mut child)?;
                bail!("interrupted");
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}

fn end_group(child: &mut Child) -> Result<()> {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no such process group")?;
    // An error means that the group has just ended.
    let _ = kill_process_group(group, Signal::TERM);
    let deadline = Instant::now() + END_TIMEOUT;
    while child.try_wait()?.is_none() && Instant::now() < deadline {
        thread::sleep(POLL_INTERVAL);
    }
    // The command itself may be gone and have left others behind.
    let _ = kill_process_group(group, Signal::KILL);
    child.wait()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_command_is_ended_with_all_that_it_started() {
        let interrupt = Interrupt { flag: Arc::default() };
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());

        let runner = interrupt.clone();
        let running = thread::spawn(move || runner.run(Command::new("sh").args(["-c", &script])));
        let pid = loop {
            match std::fs::read_to_string(&pid_file) {
                Ok(text) if text.ends_with('\n') => break text.trim().to_owned(),
                _ => thread::sleep(POLL_INTERVAL),
            }
        };
        interrupt.flag.store(true, Ordering::Relaxed);

        let error = running.join().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "interrupted");
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "the grandchild lives on: {stat}");
    }

    #[test]
    fn a_command_that_fails_is_an_error() {
        let interrupt = Interrupt { flag: Arc::default() };
        assert!(interrupt.run(&mut Command::new("true")).is_ok());
        assert!(interrupt.run(&mut Command::new("false")).is_err());
    }
}
