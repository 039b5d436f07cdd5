//! Deliveries made again.

use panopticon_core::{
    control::{Change, ControlState},
    proto::log::{Delivery, GuardAction, ReplayDelivery},
    time::Time,
};
use serde_json::json;
use uuid::Uuid;

use super::{Decision, Refusal, RefusalKind};

/// Asks the dispatcher to make a finished delivery again. The message keeps its `webhook-id`.
pub fn replay(state: &ControlState, now: Time, delivery: &Delivery) -> Decision<()> {
    let Some(endpoint) = state.webhook(&delivery.endpoint_id) else {
        return Err(Refusal::new(
            RefusalKind::Conflict,
            "the endpoint of this delivery was removed; add it again, and new messages go there",
        ));
    };
    if endpoint.disabled {
        return Err(Refusal::new(
            RefusalKind::Conflict,
            "the endpoint of this delivery is disabled; enable it with PATCH {\"disabled\": false} first",
        ));
    }
    if delivery.state == "pending" {
        return Err(Refusal::new(
            RefusalKind::Conflict,
            "the delivery is still under way and is tried again by itself",
        ));
    }
    let change = Change {
        // With the client and user of the original action, so that it comes to the same partition.
        actions: vec![GuardAction {
            action_id: Uuid::now_v7().to_string(),
            r#type: "panopticon.replay".to_owned(),
            client_id: delivery.client_id.clone(),
            user_sub: delivery.user_sub.clone(),
            created_at: now.micros(),
            replay: Some(ReplayDelivery {
                delivery_id: delivery.delivery_id.clone(),
                endpoint_id: delivery.endpoint_id.clone(),
            }),
            ..GuardAction::default()
        }],
        action: "webhook.replay",
        client_id: delivery.client_id.clone(),
        target: delivery.delivery_id.clone(),
        detail: json!({"endpoint_id": delivery.endpoint_id, "webhook_id": delivery.webhook_id}),
        ..Change::default()
    };
    Ok((Some(change), ()))
}
