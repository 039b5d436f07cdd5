//! What a rule knows before its first event: the aggregates of the trace store, where there is no checkpoint.
//!
//! They are taken in once, before anything is judged or replayed, up to where the log begins, and are part of
//! the first commit like everything else that the rule knows. An entity that was committed already is left
//! as it is.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use tracing::{info, warn};

use super::Rule;
use crate::{
    ids::partition_of,
    store::{Activity, StoreError, TraceStore, Whose},
    time::Time,
};

/// How far back what is known of a user or a tool matters.
const REACH: Duration = Duration::from_secs(400 * 86_400);
/// A store that is away is asked again this much later.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Where rules without a checkpoint begin to learn from.
#[derive(Clone)]
pub struct Seeds {
    /// Has the aggregates.
    pub store: Arc<dyn TraceStore>,
    /// Whom the rules look at.
    pub whose: Whose,
    /// So long a partition waits for them at most; then it goes on with what it has (counted).
    pub patience: Duration,
}

impl Seeds {
    /// Has `rule` learn what was before `until` of those whose events come in `partition` of `partitions`.
    pub(super) async fn sow<R: Rule>(
        &self,
        rule: &mut R,
        stage: &'static str,
        (partition, partitions): (u32, u32),
        until: Time,
    ) {
        let mut learned = 0_u64;
        let all = async {
            loop {
                match self.learn(rule, (partition, partitions), until, &mut learned).await {
                    // What was taken in once must not be again.
                    Err(StoreError::Unavailable(_)) if learned == 0 => tokio::time::sleep(ASK_AGAIN).await,
                    ended => break ended,
                }
            }
        };
        let why = match tokio::time::timeout(self.patience, all).await {
            Ok(Ok(())) => {
                info!(stage, partition, learned, %until, "learned from the trace store, since there is no checkpoint");
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not done within {} ms", self.patience.as_millis()),
        };
        warn!(stage, partition, learned, why, "not everything could be learned from the trace store");
        metrics::counter!("panopticon_seeding_incomplete_total", "stage" => stage).increment(1);
    }

    async fn learn<R: Rule>(
        &self,
        rule: &mut R,
        (partition, partitions): (u32, u32),
        until: Time,
        learned: &mut u64,
    ) -> Result<(), StoreError> {
        let comes_here = |Activity { client_id, name, .. }: &&Activity| match self.whose {
            Whose::Users => partition_of(&[client_id, name], partitions) == partition,
            Whose::Tools => partition_of(&[client_id], partitions) == partition,
        };
        let mut parts = self.store.activity(self.whose, until.minus(REACH), until);
        while let Some(part) = parts.next().await {
            for activity in part?.iter().filter(comes_here) {
                rule.learn(activity);
                *learned += 1;
            }
        }
        Ok(())
    }
}
