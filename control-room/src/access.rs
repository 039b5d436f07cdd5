//! Who asks, and what they may do.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{StatusCode, header, request::Parts},
};
use panopticon_core::{
    control::Actor,
    ids::ClientId,
    secrets::{digest, same_digest},
};

use crate::{
    answer::{ApiError, RequestId},
    room::Room,
};

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Everything.
    Admin,
    /// Everything of its apps.
    Owner,
    /// Looking at its apps.
    Read,
}

/// What somebody wants to do with an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Look.
    Read,
    /// Change.
    Change,
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    name: String,
    request_id: String,
    role: Role,
    /// The apps that it is for; `None`: all.
    apps: Option<Vec<String>>,
    /// What was presented, to be looked at again while a stream lasts.
    digest: [u8; 32],
}

impl Caller {
    /// Whose name goes into the audit record.
    pub fn actor(&self) -> Actor {
        Actor { name: self.name.clone(), request_id: self.request_id.clone() }
    }

    /// Checks an app of a path and whether the caller may do this with it.
    pub fn on_app(&self, client_id: &str, need: Need) -> Result<ClientId, ApiError> {
        let client_id = ClientId::new(client_id).map_err(|why| ApiError::invalid("client_id", why))?;
        if !self.sees(client_id.as_str()) {
            return Err(ApiError::forbidden(format!("the token is not for app `{client_id}`")));
        }
        if need == Need::Change && self.role == Role::Read {
            return Err(ApiError::forbidden(
                "the token's role `read` may only look; use one with role `owner`",
            ));
        }
        Ok(client_id)
    }

    /// Whether the app is one of the caller's.
    pub fn sees(&self, client_id: &str) -> bool {
        self.apps.as_ref().is_none_or(|apps| apps.iter().any(|app| app == client_id))
    }

    /// The apps that the caller is limited to; `None`: all.
    pub fn apps(&self) -> Option<&[String]> {
        self.apps.as_deref()
    }

    /// Only an admin may do this.
    pub fn admin(&self) -> Result<(), ApiError> {
        match self.role {
            Role::Admin => Ok(()),
            Role::Owner | Role::Read => Err(ApiError::forbidden("this needs a token with the role `admin`")),
        }
    }

    /// Only who may see all apps may see this.
    pub fn all_apps(&self) -> Result<(), ApiError> {
        match self.apps {
            None => Ok(()),
            Some(_) => Err(ApiError::forbidden("this concerns all apps, and the token is for some")),
        }
    }

    /// Whether what was presented is still valid, and for this app.
    pub fn still_sees(&self, room: &Room, client_id: &str) -> bool {
        Self::of_digest(room, self.digest).is_some_and(|caller| caller.sees(client_id))
    }

    fn of_digest(room: &Room, digest: [u8; 32]) -> Option<Self> {
        let caller = |name: String, role, apps| Self { name, request_id: String::new(), role, apps, digest };
        // All are compared, so that the time says nothing.
        let matches = room.admin_digests.iter().filter(|known| same_digest(&known[..], &digest)).count();
        if matches > 0 {
            return Some(caller("admin".to_owned(), Role::Admin, None));
        }
        let state = room.view.state();
        let token = state.token_by_digest(&digest, room.clock.now())?;
        let (role, apps) = match token.role.as_str() {
            "admin" => (Role::Admin, None),
            "owner" => (Role::Owner, Some(token.apps.clone())),
            "read" if token.apps.is_empty() => (Role::Read, None),
            "read" => (Role::Read, Some(token.apps.clone())),
            // Of a later version: it may do nothing here.
            _ => return None,
        };
        Some(caller(format!("token:{}", token.name), role, apps))
    }
}

impl FromRequestParts<Arc<Room>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, room: &Arc<Room>) -> Result<Self, ApiError> {
        let refuse = |text: &str| Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_token", text));
        let Some(header) = parts.headers.get(header::AUTHORIZATION) else {
            return refuse(
                "an API token is missing: send `Authorization: Bearer <token>`; the first is in the file `admin.token` of the data directory",
            );
        };
        let token = header.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return refuse("the header must be `Authorization: Bearer <token>`");
        };
        match Self::of_digest(room, digest(token)) {
            Some(mut caller) => {
                let id = parts.extensions.get::<RequestId>();
                caller.request_id = id.map(|id| id.0.to_string()).unwrap_or_default();
                Ok(caller)
            }
            None => refuse("the API token is not known, has expired or was revoked"),
        }
    }
}
