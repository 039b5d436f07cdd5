//! The verdict on a trace.

/// What became of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Durable in the log, for the first time as far as is known.
    Accepted,
    /// It came before.
    Duplicate,
    /// Not confirmed: send it again with the same event_id.
    Unavailable,
}
