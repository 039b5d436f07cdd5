//! `cargo xtask bench`: builds the release binaries and measures them from outside.

use std::process::Command;

use anyhow::Result;

use crate::interrupt::Interrupt;
use crate::stack::TemporaryStack;
use crate::workspace_root;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Leave out what needs real Kafka, Redis and ClickHouse.
    pub embedded: bool,
    /// Seconds of load for each figure.
    pub secs: u64,
}

/// Measures; the tables go to standard output, the figures as JSON to `target/bench`.
pub fn run(options: &Options) -> Result<()> {
    let interrupt = Interrupt::catch()?;
    let mut build = Command::new("cargo");
    build.current_dir(workspace_root()).args([
        "build",
        "--release",
        "--workspace",
        "--bins",
        "--exclude",
        "xtask",
    ]);
    interrupt.run(&mut build)?;
    std::fs::create_dir_all(workspace_root().join("target/bench"))?;
    interrupt.run(&mut bench("embedded", options))?;
    if !options.embedded {
        let stack = TemporaryStack::up()?;
        interrupt.run(bench("distributed", options).envs(stack.env()))?;
    }
    Ok(())
}

fn bench(engine: &str, options: &Options) -> Command {
    let root = workspace_root();
    let mut command = Command::new(root.join("target/release/panopticon-bench"));
    command.current_dir(root).arg(engine).args(["--secs", &options.secs.to_string()]);
    command.arg("--json").arg(root.join("target/bench").join(format!("{engine}.json")));
    command
}
