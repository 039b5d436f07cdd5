//! `cargo xtask chaos`: breaks a running system on servers of its own, and counts what is left.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::interrupt::Interrupt;
use crate::stack::{Stack, TemporaryStack};
use crate::workspace_root;

/// How long, how hard, and with which programs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How long faults go on at least; every kind of fault comes once in any case.
    pub minutes: f64,
    /// What the faults follow from; chosen by the clock where it is not given.
    pub seed: Option<u64>,
    /// Programs as they are shipped, instead of those that tests use.
    pub release: bool,
}

/// Builds the programs, then breaks them.
pub fn run(options: &Options) -> Result<()> {
    let interrupt = Interrupt::catch()?;
    let mut build = Command::new("cargo");
    build.current_dir(workspace_root()).args(["build", "--workspace", "--bins", "--exclude", "xtask"]);
    if options.release {
        build.arg("--release");
    }
    interrupt.run(&mut build)?;
    strike(&interrupt, options)
}

/// Breaks programs that are built. What failed leaves its logs and the servers' data in `target/chaos`.
pub(crate) fn strike(interrupt: &Interrupt, options: &Options) -> Result<()> {
    let seed = options.seed.unwrap_or_else(clock_seed);
    let root = workspace_root();
    let folder = root.join("target/chaos").join(seed.to_string());
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let bin = root.join("target").join(if options.release { "release" } else { "debug" });
    let stack = TemporaryStack::up()?;
    let mut chaos = Command::new(bin.join("panopticon-chaos"));
    chaos
        .args(["--minutes", &options.minutes.to_string(), "--seed", &seed.to_string()])
        .arg("--bin")
        .arg(&bin)
        .arg("--folder")
        .arg(&folder)
        .arg("--control")
        .arg(Stack::control_program())
        .arg("--stack")
        .arg(stack.dir())
        .envs(stack.env());
    let ended = interrupt.run(chaos.current_dir(&folder));
    match &ended {
        Ok(()) => remove_all_but_report(&folder)?,
        Err(_) => stack.keep(&folder.join("servers"))?,
    }
    ended
}

fn clock_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn remove_all_but_report(folder: &Path) -> Result<()> {
    let workers = folder.join("workers");
    if workers.exists() {
        fs::remove_dir_all(workers)?;
    }
    Ok(())
}
