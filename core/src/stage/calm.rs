//! Whether a quiet input is a calm one, or only a stage before it stands still.
//!
//! An episode may be ended by the clock alone when nothing comes any more, but only once everything that the
//! gateways had appended by then has come through the stages before: otherwise a pause of `dedupe` would end
//! episodes whose traces are still on their way, and begin them anew behind it.

use crate::{
    log::{EventLog, LogError},
    stage::GROUPS,
    time::Time,
    topic::Topic,
};

/// The stages between the gateways and `input`, in their order. All bring to a partition what they took from
/// the same partition, except into the topics that are cut by another key.
fn stages_before(input: Topic) -> impl Iterator<Item = (&'static str, Topic)> {
    let names: &[&str] = match input {
        Topic::Traces => &["dedupe"],
        Topic::Denials | Topic::Rollups => &["dedupe", "detector"],
        _ => &[],
    };
    GROUPS.into_iter().filter(|(stage, _)| names.contains(stage))
}

/// A look at the stages before, under way over several calls.
struct Look {
    began: Time,
    /// Which of the stages is looked at.
    hop: usize,
    /// What each partition of its input has to be done up to.
    ends: Vec<(u32, u64)>,
}

/// Watches the stages before one partition of a topic.
pub(super) struct Calm {
    input: Topic,
    partition: u32,
    look: Option<Look>,
}

impl Calm {
    pub(super) const fn new(input: Topic, partition: u32) -> Self {
        Self { input, partition, look: None }
    }

    /// Called while nothing comes and everything before `next` is done: the time up to which everything that
    /// was appended has been seen; `None` while that is not known.
    pub(super) async fn until(
        &mut self,
        log: &dyn EventLog,
        next: u64,
        now: Time,
    ) -> Result<Option<Time>, LogError> {
        let hops: Vec<(&str, Topic)> = stages_before(self.input).collect();
        let mut look = match self.look.take() {
            Some(look) => look,
            None => Look { began: now, hop: 0, ends: self.ends(log, hops.first()).await? },
        };
        while let Some((stage, topic)) = hops.get(look.hop) {
            let lags = log.lag(stage, *topic).await?;
            let done = |(partition, end): &(u32, u64)| {
                let lag = lags.iter().find(|lag| lag.partition == *partition);
                lag.is_some_and(|lag| {
                    let reached = lag.committed.offset.unwrap_or(lag.bounds.low);
                    reached >= *end || reached >= lag.bounds.high
                })
            };
            if !look.ends.iter().all(done) {
                self.look = Some(look);
                return Ok(None);
            }
            look.hop += 1;
            look.ends = self.ends(log, hops.get(look.hop)).await?;
        }
        // What the last of them has brought meanwhile comes with the next poll.
        let end = log.bounds(self.input, self.partition).await?.high;
        let rest = log.read(self.input, self.partition, next.min(end), end, 1).await?;
        Ok(rest.is_empty().then_some(look.began))
    }

    /// Where the inputs of a stage end now that this partition's events pass through.
    async fn ends(
        &self,
        log: &dyn EventLog,
        hop: Option<&(&str, Topic)>,
    ) -> Result<Vec<(u32, u64)>, LogError> {
        let Some((_, topic)) = hop else { return Ok(Vec::new()) };
        let same_cut = self.input == Topic::Traces;
        let mut ends = Vec::new();
        for partition in 0..log.topic(*topic).await?.partitions {
            if !same_cut || partition == self.partition {
                let bounds = log.bounds(*topic, partition).await?;
                // An empty partition may end at any offset.
                if bounds.high > bounds.low {
                    ends.push((partition, bounds.high));
                }
            }
        }
        Ok(ends)
    }
}
