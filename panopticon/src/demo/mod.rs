//! `panopticon demo`: the whole system at work on bundled real agent traces, through its own front door.
//!
//! A client of the server that it starts: everything it shows came over the gateway, the control API and
//! signed webhooks.

mod api;
mod receiver;
mod show;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use panopticon_cli::replay::{Pace, ReplayOptions, Source, Summary, replay};
use panopticon_core::config::Config;
use panopticon_process::Process;
use tokio::time::Instant;

use self::{api::Api, receiver::Receiver};
use crate::serve::Server;

const TRACES: &[u8] = include_bytes!("../../../examples/airline-traces.ndjson.gz");
const CLIENT_ID: &str = "airline-agent";
/// How long the stages may take to be through with everything.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  panopticon demo          go on serving after the summary\n  \
    panopticon demo --exit   end after the summary; status 0 only if what was sent is what is stored")]
pub struct DemoArgs {
    /// Stop after the summary
    #[arg(long)]
    exit: bool,
    /// Address for HTTP and gRPC [default: 127.0.0.1:7420, or a free port]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

/// Runs the demo.
pub async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let folder =
        tempfile::Builder::new().prefix("panopticon-demo-").tempdir().context("no temporary folder")?;
    let config = Config {
        data_dir: folder.path().to_owned(),
        listen: args.listen.unwrap_or_else(free_address),
        log: "warn".to_owned(),
        ..Config::default()
    };
    let process = Process::start(config, "demo").await?;
    let server = Server::start(&process).await?;
    let url = server.url.clone();
    let serving = tokio::spawn(server.run());
    println!("Panopticon serves at {url}, data in {}", folder.path().display());

    let demo = async {
        let complete = show_all(&url, &process).await?;
        if args.exit {
            process.shutdown.cancel();
        } else {
            show::next_commands(&url, CLIENT_ID, &process.admin_token_file());
            process.shutdown.cancelled().await;
        }
        anyhow::Ok(complete)
    };
    let complete = tokio::select! {
        complete = demo => complete,
        () = process.shutdown.cancelled() => Ok(false),
    };
    process.shutdown.cancel();
    serving.await.context("the server ended in a panic")??;
    Ok(if complete? || !args.exit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The well-known address, or a free port where somebody has it.
fn free_address() -> SocketAddr {
    let known = Config::default().listen;
    let free = TcpListener::bind(known).or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    free.and_then(|listener| listener.local_addr()).unwrap_or(known)
}

/// Sends everything, waits until the stages are through with it, and shows what they made of it. True if
/// what was sent is what is stored.
async fn show_all(url: &str, process: &Process) -> anyhow::Result<bool> {
    let api = Api::new(url, &process.admin_token()?)?;
    let pak = api.enable(CLIENT_ID, "Airline agent").await?;
    let receiver = Receiver::start().await?;
    receiver.trust(&api.add_webhook(CLIENT_ID, &receiver.url).await?)?;
    println!("Enabled the app `{CLIENT_ID}` and registered a webhook receiver at {}\n", receiver.url);

    let sent = send(url, &pak).await?;
    println!(
        "Sent {} real tool calls of an airline agent in {:.1} s: {} accepted, {} duplicate, {} rejected\n",
        sent.counts.done(),
        sent.elapsed_secs,
        sent.counts.accepted,
        sent.counts.duplicate,
        sent.counts.rejected,
    );
    let stored = settle(&api, &receiver, sent.counts.accepted).await?;

    show::timeline(&api.list(&format!("/apps/{CLIENT_ID}/timeline?limit=8")).await?);
    show::usage(&api.list(&format!("/apps/{CLIENT_ID}/usage")).await?);
    let detections = api.list(&format!("/apps/{CLIENT_ID}/detections")).await?;
    show::detections(&detections);
    let webhooks = receiver.received();
    show::webhooks(&webhooks);
    let all_valid = webhooks.iter().all(|webhook| webhook.valid) && webhooks.len() >= detections.len();
    let complete = stored == sent.counts.accepted
        && sent.counts.accepted == sent.counts.done()
        && !detections.is_empty()
        && all_valid;
    println!(
        "{} of {} traces sent are stored, each once; {} detections; {} webhooks received, {}.",
        stored,
        sent.counts.done(),
        detections.len(),
        webhooks.len(),
        if all_valid { "all with a valid signature" } else { "NOT all as they should be" },
    );
    Ok(complete)
}

/// Replays the bundled traces as if the newest had just happened.
async fn send(url: &str, pak: &str) -> anyhow::Result<Summary> {
    let options = ReplayOptions {
        pace: Pace::Max,
        shift_to_now: true,
        fresh_ids: true,
        batch: 100,
        ..ReplayOptions::new(Source::Bytes(TRACES.into()), url, pak)
    };
    let bar = ProgressBar::no_length().with_style(ProgressStyle::with_template("{spinner} {msg}")?);
    let sent = replay(&options, |event| {
        if let panopticon_cli::replay::Event::Progress(counts) = event {
            bar.set_message(format!("{} traces", counts.done()));
            bar.tick();
        }
    })
    .await?;
    bar.finish_and_clear();
    Ok(sent)
}

/// Waits until every stage has read to the end and no webhook is under way; answers how many traces are
/// stored.
async fn settle(api: &Api, receiver: &Receiver, accepted: u64) -> anyhow::Result<u64> {
    let began = Instant::now();
    loop {
        let stored = api.stored(CLIENT_ID).await?;
        let through = stored >= accepted && api.is_idle(CLIENT_ID).await?;
        let told = receiver.received().len() >= api.list(&format!("/apps/{CLIENT_ID}/actions")).await?.len();
        if (through && told) || began.elapsed() > SETTLE_TIMEOUT {
            return Ok(stored);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
