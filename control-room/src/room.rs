//! What the control room is put together from.

use std::sync::Arc;

use panopticon_core::{
    api::GatewayCounts,
    config::Config,
    control::{ControlState, ControlView, ControlWriter},
    health::Health,
    log::EventLog,
    secrets::Sealer,
    store::TraceStore,
    time::{SharedClock, Time},
    topic::Topic,
};
use tokio_util::sync::CancellationToken;

use crate::{
    access::Caller,
    answer::ApiError,
    live::Live,
    ops::{Decision, webhooks::CheckUrl},
};

/// What the gateway of the same process did with an app's requests.
pub type GatewayCountsOf = dyn Fn(&str) -> Option<GatewayCounts> + Send + Sync;

/// The parts of a control room; [`crate::router`] puts them together.
pub struct ControlRoom {
    /// The event log.
    pub log: Arc<dyn EventLog>,
    /// The trace store.
    pub store: Arc<dyn TraceStore>,
    /// The control table.
    pub view: ControlView,
    /// Changes it.
    pub writer: Arc<ControlWriter>,
    /// Seals secrets.
    pub sealer: Sealer,
    /// Limits, and the address of the documentation.
    pub config: Arc<Config>,
    /// The clock.
    pub clock: SharedClock,
    /// Where the live trace reports its condition, as part `live`.
    pub health: Health,
    /// Digests ([`panopticon_core::secrets::digest`]) of the tokens with the role admin that are not in
    /// the table.
    pub admin_digests: Vec<[u8; 32]>,
    /// Which groups read which topics, for `status`: those of all stages of the installation.
    pub stages: Vec<(&'static str, Topic)>,
    /// What the gateway did; none where it runs in another process.
    pub gateway_counts: Option<Arc<GatewayCountsOf>>,
    /// Whether webhooks may go to a URL.
    pub check_url: Arc<CheckUrl>,
    /// Ends live streams and the task that feeds them.
    pub shutdown: CancellationToken,
}

/// A control room at work.
pub struct Room {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) store: Arc<dyn TraceStore>,
    pub(crate) view: ControlView,
    writer: Arc<ControlWriter>,
    pub(crate) sealer: Sealer,
    pub(crate) config: Arc<Config>,
    pub(crate) clock: SharedClock,
    pub(crate) admin_digests: Vec<[u8; 32]>,
    pub(crate) stages: Vec<(&'static str, Topic)>,
    pub(crate) gateway_counts: Option<Arc<GatewayCountsOf>>,
    pub(crate) check_url: Arc<CheckUrl>,
    pub(crate) live: Live,
    /// Held by the erasure under way: the trace store takes one at a time.
    pub(crate) erasing: tokio::sync::Mutex<()>,
}

impl Room {
    /// Begins to work: the live trace follows the log from now on.
    pub(crate) fn open(parts: ControlRoom) -> Self {
        let live = Live::start(parts.log.clone(), parts.config.live.clone(), &parts.health, parts.shutdown);
        Self {
            live,
            log: parts.log,
            store: parts.store,
            view: parts.view,
            writer: parts.writer,
            sealer: parts.sealer,
            config: parts.config,
            clock: parts.clock,
            admin_digests: parts.admin_digests,
            stages: parts.stages,
            gateway_counts: parts.gateway_counts,
            check_url: parts.check_url,
            erasing: tokio::sync::Mutex::default(),
        }
    }

    /// Decides and commits in the name of `caller`. Goes on when the caller has gone: a change that was
    /// begun is finished.
    pub(crate) async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        caller: &Caller,
        mut decide: impl FnMut(&Room, &ControlState, Time) -> Decision<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (room, actor) = (self.clone(), caller.actor());
        let change = tokio::spawn(async move {
            let writer = room.writer.clone();
            writer.change(&actor, |state, now| decide(&room, state, now)).await
        });
        match change.await {
            Ok(done) => done.map_err(ApiError::from),
            Err(_) => Err(ApiError::unavailable("the server is going down; try again", 1)),
        }
    }

    /// The app must be there.
    pub(crate) fn known(&self, client_id: &panopticon_core::ids::ClientId) -> Result<(), ApiError> {
        match self.view.state().app_of(client_id) {
            Some(_) => Ok(()),
            None => Err(crate::ops::Refusal::no_app(client_id.as_str()).into()),
        }
    }
}
