//! What the commands do, one file a subject.

pub(crate) mod apps;
pub(crate) mod dead_letters;
pub(crate) mod detections;
pub(crate) mod erase;
pub(crate) mod kill;
pub(crate) mod listen;
pub(crate) mod policy;
pub(crate) mod records;
pub(crate) mod send;
pub(crate) mod status;
pub(crate) mod timeline;
pub(crate) mod token;
pub(crate) mod usage;
pub(crate) mod webhook;

use panopticon_core::time::Time;
use serde_json::Value;

use crate::{
    control::Control,
    output::{Output, shown},
};

/// What every command works with.
pub(crate) struct Session {
    /// The server.
    pub(crate) control: Control,
    /// Where answers go.
    pub(crate) out: Output,
}

/// A field of a row as a cell: text as it is, times to the second, `-` where there is none.
fn cell(row: &Value, field: &str) -> String {
    match &row[field] {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => match Time::parse_rfc3339(text) {
            Some(time) => shown(time),
            None => text.clone(),
        },
        other => other.to_string(),
    }
}
