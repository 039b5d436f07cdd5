//! Erasing a person: what is checked, and what the audit record says of it without naming them.

use panopticon_core::{
    api::EraseRequest,
    control::{Change, ControlState},
    erasure::ErasedCounts,
    ids::ClientId,
};
use uuid::Uuid;

use super::{Decision, MAX_TEXT_BYTES, Refusal, checked_text};

/// Where the control table names a person.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Named {
    /// Under a kill.
    pub killed: bool,
    /// Among the quiet users of the app's policy.
    pub quiet: bool,
}

/// Notes that an erasure begins, before anything is touched; answers where the person is still named.
pub fn begin(
    state: &ControlState,
    client_id: &ClientId,
    request: &EraseRequest,
    erasure_id: Uuid,
) -> Decision<Named> {
    if request.user_sub.is_empty() {
        return Err(Refusal::invalid("user_sub", "must not be empty; traces without a user name nobody"));
    }
    checked_text("user_sub", &request.user_sub, MAX_TEXT_BYTES)?;
    if state.app_of(client_id).is_none() {
        return Err(Refusal::no_app(client_id.as_str()));
    }
    let named = Named {
        killed: state.kill(client_id.as_str(), &request.user_sub).is_some(),
        quiet: state.detection(client_id.as_str()).quiet_users.contains(&request.user_sub),
    };
    Ok((Some(note("user.erase", client_id, erasure_id, serde_json::Value::Null)), named))
}

/// Notes what was erased.
pub fn end(client_id: &ClientId, erasure_id: Uuid, counts: &ErasedCounts) -> Decision<()> {
    let detail = serde_json::to_value(counts).unwrap_or_default();
    Ok((Some(note("user.erased", client_id, erasure_id, detail)), ()))
}

/// The target is the erasure, not the person: nothing leads from one to the other.
fn note(action: &'static str, client_id: &ClientId, erasure_id: Uuid, detail: serde_json::Value) -> Change {
    Change {
        action,
        client_id: client_id.to_string(),
        target: erasure_id.to_string(),
        detail,
        ..Change::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::RefusalKind;

    #[test]
    fn an_erasure_names_a_user_of_an_app_that_is_there() {
        let (state, app) = (ControlState::default(), ClientId::new("app").unwrap());
        let begin = |user: &str| {
            let request = EraseRequest { user_sub: user.to_owned() };
            begin(&state, &app, &request, Uuid::nil()).unwrap_err()
        };
        assert_eq!(begin("").field.as_deref(), Some("user_sub"));
        assert_eq!(begin("a\nb").field.as_deref(), Some("user_sub"));
        assert_eq!(begin("alice").kind, RefusalKind::NotFound);
    }
}
