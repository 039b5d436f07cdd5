//! Policies turned into guard actions.
//!
//! Two stages: [`rate_limit`] counts each user's calls against the app's policy and says when a limit is
//! exceeded; [`actions`] turns every detection, the anomaly detector's too, into what the RP is told. Knows
//! nothing of webhooks: who delivers an action, and how, is decided elsewhere.

pub mod actions;
mod calls;
pub mod rate_limit;

use std::sync::Arc;

use panopticon_core::{
    config::StagesConfig,
    control::ControlView,
    stage::{RuleStage, Stage},
    topic::Topic,
};

use crate::{actions::GuardActions, rate_limit::RateLimitRule};

/// The stages of the enforcer. `view` has the policies; `partitions` is into how many the topic `traces` is
/// cut: each gets its share of `limits.max_entities`.
pub fn stages(view: ControlView, limits: &StagesConfig, partitions: u32) -> Vec<Arc<dyn Stage>> {
    let max_users = (limits.max_entities / partitions.max(1) as usize).max(1);
    let make = move || {
        let view = view.clone();
        RateLimitRule::new(max_users, move |client_id: &str| view.state().rate_limit(client_id))
    };
    vec![
        Arc::new(RuleStage::new(rate_limit::STAGE, Topic::Traces, Topic::EnforcerState, make)),
        Arc::new(GuardActions),
    ]
}
