//! `logi`, the command line of Panopticon, and `replay`, which sends files of traces.
//!
//! A client like any other: everything goes through the public HTTP and gRPC interfaces. Knows no engine
//! and no stage. The binary `panopticon` offers the same as `panopticon logi …` ([`Logi`], [`run`]) and
//! `panopticon replay …` ([`replay`]), and tells where it serves ([`servers::record_server`]).

mod args;
mod called;
mod commands;
mod connection;
mod control;
mod failure;
mod gateway;
mod output;
pub mod paks;
mod private_file;
pub mod replay;
pub mod servers;
mod sse;
mod when;

pub use args::{Logi, run};
pub use connection::install_tls;
pub use output::{plain, shown};
pub use when::When;
