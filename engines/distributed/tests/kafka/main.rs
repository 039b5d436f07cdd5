//! The event log's promises, on a real Kafka: `PANOPTICON_TEST_KAFKA_BROKERS` says where. Without it the
//! tests say that they were skipped. Each has topics of its own.

// Everything here runs in tests only.
#![allow(clippy::unwrap_used)]

mod bed;
mod faults;
mod latency;
mod leases;
mod rebalances;
mod records;
