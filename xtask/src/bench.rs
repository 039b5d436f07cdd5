//! `cargo xtask bench`: builds the release binaries and measures them from outside.

use std::process::Command;

use anyhow::Result;

use crate::interrupt::Interrupt;
use crate::stack::TemporaryStack;
use crate::workspace_root;

/// What to measure, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Leave out what needs real Kafka, Redis and ClickHouse.
    pub embedded: bool,
    /// Handed on: names of parts, and settings.
    pub arguments: Vec<String>,
}

/// What can be measured without servers.
const EMBEDDED: [&str; 4] = ["embedded", "latency", "--engine", "embedded"];

/// Measures; the table goes to standard output, the figures as JSON to `target/bench` unless told otherwise.
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
    let root = workspace_root();
    std::fs::create_dir_all(root.join("target/bench"))?;
    let mut bench = Command::new(root.join("target/release/panopticon-bench"));
    bench.arg("--bin").arg(root.join("target/release"));
    if !options.arguments.iter().any(|argument| argument.starts_with("--json")) {
        bench.arg("--json").arg(root.join("target/bench/bench.json"));
    }
    bench.args(&options.arguments);
    if options.embedded {
        return interrupt.run(bench.args(EMBEDDED));
    }
    if options.arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        return interrupt.run(&mut bench);
    }
    let stack = TemporaryStack::up()?;
    interrupt.run(bench.envs(stack.env()))
}
