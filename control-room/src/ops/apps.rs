//! Apps and their access keys.

use std::time::Duration;

use panopticon_core::{
    api::AppRequest,
    config::Secret,
    control::{Change, ControlState, key},
    ids::ClientId,
    proto::control::{App, Pak},
    secrets::{PAK_PREFIX, PAK_SECRET_PREFIX, Sealer, digest, random_key},
    time::Time,
};
use serde_json::json;

use super::{Decision, MAX_TEXT_BYTES, Refusal, RefusalKind, checked_text};

/// The most scopes of an app.
pub const MAX_SCOPES: usize = 100;
/// The most PAKs of an app that are valid at the same time.
pub const MAX_PAKS: usize = 10;
/// The longest time for which a rotated PAK stays valid: a week.
pub const MAX_GRACE_SECS: u64 = 604_800;

/// A PAK that was just made: the only moment at which it can be read.
pub struct NewPak {
    /// `pano_pak_…`.
    pub pak: Secret,
    /// `pano_sec_…`, where requests are to be signed.
    pub secret: Option<Secret>,
}

/// What became of a `PUT`.
pub struct AppPut {
    /// The app as it is now.
    pub app: App,
    /// Whether it is new.
    pub created: bool,
    /// Its new PAK: of a new app, and of one that begins to sign its requests.
    pub pak: Option<NewPak>,
}

/// What the sealed secret of an app's PAK is bound to.
pub fn sealed_about(client_id: &str) -> String {
    format!("app/{client_id}")
}

/// Whether a PAK is valid at `now`.
pub fn is_valid(pak: &Pak, now: Time) -> bool {
    pak.expires_at == 0 || pak.expires_at > now.micros()
}

/// Creates an app with its first PAK, or changes it. An app that begins to sign gets a PAK with a secret,
/// and those without one end: they could not sign.
pub fn put(
    state: &ControlState,
    now: Time,
    sealer: &Sealer,
    client_id: &ClientId,
    request: &AppRequest,
) -> Decision<AppPut> {
    check(request)?;
    let old = state.app_of(client_id);
    let mut app = match old {
        Some(app) => App::clone(app),
        None => App { client_id: client_id.to_string(), created_at: now.micros(), ..App::default() },
    };
    if let Some(name) = &request.name {
        app.name.clone_from(name);
    }
    if let Some(scopes) = &request.scopes {
        app.scopes.clone_from(scopes);
    }
    app.hmac = request.hmac.unwrap_or(app.hmac);
    app.disabled = request.disabled.unwrap_or(app.disabled);

    let signs = |app: &App| app.paks.iter().any(|pak| is_valid(pak, now) && !pak.sealed_secret.is_empty());
    let needs_pak = old.is_none() || (app.hmac && !signs(&app));
    let pak = needs_pak.then(|| {
        app.paks.clear();
        issue(&mut app, sealer, now)
    });
    if old.is_some_and(|old| **old == app) {
        return Ok((None, AppPut { app, created: false, pak: None }));
    }
    app.updated_at = now.micros();
    let action = if old.is_none() { "app.enable" } else { "app.update" };
    let mut change = Change::put(action, client_id.as_str(), key("app", &[client_id.as_str()]), Some(&app));
    change.detail = json!({
        "name": app.name, "scopes": app.scopes, "hmac": app.hmac, "disabled": app.disabled,
        "new_pak": pak.is_some(),
    });
    Ok((Some(change), AppPut { app, created: old.is_none(), pak }))
}

/// Refuses the app's traces from now on. Its PAKs, policy and data stay.
pub fn disable(state: &ControlState, now: Time, client_id: &ClientId) -> Decision<()> {
    let old = state.app_of(client_id).ok_or_else(|| Refusal::no_app(client_id.as_str()))?;
    if old.disabled {
        return Ok((None, ()));
    }
    let app = App { disabled: true, updated_at: now.micros(), ..App::clone(old) };
    let change =
        Change::put("app.disable", client_id.as_str(), key("app", &[client_id.as_str()]), Some(&app));
    Ok((Some(change), ()))
}

/// Issues a new PAK; the older ones end after `grace_secs`, unless they end earlier.
pub fn rotate(
    state: &ControlState,
    now: Time,
    sealer: &Sealer,
    client_id: &ClientId,
    grace_secs: u64,
) -> Decision<(NewPak, Time)> {
    let old = state.app_of(client_id).ok_or_else(|| Refusal::no_app(client_id.as_str()))?;
    if grace_secs > MAX_GRACE_SECS {
        return Err(Refusal::invalid("grace_secs", format!("must be at most {MAX_GRACE_SECS} (a week)")));
    }
    let end = now.plus(Duration::from_secs(grace_secs));
    let mut app = App::clone(old);
    for pak in &mut app.paks {
        if pak.expires_at == 0 || pak.expires_at > end.micros() {
            pak.expires_at = end.micros();
        }
    }
    app.paks.retain(|pak| is_valid(pak, now));
    if app.paks.len() >= MAX_PAKS {
        return Err(Refusal::new(
            RefusalKind::LimitReached,
            format!(
                "{MAX_PAKS} PAKs of the app are still valid; wait until one ends, or end them all with \"grace_secs\": 0"
            ),
        ));
    }
    let kept = app.paks.len();
    let pak = issue(&mut app, sealer, now);
    app.updated_at = now.micros();
    let mut change =
        Change::put("app.rotate", client_id.as_str(), key("app", &[client_id.as_str()]), Some(&app));
    change.detail = json!({"grace_secs": grace_secs, "previous_paks": kept});
    Ok((Some(change), (pak, end)))
}

/// Makes a PAK, with a secret where the app signs, and gives it to the app.
fn issue(app: &mut App, sealer: &Sealer, now: Time) -> NewPak {
    let pak = random_key(PAK_PREFIX);
    let secret = app.hmac.then(|| random_key(PAK_SECRET_PREFIX));
    app.paks.push(Pak {
        sha256: digest(pak.expose()).to_vec(),
        created_at: now.micros(),
        expires_at: 0,
        sealed_secret: secret
            .as_ref()
            .map(|secret| sealer.seal(&sealed_about(&app.client_id), secret))
            .unwrap_or_default(),
    });
    NewPak { pak, secret }
}

fn check(request: &AppRequest) -> Result<(), Refusal> {
    if let Some(name) = &request.name {
        checked_text("name", name, MAX_TEXT_BYTES)?;
    }
    let Some(scopes) = &request.scopes else { return Ok(()) };
    if scopes.len() > MAX_SCOPES {
        return Err(Refusal::invalid(
            "scopes",
            format!("has {} entries; at most {MAX_SCOPES}", scopes.len()),
        ));
    }
    for (i, scope) in scopes.iter().enumerate() {
        let field = format!("scopes[{i}]");
        // RFC 6749 §3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E )
        let is_token = |c: u8| matches!(c, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
        if scope.is_empty() || !scope.bytes().all(is_token) {
            let why = "must be one OAuth scope: visible ASCII without spaces, `\"` and `\\` (RFC 6749, §3.3)";
            return Err(Refusal::invalid(&field, why));
        }
        checked_text(&field, scope, MAX_TEXT_BYTES)?;
    }
    Ok(())
}
