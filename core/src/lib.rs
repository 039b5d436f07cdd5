//! The vocabulary of Panopticon, the ports that stages are written against, and the runtime that runs
//! them. Knows no Kafka, Redis, ClickHouse or SQLite: engines implement the ports elsewhere.

pub mod admission;
pub mod api;
pub mod config;
pub mod control;
pub mod detection;
pub mod erasure;
pub mod health;
pub mod ids;
pub mod log;
pub mod secrets;
pub mod seen;
pub mod stage;
pub mod store;
pub mod telemetry;
pub mod time;
pub mod topic;
pub mod trace;

pub use panopticon_proto as proto;
