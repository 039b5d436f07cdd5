//! Every detection becomes one guard action: what the RP is told, and by which the webhook is known.

use async_trait::async_trait;
use panopticon_core::{
    ids::partition_of,
    log::{Lease, Output, Record, Stored},
    stage::{PartitionContext, Stage, StageError, Transform, decode_each, transform},
    time::{SharedClock, Time},
    topic::Topic,
    trace::WireError,
};
use panopticon_proto::log::{Detection, GuardAction};
use prost::Message as _;
use uuid::Uuid;

/// The name of the stage and of its group.
pub const STAGE: &str = "guard-actions";
/// Actions are UUIDv5 in this namespace, of the detection and its phase: a repeat has the same id.
const NAMESPACE: Uuid = Uuid::from_u128(0x91f0_2b7d_ae35_5c48_b6d3_07e9_4c1a_f862);

/// The stage from `detections` to `guard-actions`.
pub struct GuardActions;

#[async_trait]
impl Stage for GuardActions {
    fn name(&self) -> &'static str {
        STAGE
    }

    fn input(&self) -> Topic {
        Topic::Detections
    }

    async fn run(&self, lease: &mut dyn Lease, context: &PartitionContext) -> Result<(), StageError> {
        let runtime = &context.runtime;
        let work = Work {
            clock: runtime.clock.clone(),
            partition: lease.partition(),
            partitions: runtime.log.topic(Topic::GuardActions).await?.partitions,
        };
        transform(lease, context, work).await
    }
}

struct Work {
    clock: SharedClock,
    partition: u32,
    /// Of `guard-actions`.
    partitions: u32,
}

#[async_trait]
impl Transform for Work {
    async fn process(&mut self, records: &[Stored], _next: u64) -> Result<Vec<Output>, StageError> {
        let now = self.clock.now();
        let mut outputs = Vec::new();
        let context = (STAGE, Topic::Detections, self.partition, now);
        let actions =
            decode_each(records, context, &mut outputs, |stored| action_of(stored.record.bytes(), now));
        for (_, action) in actions {
            metrics::counter!("panopticon_guard_actions_total", "type" => action.r#type.clone()).increment(1);
            outputs.push(Output {
                topic: Topic::GuardActions,
                partition: partition_of(&[&action.client_id, &action.user_sub], self.partitions),
                record: Record::message(action.encode_to_vec()),
            });
        }
        Ok(outputs)
    }
}

/// The action that tells of a detection.
fn action_of(payload: &[u8], now: Time) -> Result<GuardAction, WireError> {
    let detection = Detection::decode(payload)?;
    let r#type = match detection.phase.as_str() {
        "started" => "panopticon.anomaly_detected",
        "ended" => "panopticon.anomaly_resolved",
        _ => return Err(WireError::Field("phase")),
    };
    if detection.detection_id.is_empty() {
        return Err(WireError::Field("detection_id"));
    }
    if detection.client_id.is_empty() {
        return Err(WireError::Field("client_id"));
    }
    let name = format!("{}/{}", detection.detection_id, detection.phase);
    Ok(GuardAction {
        action_id: Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string(),
        r#type: r#type.to_owned(),
        client_id: detection.client_id.clone(),
        user_sub: detection.user_sub.clone(),
        created_at: now.micros(),
        detection: Some(detection),
        ..GuardAction::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detection(phase: &str) -> Vec<u8> {
        Detection {
            detection_id: "d".to_owned(),
            client_id: "app".to_owned(),
            user_sub: "user".to_owned(),
            phase: phase.to_owned(),
            ..Detection::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn beginning_and_end_are_two_actions_whose_ids_a_repeat_shares() {
        let began = action_of(&detection("started"), Time::from_secs(1)).unwrap();
        let again = action_of(&detection("started"), Time::from_secs(2)).unwrap();
        let ended = action_of(&detection("ended"), Time::from_secs(3)).unwrap();
        assert_eq!(
            (began.r#type.as_str(), ended.r#type.as_str()),
            ("panopticon.anomaly_detected", "panopticon.anomaly_resolved")
        );
        assert_eq!(began.action_id, again.action_id);
        assert_ne!(began.action_id, ended.action_id);
        assert_eq!(
            (began.client_id.as_str(), began.user_sub.as_str(), began.created_at),
            ("app", "user", 1_000_000)
        );
        assert_eq!(began.detection.unwrap().detection_id, "d");
    }

    #[test]
    fn what_is_no_detection_is_refused_by_name() {
        assert!(action_of(b"\xff\xff", Time::EPOCH).is_err());
        assert!(matches!(action_of(&detection("paused"), Time::EPOCH), Err(WireError::Field("phase"))));
        assert!(matches!(action_of(b"", Time::EPOCH), Err(WireError::Field(_))));
    }
}
