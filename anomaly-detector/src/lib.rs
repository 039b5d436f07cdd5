//! Detection rules over traces: pure state machines, the same in the stages and in a backtest.
//!
//! Stage `detector` looks at traces, by user, and copies those that name a source address to `denials`,
//! cut by source; stage `detector-sources` looks at these. Both show their stream to a list of rules
//! ([`part::Part`]), each in a file of its own: a new rule is a new file and a line in [`rules`]. Knows
//! nothing of policies and of what an alarm leads to.

pub mod backtest;
pub mod detector;
pub mod failed_auth;
pub mod part;
pub mod score;

use std::sync::Arc;

use panopticon_core::{
    config::StagesConfig,
    stage::{RuleStage, Stage},
    topic::Topic,
};

use crate::{
    detector::{DetectorRule, SourcesRule},
    failed_auth::{FailedAuthBySource, FailedAuthByUser},
};

/// The name of the stage over traces.
pub const DETECTOR: &str = "detector";
/// The name of the stage over sources.
pub const DETECTOR_SOURCES: &str = "detector-sources";

/// The rules over traces and over sources, each of which remembers at most `max_entities` entities.
pub fn rules(max_entities: usize) -> (DetectorRule, SourcesRule) {
    let by_trace = DetectorRule::new(vec![Box::new(FailedAuthByUser::new(max_entities))]);
    let by_source = SourcesRule::new(vec![Box::new(FailedAuthBySource::new(max_entities))]);
    (by_trace, by_source)
}

/// The stages of the detector. `partitions` is into how many the topics `traces` and `denials` are cut:
/// each gets its share of `limits.max_entities`.
pub fn stages(limits: &StagesConfig, partitions: u32) -> Vec<Arc<dyn Stage>> {
    let max_entities = (limits.max_entities / partitions.max(1) as usize).max(1);
    let by_trace = move || rules(max_entities).0;
    let by_source = move || rules(max_entities).1;
    vec![
        Arc::new(RuleStage::new(DETECTOR, Topic::Traces, Topic::DetectorState, by_trace)),
        Arc::new(RuleStage::new(DETECTOR_SOURCES, Topic::Denials, Topic::DetectorState, by_source)),
    ]
}
