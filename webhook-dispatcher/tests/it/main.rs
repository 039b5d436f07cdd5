//! The dispatcher on the embedded engine with real receivers: what design §8 promises to those who run them.
#![allow(clippy::unwrap_used, reason = "a test panics where something is not as it should be")]

mod delivery;
mod endpoints;
mod world;
