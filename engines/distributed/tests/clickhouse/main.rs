//! What the trace store promises, on a real ClickHouse: set `PANOPTICON_TEST_CLICKHOUSE_URL`.

// Everything here runs in tests only.
#![allow(clippy::unwrap_used)]

mod erasure;
mod events;
mod fixture;
mod inserts;
mod load;
mod refused;
mod retention;
mod schema;
mod traces;
mod usage;
