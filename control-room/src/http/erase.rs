//! `/apps/{client_id}/erase`: takes a person out of the trace store.
//!
//! What was accepted before the request may still be under way: it waits until every stage has passed what
//! was in its topic, one stage after the other along the road. Then no batch with the person's traces is
//! being inserted any more, and the store can remove them and count right.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
};
use panopticon_core::{
    api::{EraseAnswer, EraseRequest},
    config::Config,
    control::ControlState,
    erasure::{ErasedCounts, Erasure, TracesEnd},
    ids::{ClientId, partition_of},
    log::{LogError, PartitionLag},
    time::Time,
    topic::Topic,
};
use tokio::time::Instant;
use tracing::info;
use uuid::Uuid;

use crate::{
    access::{Caller, Need},
    answer::{ApiError, RETRY_AFTER_SECS},
    input::JsonBody,
    ops::{self, erase::Named},
    room::Room,
};

/// How long it is waited for the stages, and for a moment in which the person sends nothing.
const WAIT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// The stage that puts traces into the store.
const STORE_STAGE: &str = "store";

/// Kafka deletes whole segments, an hour each, and looks for them every few minutes.
const SEGMENT: Duration = Duration::from_secs(2 * 3_600);
/// Within a day compaction takes what was replaced, within another the tombstones.
const COMPACTION: Duration = Duration::from_secs(2 * 86_400);

pub(super) async fn post(
    State(room): State<Arc<Room>>,
    caller: Caller,
    Path(client_id): Path<String>,
    JsonBody(request): JsonBody<EraseRequest>,
) -> Result<Json<EraseAnswer>, ApiError> {
    let client_id = caller.on_app(&client_id, Need::Change)?;
    let going_down = |_| ApiError::unavailable("the server is going down; try again", RETRY_AFTER_SECS);
    // What was begun is finished, even when the caller has gone.
    tokio::spawn(erase(room, caller, client_id, request)).await.map_err(going_down)?.map(Json)
}

