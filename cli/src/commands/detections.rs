//! What the rules found, and what RPs were told.

use clap::Args;
use panopticon_core::ids::ClientId;
use serde_json::Value;

use super::{Session, cell};
use crate::{
    control::{path, row},
    failure::Outcome,
    when::When,
};

/// Show what the rules found for an app, newest first
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  logi panopticon detections my-app
  logi panopticon detections my-app --user alice --since 7d --json")]
pub(crate) struct Detections {
    #[command(flatten)]
    query: Query,
}

/// Show what an app's RP was told (guard actions), newest first
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  logi panopticon actions my-app
  logi panopticon actions my-app --since 2h --json")]
pub(crate) struct Actions {
    #[command(flatten)]
    query: Query,
}

#[derive(Debug, Args)]
struct Query {
    /// The app
    client_id: ClientId,
    /// Only about this user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// From here on: a time, a date, or a span back such as 15m, 2h or 7d
    #[arg(long, value_name = "T", value_parser = When::parse)]
    since: Option<When>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

impl Query {
    async fn show<const N: usize>(
        self,
        s: &Session,
        list: &str,
        heading: [&str; N],
        cells: fn(&Value) -> [String; N],
        nothing: &str,
    ) -> Outcome {
        let id = self.client_id.as_str();
        let query = [("user_sub", self.user), ("since", self.since.map(|since| since.start().to_string()))];
        let rows = s.control.list(&path(&["apps", id, list]), &query, self.limit).await;
        let rows = rows.map_err(|failure| failure.about_app(id))?;
        if s.out.json {
            return s.out.json_list(&rows);
        }
        let rows = rows.iter().map(|raw| Ok(cells(&row(raw)?))).collect::<Outcome<_>>()?;
        s.out.table(heading, rows, nothing)
    }
}

impl Detections {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        let heading = ["DETECTED AT", "RULE", "SEVERITY", "ABOUT", "STATE", "EXPLANATION"];
        let cells = |detection: &Value| {
            let about: Vec<String> = ["user_sub", "source_ip", "tool"]
                .map(|field| cell(detection, field))
                .into_iter()
                .filter(|part| part != "-")
                .collect();
            let ended = detection["phase"] == "ended" || !detection["ended_at"].is_null();
            [
                cell(detection, "detected_at"),
                cell(detection, "rule"),
                cell(detection, "severity"),
                crate::output::or_dash(&about.join(" ")),
                if ended { "ended" } else { "open" }.to_owned(),
                cell(detection, "explanation"),
            ]
        };
        self.query.show(s, "detections", heading, cells, "nothing was detected").await
    }
}

impl Actions {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        let heading = ["CREATED AT", "TYPE", "USER", "WHAT", "ACTION ID"];
        let cells = |action: &Value| {
            let what = match (&action["detection"], &action["kill"]) {
                (Value::Object(_), _) => cell(&action["detection"], "explanation"),
                (_, Value::Object(_)) => {
                    format!("{} by {}", cell(&action["kill"], "state"), cell(&action["kill"], "actor"))
                }
                _ => "-".to_owned(),
            };
            let [at, kind, user, id] =
                ["created_at", "type", "user_sub", "action_id"].map(|field| cell(action, field));
            [at, kind, user, what, id]
        };
        self.query.show(s, "actions", heading, cells, "the RP was told nothing").await
    }
}
