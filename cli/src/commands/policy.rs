//! An app's policy, shown and changed.

use clap::Args;
use http::Method;
use panopticon_core::{
    api::{PolicyAnswer, RateLimitBody},
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

Examples:
  logi panopticon policy my-app
  logi panopticon policy my-app --rate-limit '{\"per_minute\":60,\"per_tool_per_minute\":20}'
  logi panopticon policy my-app --rate-limit null        # back to the default")]
pub(crate) struct Policy {
    /// The app
    client_id: ClientId,
    /// {"per_minute":N,"per_tool_per_minute":N}, or null for the default
    #[arg(long, value_name = "JSON", value_parser = rate_limit)]
    rate_limit: Option<Value>,
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

impl Policy {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        let id = self.client_id.as_str();
        let path = path(&["apps", id, "policy"]);
        let present = s.control.get(&path).await.map_err(|failure| failure.about_app(id))?;
        let mut changes = Map::new();
        for (name, value) in [
            ("rate_limit", self.rate_limit),
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
        s.out.line(match policy.version {
            0 => "version                        0 (everything is as by default)".to_owned(),
            n => format!("version                        {n}, changed {}", shown_or_dash(policy.updated_at)),
        })
    }
}
