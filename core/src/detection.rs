//! What an app has said about its alarms: the part of its policy that the anomaly rules go by.

use std::collections::BTreeSet;

use panopticon_proto::control;
use serde::{Deserialize, Serialize};

use crate::admission::MAX_TEXT_BYTES;

/// The anomaly rules' settings for one app; the default is every rule on, five alarms a month each, nobody
/// quiet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectionSettings {
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

impl Default for DetectionSettings {
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

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {why}")]
pub struct WrongSetting {
    /// Its name.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

impl DetectionSettings {
    /// Fewer alarms are those of a rule that is off.
    pub const ALARMS_MIN: f64 = 0.01;
    /// With so many, everything that is noticed is told.
    pub const ALARMS_MAX: f64 = 1_000.0;
    /// The most quiet users.
    pub const QUIET_USERS_MAX: usize = 1_000;

    /// Whether what is to be expected `monthly` times in 30 days is told of `user`.
    pub fn lets_through(&self, user: &str, monthly: f64) -> bool {
        monthly <= self.alarms_a_month && (user.is_empty() || !self.quiet_users.contains(user))
    }

    /// These settings, if every value is one that can be.
    pub fn checked(self) -> Result<Self, WrongSetting> {
        check_alarms(self.alarms_a_month)?;
        check_users(self.quiet_users.iter())?;
        Ok(self)
    }
}

/// Checks `alarms_a_month`.
pub fn check_alarms(number: f64) -> Result<(), WrongSetting> {
    let (least, most) = (DetectionSettings::ALARMS_MIN, DetectionSettings::ALARMS_MAX);
    if (least..=most).contains(&number) {
        return Ok(());
    }
    Err(WrongSetting {
        field: "alarms_a_month".to_owned(),
        why: format!("must be a number from {least} to {most}; to hear nothing of a rule, switch it off"),
    })
}

/// Checks `quiet_users`.
pub fn check_users<'a>(users: impl ExactSizeIterator<Item = &'a String>) -> Result<(), WrongSetting> {
    let (users_max, bytes_max) = (DetectionSettings::QUIET_USERS_MAX, MAX_TEXT_BYTES);
    if users.len() > users_max {
        let why = format!("names {} users; at most {users_max}", users.len());
        return Err(WrongSetting { field: "quiet_users".to_owned(), why });
    }
    for (position, user) in users.enumerate() {
        let why = match user {
            user if user.is_empty() => "must not be empty: calls without a user are those of many".to_owned(),
            user if user.len() > bytes_max => format!("has {} bytes; at most {bytes_max}", user.len()),
            user if user.chars().any(char::is_control) => "must not contain control characters".to_owned(),
            _ => continue,
        };
        return Err(WrongSetting { field: format!("quiet_users[{position}]"), why });
    }
    Ok(())
}

/// In force: what an app has said, and the default for the rest.
impl From<&control::DetectionSettings> for DetectionSettings {
    fn from(said: &control::DetectionSettings) -> Self {
        let default = Self::default();
        Self {
            burst: said.burst.unwrap_or(default.burst),
            off_hour: said.off_hour.unwrap_or(default.off_hour),
            failed_auth: said.failed_auth.unwrap_or(default.failed_auth),
            alarms_a_month: said.alarms_a_month.unwrap_or(default.alarms_a_month),
            quiet_users: said.quiet_users.iter().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_as_by_default_and_what_is_unknown_is_refused() {
        let settings: DetectionSettings = serde_json::from_str(r#"{"burst": false}"#).unwrap();
        assert_eq!(settings, DetectionSettings { burst: false, ..DetectionSettings::default() });
        assert!(serde_json::from_str::<DetectionSettings>(r#"{"bursts": false}"#).is_err());
        let said = control::DetectionSettings { burst: Some(false), ..Default::default() };
        assert_eq!(DetectionSettings::from(&said), settings);
    }

    #[test]
    fn only_what_is_rare_enough_is_told_and_nothing_of_a_quiet_user() {
        let quiet_users = ["loadtest".to_owned()].into();
        let settings = DetectionSettings { quiet_users, ..DetectionSettings::default() };
        assert!(settings.lets_through("user", 5.0));
        assert!(!settings.lets_through("user", 5.1));
        assert!(!settings.lets_through("loadtest", 0.0));
    }

    #[test]
    fn a_value_that_cannot_be_is_refused_by_its_name() {
        let default = DetectionSettings::default;
        let users = |users: &[&str]| users.iter().map(ToString::to_string).collect();
        let many = (0..=DetectionSettings::QUIET_USERS_MAX).map(|n| n.to_string()).collect();
        for (settings, field) in [
            (DetectionSettings { alarms_a_month: 0.0, ..default() }, "alarms_a_month"),
            (DetectionSettings { alarms_a_month: f64::NAN, ..default() }, "alarms_a_month"),
            (DetectionSettings { alarms_a_month: 1_001.0, ..default() }, "alarms_a_month"),
            (DetectionSettings { quiet_users: users(&["a", ""]), ..default() }, "quiet_users[0]"),
            (DetectionSettings { quiet_users: users(&["a", "b\n"]), ..default() }, "quiet_users[1]"),
            (DetectionSettings { quiet_users: users(&[&"x".repeat(256)]), ..default() }, "quiet_users[0]"),
            (DetectionSettings { quiet_users: many, ..default() }, "quiet_users"),
        ] {
            assert_eq!(settings.checked().unwrap_err().field, field);
        }
        assert!(default().checked().is_ok());
    }
}
