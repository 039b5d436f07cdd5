//! Apps that the configuration names.

use panopticon_core::{
    config::{AppSeed, Config},
    control::{Actor, Change, ChangeError, ControlState, ControlWriter, key},
    ids::ClientId,
    log::LogError,
    proto::control::{App, Pak},
    secrets::{PAK_PREFIX, digest},
    time::Time,
};
use serde_json::json;

use super::{Decision, MAX_TEXT_BYTES, Refusal, RefusalKind, checked_text};

/// A PAK given by configuration has at least this many characters after its prefix.
const MIN_PAK_CHARS: usize = 32;

/// Why the configured apps are not there.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The configuration of one is not usable.
    #[error("configuration: `apps[{index}]`: {refusal}")]
    Refused {
        /// Which, counted from 0.
        index: usize,
        /// Why.
        refusal: Refusal,
    },
    /// The log could not take it.
    #[error("the configured apps cannot be written: {0}")]
    Log(#[from] LogError),
}

/// Makes the apps of `config.apps` and their PAKs, where they are not there yet; called at every start.
/// What is configured is in force: a configured PAK is valid again even if it was rotated away.
pub async fn seed(config: &Config, writer: &ControlWriter) -> Result<(), SeedError> {
    let actor = Actor { name: "configuration".to_owned(), request_id: String::new() };
    for (index, app) in config.apps.iter().enumerate() {
        match writer.change(&actor, |state, now| seed_app(state, now, app)).await {
            Ok(()) => {}
            Err(ChangeError::Refused(refusal)) => return Err(SeedError::Refused { index, refusal }),
            Err(ChangeError::Log(error)) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What one configured app changes; nothing when it is as configured.
fn seed_app(state: &ControlState, now: Time, seed: &AppSeed) -> Decision<()> {
    let client_id = ClientId::new(&seed.client_id).map_err(|why| Refusal::invalid("client_id", why))?;
    checked_text("name", &seed.name, MAX_TEXT_BYTES)?;
    let old = state.app_of(&client_id);
    let mut app = match old {
        Some(app) => App::clone(app),
        None => App { client_id: seed.client_id.clone(), created_at: now.micros(), ..App::default() },
    };
    if !seed.name.is_empty() {
        app.name.clone_from(&seed.name);
    }
    if !seed.pak.is_empty() {
        let pak = seed.pak.expose();
        if pak.strip_prefix(PAK_PREFIX).is_none_or(|random| random.len() < MIN_PAK_CHARS) {
            return Err(Refusal::invalid(
                "pak",
                format!("must be `{PAK_PREFIX}` and at least {MIN_PAK_CHARS} random characters"),
            ));
        }
        if state.pak(pak, now).is_some_and(|entry| entry.app.client_id != seed.client_id) {
            return Err(Refusal::new(RefusalKind::Conflict, "its `pak` belongs to another app"));
        }
        let digest = digest(pak).to_vec();
        match app.paks.iter_mut().find(|pak| pak.sha256 == digest) {
            Some(pak) => pak.expires_at = 0,
            None => app.paks.push(Pak { sha256: digest, created_at: now.micros(), ..Pak::default() }),
        }
    }
    if old.is_some_and(|old| **old == app) {
        return Ok((None, ()));
    }
    app.updated_at = now.micros();
    let action = if old.is_none() { "app.enable" } else { "app.update" };
    let mut change = Change::put(action, &seed.client_id, key("app", &[&seed.client_id]), Some(&app));
    change.detail = json!({"name": app.name, "configured_pak": !seed.pak.is_empty()});
    Ok((Some(change), ()))
}
