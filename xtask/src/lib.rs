//! Development tasks.
//!
//! [`stack`] installs and runs the real servers behind the distributed engine (Apache Kafka, Redis,
//! ClickHouse) without Docker; tests that need servers of their own, to kill and to restart, start a private
//! stack with it. [`checks`] is what `cargo xtask test` runs, [`licences`] one of those checks.
//!
//! This crate knows nothing of the product: no other crate of the workspace is a dependency of it.

pub mod bench;
pub mod chaos;
pub mod checks;
pub mod clickhouse_host;
pub mod eval;
mod interrupt;
pub mod licences;
pub mod stack;

use std::path::Path;

/// The root of the workspace that this crate was built in.
pub fn workspace_root() -> &'static Path {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest_dir.parent().unwrap_or(manifest_dir)
}
