//! Every guard action reached its RP, under one webhook-id, as the deliveries say.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::Finding;
use crate::bed::Bed;

#[derive(Deserialize)]
struct Action {
    action_id: String,
    client_id: String,
    place: String,
}

impl Action {
    fn named(&self) -> String {
        format!("{} of {} at {}", self.action_id, self.client_id, self.place)
    }
}

#[derive(Deserialize)]
struct Delivery {
    delivery_id: String,
    webhook_id: String,
    client_id: String,
    state: String,
    place: String,
}

impl Delivery {
    fn named(&self) -> String {
        format!("{} {} at {}", self.delivery_id, self.state, self.place)
    }
}

#[derive(Deserialize)]
struct Again {
    row: String,
}

pub(super) async fn check(bed: &Bed) -> anyhow::Result<Vec<Finding>> {
    let actions: Vec<Action> = bed
        .sql
        .rows(
            "SELECT action_id, client_id, \
             concat(type, ' ', toString(log_partition), '/', toString(log_offset)) AS place FROM guard_actions",
        )
        .await?;
    let deliveries: Vec<Delivery> = bed
        .sql
        .rows(
            "SELECT d.delivery_id AS delivery_id, any(d.webhook_id) AS webhook_id, any(d.client_id) AS client_id, \
             argMax(d.state, d.log_offset) AS state, \
             concat(toString(any(d.log_partition)), '/', toString(max(d.log_offset))) AS place FROM webhook_deliveries AS d GROUP BY delivery_id",
        )
        .await?;
    let again: Vec<Again> = bed
        .sql
        .rows(
            "SELECT concat(delivery_id, ' at ', toString(log_partition), '/', toString(log_offset)) AS row \
             FROM webhook_deliveries GROUP BY delivery_id, log_partition, log_offset HAVING count() > 1",
        )
        .await?;
    let messages = bed.receiver.messages();

    let received = |a: &Action| messages.get(&(a.client_id.clone(), a.action_id.clone()));
    let unreceived =
        actions.iter().filter(|a| received(a).is_none_or(|m| m.taken == 0)).map(Action::named).collect();

    let known: BTreeSet<(&str, &str)> =
        actions.iter().map(|a| (a.client_id.as_str(), a.action_id.as_str())).collect();
    let unknown = |(app, id): &&(String, String)| !known.contains(&(app.as_str(), id.as_str()));
    let strange = messages.keys().filter(unknown).map(|key| format!("{key:?}")).collect();

    let mut by_action: BTreeMap<(&str, &str), Vec<&Delivery>> = BTreeMap::new();
    for delivery in &deliveries {
        by_action.entry((&delivery.client_id, &delivery.webhook_id)).or_default().push(delivery);
    }
    let none = Vec::new();
    let delivered = |a: &Action| {
        let made = by_action.get(&(a.client_id.as_str(), a.action_id.as_str())).unwrap_or(&none);
        (!matches!(made[..], [one] if one.state == "delivered")).then(|| {
            let made: Vec<String> = made.iter().map(|delivery| delivery.named()).collect();
            format!("{}: {made:?}", a.named())
        })
    };
    let undelivered = actions.iter().filter_map(delivered).collect();
    Ok(vec![
        Finding::new("every guard action was received and taken", actions.len(), unreceived),
        Finding::new("nothing was received that is no guard action", messages.len(), strange),
        Finding::new(
            "what was received is signed, and the same in every attempt",
            messages.len(),
            bed.receiver.wrong(),
        ),
        Finding::new("every guard action has one delivery, and it is delivered", actions.len(), undelivered),
        Finding::new(
            "no change of a delivery is in `webhook_deliveries` twice",
            deliveries.len(),
            again.into_iter().map(|again| again.row).collect(),
        ),
    ])
}
