//! The kill switch: for an app, or for one of its users.

use panopticon_core::{
    api::{KillAnswer, KillRequest},
    control::{Change, ControlState, key},
    ids::ClientId,
    proto::{
        control::Kill,
        log::{GuardAction, KillSwitch},
    },
    time::Time,
};
use serde_json::json;
use uuid::Uuid;

use super::{Decision, MAX_REASON_BYTES, MAX_TEXT_BYTES, Refusal, RefusalKind, checked_text};

/// The most users of one app under a kill; the whole app can always be killed.
pub const MAX_KILLED_USERS: usize = 10_000;

/// A kill as the API shows it.
pub fn show(kill: &Kill) -> KillAnswer {
    KillAnswer {
        client_id: kill.client_id.clone(),
        user_sub: (!kill.user_sub.is_empty()).then(|| kill.user_sub.clone()),
        state: "killed".to_owned(),
        reason: kill.reason.clone(),
        actor: kill.actor.clone(),
        at: Time::from_micros(kill.killed_at),
    }
}

/// The user that a request names; empty for the whole app.
fn user_of(request: &KillRequest) -> Result<&str, Refusal> {
    match request.user_sub.as_deref() {
        None => Ok(""),
        // Taking this for "no user" would kill the whole app by a slip of the caller.
        Some("") => Err(Refusal::invalid("user_sub", "must not be empty; leave it out for the whole app")),
        Some(user) => checked_text("user_sub", user, MAX_TEXT_BYTES).map(|()| user),
    }
}

fn reason_of(request: &KillRequest) -> Result<String, Refusal> {
    let reason = request.reason.clone().unwrap_or_default();
    checked_text("reason", &reason, MAX_REASON_BYTES).map(|()| reason)
}

/// Kills. What is killed already stays as it is and is answered.
pub fn kill(
    state: &ControlState,
    now: Time,
    actor: &str,
    client_id: &ClientId,
    request: &KillRequest,
) -> Decision<KillAnswer> {
    let (user, reason) = (user_of(request)?, reason_of(request)?);
    if state.app_of(client_id).is_none() {
        return Err(Refusal::no_app(client_id.as_str()));
    }
    if let Some(kill) = state.kill(client_id.as_str(), user) {
        return Ok((None, show(kill)));
    }
    if !user.is_empty() && state.kills(client_id.as_str()).len() >= MAX_KILLED_USERS {
        return Err(Refusal::new(
            RefusalKind::LimitReached,
            format!("{MAX_KILLED_USERS} users of the app are under a kill; kill the whole app instead"),
        ));
    }
    let kill = Kill {
        client_id: client_id.to_string(),
        user_sub: user.to_owned(),
        reason,
        actor: actor.to_owned(),
        killed_at: now.micros(),
    };
    let answer = show(&kill);
    Ok((Some(change("kill", Some(&kill), &answer)), answer))
}

/// Lifts a kill.
pub fn lift(
    state: &ControlState,
    now: Time,
    actor: &str,
    client_id: &ClientId,
    request: &KillRequest,
) -> Decision<KillAnswer> {
    let (user, reason) = (user_of(request)?, reason_of(request)?);
    if state.app_of(client_id).is_none() {
        return Err(Refusal::no_app(client_id.as_str()));
    }
    if state.kill(client_id.as_str(), user).is_none() {
        let whom =
            if user.is_empty() { "the app as a whole is".to_owned() } else { format!("user `{user}` is") };
        return Err(Refusal::new(
            RefusalKind::NotFound,
            format!(
                "{whom} not under a kill; `GET /apps/{{client_id}}` lists the kills, and each is lifted by itself"
            ),
        ));
    }
    let answer = KillAnswer {
        client_id: client_id.to_string(),
        user_sub: request.user_sub.clone(),
        state: "lifted".to_owned(),
        reason,
        actor: actor.to_owned(),
        at: now,
    };
    Ok((Some(change("unkill", None, &answer)), answer))
}

/// The entry, and the message that tells the RP of it, together.
fn change(action: &'static str, kill: Option<&Kill>, answer: &KillAnswer) -> Change {
    let user = answer.user_sub.clone().unwrap_or_default();
    let mut parts = vec![answer.client_id.as_str()];
    parts.extend(answer.user_sub.as_deref());
    let mut change = Change::put(action, &answer.client_id, key("kill", &parts), kill);
    change.target.clone_from(&user);
    change.detail = json!({"user_sub": answer.user_sub, "reason": answer.reason});
    change.actions.push(GuardAction {
        action_id: Uuid::now_v7().to_string(),
        r#type: "panopticon.kill_switch".to_owned(),
        client_id: answer.client_id.clone(),
        user_sub: user.clone(),
        created_at: answer.at.micros(),
        kill: Some(KillSwitch {
            client_id: answer.client_id.clone(),
            user_sub: user,
            state: answer.state.clone(),
            reason: answer.reason.clone(),
            actor: answer.actor.clone(),
        }),
        ..GuardAction::default()
    });
    change
}
