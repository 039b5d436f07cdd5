//! The ports on Apache Kafka, Redis and ClickHouse: the engine of an installation of many processes.
//!
//! Each module implements one port of `panopticon_core` and knows one server; nothing outside this crate
//! knows a driver's name, and no type of a driver leaves it.

pub mod clickhouse;
pub mod kafka;
pub mod redis;
