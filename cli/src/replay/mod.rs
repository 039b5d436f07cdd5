//! Sends a file of traces through a gateway: as fast as they happened, faster, or flat out.
//!
//! Made to be interrupted: event ids stay the same, so what was confirmed before comes back as a duplicate
//! when the whole file is sent again, and nothing is counted twice.

mod command;
mod grpc;
mod lane;
mod rewrite;
mod source;
mod tally;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use panopticon_core::time::{Clock as _, SystemClock, Time};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

pub use command::{ReplayArgs, run};
pub use tally::{Counts, Event, Rejection, Summary};

use self::{
    lane::{Carrier, Lane},
    rewrite::{Outgoing, Rewrite},
    source::{Line, Reading},
    tally::Tally,
};
use crate::{
    connection,
    gateway::{Credentials, Gateway},
    output::plain,
};

/// The most traces that a gateway takes in one request.
pub const MAX_BATCH_TRACES: usize = 1_000;
/// The most requests under way at once.
pub const MAX_IN_FLIGHT: usize = 64;
/// How many traces may wait for each lane.
const LANE_QUEUE_TRACES: usize = 2 * MAX_BATCH_TRACES;

/// How many lines that cannot be sent may wait to be told.
const WAITING_REJECTIONS: usize = 1_000;

/// Where traces are read from; gzip is recognised by its first bytes.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
    /// Bytes in memory.
    Bytes(Bytes),
}

/// How fast traces are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// By the gaps between their `started_at`, divided by this: 1 is the original speed.
    Times(f64),
    /// As fast as they are taken.
    Max,
}

/// What to send, where and how.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// The traces, one JSON object a line.
    pub source: Source,
    /// The gateway.
    pub url: String,
    /// The app's PAK.
    pub pak: String,
    /// The PAK's secret, for an app in HMAC mode.
    pub pak_secret: Option<String>,
    /// How fast.
    pub pace: Pace,
    /// Moves every `started_at` by one span, such that the last trace ends when it is sent.
    pub shift_to_now: bool,
    /// By gRPC instead of HTTP.
    pub grpc: bool,
    /// The most traces in one request, 1 to [`MAX_BATCH_TRACES`].
    pub batch: usize,
    /// The most requests under way at once with [`Pace::Max`], 1 to [`MAX_IN_FLIGHT`]. The traces of one user
    /// keep their order in any case; with 1 all do.
    pub in_flight: usize,
    /// Sends the traces as this app's.
    pub client_id: Option<String>,
    /// Gives every trace a new id, the same for the same old id within this run.
    pub fresh_ids: bool,
    /// How long a server that does not confirm is asked again before the replay ends.
    pub give_up_after: Duration,
}

impl ReplayOptions {
    /// Everything as it is in `source`, at the original speed, by HTTP.
    pub fn new(source: Source, url: impl Into<String>, pak: impl Into<String>) -> Self {
        Self {
            source,
            url: url.into(),
            pak: pak.into(),
            pak_secret: None,
            pace: Pace::Times(1.0),
            shift_to_now: false,
            grpc: false,
            batch: 500,
            in_flight: 4,
            client_id: None,
            fresh_ids: false,
            give_up_after: Duration::from_secs(300),
        }
    }
}

/// Why a replay ended before the end of the file.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The traces cannot be read.
    #[error("cannot read {what}: {cause}")]
    Read {
        /// What.
        what: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// With `shift_to_now`: no line has a time to shift by.
    #[error("no trace with a started_at and a duration_ms was found")]
    NoTraces,
    /// The gateway takes nothing from this sender.
    #[error("{}{}", plain(description), if code.is_empty() { String::new() } else { format!(" ({})", plain(code)) })]
    Refused {
        /// The stable error code; empty where it was not Panopticon that answered.
        code: String,
        /// What is wrong.
        description: String,
    },
    /// The gateway was asked again for as long as was wanted and did not confirm.
    #[error("{url} did not confirm for {} s ({}); run the same again later: what it has comes back as duplicates",
        waited.as_secs(), plain(why))]
    GaveUp {
        /// The gateway.
        url: String,
        /// How long it was asked.
        waited: Duration,
        /// What it, or the network, said last.
        why: String,
    },
}

