//! `panopticon backtest`: what the rules would have found in stored traces or in a file.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
    vec,
};

use anyhow::Context as _;
use futures::StreamExt as _;
use panopticon_anomaly_detector::{
    backtest::{BacktestError, Counts, MAX_ENTITIES, TraceRule, backtest_to, read_ndjson, write_json},
    series::{THRESHOLD, score_csv},
    settings::{Settings, SettingsOf},
};
use panopticon_cli::{When, plain, shown};
use panopticon_core::{
    api::RateLimitBody,
    config::Config,
    ids::ClientId,
    proto::log::Detection,
    store::Parts,
    time::{Clock as _, SystemClock, Time},
    trace::AcceptedTrace,
};
use panopticon_guard_enforcer::rate_limit::RateLimitRule;
use panopticon_process::CommonArgs;
use serde_json::{Map, Value};
use tokio::runtime::Handle;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    panopticon backtest --app my-app --since 30d\n  \
    panopticon backtest --app my-app --since 2026-06-01 --until 2026-06-14 --rules settings.toml\n  \
    panopticon backtest --traces traces.ndjson.gz --policy policy.json --out found.ndjson\n  \
    panopticon backtest --series counts.csv --out scores.csv\n\n\
    A file of settings may say: off_hour = false, alarms_a_month = 1.0, quiet_users = [\"loadtest\"]\n\
    A policy file holds what `logi panopticon policy my-app --json` prints, or parts of it: \
    {\"rate_limit\":{\"per_minute\":120,\"per_tool_per_minute\":40}}\n\
    Without either, everything is as by default, whatever the app's policy says. `serve` may run meanwhile.")]
pub struct BacktestArgs {
    #[command(flatten)]
    input: Input,
    /// With --app: only traces received from then on: a time, a date, or a span back from now such as 30d
    #[arg(long, value_name = "T", value_parser = When::parse, requires = "app")]
    since: Option<When>,
    /// With --app: only traces received until then, inclusive [default: now]
    #[arg(long, value_name = "T", value_parser = When::parse, requires = "app")]
    until: Option<When>,
    /// Where detections go, as JSON, one object a line, or the scores of a series, as CSV; `-` for standard
    /// output. Without it they are printed
    #[arg(long, value_name = "OUT")]
    out: Option<PathBuf>,
    /// Print detections as JSON, one object a line
    #[arg(long, conflicts_with_all = ["out", "series"])]
    json: bool,
    /// The rules' settings to try, as TOML or JSON; goes before those of the policy
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// The policy to try, as JSON
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
    /// With --app: the folder with the data of `serve` [default: panopticon-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// The stored traces of this app
    #[arg(long, value_name = "CLIENT_ID", requires = "since")]
    app: Option<ClientId>,
    /// Traces, one JSON object a line, gzipped or not
    #[arg(long, value_name = "IN.ndjson")]
    traces: Option<PathBuf>,
    /// A series to score, with the columns `timestamp` and `value`, gzipped or not
    #[arg(long, value_name = "IN.csv", conflicts_with_all = ["rules", "policy"])]
    series: Option<PathBuf>,
}

/// Scores a series, or shows traces to the rules; says how much there was.
pub async fn run(args: BacktestArgs) -> anyhow::Result<()> {
    if let Some(series) = &args.input.series {
        let (rows, alarms) = score_csv(open(series)?, args.out()?)?;
        eprintln!("{rows} rows, {alarms} of them with a score of at least {THRESHOLD}");
        return Ok(());
    }
    let stored = match (&args.input.app, args.since) {
        (Some(app), Some(since)) => Some(args.arrivals(app, since).await?),
        _ => None,
    };
    let handle = Handle::current();
    let app = args.input.app.clone();
    // The rules and the files block the thread.
    let counts = tokio::task::spawn_blocking(move || match (stored, &args.input.traces) {
        (Some(parts), _) => args.judge(Stored { handle, parts, part: Vec::new().into_iter() }),
        (None, Some(file)) => args.judge(read_ndjson(open(file)?)?.into_iter().map(Ok)),
        (None, None) => anyhow::bail!("give --app, --traces or --series"),
    });
    let counts = counts.await.context("the backtest broke off")??;
    eprintln!(
        "{} traces ({} late), {} episodes began, {} ended",
        counts.traces, counts.late, counts.started, counts.ended
    );
    if let Some(app) = app.filter(|_| counts.traces == 0) {
        eprintln!(
            "no stored trace of `{app}` was received in this time; is it the right app and data directory?"
        );
    }
    Ok(())
}

