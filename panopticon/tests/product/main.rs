//! The product from outside: processes, HTTP, gRPC, webhooks and the command line, on both engines.
//!
//! Each test is written once against a [`support::System`] and runs on the embedded engine (one process)
//! and on the distributed one (a process for each role). The latter needs the servers that
//! `cargo xtask stack up` starts (`. target/stack/test.env`) and the programs that
//! `cargo build --workspace --bins` makes; without the servers those tests say that they are skipped.
//!
//! All tests of an engine share one system, each with apps of its own; tests that end or crash processes
//! have their own system.

#![allow(missing_docs, clippy::unwrap_used)]

mod support;

mod backtest;
mod bad_input;
mod cli;
mod cli_webhooks;
mod configuration;
mod control;
mod dead_letters;
mod detection_settings;
mod erase;
mod exactly_once;
mod failed_auth;
mod hmac;
mod ingestion_grpc;
mod ingestion_http;
mod kill;
mod live;
mod paks;
mod process;
mod rate_limit;
mod spans;
mod timeline_usage;
mod upgrade;
mod webhooks;
mod without_redis;
