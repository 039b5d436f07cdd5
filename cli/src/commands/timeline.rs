//! An app's traces: stored ones, newest first, and live.

use std::collections::HashSet;

use clap::Args;
use panopticon_core::{
    ids::{ClientId, EventId},
    trace::AcceptedTrace,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Session;
use crate::{
    called::command,
    control::{path, row},
    failure::{Failure, Outcome},
    output::{counted, or_dash, plain, plain_json, shown},
    sse::{Event, Live},
    when::When,
};

/// Show an app's traces, newest first, or follow them live
#[derive(Debug, Args)]
#[command(after_help = "\
--follow first shows the latest traces, oldest first, and then each new one as it is stored; Ctrl-C ends \
it with status 0. It connects again by itself and goes on after the last trace shown; what was missed for \
being too much is counted on stderr. With --json it prints one trace a line instead of an array.

Examples:
  logi panopticon timeline my-app
  logi panopticon timeline my-app --user alice --status denied --since 2h
  logi panopticon timeline my-app --since 2026-06-30 --limit 5000 --json
  logi panopticon timeline my-app --follow")]
pub(crate) struct Timeline {
    /// The app
    client_id: ClientId,
    /// Only this user's
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Only calls of this tool
    #[arg(long)]
    tool: Option<String>,
    /// Only with this status
    #[arg(long, value_parser = ["ok", "error", "denied"])]
    status: Option<String>,
    /// From here on: a time, a date, or a span back such as 15m, 2h or 7d
    #[arg(long, value_name = "T", value_parser = When::parse)]
    since: Option<When>,
    /// Up to here, inclusive
    #[arg(long, value_name = "T", value_parser = When::parse, conflicts_with = "follow")]
    until: Option<When>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    /// Go on with new traces as they are stored
    #[arg(long, short)]
    follow: bool,
}

const HEADING: [&str; 6] = ["STARTED AT", "USER", "TOOL", "STATUS", "MS", "EVENT ID"];

impl Timeline {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        if self.follow {
            return tokio::select! {
                ended = self.follow(s) => ended,
                stopped = tokio::signal::ctrl_c() => stopped.map_err(Failure::from),
            };
        }
        let rows = self.stored(s).await?;
        if s.out.json {
            return s.out.json_list(&rows);
        }
        let cells = rows.iter().map(|raw| Ok(cells(&row(raw)?))).collect::<Outcome<_>>()?;
        s.out.table(HEADING, cells, "no traces")
    }

    async fn stored(&self, s: &Session) -> Outcome<Vec<Box<RawValue>>> {
        let query = [
            ("since", self.since.map(|since| since.start().to_string())),
            ("until", self.until.map(|until| until.end().to_string())),
            ("user_sub", self.user.clone()),
            ("tool", self.tool.clone()),
            ("status", self.status.clone()),
        ];
        let id = self.client_id.as_str();
        let rows = s.control.list(&path(&["apps", id, "timeline"]), &query, self.limit).await;
        rows.map_err(|failure| failure.about_app(id))
    }

    /// Opens the stream first, so that nothing falls between it and what is stored.
    async fn follow(&self, s: &Session) -> Outcome {
        let id = self.client_id.as_str();
        let told = |why: &str| eprintln!("logi: the connection broke ({}); connecting again", plain(why));
        let live = Live::open(&s.control, path(&["apps", id, "live"]), told).await;
        let mut live = live.map_err(|failure| failure.about_app(id))?;
        let mut shown: HashSet<EventId> = HashSet::new();
        for raw in self.stored(s).await?.iter().rev() {
            shown.insert(self.show(s, raw)?);
        }
        loop {
            let Event { name, data } = live.next().await?;
            match name.as_str() {
                "trace" => {
                    let raw: Box<RawValue> = serde_json::from_str(&data)
                        .map_err(|error| Failure::new(format!("a live trace is not understood: {error}")))?;
                    let accepted: AcceptedTrace = row(&raw)?;
                    // What was stored while the stream was opened comes by both ways.
                    if !shown.remove(&accepted.trace.event_id) && self.wants(&accepted) {
                        self.show(s, &raw)?;
                    }
                }
                "missed" => s.out.note(missed(&data)),
                _ => {}
            }
        }
    }

    fn wants(&self, accepted: &AcceptedTrace) -> bool {
        let trace = &accepted.trace;
        let is =
            |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        is(&self.user, &trace.user_sub)
            && is(&self.tool, &trace.tool)
            && is(&self.status, trace.status.as_str())
            && self.since.is_none_or(|since| trace.started_at >= since.start())
    }

    fn show(&self, s: &Session, raw: &RawValue) -> Outcome<EventId> {
        let accepted: AcceptedTrace = row(raw)?;
        let event_id = accepted.trace.event_id;
        if s.out.json {
            s.out.line(plain_json(raw.get()))?;
        } else {
            let [at, user, tool, status, ms, event_id] = cells(&accepted).map(|cell| plain(&cell));
            s.out.line(format!("{at}  {user:<18}  {tool:<26}  {status:<12}  {ms:>6} ms  {event_id}"))?;
        }
        Ok(event_id)
    }
}

fn cells(accepted: &AcceptedTrace) -> [String; 6] {
    let trace = &accepted.trace;
    let mut status = trace.status.as_str().to_owned();
    if !trace.error_code.is_empty() {
        status.push_str(&format!(" {}", trace.error_code));
    }
    if accepted.late {
        status.push_str(" (late)");
    }
    [
        shown(trace.started_at),
        or_dash(&trace.user_sub),
        trace.tool.clone(),
        status,
        trace.duration_ms.to_string(),
        trace.event_id.to_string(),
    ]
}

fn missed(data: &str) -> String {
    #[derive(Deserialize)]
    struct Missed {
        count: u64,
    }
    match serde_json::from_str::<Missed>(data) {
        Ok(Missed { count }) => {
            format!("{} missed here; `{}` has them", counted(count, "trace"), command("timeline"))
        }
        Err(_) => format!("traces were missed here; `{}` has them", command("timeline")),
    }
}
