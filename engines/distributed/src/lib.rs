//! The ports on Apache Kafka, Redis and ClickHouse: the engine of an installation of many processes.
//!
//! Each module implements one port of `panopticon_core` and knows one server; nothing outside this crate
//! knows a driver's name, and no type of a driver leaves it.

pub mod clickhouse;
pub mod kafka;
pub mod redis;
mod tls;

use panopticon_core::config::Config;

/// What of the configuration no connection can be made with, in this build; asks no server.
pub fn check(config: &Config) -> Result<(), String> {
    kafka::check(config).map_err(|error| error.to_string())?;
    redis::check(config).map_err(|error| error.to_string())?;
    clickhouse::check(config).map_err(|error| error.to_string())
}

/// An error with its causes; drivers hide the cause that matters.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
