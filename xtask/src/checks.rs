//! `cargo xtask test`: everything that CI checks, one step after the other. A failed step does not keep the
//! later ones from running, so that one run tells all.

use std::env;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};

use crate::chaos;
use crate::interrupt::Interrupt;
use crate::licences;
use crate::stack::{TemporaryStack, find_program};
use crate::workspace_root;

/// What to check.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Leave out what needs real Kafka, Redis and ClickHouse.
    pub embedded: bool,
}

/// Runs all checks. An error if one failed; its text is the summary.
pub fn run(options: Options) -> Result<()> {
    let mut report = Report::new(Interrupt::catch()?);

    report.step("format", |interrupt| interrupt.run(cargo().args(["fmt", "--all", "--check"])));
    report.step("licences of the dependencies", |_| {
        let count = licences::check()?;
        println!("{count} dependencies, all under licences that are agreed to");
        Ok(())
    });
    if find_program("cargo-deny").is_some() && workspace_root().join("deny.toml").exists() {
        report.step("cargo deny", |interrupt| {
            interrupt.run(cargo().args(["deny", "--offline", "check", "licenses", "bans"]))
        });
    }
    if let Some(mut compose) = docker_compose() {
        report.step("docker-compose.yml", |interrupt| {
            // What the file wants to be set, for this look alone.
            for name in ["CLICKHOUSE_PASSWORD", "PANOPTICON_SECRETS__KEY", "PANOPTICON_ADMIN_TOKEN"] {
                compose.env(name, "checked");
            }
            interrupt.run(compose.current_dir(workspace_root()).args(["config", "--quiet"]))
        });
    }
    report.step("clippy", |interrupt| {
        interrupt.run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    });
    report.step("documentation", |interrupt| {
        interrupt.run(cargo().args(["doc", "--no-deps", "--workspace"]).env("RUSTDOCFLAGS", "-D warnings"))
    });
    // The tests of the product from outside start the programs of all crates.
    report.step("build", |interrupt| interrupt.run(cargo().args(["build", "--workspace", "--bins"])));
    if options.embedded {
        report.step("tests (embedded engine only)", |interrupt| interrupt.run(&mut cargo_test(&EVERYTHING)));
    } else {
        test_on_servers(&mut report);
    }
    report.finish()
}

/// Tests on a private stack, which ends with the tests, however they end.
fn test_on_servers(report: &mut Report) {
    let mut stack = None;
    report.step("start Kafka, Redis and ClickHouse", |_| {
        stack = Some(TemporaryStack::up()?);
        Ok(())
    });
    report.step("tests", |interrupt| {
        let stack = stack.as_ref().ok_or_else(|| anyhow!("there are no servers to test with"))?;
        let result = interrupt.run(cargo_test(&EVERYTHING).envs(stack.test_env()));
        // A test that was ended from outside could not end the servers that it had started for itself.
        TemporaryStack::remove_orphans()?;
        result
    });
    if has_openssl() {
        report.step("tests of Kafka over TLS", |interrupt| {
            let stack = stack.as_ref().ok_or_else(|| anyhow!("there are no servers to test with"))?;
            let what = [
                "--package",
                "panopticon-distributed",
                "--features",
                "kafka-tls",
                "--test",
                "connections",
                "kafka",
            ];
            interrupt.run(cargo_test(&what).envs(stack.test_env()))
        });
    }
    drop(stack);
    report.step("tests with a broker that is killed and frozen", |interrupt| {
        let stack = TemporaryStack::up()?;
        let mut test = cargo_test(&["--package", "panopticon-distributed", "--test", "kafka", "faults"]);
        test.args(["--", "--test-threads=1"]).envs(stack.test_env());
        interrupt.run(test.env("PANOPTICON_TEST_KAFKA_CONTROL", stack.kafka_control()?))
    });
    report.step("chaos: every kind of fault once", |interrupt| {
        chaos::strike(interrupt, &chaos::Options { seed: Some(CHAOS_SEED), ..Default::default() })
    });
}

/// Whether the feature `kafka-tls` can be built here.
fn has_openssl() -> bool {
    let mut ask = Command::new("pkg-config");
    ask.args(["--exists", "openssl"]).status().is_ok_and(|status| status.success())
}

/// The same faults in the same order each time; `cargo xtask chaos` takes others.
const CHAOS_SEED: u64 = 1_795_274_399;

/// What a test run is told to test: all there is.
const EVERYTHING: [&str; 2] = ["--workspace", "--no-fail-fast"];

/// A test run that knows nothing of the developer's own settings.
fn cargo_test(what: &[&str]) -> Command {
    let mut command = cargo();
    command.arg("test").args(what);
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("PANOPTICON_") {
            command.env_remove(name);
        }
    }
    command
}

fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(workspace_root());
    command
}

/// Compose as Docker's plugin or as a program of its own, where the machine has either.
fn docker_compose() -> Option<Command> {
    let mut plugin = Command::new("docker");
    plugin.arg("compose");
    let alone = Command::new("docker-compose");
    [plugin, alone].into_iter().find_map(|mut compose| {
        let found = compose.arg("version").output().is_ok_and(|output| output.status.success());
        let mut again = Command::new(compose.get_program());
        again.args(compose.get_args().filter(|argument| *argument != "version"));
        found.then_some(again)
    })
}

/// What was run, and how it went.
struct Report {
    interrupt: Interrupt,
    started: Instant,
    steps: usize,
    failed: Vec<&'static str>,
}

impl Report {
    fn new(interrupt: Interrupt) -> Self {
        Self { interrupt, started: Instant::now(), steps: 0, failed: Vec::new() }
    }

    /// Runs one step under a heading, and says how long it took.
    fn step(&mut self, name: &'static str, action: impl FnOnce(&Interrupt) -> Result<()>) {
        if self.interrupt.is_set() {
            return;
        }
        self.steps += 1;
        println!("\n=== {name}");
        let started = Instant::now();
        let result = action(&self.interrupt);
        let took = in_words(started.elapsed());
        match result {
            Ok(()) => println!("=== {name}: ok after {took}"),
            Err(error) => {
                println!("{error:#}\n=== {name}: FAILED after {took}");
                self.failed.push(name);
            }
        }
    }

    fn finish(self) -> Result<()> {
        let took = in_words(self.started.elapsed());
        println!();
        ensure!(!self.interrupt.is_set(), "interrupted after {took}");
        if !self.failed.is_empty() {
            bail!(
                "{} of {} checks failed after {took}: {}",
                self.failed.len(),
                self.steps,
                self.failed.join(", ")
            );
        }
        println!("all {} checks passed after {took}", self.steps);
        Ok(())
    }
}

fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(in_words(Duration::from_millis(1_250)), "1.2 s");
        assert_eq!(in_words(Duration::from_secs(125)), "2 min 5 s");
    }
}
