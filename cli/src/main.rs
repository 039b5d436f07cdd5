//! The binary `logi`.

use std::process::ExitCode;

use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    panopticon_cli::run(panopticon_cli::Logi::parse()).await
}
