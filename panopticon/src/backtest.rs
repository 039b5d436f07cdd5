//! `panopticon backtest`: what the rules would have found in a file.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use panopticon_anomaly_detector::{
    backtest::{TraceRule, backtest_ndjson},
    series::{THRESHOLD, score_csv},
    settings::{Settings, SettingsOf},
};
use panopticon_core::api::RateLimitBody;
use panopticon_guard_enforcer::rate_limit::RateLimitRule;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    panopticon backtest --traces traces.ndjson --out found.ndjson\n  \
    panopticon backtest --traces traces.ndjson.gz --out - --policy policy.json\n  \
    panopticon backtest --series counts.csv --out scores.csv\n\n\
    A policy file holds what `logi panopticon policy` shows: \
    {\"rate_limit\":{\"per_minute\":120,\"per_tool_per_minute\":40}}\n\
    A file of settings may say: off_hour = false, alarms_a_month = 1.0, quiet_users = [\"loadtest\"]")]
pub struct BacktestArgs {
    /// Traces, one JSON object a line, gzipped or not
    #[arg(long, value_name = "IN.ndjson", required_unless_present = "series")]
    traces: Option<PathBuf>,
    /// A series to score instead, with the columns `timestamp` and `value`, gzipped or not
    #[arg(long, value_name = "IN.csv", conflicts_with_all = ["traces", "rules", "policy"])]
    series: Option<PathBuf>,
    /// Where detections go, one JSON object a line, or the scores of a series, as CSV; `-` for standard
    /// output
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// The rules' settings to try, as TOML or JSON
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// The policy to try, as JSON
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

/// Reads the rules' settings, as JSON or as TOML.
fn settings(path: &Path) -> anyhow::Result<Settings> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let read: anyhow::Result<Settings> = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(&text).map_err(Into::into),
        false => toml::from_str(&text).map_err(Into::into),
    };
    read.with_context(|| format!("{} does not hold settings of rules", path.display()))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    rate_limit: Option<RateLimitBody>,
}

/// Scores a series, or shows traces to the rules; says how much there was.
pub fn run(args: &BacktestArgs) -> anyhow::Result<()> {
    let out: Box<dyn Write> = if args.out.as_os_str() == "-" {
        Box::new(std::io::stdout().lock())
    } else {
        let file = File::create(&args.out).with_context(|| format!("cannot write {}", args.out.display()))?;
        Box::new(BufWriter::new(file))
    };
    match (&args.series, &args.traces) {
        (Some(series), _) => {
            let (rows, alarms) = score_csv(open(series)?, out)?;
            eprintln!("{rows} rows, {alarms} of them with a score of at least {THRESHOLD}");
        }
        (None, Some(traces)) => judge(args, traces, out)?,
        (None, None) => anyhow::bail!("give --traces or --series"),
    }
    Ok(())
}

/// Reads the traces, writes the detections, says how many.
fn judge(args: &BacktestArgs, traces: &Path, out: impl Write) -> anyhow::Result<()> {
    let limit = match &args.policy {
        None => RateLimitBody::default(),
        Some(path) => {
            let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let policy: PolicyFile = serde_json::from_slice(&text)
                .with_context(|| format!("{} is not a policy", path.display()))?;
            policy.rate_limit.unwrap_or_default()
        }
    };
    let settings = match &args.rules {
        None => SettingsOf::default(),
        Some(path) => SettingsOf::all(settings(path)?),
    };
    let mut further: [Box<dyn TraceRule>; 1] = [Box::new(RateLimitRule::new(
        panopticon_anomaly_detector::backtest::MAX_ENTITIES,
        move |_client_id: &str| limit,
    ))];
    let counts = backtest_ndjson(open(traces)?, out, &settings, &mut further)?;
    eprintln!(
        "{} traces ({} late), {} episodes began, {} ended",
        counts.traces, counts.late, counts.started, counts.ended
    );
    Ok(())
}

const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Opens a file, gzipped or not.
fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut plain = BufReader::new(file);
    if plain.fill_buf().with_context(|| format!("cannot read {}", path.display()))?.starts_with(&GZIP) {
        return Ok(Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(plain))));
    }
    Ok(Box::new(plain))
}
