//! What a rule knows before its first event: the aggregates of the trace store, where there is no checkpoint.
//!
//! They are taken in once, before anything is judged or replayed, up to where the log begins, and are part of
//! the first commit like everything else that the rule knows. An entity that was committed already is left
//! as it is.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use super::{
    Rule,
    reading::{Readings, Wanted},
};
use crate::{
    store::{StoreError, TraceStore, Whose},
    time::Time,
};

/// A store that is away is asked again this much later.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Where rules without a checkpoint begin to learn from.
pub struct Seeds {
    readings: Readings,
    patience: Duration,
}

impl Seeds {
    /// What `store` knows of `whose` activity. So long a partition waits for it at most (`patience`); then it goes on
    /// with what it has (counted).
    pub fn new(store: Arc<dyn TraceStore>, whose: Whose, patience: Duration) -> Self {
        let readings = Readings::new(whose, move |since, until| store.activity(whose, since, until));
        Self { readings, patience }
    }

    /// Has `rule` learn what was before `until` of those whose events come in `partition` of `partitions`.
    pub(super) async fn sow<R: Rule>(
        &self,
        rule: &mut R,
        stage: &'static str,
        (partition, partitions): (u32, u32),
        until: Time,
    ) {
        let wanted = Wanted { partition, partitions, until };
        let mut learned = 0_u64;
        let all = async {
            loop {
                match self.learn(rule, wanted, &mut learned).await {
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
        wanted: Wanted,
        learned: &mut u64,
    ) -> Result<(), StoreError> {
        let mut parts = self.readings.join(wanted);
        while let Some(part) = parts.recv().await {
            for activity in part? {
                rule.learn(&activity);
                *learned += 1;
            }
        }
        Ok(())
    }
}
