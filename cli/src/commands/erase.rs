//! Erasing a person.

use std::time::Duration;

use clap::Args;
use http::Method;
use panopticon_core::{
    api::{EraseAnswer, EraseRequest},
    ids::ClientId,
};

use super::Session;
use crate::{
    control::path,
    failure::Outcome,
    output::{counted, plain, plain_json, shown},
};

/// How long the server may wait for its stages and its trace store.
const TIMEOUT: Duration = Duration::from_secs(180);

/// Take a person out of an app's records
#[derive(Debug, Args)]
#[command(after_help = "\
Removes the user's raw traces; a random pseudonym stands for the user in aggregates, detections, guard actions \
and webhook deliveries. The app's sums stay. Copies in the event log run out by themselves; the answer says by \
when. The audit record does not name the user. Erasing twice is harmless.

Examples:
  logi panopticon erase my-app --user alice
  logi panopticon erase my-app --user alice --json")]
pub(crate) struct Erase {
    /// The app
    client_id: ClientId,
    /// The user
    #[arg(long, value_name = "USER")]
    user: String,
}

impl Erase {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        let app = self.client_id.as_str();
        let request = EraseRequest { user_sub: self.user };
        let at = path(&["apps", app, "erase"]);
        let answer = s.control.send_within(TIMEOUT, Method::POST, &at, &request).await;
        let answer = answer.map_err(|failure| failure.about_app(app))?;
        if s.out.json {
            return s.out.line(plain_json(&answer.text));
        }
        let EraseAnswer {
            erasure_id,
            complete,
            erased,
            log_copies_gone_by,
            delivery_copies_gone_by,
            notes,
            ..
        } = answer.read()?;
        let rows = [
            ("raw traces removed", erased.traces),
            ("counted for a pseudonym", erased.usage),
            ("detections renamed", erased.detections),
            ("guard actions renamed", erased.actions),
            ("deliveries renamed", erased.deliveries),
        ];
        let cells = rows.iter().map(|(what, count)| [(*what).to_owned(), count.to_string()]).collect();
        s.out.table(["ERASED", "COUNT"], cells, "nothing")?;
        s.out.line(format!(
            "copies in the event log are gone by {}, those of deliveries by {}",
            shown(log_copies_gone_by),
            shown(delivery_copies_gone_by)
        ))?;
        for note in &notes {
            s.out.line(plain(note))?;
        }
        let open = counted(notes.len() as u64, "note");
        s.out.line(match complete {
            true => format!("done; the audit record has it as {}", plain(&erasure_id)),
            false => {
                format!("not complete ({open} above); the audit record has it as {}", plain(&erasure_id))
            }
        })
    }
}
