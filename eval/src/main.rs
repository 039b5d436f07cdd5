//! Scores the detection rules on public data: `cargo xtask eval`.
//!
//! Each module takes one kind of data, shows it to the rules through the same code as the stages and
//! `panopticon backtest`, and compares what they say with the labels. The figures follow from the data
//! alone: no clock, no randomness without a fixed seed. What is measured in time stands in `cost`.

mod burst;
mod cost;
mod failed_auth;
mod off_hour;
mod report;
mod series;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

use crate::report::Line;

/// Scores the detection rules on public data.
#[derive(Parser)]
struct Options {
    /// Only these parts: failed_auth, off_hour, burst, series, cost.
    parts: Vec<String>,
    /// Folder of the data.
    #[arg(long, default_value = "eval/data")]
    data: PathBuf,
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One kind of data and what is measured on it.
type Part = (&'static str, fn(&std::path::Path) -> anyhow::Result<Vec<Line>>);

const PARTS: [Part; 5] = [
    // First, since what the others leave behind would be counted as free.
    ("cost", cost::measure),
    ("failed_auth", failed_auth::measure),
    ("off_hour", off_hour::measure),
    ("burst", burst::measure),
    ("series", series::measure),
];

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    if let Some(unknown) = options.parts.iter().find(|part| PARTS.iter().all(|(name, _)| name != part)) {
        anyhow::bail!("there is no part `{unknown}`");
    }
    let mut lines = Vec::new();
    for (name, measure) in PARTS {
        if options.parts.is_empty() || options.parts.iter().any(|part| part == name) {
            lines.extend(measure(&options.data)?);
        }
    }
    println!("{}", report::table(&lines));
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&lines)?)?;
    }
    Ok(())
}
