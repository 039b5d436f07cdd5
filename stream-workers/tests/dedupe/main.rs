//! What dedupe keeps.

#![allow(missing_docs, clippy::unwrap_used)]

mod house;
mod owners;
mod replay;
