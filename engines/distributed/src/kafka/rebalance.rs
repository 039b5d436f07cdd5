//! What the group decides about this member, passed on to the member's thread.

use std::error::Error;

use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Statistics, TopicPartitionList,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol},
    error::KafkaError,
    types::RDKafkaRespErr,
};

use super::context::Voice;

/// A decision of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// These partitions are this member's now.
    Assigned(Vec<u32>),
    /// These are no longer, once the member has agreed (or was thrown out).
    Revoked(Vec<u32>),
}

#[derive(Default)]
struct State {
    decisions: Vec<Decision>,
    closing: bool,
}

/// Collects decisions while the consumer is polled. They are answered by the thread that polls, in its
/// own time: the driver heartbeats meanwhile.
pub(super) struct Rebalances {
    voice: Voice,
    state: Mutex<State>,
}

impl Rebalances {
    pub(super) fn new(voice: Voice) -> Self {
        Self { voice, state: Mutex::default() }
    }

    /// The decisions since the last call.
    pub(super) fn take(&self) -> Vec<Decision> {
        std::mem::take(&mut self.state.lock().decisions)
    }

    /// From now on nobody answers: the consumer is being closed, and agrees to everything.
    pub(super) fn close(&self) {
        self.state.lock().closing = true;
    }
}

impl ClientContext for Rebalances {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.voice.token()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.voice.log(level, facility, message);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.voice.error(error, reason);
    }
}

impl ConsumerContext for Rebalances {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        kind: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let mut state = self.state.lock();
        if state.closing {
            drop(state);
            agree(consumer, kind);
            return;
        }
        let numbers =
            partitions.elements().iter().filter_map(|entry| u32::try_from(entry.partition()).ok()).collect();
        state.decisions.push(match kind {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Decision::Assigned(numbers),
            _ => Decision::Revoked(numbers),
        });
    }
}

/// Answers so that the driver can end.
fn agree(consumer: &BaseConsumer<Rebalances>, kind: RDKafkaRespErr) {
    let assigned = kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
    let outcome = match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative if assigned => consumer.incremental_assign(&TopicPartitionList::new()),
        RebalanceProtocol::Cooperative => {
            consumer.assignment().and_then(|all| consumer.incremental_unassign(&all))
        }
        _ => consumer.unassign(),
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a closing member could not give up its partitions");
    }
}
