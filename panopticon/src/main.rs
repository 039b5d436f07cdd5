//! Panopticon in one process, and the commands around it.

mod backtest;
mod demo;
mod serve;
mod welcome;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use panopticon_core::{
    config::{Config, Secret},
    telemetry,
    time::SystemClock,
};
use panopticon_process::{CommonArgs, Process};

/// The control room over AI agents and personal MCP servers.
#[derive(Debug, Parser)]
#[command(
    name = "panopticon",
    version,
    propagate_version = true,
    after_help = "Examples:\n  \
    panopticon demo                      watch the whole system work on real agent traces\n  \
    panopticon serve                     run it; data in ./panopticon-data\n  \
    panopticon logi panopticon enable my-app\n  \
    panopticon replay traces.ndjson.gz --url http://127.0.0.1:7420 --pak $PAK"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run all roles in one process
    Serve(ServeArgs),
    /// Show the whole system at work on bundled real agent traces
    Demo(demo::DemoArgs),
    /// Send a file of traces
    Replay(panopticon_cli::replay::ReplayArgs),
    /// Run the rules over stored traces, or a file of them, and show what they would have found
    Backtest(backtest::BacktestArgs),
    /// Bring topics and tables to this version's form
    Migrate(CommonArgs),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// The command line of the control room
    Logi(panopticon_cli::Logi),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read the configuration, say what is wrong with it, and print it with secrets redacted
    Check(CommonArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    panopticon serve\n  \
    panopticon serve --data-dir /var/lib/panopticon --listen 0.0.0.0:7420\n  \
    PANOPTICON_ENGINE=distributed PANOPTICON_KAFKA__BROKERS=kafka:9092 panopticon serve")]
struct ServeArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Folder for the data [default: panopticon-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address for HTTP and gRPC [default: 127.0.0.1:7420]
    #[arg(long, value_name = "ADDR")]
    listen: Option<std::net::SocketAddr>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let done = runtime.block_on(async {
        match args.command {
            Command::Logi(logi) => return Ok(panopticon_cli::run(logi).await),
            Command::Replay(replay) => return Ok(panopticon_cli::replay::run(replay).await),
            Command::Serve(args) => run_serve(args).await?,
            Command::Demo(args) => return demo::run(args).await,
            Command::Backtest(args) => backtest::run(args).await?,
            Command::Migrate(args) => migrate(&args).await?,
            Command::Config(ConfigCommand::Check(args)) => check(&args)?,
        }
        Ok(ExitCode::SUCCESS)
    });
    // A blocking read of a closed terminal or pipe must not hold the end up.
    runtime.shutdown_background();
    done.unwrap_or_else(|error| failed(&error))
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("panopticon: {error:#}");
    ExitCode::FAILURE
}

async fn run_serve(args: ServeArgs) -> anyhow::Result<()> {
    let mut config = Config::load(args.common.config.as_deref())?;
    if let Some(data_dir) = args.data_dir {
        config.data_dir = data_dir;
    }
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    let process = Process::start(config, "serve").await?;
    let server = match serve::Server::start(&process).await {
        Ok(server) => server,
        Err(_) if process.shutdown.is_cancelled() => return Ok(()),
        Err(error) => return Err(error),
    };
    let token_file = process.config.admin_token.is_empty().then(|| process.admin_token_file());
    if let Some(token_file) = &token_file {
        let token_file = std::path::absolute(token_file).unwrap_or_else(|_| token_file.clone());
        if let Err(error) = panopticon_cli::servers::record_server(&server.url, &token_file) {
            tracing::warn!(%error, "logi will need LOGI_URL and LOGI_TOKEN to find this server");
        }
    }
    println!("{}", welcome::text(&server.url));
    let ended = server.run().await;
    process.end().await;
    ended
}

async fn migrate(args: &CommonArgs) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref())?;
    telemetry::start_logging(&config, None)?;
    panopticon_process::migrate(&config, Arc::new(SystemClock)).await?;
    println!("topics and tables are as this version needs them");
    Ok(())
}

fn check(args: &CommonArgs) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref())?;
    panopticon_webhook_dispatcher::egress::Egress::new(&config).context("configuration: `webhooks`")?;
    if config.secrets.key != Secret::default() {
        panopticon_core::secrets::Sealer::new(&config.secrets.key).context("configuration")?;
    }
    panopticon_process::check_connections(&config)?;
    println!("{}", serde_json::to_string_pretty(&config)?);
    eprintln!("the configuration is valid");
    Ok(())
}
