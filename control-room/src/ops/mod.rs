//! The decisions: what a request makes of the control table, as pure functions from the state of the
//! table to a [`Change`]. They know no HTTP, so a process can also make them by itself at its start.

pub mod apps;
pub mod dead_letters;
pub mod deliveries;
pub mod erase;
pub mod kills;
pub mod policy;
mod seed;
pub mod tokens;
pub mod webhooks;

use panopticon_core::control::Change;

pub use self::seed::{SeedError, seed};

/// What was decided: the change to commit (none: nothing is to be written) and the answer to it.
pub type Decision<T> = Result<(Option<Change>, T), Refusal>;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{description}", field.as_deref().map(|field| format!("{field}: ")).unwrap_or_default())]
pub struct Refusal {
    /// Of which kind.
    pub kind: RefusalKind,
    /// The field at fault, where there is one.
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub description: String,
}

/// The kinds of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// A value is not valid.
    Invalid,
    /// A setting that this build does not enforce.
    NotSupported,
    /// What it is about does not exist.
    NotFound,
    /// It was changed by somebody else in between.
    PreconditionFailed,
    /// There are as many as there may be.
    LimitReached,
    /// The thing is in a state in which this cannot be done.
    Conflict,
}

impl Refusal {
    /// A value of `field` is not valid.
    pub fn invalid(field: &str, description: impl Into<String>) -> Self {
        Self { kind: RefusalKind::Invalid, field: Some(field.to_owned()), description: description.into() }
    }

    /// A refusal that is about no field.
    pub fn new(kind: RefusalKind, description: impl Into<String>) -> Self {
        Self { kind, field: None, description: description.into() }
    }

    /// The app is not there.
    pub fn no_app(client_id: &str) -> Self {
        Self::new(
            RefusalKind::NotFound,
            format!("there is no app `{client_id}`; `PUT /apps/{{client_id}}` enables it"),
        )
    }
}

/// The most bytes of a name or a user.
pub const MAX_TEXT_BYTES: usize = 255;
/// The most bytes of a reason.
pub const MAX_REASON_BYTES: usize = 1024;

/// A short text for people.
fn checked_text(field: &str, text: &str, limit: usize) -> Result<(), Refusal> {
    if text.len() > limit {
        return Err(Refusal::invalid(field, format!("has {} bytes; at most {limit}", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(Refusal::invalid(field, "must not contain control characters"));
    }
    Ok(())
}
