//! The control table in memory, with the indexes that requests need.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use panopticon_proto::control::{
    App, Kill, LogIdentity, Policy, ReplayedLetter, SchemaVersion, Token, WebhookEndpoint,
};
use prost::Message as _;
use tracing::warn;

use super::parse_key;
use crate::{api::RateLimitBody, detection::DetectionSettings, ids::ClientId, secrets::digest, time::Time};

/// A valid PAK and what it stands for.
#[derive(Debug, Clone)]
pub struct PakEntry {
    /// The app that it belongs to.
    pub app: Arc<App>,
    /// 0: does not expire.
    pub expires_at: i64,
    /// The HMAC secret that belongs to it, sealed.
    pub sealed_secret: Vec<u8>,
}

/// What AI Guard says to an RP about an app or one of its users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// The whole app is killed.
    AppKilled,
    /// This user of the app is killed.
    UserKilled,
}

impl Guard {
    /// The value of `X-Panopticon-Guard`.
    pub const fn header(self) -> &'static str {
        match self {
            Self::AppKilled => "killed",
            Self::UserKilled => "killed; scope=user",
        }
    }
}

/// Everything that the topic `control` says.
#[derive(Debug, Default)]
pub struct ControlState {
    apps: HashMap<String, Arc<App>>,
    paks: HashMap<[u8; 32], PakEntry>,
    policies: HashMap<String, Arc<Policy>>,
    /// Of the apps whose policy says something of it; asked for with every trace.
    detection: HashMap<String, Arc<DetectionSettings>>,
    default_detection: Arc<DetectionSettings>,
    /// By app, then user; the empty user is the whole app.
    kills: HashMap<String, HashMap<String, Arc<Kill>>>,
    webhooks: HashMap<String, Arc<WebhookEndpoint>>,
    webhooks_by_app: HashMap<String, BTreeSet<String>>,
    tokens: HashMap<String, Arc<Token>>,
    tokens_by_digest: HashMap<[u8; 32], String>,
    replayed: HashMap<String, ReplayedLetter>,
    logs: HashMap<String, LogIdentity>,
    schema: u32,
}

impl ControlState {
    /// Takes in one record of the topic; `None` is a tombstone. What cannot be read is reported and skipped.
    pub fn apply(&mut self, key: &[u8], value: Option<&[u8]>) {
        let Some((kind, parts)) = parse_key(key) else {
            warn!(key = %String::from_utf8_lossy(key), "control: a key of an unknown form is skipped");
            return;
        };
        if let Err(error) = self.apply_parsed(&kind, &parts, value) {
            warn!(key = %String::from_utf8_lossy(key), %error, "control: an entry that cannot be decoded is skipped");
        }
    }

    fn apply_parsed(
        &mut self,
        kind: &str,
        parts: &[String],
        value: Option<&[u8]>,
    ) -> Result<(), prost::DecodeError> {
        match (kind, parts) {
            ("app", [client_id]) => self.put_app(client_id, value.map(App::decode).transpose()?),
            ("policy", [client_id]) => self.put_policy(client_id, value.map(Policy::decode).transpose()?),
            ("kill", [client_id, rest @ ..]) => {
                let user = rest.first().cloned().unwrap_or_default();
                match value.map(Kill::decode).transpose()? {
                    Some(kill) => {
                        self.kills.entry(client_id.clone()).or_default().insert(user, Arc::new(kill));
                    }
                    None => {
                        if let Some(users) = self.kills.get_mut(client_id) {
                            users.remove(&user);
                            if users.is_empty() {
                                self.kills.remove(client_id);
                            }
                        }
                    }
                }
            }
            ("webhook", [id]) => self.put_webhook(id, value.map(WebhookEndpoint::decode).transpose()?),
            ("token", [id]) => self.put_token(id, value.map(Token::decode).transpose()?),
            ("replayed", [id]) => match value.map(ReplayedLetter::decode).transpose()? {
                Some(letter) => drop(self.replayed.insert(id.clone(), letter)),
                None => drop(self.replayed.remove(id)),
            },
            ("log", [topic]) => match value.map(LogIdentity::decode).transpose()? {
                Some(identity) => drop(self.logs.insert(topic.clone(), identity)),
                None => drop(self.logs.remove(topic)),
            },
            ("schema", _) => {
                self.schema =
                    value.map(SchemaVersion::decode).transpose()?.map_or(0, |schema| schema.version);
            }
            _ => warn!(kind, "control: an entry of an unknown kind is skipped; a newer version wrote it"),
        }
        Ok(())
    }

    fn put_app(&mut self, client_id: &str, app: Option<App>) {
        if let Some(old) = self.apps.remove(client_id) {
            for pak in &old.paks {
                if let Ok(digest) = <[u8; 32]>::try_from(pak.sha256.as_slice()) {
                    self.paks.remove(&digest);
                }
            }
        }
        let Some(app) = app.map(Arc::new) else { return };
        for pak in &app.paks {
            if let Ok(digest) = <[u8; 32]>::try_from(pak.sha256.as_slice()) {
                let entry = PakEntry {
                    app: app.clone(),
                    expires_at: pak.expires_at,
                    sealed_secret: pak.sealed_secret.clone(),
                };
                self.paks.insert(digest, entry);
            }
        }
        self.apps.insert(client_id.to_owned(), app);
    }

