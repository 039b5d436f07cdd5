//! The two stages between the raw log and the trace store: [`Dedupe`] keeps the first of each trace,
//! [`Store`] puts rows into the trace store exactly once.

mod arrival;
mod batch;
mod dedupe;
mod store;

use std::sync::Arc;

use panopticon_core::{config::Config, seen::SeenSet, stage::Stage, store::TraceStore};

pub use self::{dedupe::Dedupe, store::Store};

/// The dedupe stage.
pub fn dedupe(seen: Arc<dyn SeenSet>, store: Arc<dyn TraceStore>, config: &Config) -> Vec<Arc<dyn Stage>> {
    vec![Arc::new(Dedupe::new(seen, store, config))]
}

/// The store stages: one for each topic that the trace store keeps.
pub fn store(store: &Arc<dyn TraceStore>, config: &Config) -> Vec<Arc<dyn Stage>> {
    batch::TABLES
        .iter()
        .map(|table| Arc::new(Store::new(*table, store.clone(), config.store.clone())) as Arc<dyn Stage>)
        .collect()
}
