//! `panopticon replay`: the command around the function.

use std::{
    io::{BufRead as _, BufReader, IsTerminal as _, Read as _},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use panopticon_core::ids::ClientId;
use serde::Deserialize;

use super::{
    Counts, Event, MAX_BATCH_TRACES, MAX_IN_FLIGHT, Pace, ReplayError, ReplayOptions, Source, Summary, replay,
};
use crate::{
    called::command,
    failure::{Failure, Outcome, shell_word},
    output::{Output, counted, plain},
    paks::kept_pak,
    servers::DEFAULT_URL,
    when::parse_span,
};

/// How many refused lines are shown one by one.
const SHOWN_REJECTIONS: u64 = 20;
/// How often progress is told where there is no terminal.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How far into a file is looked for its app.
const GLANCE_BYTES: u64 = 1024 * 1024;

/// Send a file of traces (NDJSON, gzipped or not) through a gateway
#[derive(Debug, Args)]
#[command(after_help = "\
It may be interrupted and run again at any time: event ids stay the same, so what the server has already \
comes back as a duplicate and is not counted twice. What is not confirmed (503, timeouts, broken \
connections) is sent again with the same ids until it is, for as long as --give-up-after says. \
--fresh-ids makes new ids for each run: a second run then is a second set of traces.

The traces of one user keep their order. A PAK is for one app: with --client-id the traces are sent as that \
app's. Without --pak (or PANOPTICON_PAK) the PAK that `logi panopticon enable` has kept is used.

--shift-to-now moves all traces by the same span of time, such that the last one ends when it is sent; it \
reads the file twice. Traces that arrive more than a minute after their end raise no alarm.

Exit status: 0 everything was accepted or known before, 1 something was refused or not confirmed.

Examples:
  panopticon replay traces.ndjson.gz --url http://127.0.0.1:7420 --pak pano_pak_... --max
  panopticon replay examples/airline-traces.ndjson.gz --client-id my-app --fresh-ids --max --shift-to-now
  zcat day.ndjson.gz | panopticon replay - --speed 60 --grpc")]
pub struct ReplayArgs {
    /// The file, or - for standard input
    file: PathBuf,
    /// The gateway's URL
    #[arg(long, env = "LOGI_URL", hide_env_values = true, default_value = DEFAULT_URL)]
    url: String,
    /// The app's PAK (better by PANOPTICON_PAK: process lists show arguments)
    #[arg(long, env = "PANOPTICON_PAK", hide_env_values = true)]
    pak: Option<String>,
    /// The PAK's secret, for an app in HMAC mode; requests are then signed
    #[arg(long, env = "PANOPTICON_PAK_SECRET", hide_env_values = true)]
    pak_secret: Option<String>,
    /// This many times the original speed
    #[arg(long, value_name = "X", value_parser = speed, conflicts_with = "max")]
    speed: Option<f64>,
    /// As fast as the gateway takes them
    #[arg(long)]
    max: bool,
    /// Move all traces by one span of time, such that the last one ends when it is sent
    #[arg(long)]
    shift_to_now: bool,
    /// By gRPC instead of HTTP
    #[arg(long)]
    grpc: bool,
    /// The most traces in one request
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = within::<MAX_BATCH_TRACES>)]
    batch: usize,
    /// The most requests under way at once, with --max; 1 keeps the order of all traces
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = within::<MAX_IN_FLIGHT>)]
    in_flight: usize,
    /// Send the traces as this app's
    #[arg(long, value_name = "CLIENT_ID")]
    client_id: Option<ClientId>,
    /// Give every trace a new id
    #[arg(long)]
    fresh_ids: bool,
    /// How long a server that does not confirm is asked again
    #[arg(long, value_name = "SPAN", default_value = "5m", value_parser = parse_span)]
    give_up_after: Duration,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if speed.is_finite() && speed > 0.0 => Ok(speed),
        _ => Err("must be a number above 0".to_owned()),
    }
}

