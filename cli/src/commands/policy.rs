//! An app's policy, shown and changed.

use clap::Args;
use http::Method;
use panopticon_core::{
    api::{PolicyAnswer, RateLimitBody},
    detection::DetectionSettings,
    ids::ClientId,
};
use serde_json::{Map, Value, json};

use super::Session;
use crate::{
    control::path,
    failure::{Failure, Outcome},
    output::{plain, plain_json, shown_or_dash},
};

/// Show or change an app's policy
#[derive(Debug, Args)]
#[command(after_help = "\
Without a setting the policy in force is shown. A change is made only if nobody else has changed the \
policy in between. The limits hold per app and user in any 60 seconds; 0 means not limited. A setting that \
this build does not enforce (--hitl, --drift) is refused by the server, never just saved.

--detection says what the anomaly rules may tell, and each of its fields may be left out, which keeps it, or \
null, which is the default again:
  burst, off_hour, failed_auth   whether the rule speaks
  alarms_a_month                 a rule tells only what is to be expected no more often than this in 30 days
  quiet_users                    users of whom nothing is told, such as load tests; replaces the list
A change holds within a second, for what begins after it; an episode that is open still gets its end. To try \
settings on past traces before: panopticon backtest --app my-app --since 30d --rules FILE

Examples:
  logi panopticon policy my-app
  logi panopticon policy my-app --rate-limit '{\"per_minute\":60,\"per_tool_per_minute\":20}'
  logi panopticon policy my-app --rate-limit null        # back to the default
  logi panopticon policy my-app --detection '{\"off_hour\":false}'
  logi panopticon policy my-app --detection '{\"alarms_a_month\":1,\"quiet_users\":[\"loadtest\"]}'
  logi panopticon policy my-app --detection null         # every rule on, five alarms a month")]
pub(crate) struct Policy {
    /// The app
    client_id: ClientId,
    /// {"per_minute":N,"per_tool_per_minute":N}, or null for the default
    #[arg(long, value_name = "JSON", value_parser = rate_limit)]
    rate_limit: Option<Value>,
    /// {"burst":true|false,…,"alarms_a_month":N,"quiet_users":["…"]}, or null for the default
    #[arg(long, value_name = "JSON", value_parser = detection)]
    detection: Option<Value>,
    /// The tools that need an approval, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    hitl: Option<Vec<String>>,
    /// What a scope drift leads to
    #[arg(long, value_name = "MODE", value_parser = ["log_only", "alert", "block"])]
    drift: Option<String>,
}

fn rate_limit(text: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if !value.is_null() {
        serde_json::from_value::<RateLimitBody>(value.clone()).map_err(|error| error.to_string())?;
    }
    Ok(value)
}

/// Only what can be seen without the server, which decides.
fn detection(text: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if let Value::Object(fields) = &value {
        let said = fields.iter().filter(|(_, value)| !value.is_null());
        let said: Map<String, Value> = said.map(|(name, value)| (name.clone(), value.clone())).collect();
        let settings: DetectionSettings =
            serde_json::from_value(said.into()).map_err(|error| error.to_string())?;
        settings.checked().map_err(|wrong| wrong.to_string())?;
    } else if !value.is_null() {
        return Err("must be a JSON object, or null".to_owned());
    }
    Ok(value)
}

impl Policy {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        let id = self.client_id.as_str();
        let path = path(&["apps", id, "policy"]);
        let present = s.control.get(&path).await.map_err(|failure| failure.about_app(id))?;
        let mut changes = Map::new();
        for (name, value) in [
            ("rate_limit", self.rate_limit),
            ("detection", self.detection),
            ("hitl", self.hitl.map(|tools| json!(tools))),
            ("drift", self.drift.map(|mode| json!(mode))),
        ] {
            if let Some(value) = value {
                changes.insert(name.to_owned(), value);
            }
        }
        let answer = if changes.is_empty() {
            present
        } else {
            let etag = present.etag.ok_or_else(|| Failure::new("the server gave the policy no ETag"))?;
            s.control.send_if_match(Method::PATCH, &path, etag, &changes).await.map_err(|failure| {
                match failure.code.as_str() {
                    "precondition_failed" => failure.hint("look at it and try again"),
                    _ => failure,
                }
            })?
        };
        if s.out.json {
            return s.out.line(plain_json(&answer.text));
        }
        let policy: PolicyAnswer = answer.read()?;
        let limit = |n: u32| if n == 0 { "not limited".to_owned() } else { format!("{n} calls") };
        s.out.line(format!("app                            {}", plain(&policy.client_id)))?;
        s.out.line(format!("per user and minute            {}", limit(policy.rate_limit.per_minute)))?;
        s.out.line(format!(
            "per user, tool and minute      {}",
            limit(policy.rate_limit.per_tool_per_minute)
        ))?;
        let detection = &policy.detection;
        let speaks = |on: bool| if on { "on" } else { "off" };
        s.out.line(format!("rule burst                     {}", speaks(detection.burst)))?;
        s.out.line(format!("rule off_hour                  {}", speaks(detection.off_hour)))?;
        s.out.line(format!("rule failed_auth               {}", speaks(detection.failed_auth)))?;
        s.out.line(format!("alarms a month and rule        {} at most", detection.alarms_a_month))?;
        let quiet: Vec<String> = detection.quiet_users.iter().map(|user| plain(user)).collect();
        let quiet = if quiet.is_empty() { "none".to_owned() } else { quiet.join(", ") };
        s.out.line(format!("quiet users                    {quiet}"))?;
        s.out.line(match policy.version {
            0 => "version                        0 (everything is as by default)".to_owned(),
            n => format!("version                        {n}, changed {}", shown_or_dash(policy.updated_at)),
        })
    }
}