async fn erase(
    room: Arc<Room>,
    caller: Caller,
    client_id: ClientId,
    request: EraseRequest,
) -> Result<EraseAnswer, ApiError> {
    let _alone = room.erasing.lock().await;
    let deadline = Instant::now() + WAIT;
    let erasure_id = Uuid::new_v4();
    let (app, asked) = (client_id.clone(), request.clone());
    let named = room
        .change(&caller, move |_, state: &ControlState, _| ops::erase::begin(state, &app, &asked, erasure_id))
        .await?;
    // From here on copies can only run out.
    until_passed(&room, deadline).await?;
    let began = room.clock.now();
    let pseudonym = format!("erased-{}", Uuid::new_v4());
    let mut counts = ErasedCounts::default();
    loop {
        let erasure = Erasure {
            until: traces_end(&room, &client_id, &request.user_sub).await?,
            client_id: client_id.clone(),
            user_sub: request.user_sub.clone(),
            pseudonym: pseudonym.clone(),
        };
        add(&mut counts, room.store.erase(&erasure).await?);
        if counts.usage_left == 0 || Instant::now() > deadline {
            break;
        }
        // The person is still sending: the batches with that are in soon.
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let app = client_id.clone();
    room.change(&caller, move |_, _, _| ops::erase::end(&app, erasure_id, &counts)).await?;
    info!(%client_id, %erasure_id, traces = counts.traces, "a person was erased");
    Ok(answer(&room.config, client_id, erasure_id, counts, named, began))
}

/// Waits until every stage has taken everything that was there when its turn came.
async fn until_passed(room: &Room, deadline: Instant) -> Result<(), ApiError> {
    for (stage, topic) in room.stages.iter().copied() {
        let goals: Vec<u64> = room.log.lag(stage, topic).await?.iter().map(|at| at.bounds.high).collect();
        while !has_passed(&room.log.lag(stage, topic).await?, &goals) {
            if Instant::now() > deadline {
                let text = format!(
                    "nothing was erased: `{stage}` did not catch up with topic `{topic}` within {} seconds, and \
                     what is on its way would have stayed; try again when its lag is gone",
                    WAIT.as_secs()
                );
                return Err(ApiError::unavailable(text, RETRY_AFTER_SECS));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    Ok(())
}

fn has_passed(partitions: &[PartitionLag], goals: &[u64]) -> bool {
    partitions.iter().zip(goals).all(|(at, goal)| reached(at) >= (*goal).min(at.bounds.high))
}

fn reached(at: &PartitionLag) -> u64 {
    at.committed.offset.unwrap_or(at.bounds.low)
}

/// Up to where the person's traces are in the store for good.
async fn traces_end(room: &Room, client_id: &ClientId, user_sub: &str) -> Result<TracesEnd, LogError> {
    let info = room.log.topic(Topic::Traces).await?;
    let partition = partition_of(&[client_id.as_str(), user_sub], info.partitions);
    let lag = room.log.lag(STORE_STAGE, Topic::Traces).await?;
    let offset = lag.iter().find(|at| at.partition == partition).map_or(0, reached);
    Ok(TracesEnd { log_id: info.log_id, partition, offset })
}

/// What several calls did together; what is left is what the last one says.
fn add(sum: &mut ErasedCounts, more: ErasedCounts) {
    sum.traces += more.traces;
    sum.usage += more.usage;
    sum.detections += more.detections;
    sum.actions += more.actions;
    sum.deliveries += more.deliveries;
    sum.pending_deliveries += more.pending_deliveries;
    sum.usage_left = more.usage_left;
}

fn answer(
    config: &Config,
    client_id: ClientId,
    erasure_id: Uuid,
    counts: ErasedCounts,
    named: Named,
    began: Time,
) -> EraseAnswer {
    let (retention, webhooks) = (&config.retention, &config.webhooks);
    let deliveries =
        Duration::from_secs(webhooks.give_up_after_secs + u64::from(retention.deliveries_days) * 86_400);
    let mut notes = Vec::new();
    if named.killed {
        notes.push(
            "The user is under a kill, which is kept with their name, or it would end; so is what the audit \
             record says of it. Lift it with DELETE …/kill when it is no longer needed."
                .to_owned(),
        );
    }
    if named.quiet {
        notes.push(
            "The user is among the quiet users of the app's policy, which keeps their name; take it out of \
             `detection.quiet_users` with PATCH …/policy when it is no longer needed."
                .to_owned(),
        );
    }
    if counts.usage_left > 0 {
        notes.push(
            "The user has sent traces meanwhile. The aggregates of that time still name them beside what was \
             erased; erase again when they have stopped."
                .to_owned(),
        );
    }
    if counts.pending_deliveries > 0 {
        notes.push(format!(
            "{} webhook deliveries about the user are still being tried and will name them in their next \
             states; erase again when they have ended.",
            counts.pending_deliveries
        ));
    }
    EraseAnswer {
        client_id: client_id.to_string(),
        erasure_id: erasure_id.to_string(),
        complete: counts.usage_left == 0 && counts.pending_deliveries == 0,
        erased: counts,
        log_copies_gone_by: began.plus(retention.log() + SEGMENT),
        delivery_copies_gone_by: began.plus(deliveries + COMPACTION),
        notes,
    }
}

#[cfg(test)]
mod tests {
    use panopticon_core::log::{Bounds, Committed};

    use super::*;

    fn at(committed: Option<u64>, low: u64, high: u64) -> PartitionLag {
        let committed = Committed { offset: committed, metadata: String::new() };
        PartitionLag { partition: 0, committed, bounds: Bounds { low, high } }
    }

    #[test]
    fn a_stage_has_passed_what_was_there_however_much_has_come_since() {
        assert!(has_passed(&[at(Some(5), 0, 9)], &[5]));
        assert!(!has_passed(&[at(Some(4), 0, 9)], &[5]));
        // Nothing was ever there; or what was left turned out to be no records.
        assert!(has_passed(&[at(None, 3, 3)], &[3]));
        assert!(has_passed(&[at(Some(4), 0, 4)], &[5]));
        assert!(!has_passed(&[at(None, 0, 1)], &[1]));
    }

    #[test]
    fn what_is_not_done_is_said() {
        let of = |counts: ErasedCounts, named| {
            let app = ClientId::new("app").unwrap();
            answer(&Config::default(), app, Uuid::nil(), counts, named, Time::EPOCH)
        };
        let all = of(ErasedCounts::default(), Named::default());
        assert!(all.complete && all.notes.is_empty());
        assert_eq!(all.log_copies_gone_by, Time::from_secs((7 * 24 + 2) * 3_600));
        let left = ErasedCounts { usage_left: 1, pending_deliveries: 2, ..Default::default() };
        let left = of(left, Named { killed: true, quiet: true });
        assert_eq!((left.complete, left.notes.len()), (false, 4));
    }
}
