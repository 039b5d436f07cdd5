//! `cargo xtask …`: development tasks.

mod stack_commands;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use xtask::bench;
use xtask::chaos;
use xtask::checks;
use xtask::clickhouse_host::{self, HostOptions};
use xtask::eval;
use xtask::stack::CLICKHOUSE_HOST_SUBCOMMAND;

/// Development tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run everything that CI checks.
    Test {
        /// Leave out what needs real Kafka, Redis and ClickHouse.
        #[arg(long)]
        embedded: bool,
    },
    /// Measure the release binaries beside bare engines in the same run.
    #[command(
        disable_help_flag = true,
        after_help = "All that follows goes to panopticon-bench; --help shows what it takes."
    )]
    Bench {
        /// Leave out what needs real Kafka, Redis and ClickHouse.
        #[arg(long)]
        embedded: bool,
        /// Parts of the table (all if none is named) and settings, such as `store --repeat 5 --json FILE`.
        #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
        arguments: Vec<String>,
    },
    /// Break a running system on real servers in every way it must survive, and count what is left.
    Chaos {
        /// How long faults go on at least; every kind of fault comes once in any case.
        #[arg(long, default_value_t = 10.0)]
        minutes: f64,
        /// What the faults follow from, as an earlier run has printed it.
        #[arg(long)]
        seed: Option<u64>,
        /// With programs as they are shipped.
        #[arg(long)]
        release: bool,
    },
    /// Score the detection rules on public data.
    Eval {
        /// Only these parts: failed_auth, off_hour, burst, series, cost.
        parts: Vec<String>,
        /// Where the figures go as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Run the real Kafka, Redis and ClickHouse, without Docker.
    Stack(stack_commands::StackArgs),
    /// Be ClickHouse.
    #[command(name = CLICKHOUSE_HOST_SUBCOMMAND, hide = true)]
    ClickhouseHost(ClickhouseHostArgs),
}

#[derive(Args)]
struct ClickhouseHostArgs {
    #[arg(long)]
    library: PathBuf,
    #[arg(long)]
    data_dir: PathBuf,
    #[arg(long)]
    http_port: u16,
    #[arg(long)]
    tcp_port: u16,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Test { embedded } => checks::run(checks::Options { embedded }),
        Task::Bench { embedded, arguments } => bench::run(&bench::Options { embedded, arguments }),
        Task::Chaos { minutes, seed, release } => chaos::run(&chaos::Options { minutes, seed, release }),
        Task::Eval { parts, json } => eval::run(&parts, json.as_deref()),
        Task::Stack(args) => stack_commands::run(args),
        Task::ClickhouseHost(ClickhouseHostArgs { library, data_dir, http_port, tcp_port }) => {
            clickhouse_host::run(&HostOptions { library, data_dir, http_port, tcp_port })
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
