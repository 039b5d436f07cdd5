//! `panopticon backtest`: what the rules would have found in a file.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use panopticon_anomaly_detector::backtest::{TraceRule, backtest_ndjson};
use panopticon_core::api::RateLimitBody;
use panopticon_guard_enforcer::rate_limit::RateLimitRule;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    panopticon backtest --traces traces.ndjson --out found.ndjson\n  \
    panopticon backtest --traces traces.ndjson.gz --out - --policy policy.json\n\n\
    A policy file holds what `logi panopticon policy` shows: \
    {\"rate_limit\":{\"per_minute\":120,\"per_tool_per_minute\":40}}")]
pub struct BacktestArgs {
    /// Traces, one JSON object a line, gzipped or not
    #[arg(long, value_name = "IN.ndjson")]
    traces: PathBuf,
    /// Where detections go, one JSON object a line; `-` for standard output
    #[arg(long, value_name = "OUT.ndjson")]
    out: PathBuf,
    /// The policy to try, as JSON
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    rate_limit: Option<RateLimitBody>,
}

/// Reads the traces, writes the detections, says how many.
pub fn run(args: &BacktestArgs) -> anyhow::Result<()> {
    let limit = match &args.policy {
        None => RateLimitBody::default(),
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let policy: PolicyFile = serde_json::from_slice(&text)
                .with_context(|| format!("{} is not a policy", path.display()))?;
            policy.rate_limit.unwrap_or_default()
        }
    };
    let mut further: [Box<dyn TraceRule>; 1] = [Box::new(RateLimitRule::new(
        panopticon_anomaly_detector::backtest::MAX_ENTITIES,
        move |_client_id: &str| limit,
    ))];
    let input = open(&args.traces)?;
    let counts = if args.out.as_os_str() == "-" {
        backtest_ndjson(input, std::io::stdout().lock(), &mut further)?
    } else {
        let file = File::create(&args.out).with_context(|| format!("cannot write {}", args.out.display()))?;
        let mut out = BufWriter::new(file);
        let counts = backtest_ndjson(input, &mut out, &mut further)?;
        out.flush().with_context(|| format!("cannot write {}", args.out.display()))?;
        counts
    };
    eprintln!(
        "{} traces ({} late), {} episodes began, {} ended",
        counts.traces, counts.late, counts.started, counts.ended
    );
    Ok(())
}

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Opens a file, gzipped or not.
fn open(path: &PathBuf) -> anyhow::Result<Box<dyn BufRead>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut plain = BufReader::new(file);
    if plain.fill_buf().with_context(|| format!("cannot read {}", path.display()))?.starts_with(&GZIP) {
        return Ok(Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(plain))));
    }
    Ok(Box::new(plain))
}
