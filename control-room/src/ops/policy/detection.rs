//! The part of a PATCH that is about the anomaly rules.

use panopticon_core::{
    detection::{self, WrongSetting},
    proto::control::DetectionSettings,
};
use serde_json::{Value, json};

use crate::ops::Refusal;

/// What a PATCH says of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Wish {
    /// Nothing.
    Keep,
    /// Everything back to the default.
    Reset,
    /// These; what is left out stays as it is.
    Set(Vec<Setting>),
}

/// One setting; `None`: back to the default.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Setting {
    Burst(Option<bool>),
    OffHour(Option<bool>),
    FailedAuth(Option<bool>),
    AlarmsAMonth(Option<f64>),
    QuietUsers(Vec<String>),
}

/// Reads the value of `detection`.
pub(super) fn parse(value: &Value) -> Result<Wish, Refusal> {
    let fields = match value {
        Value::Null => return Ok(Wish::Reset),
        Value::Object(fields) => fields,
        _ => return Err(Refusal::invalid("detection", "must be an object, or null for the default")),
    };
    let settings = fields.iter().map(|(name, value)| match name.as_str() {
        "burst" => on_or_off(name, value).map(Setting::Burst),
        "off_hour" => on_or_off(name, value).map(Setting::OffHour),
        "failed_auth" => on_or_off(name, value).map(Setting::FailedAuth),
        "alarms_a_month" => alarms(value).map(Setting::AlarmsAMonth),
        "quiet_users" => users(value).map(Setting::QuietUsers),
        _ => Err(invalid(
            name,
            "unknown field; expected `burst`, `off_hour`, `failed_auth`, `alarms_a_month` or `quiet_users`",
        )),
    });
    settings.collect::<Result<_, _>>().map(Wish::Set)
}

fn invalid(name: &str, why: impl Into<String>) -> Refusal {
    Refusal::invalid(&format!("detection.{}", name.chars().take(64).collect::<String>()), why)
}

fn wrong(wrong: WrongSetting) -> Refusal {
    invalid(&wrong.field, wrong.why)
}

fn on_or_off(name: &str, value: &Value) -> Result<Option<bool>, Refusal> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(on) => Ok(Some(*on)),
        _ => Err(invalid(name, "must be true, false, or null for the default")),
    }
}

fn alarms(value: &Value) -> Result<Option<f64>, Refusal> {
    match value {
        Value::Null => Ok(None),
        _ => {
            let number = value.as_f64().unwrap_or(f64::NAN);
            detection::check_alarms(number).map(|()| Some(number)).map_err(wrong)
        }
    }
}

/// Sorted, each once.
fn users(value: &Value) -> Result<Vec<String>, Refusal> {
    let list = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(list) => list,
        _ => return Err(invalid("quiet_users", "must be a list of users, or null for none")),
    };
    let names = list.iter().enumerate().map(|(position, name)| match name {
        Value::String(name) => Ok(name.clone()),
        _ => Err(invalid(&format!("quiet_users[{position}]"), "must be a string")),
    });
    let mut names: Vec<String> = names.collect::<Result<_, _>>()?;
    detection::check_users(names.iter()).map_err(wrong)?;
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

impl Wish {
    /// What has been said once this is said too; `None`: nothing.
    pub(super) fn onto(&self, old: Option<&DetectionSettings>) -> Option<DetectionSettings> {
        let settings = match self {
            Self::Keep => return old.cloned(),
            Self::Reset => return None,
            Self::Set(settings) => settings,
        };
        let mut said = old.cloned().unwrap_or_default();
        for setting in settings {
            match setting {
                Setting::Burst(on) => said.burst = *on,
                Setting::OffHour(on) => said.off_hour = *on,
                Setting::FailedAuth(on) => said.failed_auth = *on,
                Setting::AlarmsAMonth(number) => said.alarms_a_month = *number,
                Setting::QuietUsers(users) => said.quiet_users.clone_from(users),
            }
        }
        (said != DetectionSettings::default()).then_some(said)
    }
}

/// For the audit record, which is kept for good: how many users are quiet, and not who.
pub(super) fn for_audit(said: Option<&DetectionSettings>) -> Value {
    said.map_or(Value::Null, |said| {
        json!({
            "burst": said.burst, "off_hour": said.off_hour, "failed_auth": said.failed_auth,
            "alarms_a_month": said.alarms_a_month, "quiet_users": said.quiet_users.len(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_stays_and_null_is_the_default_again() {
        let say = |old: Option<DetectionSettings>, value: Value| parse(&value).unwrap().onto(old.as_ref());
        let first = say(None, json!({"burst": false, "quiet_users": ["b", "a", "b"]}));
        let second = say(first.clone(), json!({"alarms_a_month": 1}));
        assert_eq!(
            second,
            Some(DetectionSettings {
                burst: Some(false),
                alarms_a_month: Some(1.0),
                quiet_users: vec!["a".to_owned(), "b".to_owned()],
                ..DetectionSettings::default()
            })
        );
        assert_eq!(say(second.clone(), json!({})), second);
        assert_eq!(say(second.clone(), json!({"alarms_a_month": null})), first);
        assert_eq!(say(first, json!({"burst": null, "quiet_users": []})), None);
        assert_eq!(say(second, Value::Null), None);
    }

    #[test]
    fn the_audit_record_names_no_quiet_user() {
        let said = DetectionSettings { quiet_users: vec!["alice".to_owned()], ..Default::default() };
        assert_eq!(for_audit(Some(&said))["quiet_users"], 1);
        assert!(!for_audit(Some(&said)).to_string().contains("alice"));
    }
}
