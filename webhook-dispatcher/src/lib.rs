//! Signed, durable delivery of guard actions to the webhook endpoints of apps.
//!
//! The stage `webhook-dispatcher` reads `guard-actions` and keeps one record per message and endpoint in the
//! compacted topic `webhook-deliveries`. A delivery is in the log before its first attempt and every change
//! of it is, so a message is delivered at least once whatever happens; `webhook-id` and body stay the same.
//!
//! Read `desk` for the life of a partition, `intake` for how actions become deliveries, `courier` for
//! one attempt, `delivery` for what an answer does to a delivery. [`egress`] says where messages may go
//! and is also for whoever takes in an endpoint's URL. Knows nothing of rules, traces or engines.

mod book;
mod client;
mod courier;
mod delivery;
mod desk;
mod disable;
pub mod egress;
mod intake;
mod message;
mod permits;
mod retry;
mod signature;
mod streak;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use panopticon_core::{
    config::Config,
    control::ControlWriter,
    log::Lease,
    secrets::Sealer,
    stage::{PartitionContext, Stage, StageError},
    topic::Topic,
};

use self::{
    book::Limits, client::WebhookClient, courier::Courier, desk::Desk, permits::Permits, retry::Retry,
};
pub use self::{
    client::ClientError,
    egress::{Egress, EgressError},
    signature::{LOGI_SIGNATURE, sealed_for},
};

/// The name of the stage, and of the actor of its changes.
pub const NAME: &str = "webhook-dispatcher";
/// The type of the guard actions that carry an operator's wish to replay a delivery; never sent to an RP.
pub const REPLAY_TYPE: &str = "panopticon.replay";

/// Why the dispatcher cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DispatcherError {
    /// The configuration of where webhooks may go is wrong.
    #[error("configuration: {0}")]
    Egress(#[from] EgressError),
    /// There is no HTTP client.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// The stage.
pub struct Dispatcher {
    control: Arc<ControlWriter>,
    courier: Arc<Courier>,
    retry: Retry,
    limits: Limits,
    disable_after: Duration,
    keep_finished: Duration,
}

impl Dispatcher {
    /// A dispatcher with the limits of `config`; `control` is the process's writer, by which it disables
    /// endpoints, and `sealer` opens their secrets.
    pub fn new(
        config: &Config,
        control: Arc<ControlWriter>,
        sealer: Sealer,
    ) -> Result<Self, DispatcherError> {
        let webhooks = &config.webhooks;
        let courier = Courier {
            control: control.view().clone(),
            sealer,
            client: WebhookClient::new(Egress::new(config)?, webhooks)?,
            permits: Permits::new(webhooks.in_flight_per_endpoint, webhooks.in_flight),
        };
        Ok(Self {
            control,
            courier: Arc::new(courier),
            retry: Retry::new(webhooks),
            limits: Limits::new(webhooks),
            disable_after: Duration::from_secs(webhooks.disable_after_secs),
            keep_finished: Duration::from_secs(u64::from(config.retention.deliveries_days) * 86_400),
        })
    }
}

#[async_trait]
impl Stage for Dispatcher {
    fn name(&self) -> &'static str {
        NAME
    }

    fn input(&self) -> Topic {
        Topic::GuardActions
    }

    async fn run(&self, lease: &mut dyn Lease, context: &PartitionContext) -> Result<(), StageError> {
        Desk::open(self, context, lease.partition()).await?.work(lease).await
    }
}

/// The stages of this role.
pub fn stages(
    config: &Config,
    control: Arc<ControlWriter>,
    sealer: Sealer,
) -> Result<Vec<Arc<dyn Stage>>, DispatcherError> {
    Ok(vec![Arc::new(Dispatcher::new(config, control, sealer)?)])
}
