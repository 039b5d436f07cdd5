//! `cargo xtask stack …`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use xtask::stack::{Kind, Server, Stack, Status, shell_exports};

/// What to do with which stack.
#[derive(Args)]
pub struct StackArgs {
    /// The stack's folder [default: target/stack]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    command: StackCommand,
}

#[derive(Subcommand)]
enum StackCommand {
    /// Install what is missing, start what is not running, wait until all of it answers.
    Up,
    /// Stop all servers.
    Down {
        /// Remove their data too.
        #[arg(long)]
        remove_data: bool,
    },
    /// Show what runs where.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the environment for clients, to be read by a shell: eval "$(cargo xtask stack env)".
    Env {
        /// The environment for tests instead.
        #[arg(long)]
        test: bool,
    },
    /// Start one server.
    Start { name: Name },
    /// Stop one server.
    Stop { name: Name },
    /// Stop one server and start it again.
    Restart { name: Name },
    /// Kill one server as a crash would.
    Kill { name: Name },
    /// Freeze one server: its connections stay open, and nobody answers.
    Pause { name: Name },
    /// Let a paused server go on.
    Resume { name: Name },
}

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    Kafka,
    Redis,
    Clickhouse,
}

/// Runs one `stack` command.
pub fn run(args: StackArgs) -> Result<()> {
    let dir = args.dir.unwrap_or_else(Stack::default_dir);
    let on_one = |name: Name, action: fn(&Server) -> Result<()>| -> Result<()> {
        let stack = Stack::open(&dir)?;
        let server = server(&stack, name);
        action(server)?;
        print_table(&[server.status()?])
    };
    match args.command {
        StackCommand::Up => {
            let started = Instant::now();
            let stack = Stack::up(&dir)?;
            print_table(&stack.status()?)?;
            writeln!(io::stderr(), "up after {:.1} s", started.elapsed().as_secs_f64())?;
            Ok(())
        }
        StackCommand::Down { remove_data } => {
            // Nothing was ever started here: nothing to stop.
            let Ok(stack) = Stack::open(&dir) else { return Ok(()) };
            stack.down()?;
            if remove_data { stack.remove_data() } else { Ok(()) }
        }
        StackCommand::Status { json } => {
            let status = Stack::open(&dir)?.status()?;
            if json {
                writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&status)?)?;
                Ok(())
            } else {
                print_table(&status)
            }
        }
        StackCommand::Env { test } => {
            let stack = Stack::open(&dir)?;
            let variables = if test { stack.test_env() } else { stack.env() };
            io::stdout().write_all(shell_exports(&variables).as_bytes())?;
            Ok(())
        }
        StackCommand::Start { name } => on_one(name, Server::start),
        StackCommand::Stop { name } => on_one(name, Server::stop),
        StackCommand::Restart { name } => on_one(name, Server::restart),
        StackCommand::Kill { name } => on_one(name, Server::kill),
        StackCommand::Pause { name } => on_one(name, Server::pause),
        StackCommand::Resume { name } => on_one(name, Server::resume),
    }
}

fn server(stack: &Stack, name: Name) -> &Server {
    match name {
        Name::Kafka => stack.server(Kind::Kafka),
        Name::Redis => stack.server(Kind::Redis),
        Name::Clickhouse => stack.server(Kind::ClickHouse),
    }
}

fn print_table(status: &[Status]) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{:<10}  {:>7}  {:<15}  STATE", "NAME", "PID", "ADDRESS")?;
    for Status { name, pid, address, state } in status {
        let pid = pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        writeln!(out, "{name:<10}  {pid:>7}  {address:<15}  {state}")?;
    }
    Ok(())
}
