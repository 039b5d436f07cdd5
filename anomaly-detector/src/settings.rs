//! What an app has said about its alarms.

use std::{collections::BTreeSet, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// The rules' settings for one app; the default is every rule on, an alarm a week each, nobody quiet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether the rule `burst` speaks.
    pub burst: bool,
    /// Whether the rule `off_hour` speaks.
    pub off_hour: bool,
    /// Whether the rule `failed_auth` speaks.
    pub failed_auth: bool,
    /// A rule tells only what is to be expected no more often than this in 30 days.
    pub alarms_a_month: f64,
    /// Users of whom nothing is told: known load tests, scanners of one's own.
    pub quiet_users: BTreeSet<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            burst: true,
            off_hour: true,
            failed_auth: true,
            alarms_a_month: 5.0,
            quiet_users: BTreeSet::new(),
        }
    }
}

impl Settings {
    /// Whether what is to be expected `monthly` times in 30 days is told of `user`.
    pub fn lets_through(&self, user: &str, monthly: f64) -> bool {
        monthly <= self.alarms_a_month && (user.is_empty() || !self.quiet_users.contains(user))
    }
}

type Ask = dyn Fn(&str) -> Arc<Settings> + Send + Sync;

/// Answers an app's settings as they are at the moment of asking.
#[derive(Clone)]
pub struct SettingsOf(Arc<Ask>);

impl SettingsOf {
    /// Asks `settings` for each app.
    pub fn new(settings: impl Fn(&str) -> Arc<Settings> + Send + Sync + 'static) -> Self {
        Self(Arc::new(settings))
    }

    /// The same for every app.
    pub fn all(settings: Settings) -> Self {
        let settings = Arc::new(settings);
        Self::new(move |_| Arc::clone(&settings))
    }

    /// The settings of `app`.
    pub fn of(&self, app: &str) -> Arc<Settings> {
        (self.0)(app)
    }
}

impl Default for SettingsOf {
    fn default() -> Self {
        Self::all(Settings::default())
    }
}

impl fmt::Debug for SettingsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SettingsOf").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_as_by_default_and_what_is_unknown_is_refused() {
        let settings: Settings = serde_json::from_str(r#"{"burst": false}"#).unwrap();
        assert_eq!(settings, Settings { burst: false, ..Settings::default() });
        assert!(serde_json::from_str::<Settings>(r#"{"bursts": false}"#).is_err());
    }

    #[test]
    fn only_what_is_rare_enough_is_told_and_nothing_of_a_quiet_user() {
        let settings = Settings { quiet_users: ["loadtest".to_owned()].into(), ..Settings::default() };
        assert!(settings.lets_through("user", 5.0));
        assert!(!settings.lets_through("user", 5.1));
        assert!(!settings.lets_through("loadtest", 0.0));
    }
}
