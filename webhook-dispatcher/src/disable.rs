//! Disables endpoints that want nothing or take nothing any more: an audited change of the control table.

use std::{convert::Infallible, sync::Arc};

use panopticon_core::{
    control::{Actor, Change, ChangeError, ControlWriter, key},
    log::{EventLog, LogError},
    time::Time,
    topic::Topic,
};
use panopticon_proto::log::Delivery;
use prost::Message as _;
use tracing::{debug, warn};

use crate::{NAME, streak::last_delivered};

/// Why an endpoint is to be disabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The receiver answered 410.
    Gone {
        /// When it did.
        at: Time,
    },
    /// Everything has failed.
    Failing {
        /// The first failure after the last success.
        since: Time,
    },
}

impl Cause {
    /// What the owner of the endpoint reads.
    fn reason(self) -> String {
        match self {
            Self::Gone { .. } => "the receiver answered 410 Gone".to_owned(),
            Self::Failing { since } => format!("every attempt has failed since {since}"),
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Gone { .. } => "gone",
            Self::Failing { .. } => "failing",
        }
    }

    /// Whoever changed the endpoint after this has dealt with it.
    const fn known_since(self) -> Time {
        match self {
            Self::Gone { at } => at,
            Self::Failing { since } => since,
        }
    }
}

/// What came of the wish to disable an endpoint.
#[derive(Debug)]
pub struct Disabling {
    /// Which endpoint.
    pub endpoint_id: String,
    /// It stays enabled: in another partition a message came through at this time.
    pub delivered_at: Option<Time>,
}

/// Disables an endpoint, unless it was changed meanwhile or messages come through in another partition.
/// A failure is reported only: the next failed attempt leads here again.
pub async fn disable(
    log: Arc<dyn EventLog>,
    control: Arc<ControlWriter>,
    endpoint_id: String,
    cause: Cause,
) -> Disabling {
    let done = match delivered_elsewhere(&*log, &endpoint_id, cause).await {
        Ok(Some(at)) => {
            debug!(endpoint_id, %at, "some messages to a failing endpoint come through; it stays enabled");
            return Disabling { endpoint_id, delivered_at: Some(at) };
        }
        Ok(None) => change(&control, &endpoint_id, cause).await,
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(Some(client_id)) => {
            let reason = cause.reason();
            warn!(
                endpoint_id,
                client_id,
                reason,
                "a webhook endpoint is disabled; messages to it are cancelled until its owner enables it again"
            );
            metrics::counter!("panopticon_webhook_endpoints_disabled_total", "cause" => cause.label())
                .increment(1);
        }
        Ok(None) => {}
        Err(error) => warn!(endpoint_id, %error, "a webhook endpoint cannot be disabled yet"),
    }
    Disabling { endpoint_id, delivered_at: None }
}

/// When a message last came through since everything has failed here. An endpoint's deliveries lie in all
/// partitions; whoever owns them, all can be read.
async fn delivered_elsewhere(
    log: &dyn EventLog,
    endpoint_id: &str,
    cause: Cause,
) -> Result<Option<Time>, LogError> {
    let Cause::Failing { since } = cause else { return Ok(None) };
    let mut last = None;
    for partition in 0..log.topic(Topic::WebhookDeliveries).await?.partitions {
        let table = log.table(Topic::WebhookDeliveries, partition).await?;
        let deliveries: Vec<Delivery> =
            table.iter().filter_map(|(_, value)| Delivery::decode(&**value).ok()).collect();
        last = last.max(last_delivered(&deliveries, endpoint_id));
    }
    Ok(last.filter(|at| *at > since))
}

/// The app of the endpoint, if it is disabled by this.
async fn change(
    control: &ControlWriter,
    endpoint_id: &str,
    cause: Cause,
) -> Result<Option<String>, ChangeError<Infallible>> {
    let actor = Actor { name: NAME.to_owned(), request_id: String::new() };
    control
        .change(&actor, |state, now| {
            let Some(endpoint) = state.webhook(endpoint_id) else { return Ok((None, None)) };
            if endpoint.disabled || endpoint.updated_at > cause.known_since().micros() {
                return Ok((None, None));
            }
            let mut endpoint = (**endpoint).clone();
            endpoint.disabled = true;
            endpoint.disabled_reason = cause.reason();
            endpoint.updated_at = now.micros();
            let client_id = endpoint.client_id.clone();
            let entry = key("webhook", &[endpoint_id]);
            let mut change = Change::put("webhook.disable", &client_id, entry, Some(&endpoint));
            change.target = endpoint_id.to_owned();
            change.detail = serde_json::json!({"reason": endpoint.disabled_reason});
            Ok((Some(change), Some(client_id)))
        })
        .await
}
