//! What spans for export cost where nothing exports them.

#![allow(clippy::unwrap_used)]

use panopticon_core::{
    config::Config,
    telemetry::{SPANS, start_logging},
};
use tracing::level_filters::LevelFilter;

#[test]
fn without_a_collector_no_span_is_made_and_all_that_is_looked_at_is_the_level() {
    start_logging(&Config::default(), None).unwrap();
    assert_eq!(LevelFilter::current(), LevelFilter::INFO, "what is finer costs a comparison");
    let mut looked = 0;
    let mut look = || {
        looked += 1;
        looked
    };
    assert!(tracing::trace_span!(target: SPANS, "request", bytes = look()).is_disabled());
    assert_eq!(looked, 0, "attributes are not worked out");
}
