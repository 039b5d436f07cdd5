//! Live trace: what goes through the topic `traces`, to those who watch an app, as it happens.
//!
//! One task follows the topic for all viewers of the process ([`hub`]). Each viewer has a bounded queue of
//! its own ([`queue`]), so a slow one slows nobody: what does not fit is counted and told. A viewer that
//! names the position where it left off reads the log up to the live feed first ([`viewer`]).

mod hub;
mod position;
mod queue;
mod viewer;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::Stream;
use panopticon_core::{
    config::LiveConfig,
    health::{Health, PartHealth},
    ids::ClientId,
    log::EventLog,
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, TryAcquireError, watch};
use tokio_util::sync::CancellationToken;

pub use self::position::Position;
use self::{hub::Hub, viewer::Viewer};

/// How long a new viewer waits for the feed, right after the process started.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a viewer cannot be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// There are as many viewers as there may be.
    #[error("{0} live streams are open (`live.max_subscribers`); close one, or try again")]
    Full(usize),
    /// The log has not answered yet.
    #[error("the live feed is not connected to the event log yet; try again")]
    NotConnected,
}

/// The live trace of this process.
pub(crate) struct Live {
    shared: Arc<Shared>,
    seats: Arc<Semaphore>,
}

/// What the feed and its viewers share.
struct Shared {
    log: Arc<dyn EventLog>,
    limits: LiveConfig,
    /// None until the log has answered for the first time.
    hub: Mutex<Option<Hub>>,
    connected: watch::Sender<bool>,
    shutdown: CancellationToken,
}

impl Live {
    /// Follows the log from its end on, until `shutdown`.
    pub(crate) fn start(
        log: Arc<dyn EventLog>,
        limits: LiveConfig,
        health: &Health,
        shutdown: CancellationToken,
    ) -> Self {
        let seats = Arc::new(Semaphore::new(limits.max_subscribers));
        let (hub, connected) = (Mutex::new(None), watch::Sender::new(false));
        let shared = Arc::new(Shared { log, limits, hub, connected, shutdown });
        let part: PartHealth = health.part("live");
        tokio::spawn(hub::feed(shared.clone(), part));
        Self { shared, seats }
    }

    /// A stream of server-sent events for one viewer of `client_id`: from after `after` on where that is
    /// given, else from now on. Ends when `may_watch` says so, which is asked with every ping.
    pub(crate) async fn watch(
        &self,
        client_id: &ClientId,
        after: Option<Resume>,
        may_watch: MayWatch,
    ) -> Result<impl Stream<Item = Bytes> + Send + use<>, NotNow> {
        let seat = match self.seats.clone().try_acquire_owned() {
            Ok(seat) => seat,
            Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => {
                metrics::counter!("panopticon_live_full_total").increment(1);
                return Err(NotNow::Full(self.shared.limits.max_subscribers));
            }
        };
        let mut connected = self.shared.connected.subscribe();
        let wait = tokio::time::timeout(READY_TIMEOUT, connected.wait_for(|connected| *connected));
        if !matches!(wait.await, Ok(Ok(_))) {
            return Err(NotNow::NotConnected);
        }
        let viewer = Viewer::enter(self.shared.clone(), client_id.clone(), after, may_watch, seat)
            .ok_or(NotNow::NotConnected)?;
        Ok(futures::stream::unfold(viewer, |mut viewer| async move {
            let frame = viewer.next().await?;
            Some((frame, viewer))
        }))
    }
}

/// Asked whether a viewer may still watch.
pub(crate) type MayWatch = Box<dyn Fn() -> bool + Send>;

/// Where a viewer says that it left off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Resume {
    /// At an event of this format.
    At(Position),
    /// At something that was never an event's id.
    Unreadable,
}

/// The event `trace`, as it goes over the wire.
fn trace_frame(id: &str, json: &str) -> Bytes {
    Bytes::from(format!("id: {id}\nevent: trace\ndata: {json}\n\n"))
}

/// The event `missed`; 0 stands for a number that is not known.
fn missed_frame(count: u64) -> Bytes {
    Bytes::from(format!("event: missed\ndata: {{\"count\":{count}}}\n\n"))
}

/// The event `ping`, with a position where it is known that nothing before it is missing.
fn ping_frame(id: Option<&str>) -> Bytes {
    match id {
        Some(id) => Bytes::from(format!("id: {id}\nevent: ping\ndata: {{}}\n\n")),
        None => Bytes::from_static(b"event: ping\ndata: {}\n\n"),
    }
}
