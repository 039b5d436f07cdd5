//! Detection rules over traces: pure state machines, the same in the stages and in a backtest.
//!
//! Stage `detector` looks at traces, by user, and copies those that name a source address to `denials`,
//! cut by source, for stage `detector-sources`, and counts them by tool and second in `rollups`, cut by app,
//! for stage `detector-apps`. Each shows its stream to a list of rules ([`part::Part`]), each in a file of its
//! own: a new rule is a new file and a line in [`rules`]. Knows nothing of what an alarm leads to; what an
//! app wants to hear of it asks with each event ([`settings::SettingsOf`]).

pub mod backtest;
pub mod burst;
pub mod detector;
pub mod failed_auth;
pub mod off_hour;
pub mod part;
pub mod score;
pub mod series;
pub mod settings;
pub mod user;

use std::{sync::Arc, time::Duration};

use panopticon_core::{
    config::StagesConfig,
    stage::{RuleStage, Seeds, Stage},
    store::{TraceStore, Whose},
    topic::Topic,
};

use crate::{
    burst::apps::ToolBursts,
    detector::{AppsRule, DetectorRule, SourcesRule},
    failed_auth::{FailedAuthByApp, FailedAuthBySource},
    settings::SettingsOf,
    user::Users,
};

/// The name of the stage over traces.
pub const DETECTOR: &str = "detector";
/// The name of the stage over sources.
pub const DETECTOR_SOURCES: &str = "detector-sources";
/// The name of the stage over apps.
pub const DETECTOR_APPS: &str = "detector-apps";

/// The rules over traces and over sources, each of which remembers at most `max_entities` entities.
pub fn rules(max_entities: usize, settings: &SettingsOf) -> (DetectorRule, SourcesRule) {
    let by_trace = DetectorRule::new(vec![Box::new(Users::new(max_entities, settings.clone()))]);
    let by_source = SourcesRule::new(vec![Box::new(FailedAuthBySource::new(max_entities, settings.clone()))]);
    (by_trace, by_source)
}

/// The rules over apps, each of which remembers at most `max_entities` entities.
pub fn app_rules(max_entities: usize, settings: &SettingsOf) -> AppsRule {
    AppsRule::new(vec![
        Box::new(ToolBursts::new(max_entities, settings.clone())),
        Box::new(FailedAuthByApp::new(max_entities, settings.clone())),
    ])
}

/// The stages of the detector. `partitions` is into how many the topics `traces` and `denials` are cut:
/// each gets its share of `limits.max_entities`. Where there is no checkpoint, the rules over users and over tools
/// begin with what `history` knows of them.
pub fn stages(
    limits: &StagesConfig,
    partitions: u32,
    settings: &SettingsOf,
    history: Option<Arc<dyn TraceStore>>,
) -> Vec<Arc<dyn Stage>> {
    let max_entities = (limits.max_entities / partitions.max(1) as usize).max(1);
    let patience = Duration::from_millis(limits.seeding_ms);
    let seeds = |whose| history.clone().map(|store| Seeds::new(store, whose, patience));
    let (for_traces, for_sources, for_apps) = (settings.clone(), settings.clone(), settings.clone());
    let by_trace = move || rules(max_entities, &for_traces).0;
    let by_source = move || rules(max_entities, &for_sources).1;
    let by_app = move || app_rules(max_entities, &for_apps);
    vec![
        Arc::new(
            RuleStage::new(DETECTOR, Topic::Traces, Topic::DetectorState, by_trace)
                .seeded(seeds(Whose::Users)),
        ),
        Arc::new(RuleStage::new(DETECTOR_SOURCES, Topic::Denials, Topic::DetectorState, by_source)),
        Arc::new(
            RuleStage::new(DETECTOR_APPS, Topic::Rollups, Topic::DetectorState, by_app)
                .seeded(seeds(Whose::Tools)),
        ),
    ]
}