    fn put_policy(&mut self, client_id: &str, policy: Option<Policy>) {
        match policy.as_ref().and_then(|policy| policy.detection.as_ref()) {
            Some(said) => drop(self.detection.insert(client_id.to_owned(), Arc::new(said.into()))),
            None => drop(self.detection.remove(client_id)),
        }
        match policy {
            Some(policy) => drop(self.policies.insert(client_id.to_owned(), Arc::new(policy))),
            None => drop(self.policies.remove(client_id)),
        }
    }

    fn put_webhook(&mut self, id: &str, endpoint: Option<WebhookEndpoint>) {
        if let Some(old) = self.webhooks.remove(id)
            && let Some(ids) = self.webhooks_by_app.get_mut(&old.client_id)
        {
            ids.remove(id);
            if ids.is_empty() {
                self.webhooks_by_app.remove(&old.client_id);
            }
        }
        if let Some(endpoint) = endpoint {
            self.webhooks_by_app.entry(endpoint.client_id.clone()).or_default().insert(id.to_owned());
            self.webhooks.insert(id.to_owned(), Arc::new(endpoint));
        }
    }

    fn put_token(&mut self, id: &str, token: Option<Token>) {
        self.tokens_by_digest.retain(|_, known| known != id);
        self.tokens.remove(id);
        if let Some(token) = token {
            if let Ok(digest) = <[u8; 32]>::try_from(token.sha256.as_slice()) {
                self.tokens_by_digest.insert(digest, id.to_owned());
            }
            self.tokens.insert(id.to_owned(), Arc::new(token));
        }
    }

    /// What a PAK stands for, unless it is unknown or has expired by `now`.
    pub fn pak(&self, pak: &str, now: Time) -> Option<&PakEntry> {
        self.paks.get(&digest(pak)).filter(|entry| entry.expires_at == 0 || entry.expires_at > now.micros())
    }

    /// An app.
    pub fn app(&self, client_id: &str) -> Option<&Arc<App>> {
        self.apps.get(client_id)
    }

    /// All apps, by client id.
    pub fn apps(&self) -> Vec<Arc<App>> {
        let mut apps: Vec<_> = self.apps.values().cloned().collect();
        apps.sort_by(|a, b| a.client_id.cmp(&b.client_id));
        apps
    }

    /// An app's policy, where it has one of its own.
    pub fn policy(&self, client_id: &str) -> Option<&Arc<Policy>> {
        self.policies.get(client_id)
    }

    /// The rate limits in force for an app: its own or the default.
    pub fn rate_limit(&self, client_id: &str) -> RateLimitBody {
        match self.policies.get(client_id).and_then(|policy| policy.rate_limit.as_ref()) {
            None => RateLimitBody::default(),
            Some(own) => {
                RateLimitBody { per_minute: own.per_minute, per_tool_per_minute: own.per_tool_per_minute }
            }
        }
    }

    /// The anomaly rules' settings in force for an app: its own or the default.
    pub fn detection(&self, client_id: &str) -> Arc<DetectionSettings> {
        Arc::clone(self.detection.get(client_id).unwrap_or(&self.default_detection))
    }

    /// Whether the app, or this user of it, is under a kill.
    pub fn guard(&self, client_id: &str, user_sub: &str) -> Option<Guard> {
        let users = self.kills.get(client_id)?;
        if users.contains_key("") {
            Some(Guard::AppKilled)
        } else if users.contains_key(user_sub) {
            Some(Guard::UserKilled)
        } else {
            None
        }
    }

    /// The kill of an app (empty user) or of one of its users.
    pub fn kill(&self, client_id: &str, user_sub: &str) -> Option<&Arc<Kill>> {
        self.kills.get(client_id)?.get(user_sub)
    }

    /// All kills of an app, the app's own first.
    pub fn kills(&self, client_id: &str) -> Vec<Arc<Kill>> {
        let mut kills: Vec<_> =
            self.kills.get(client_id).into_iter().flat_map(HashMap::values).cloned().collect();
        kills.sort_by(|a, b| a.user_sub.cmp(&b.user_sub));
        kills
    }

    /// A webhook endpoint.
    pub fn webhook(&self, endpoint_id: &str) -> Option<&Arc<WebhookEndpoint>> {
        self.webhooks.get(endpoint_id)
    }

    /// An app's webhook endpoints, oldest first.
    pub fn webhooks(&self, client_id: &str) -> Vec<Arc<WebhookEndpoint>> {
        let ids = self.webhooks_by_app.get(client_id);
        let mut found: Vec<_> =
            ids.into_iter().flatten().filter_map(|id| self.webhooks.get(id)).cloned().collect();
        found.sort_by_key(|endpoint| (endpoint.created_at, endpoint.endpoint_id.clone()));
        found
    }