/// Sends all traces of `options.source` and tells `on_event` how it goes. Ends early only where going on
/// makes no sense; a line or trace that is refused is counted and told, and the rest goes on.
pub async fn replay(
    options: &ReplayOptions,
    on_event: impl FnMut(Event<'_>) + Send,
) -> Result<Summary, ReplayError> {
    let started = std::time::Instant::now();
    let (reading, span) = source::prepare(options).await?;
    let tally = Tally::new(on_event, reading.progress());
    let rewrite = Rewrite {
        client_id: options.client_id.clone(),
        id_namespace: options.fresh_ids.then(Uuid::new_v4),
        shift_us: span.map_or(0, |span| span.shift_us(SystemClock.now(), options.pace)),
    };
    let lanes = match options.pace {
        Pace::Max => options.in_flight.clamp(1, MAX_IN_FLIGHT),
        Pace::Times(_) => 1,
    };
    let carrier = carrier(options)?;
    let (mut to_lanes, mut work) = (Vec::new(), Vec::new());
    for _ in 0..lanes {
        let (to_lane, traces) = mpsc::channel(LANE_QUEUE_TRACES);
        to_lanes.push(to_lane);
        work.push(Lane::new(carrier.clone(), options, traces, &tally).run());
    }
    let (to_tally, unreadable) = mpsc::channel(WAITING_REJECTIONS);
    let grpc = options.grpc;
    let reader = on_own_thread(move || feed(reading, &rewrite, grpc, &to_lanes, &to_tally));
    let sent =
        futures::future::try_join(futures::future::try_join_all(work), tally.take_rejections(unreadable));
    sent.await?;
    reader.await.map_err(|cause| ReplayError::Read { what: source::name(&options.source), cause })?;
    Ok(tally.summary(started.elapsed()))
}

/// Runs blocking work on a thread that nobody waits for when the process ends: standard input may stay
/// silent for ever.
fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> impl Future<Output = std::io::Result<T>> + Send {
    let (done, outcome) = oneshot::channel();
    std::thread::spawn(move || {
        // Nobody listens any more where the replay has ended early.
        let _ = done.send(work());
    });
    async { outcome.await.unwrap_or_else(|_| Err(std::io::Error::other("reading ended unexpectedly"))) }
}

fn carrier(options: &ReplayOptions) -> Result<Arc<Carrier>, ReplayError> {
    let credentials = Credentials { pak: options.pak.clone(), pak_secret: options.pak_secret.clone() };
    let refused = |description: String| ReplayError::Refused { code: String::new(), description };
    Ok(Arc::new(if options.grpc {
        Carrier::Grpc(grpc::GrpcGateway::new(&options.url, &credentials).map_err(refused)?)
    } else {
        let gateway = Gateway::new(&options.url, credentials);
        Carrier::Http(
            gateway.map_err(|error| refused(connection::unreachable(&options.url, &error).to_string()))?,
        )
    }))
}

/// Reads, rewrites and hands out. All traces of one user go to one lane, so that they keep their order.
fn feed(
    mut reading: Reading,
    rewrite: &Rewrite,
    grpc: bool,
    to_lanes: &[mpsc::Sender<Outgoing>],
    to_tally: &mpsc::Sender<Rejection>,
) -> std::io::Result<()> {
    while let Some(line) = reading.next_line()? {
        let outgoing = match line {
            Line::Text { number, text } => rewrite.apply(number, text, grpc),
            Line::TooLong { number } => Err(Rejection::of_line(number, "a line of more than 1 MiB")),
        };
        match outgoing {
            Ok(Some(outgoing)) => {
                let lane = usize::try_from(outgoing.user_hash % to_lanes.len() as u64).unwrap_or(0);
                if to_lanes[lane].blocking_send(outgoing).is_err() {
                    break;
                }
            }
            Ok(None) => {}
            Err(rejection) => {
                if to_tally.blocking_send(rejection).is_err() {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// From when to when the traces of a file go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    first_start: Time,
    last_start: Time,
    last_end: Time,
}

impl Span {
    /// By how much to move every trace so that the last one ends when it is sent: now when everything is
    /// sent at once, or when its turn comes. At the original speed all event times then are the present.
    fn shift_us(self, now: Time, pace: Pace) -> i64 {
        let wait_us = match pace {
            Pace::Max => 0,
            Pace::Times(speed) => {
                let span = self.last_start.since(self.first_start);
                // A file spans centuries at most, far below 2^53 microseconds.
                (span.as_micros() as f64 / speed) as i64
            }
        };
        now.micros().saturating_add(wait_us).saturating_sub(self.last_end.micros())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_trace_ends_when_it_is_sent() {
        let at = |text: &str| -> Time { text.parse().unwrap() };
        let span = Span {
            first_start: at("2026-06-28T00:00:00Z"),
            last_start: at("2026-06-28T01:00:00Z"),
            last_end: at("2026-06-28T01:00:05Z"),
        };
        let now = at("2026-07-01T00:00:00Z");
        let ends = |pace| Time::from_micros(span.last_end.micros() + span.shift_us(now, pace));
        assert_eq!(ends(Pace::Max), now);
        assert_eq!(ends(Pace::Times(1.0)), at("2026-07-01T01:00:00Z"));
        assert_eq!(ends(Pace::Times(60.0)), at("2026-07-01T00:01:00Z"));
    }
}