fn within<const MAX: usize>(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if (1..=MAX).contains(&n) => Ok(n),
        _ => Err(format!("must be a whole number from 1 to {MAX}")),
    }
}

/// Runs `panopticon replay`. The exit status is 0 when everything was accepted or known before, else 1.
pub async fn run(args: ReplayArgs) -> ExitCode {
    let out = Output { json: args.json };
    match send(args, out).await {
        Ok(status) => status,
        Err(failure) if failure.output_closed => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("panopticon replay: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn send(args: ReplayArgs, out: Output) -> Outcome<ExitCode> {
    let source = match args.file.to_str() {
        Some("-") => Source::Stdin,
        _ => Source::File(args.file.clone()),
    };
    let (pak, pak_secret) = credentials(&args)?;
    let options = ReplayOptions {
        pak_secret,
        pace: if args.max { Pace::Max } else { Pace::Times(args.speed.unwrap_or(1.0)) },
        shift_to_now: args.shift_to_now,
        grpc: args.grpc,
        batch: args.batch,
        in_flight: args.in_flight,
        client_id: args.client_id.map(Into::into),
        fresh_ids: args.fresh_ids,
        give_up_after: args.give_up_after,
        ..ReplayOptions::new(source, args.url, pak)
    };
    let mut shown = Shown::new();
    let outcome = tokio::select! {
        outcome = replay(&options, |event| shown.event(event)) => Some(outcome),
        _ = tokio::signal::ctrl_c() => None,
    };
    let so_far = shown.close();
    match outcome {
        Some(Ok(summary)) => report(out, &summary),
        Some(Err(error)) => Err(with_counts(failure(error), &so_far)),
        None => Err(with_counts(
            Failure::new("interrupted; run the same again: what the server has comes back as duplicates"),
            &so_far,
        )),
    }
}

fn failure(error: ReplayError) -> Failure {
    let code = match &error {
        ReplayError::Refused { code, .. } => code.as_str(),
        _ => "",
    };
    let failure = Failure::new(error.to_string());
    match code {
        "invalid_token" => failure.hint("is it the PAK of this app at this server?"),
        "invalid_signature" => {
            failure.hint("the app is in HMAC mode: give the PAK's secret by PANOPTICON_PAK_SECRET")
        }
        "app_disabled" => failure.hint(format!("`{}` lifts that", command("enable"))),
        _ => failure,
    }
}

fn with_counts(failure: Failure, so_far: &Counts) -> Failure {
    let done = format!(
        "so far {} accepted, {} duplicate, {} rejected",
        so_far.accepted, so_far.duplicate, so_far.rejected
    );
    Failure::new(format!("{failure} ({done})"))
}

/// What was given, else what is kept for the app: the one that is named, or that of the first trace.
fn credentials(args: &ReplayArgs) -> Outcome<(String, Option<String>)> {
    if let Some(pak) = args.pak.as_ref().filter(|pak| !pak.is_empty()) {
        return Ok((pak.clone(), args.pak_secret.clone()));
    }
    let app = args.client_id.as_ref().map(ToString::to_string).or_else(|| first_app(&args.file));
    let Some(app) = app else {
        return Err(Failure::new("no PAK: give it by --pak or PANOPTICON_PAK"));
    };
    match kept_pak(&args.url, &app).map_err(|error| Failure::new(error.to_string()))? {
        Some(kept) => Ok((kept.pak, args.pak_secret.clone().or(kept.pak_secret))),
        None => {
            Err(Failure::new(format!("no PAK of app `{app}` at {} is kept here", args.url)).hint(format!(
                "give it by --pak or PANOPTICON_PAK, or make one with: {}",
                command(format_args!("enable {}", shell_word(&app)))
            )))
        }
    }
}

fn first_app(file: &std::path::Path) -> Option<String> {
    #[derive(Deserialize)]
    struct App {
        client_id: String,
    }
    // What is not a file can be read only once.
    if !file.is_file() {
        return None;
    }
    let mut bytes = BufReader::new(std::fs::File::open(file).ok()?);
    let gzip = bytes.fill_buf().ok()?.starts_with(&[0x1f, 0x8b]);
    let plain: Box<dyn std::io::Read> =
        if gzip { Box::new(flate2::bufread::MultiGzDecoder::new(bytes)) } else { Box::new(bytes) };
    let lines = BufReader::new(plain.take(GLANCE_BYTES)).lines();
    lines
        .map_while(Result::ok)
        .find_map(|line| serde_json::from_str::<App>(&line).ok())
        .map(|app| app.client_id)
}

/// Tells on stderr how it goes: a bar on a terminal, else a line now and then.
struct Shown {
    bar: Option<ProgressBar>,
    began: Instant,
    told: Instant,
    counts: Counts,
    rejections: u64,
    retrying: bool,
}

impl Shown {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::no_length();
            if let Ok(style) = ProgressStyle::with_template("{bar:24} {percent:>3}%  {msg}") {
                bar.set_style(style);
            }
            bar
        });
        let now = Instant::now();
        Self { bar, began: now, told: now, counts: Counts::default(), rejections: 0, retrying: false }
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Progress(counts) => {
                self.counts = *counts;
                self.retrying = false;
                self.progress();
            }
            Event::Rejected(rejection) => {
                self.rejections += 1;
                let field =
                    if rejection.field.is_empty() { String::new() } else { format!("{}: ", rejection.field) };
                if self.rejections <= SHOWN_REJECTIONS {
                    self.say(&format!(
                        "line {}: {field}{} ({})",
                        rejection.line, rejection.description, rejection.error
                    ));
                } else if self.rejections == SHOWN_REJECTIONS + 1 {
                    self.say("more lines were refused; the summary counts them");
                }
            }
            Event::Retrying { why, wait } => {
                // Once for each time that it stops; the retries are counted.
                if !std::mem::replace(&mut self.retrying, true) {
                    self.say(&format!("not confirmed ({why}); sending again in {:.1} s", wait.as_secs_f64()));
                }
            }
        }
    }

    fn progress(&mut self) {
        let counts = &self.counts;
        let rate =
            (counts.accepted + counts.duplicate) as f64 / self.began.elapsed().as_secs_f64().max(0.001);
        let text = format!(
            "{} accepted, {} duplicate, {} rejected, {rate:.0} traces/s",
            counts.accepted, counts.duplicate, counts.rejected
        );
        if let Some(bar) = &self.bar {
            if let Some(total) = counts.bytes_total {
                bar.set_length(total);
                bar.set_position(counts.bytes_read);
            }
            bar.set_message(text);
        } else if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            self.say(&text);
        }
    }

    fn say(&self, text: &str) {
        let line = format!("panopticon replay: {}", plain(text));
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    fn close(self) -> Counts {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        Counts { rejected: self.rejections, ..self.counts }
    }
}

fn report(out: Output, summary: &Summary) -> Outcome<ExitCode> {
    let counts = &summary.counts;
    let status = if counts.rejected > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    if out.json {
        out.json(summary)?;
        return Ok(status);
    }
    out.line(format!(
        "{} accepted, {} duplicate, {} rejected, {} sent again; {:.1} s, {:.0} traces/s",
        counts.accepted,
        counts.duplicate,
        counts.rejected,
        counts.retried,
        summary.elapsed_secs,
        summary.traces_per_sec
    ))?;
    for kind in &summary.rejections {
        let field =
            if kind.field.is_empty() { String::new() } else { format!(" for `{}`", plain(&kind.field)) };
        out.line(format!(
            "  {} with {}{field}, first in line {}: {}",
            counted(kind.count, "rejection"),
            plain(&kind.error),
            kind.first_line,
            plain(&kind.description)
        ))?;
    }
    if summary.rejections.iter().any(|kind| kind.error == "client_mismatch") {
        out.line("  --client-id sends the traces as your app's")?;
    }
    if let Some(guard) = &summary.guard {
        out.line(format!("AI Guard says: {}", plain(guard)))?;
    }
    Ok(status)
}