    /// The API token with this text, unless it has expired by `now`.
    pub fn token_by_text(&self, text: &str, now: Time) -> Option<&Arc<Token>> {
        self.token_by_digest(&digest(text), now)
    }

    /// The API token with this digest, unless it has expired by `now`.
    pub fn token_by_digest(&self, digest: &[u8; 32], now: Time) -> Option<&Arc<Token>> {
        let token = self.tokens.get(self.tokens_by_digest.get(digest)?)?;
        (token.expires_at == 0 || token.expires_at > now.micros()).then_some(token)
    }

    /// An API token.
    pub fn token(&self, token_id: &str) -> Option<&Arc<Token>> {
        self.tokens.get(token_id)
    }

    /// All API tokens, oldest first.
    pub fn tokens(&self) -> Vec<Arc<Token>> {
        let mut tokens: Vec<_> = self.tokens.values().cloned().collect();
        tokens.sort_by_key(|token| (token.created_at, token.token_id.clone()));
        tokens
    }

    /// The replay of a dead letter, if there was one.
    pub fn replayed(&self, dead_letter_id: &str) -> Option<&ReplayedLetter> {
        self.replayed.get(dead_letter_id)
    }

    /// All replays of dead letters, in no order.
    pub fn all_replayed(&self) -> impl ExactSizeIterator<Item = &ReplayedLetter> {
        self.replayed.values()
    }

    /// The identity of a topic.
    pub fn log_identity(&self, topic: &str) -> Option<&LogIdentity> {
        self.logs.get(topic)
    }

    /// The schema version that `migrate` has reached.
    pub const fn schema(&self) -> u32 {
        self.schema
    }

    /// The app of a checked id.
    pub fn app_of(&self, client_id: &ClientId) -> Option<&Arc<App>> {
        self.apps.get(client_id.as_str())
    }
}

#[cfg(test)]
mod tests {
    use panopticon_proto::control::Pak;

    use super::*;
    use crate::control::key;

    fn put<M: prost::Message>(state: &mut ControlState, key: String, message: &M) {
        state.apply(key.as_bytes(), Some(&message.encode_to_vec()));
    }

    #[test]
    fn a_pak_is_valid_until_it_expires_or_its_app_is_changed() {
        let mut state = ControlState::default();
        let pak =
            |text: &str, expires_at| Pak { sha256: digest(text).to_vec(), expires_at, ..Pak::default() };
        let app = |paks| App { client_id: "a/b".to_owned(), paks, ..App::default() };
        put(&mut state, key("app", &["a/b"]), &app(vec![pak("old", 10), pak("new", 0)]));
        assert!(state.pak("old", Time::from_micros(9)).is_some());
        assert!(state.pak("old", Time::from_micros(10)).is_none());
        assert_eq!(state.pak("new", Time::from_micros(99)).unwrap().app.client_id, "a/b");
        put(&mut state, key("app", &["a/b"]), &app(vec![pak("newer", 0)]));
        assert!(state.pak("new", Time::EPOCH).is_none() && state.pak("newer", Time::EPOCH).is_some());
    }

    #[test]
    fn a_kill_of_the_app_covers_its_users_and_is_lifted_by_a_tombstone() {
        let mut state = ControlState::default();
        let user_key = key("kill", &["app", "user/1"]);
        put(
            &mut state,
            user_key.clone(),
            &Kill { client_id: "app".to_owned(), user_sub: "user/1".to_owned(), ..Kill::default() },
        );
        assert_eq!(state.guard("app", "user/1"), Some(Guard::UserKilled));
        assert_eq!(state.guard("app", "other"), None);
        put(&mut state, key("kill", &["app"]), &Kill { client_id: "app".to_owned(), ..Kill::default() });
        assert_eq!(state.guard("app", "other"), Some(Guard::AppKilled));
        state.apply(key("kill", &["app"]).as_bytes(), None);
        state.apply(user_key.as_bytes(), None);
        assert_eq!(state.guard("app", "user/1"), None);
    }

    #[test]
    fn an_app_without_settings_of_its_own_has_the_default_ones_also_after_it_had_others() {
        use panopticon_proto::control::DetectionSettings as Said;
        let mut state = ControlState::default();
        let policy = |detection| Policy { client_id: "app".to_owned(), detection, ..Policy::default() };
        let off = Said { off_hour: Some(false), ..Said::default() };
        put(&mut state, key("policy", &["app"]), &policy(Some(off)));
        assert!(!state.detection("app").off_hour && state.detection("other").off_hour);
        put(&mut state, key("policy", &["app"]), &policy(None));
        assert!(state.detection("app").off_hour);
    }

    #[test]
    fn bytes_that_are_no_entry_change_nothing() {
        let mut state = ControlState::default();
        state.apply(b"\xff\xfe", Some(b"x"));
        state.apply(b"app/x", Some(b"\xff\xff\xff"));
        state.apply(b"future/x", Some(b""));
        assert!(state.apps().is_empty());
    }
}
