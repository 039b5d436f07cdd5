//! How much an app does, per day.

use clap::Args;
use jiff::{ToSpan as _, Zoned, tz::TimeZone};
use panopticon_core::{api::UsageRow, ids::ClientId};

use super::Session;
use crate::{
    control::{path, row},
    failure::{Failure, Outcome},
    when::When,
};

/// How many days are shown unless `--since` says otherwise, today included.
const DEFAULT_DAYS: i32 = 30;

/// Show an app's traces, errors, approvals and kills per day
#[derive(Debug, Args)]
#[command(after_help = "\
A date is a UTC day of a trace's started_at, unless --tz names another zone. `errors` counts the statuses \
error and denied. Days without any figure are left out. --json: [{date, traces, errors, hitl_requests, kills}]

Examples:
  logi panopticon usage my-app --since 2026-06-01
  logi panopticon usage my-app --since 2026-06-01 --until 2026-06-30 --tz Europe/Berlin
  logi panopticon usage my-app --since 7d --json")]
pub(crate) struct Usage {
    /// The app
    client_id: ClientId,
    /// From this day on: a date, a time, or a span back such as 7d [default: the last 30 days]
    #[arg(long, value_name = "DATE", value_parser = When::parse)]
    since: Option<When>,
    /// Up to and including this day [default: today]
    #[arg(long, value_name = "DATE", value_parser = When::parse)]
    until: Option<When>,
    /// The time zone of the days, by its IANA name [default: UTC]
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
}

impl Usage {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        let id = self.client_id.as_str();
        let zone = match &self.tz {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name)
                .map_err(|_| Failure::new(format!("`{name}` is not a time zone such as Europe/Berlin")))?,
        };
        let today = Zoned::now().with_time_zone(zone.clone()).date();
        let first = today.checked_sub((DEFAULT_DAYS - 1).days()).unwrap_or(today);
        let since = self.since.map_or(first, |since| since.date(&zone));
        let until = self.until.map_or(today, |until| until.date(&zone));
        let query = [("since", Some(since.to_string())), ("until", Some(until.to_string())), ("tz", self.tz)];
        let rows = s.control.whole_list(&path(&["apps", id, "usage"]), &query).await;
        let rows = rows.map_err(|failure| failure.about_app(id))?;
        if s.out.json {
            return s.out.json_list(&rows);
        }
        let days = rows.iter().map(|raw| row(raw)).collect::<Outcome<Vec<UsageRow>>>()?;
        let cells = |date: &str, of: &dyn Fn(&UsageRow) -> [u64; 4], days: &[UsageRow]| {
            let [traces, errors, hitl, kills] =
                days.iter().map(of).fold([0; 4], |sum, day| std::array::from_fn(|i| sum[i] + day[i]));
            [date.to_owned(), traces.to_string(), errors.to_string(), hitl.to_string(), kills.to_string()]
        };
        let of = |day: &UsageRow| {
            [day.counts.traces, day.counts.errors, day.counts.hitl_requests, day.counts.kills]
        };
        let mut table: Vec<_> =
            days.iter().map(|day| cells(&day.date, &of, std::slice::from_ref(day))).collect();
        if days.len() > 1 {
            table.push(cells("total", &of, &days));
        }
        let nothing = format!("no traces from {since} to {until}");
        s.out.table(["DATE", "TRACES", "ERRORS", "HITL REQUESTS", "KILLS"], table, &nothing)
    }
}