impl BacktestArgs {
    /// The app's stored traces, from the engine that the configuration names.
    async fn arrivals(&self, app: &ClientId, since: When) -> anyhow::Result<Parts<AcceptedTrace>> {
        let mut config = Config::load(self.common.config.as_deref())?;
        if let Some(data_dir) = &self.data_dir {
            config.data_dir.clone_from(data_dir);
        }
        let clock = Arc::new(SystemClock);
        let until = self.until.map_or_else(|| clock.now(), When::end);
        anyhow::ensure!(since.start() <= until, "--since lies after --until");
        panopticon_process::arrivals(&config, clock, app, since.start(), until).await
    }

    /// Shows the traces to the rules and writes what they find.
    fn judge(
        &self,
        traces: impl IntoIterator<Item = Result<AcceptedTrace, BacktestError>>,
    ) -> anyhow::Result<Counts> {
        let policy = self.policy.as_deref().map(policy).transpose()?.unwrap_or_default();
        let settings = match &self.rules {
            Some(path) => settings(path)?,
            None => policy.detection,
        };
        let limit = policy.rate_limit;
        let mut further: [Box<dyn TraceRule>; 1] =
            [Box::new(RateLimitRule::new(MAX_ENTITIES, move |_client_id: &str| limit))];
        let mut out = self.out()?;
        let as_json = self.json || self.out.is_some();
        let counts =
            backtest_to(traces, &SettingsOf::all(settings), &mut further, |detection| match as_json {
                true => write_json(&mut out, detection),
                false => write_text(&mut out, detection),
            })?;
        out.flush().context("the detections cannot be written")?;
        Ok(counts)
    }

    fn out(&self) -> anyhow::Result<Box<dyn Write>> {
        match self.out.as_deref().filter(|path| path.as_os_str() != "-") {
            None => Ok(Box::new(io::stdout().lock())),
            Some(path) => {
                let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
                Ok(Box::new(BufWriter::new(file)))
            }
        }
    }
}

/// Stored traces one after the other, on a thread that may block.
struct Stored {
    handle: Handle,
    parts: Parts<AcceptedTrace>,
    part: vec::IntoIter<AcceptedTrace>,
}

impl Iterator for Stored {
    type Item = Result<AcceptedTrace, BacktestError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(trace) = self.part.next() {
                return Some(Ok(trace));
            }
            match self.handle.block_on(self.parts.next())? {
                Ok(part) => self.part = part.into_iter(),
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}

/// A line for people.
fn write_text(out: &mut impl Write, detection: &Detection) -> io::Result<()> {
    let at = if detection.phase == "ended" { detection.ended_at } else { detection.detected_at };
    writeln!(
        out,
        "{}  {:7}  {:11}  {:12}  {:8}  {:5.1}  {}",
        shown(Time::from_micros(at)),
        detection.phase,
        detection.rule,
        detection.kind,
        detection.severity,
        detection.score,
        plain(&detection.explanation)
    )
}

/// Reads the rules' settings, as JSON or as TOML.
fn settings(path: &Path) -> anyhow::Result<Settings> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let read: anyhow::Result<Settings> = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(&text).map_err(Into::into),
        false => toml::from_str(&text).map_err(Into::into),
    };
    read.and_then(|settings| Ok(settings.checked()?))
        .with_context(|| format!("{} does not hold settings of rules", path.display()))
}

/// What of a policy concerns rules.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Policy {
    rate_limit: RateLimitBody,
    detection: Settings,
}

/// Reads a policy as `logi panopticon policy --json` prints it, or what somebody kept of that.
fn policy(path: &Path) -> anyhow::Result<Policy> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let read = || -> anyhow::Result<Policy> {
        let mut fields: Map<String, Value> = serde_json::from_slice(&text)?;
        // Null is the default, as in the API.
        fields.retain(|name, value| {
            !value.is_null() && !["client_id", "version", "updated_at"].contains(&name.as_str())
        });
        let policy: Policy = serde_json::from_value(fields.into())?;
        Ok(Policy { detection: policy.detection.checked()?, ..policy })
    };
    read().with_context(|| format!("{} is not a policy", path.display()))
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
