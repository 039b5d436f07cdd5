//! What operators look up: the audit record.

use clap::Args;
use panopticon_core::ids::ClientId;
use serde_json::Value;

use super::{Session, cell};
use crate::{control::row, failure::Outcome, when::When};

/// Show who changed what, newest first
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  logi panopticon audit
  logi panopticon audit --client-id my-app --since 7d --json")]
pub(crate) struct Audit {
    /// Only about this app
    #[arg(long, value_name = "CLIENT_ID")]
    client_id: Option<ClientId>,
    /// From here on: a time, a date, or a span back such as 7d
    #[arg(long, value_name = "T", value_parser = When::parse)]
    since: Option<When>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

impl Audit {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        let query = [
            ("client_id", self.client_id.map(Into::into)),
            ("since", self.since.map(|since| since.start().to_string())),
        ];
        let rows = s.control.list("/audit", &query, self.limit).await?;
        if s.out.json {
            return s.out.json_list(&rows);
        }
        let cells = rows.iter().map(|raw| {
            let entry: Value = row(raw)?;
            Ok(["at", "actor", "action", "client_id", "target", "detail"].map(|field| cell(&entry, field)))
        });
        let heading = ["AT", "ACTOR", "ACTION", "CLIENT_ID", "TARGET", "DETAIL"];
        s.out.table(heading, cells.collect::<Outcome<_>>()?, "nothing was changed")
    }
}
