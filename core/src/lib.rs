//! The vocabulary of Panopticon, the ports that stages are written against, and the runtime that runs
//! them. Knows no Kafka, Redis, ClickHouse or SQLite: engines implement the ports elsewhere.

pub mod admission;
pub mod config;
pub mod ids;
pub mod log;
pub mod seen;
pub mod store;
pub mod time;
pub mod topic;
pub mod trace;

pub use panopticon_proto as proto;
