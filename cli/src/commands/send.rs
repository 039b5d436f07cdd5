//! Test traces, sent as an RP would send them.

use bytes::Bytes;
use clap::Args;
use panopticon_core::{
    admission::{MAX_TEXT_BYTES, MAX_TOOL_BYTES},
    ids::ClientId,
    time::{Clock as _, SystemClock},
};
use serde_json::json;
use uuid::Uuid;

use super::Session;
use crate::{
    called::command,
    connection::unreachable,
    failure::{Failure, Outcome, shell_word},
    gateway::{Credentials, Gateway, SendError, TraceOutcome},
    output::{counted, plain},
    paks::kept_pak,
};

/// How many traces go into one request.
const BATCH_TRACES: usize = 500;

/// Send test traces with fresh ids and the present time through the gateway
#[derive(Debug, Args)]
#[command(after_help = "\
It needs a PAK of the app: --pak, else PANOPTICON_PAK, else the one that `enable` or `rotate` has kept in \
logi/paks.toml of your configuration folder. An app in HMAC mode also needs the PAK's secret, from \
PANOPTICON_PAK_SECRET or kept in the same place; the requests are then signed.

Examples:
  logi panopticon send my-app
  logi panopticon send my-app --count 100 --user alice --tool search    # enough to be noticed
  logi panopticon send my-app --status denied --pak pano_pak_...")]
pub(crate) struct Send {
    /// The app
    client_id: ClientId,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// The PAK (better by PANOPTICON_PAK: process lists show arguments)
    #[arg(long, env = "PANOPTICON_PAK", hide_env_values = true)]
    pak: Option<String>,
    /// The PAK's secret, for an app in HMAC mode
    #[arg(long, env = "PANOPTICON_PAK_SECRET", hide_env_values = true)]
    pak_secret: Option<String>,
    /// The gateway, where it is not the server itself
    #[arg(long, value_name = "URL", env = "LOGI_GATEWAY_URL", hide_env_values = true)]
    gateway_url: Option<String>,
    /// Their user
    #[arg(long, value_name = "USER", default_value = "test-user", value_parser = at_most::<MAX_TEXT_BYTES>)]
    user: String,
    /// Their tool
    #[arg(long, default_value = "logi.test", value_parser = at_most::<MAX_TOOL_BYTES>)]
    tool: String,
    /// Their status
    #[arg(long, default_value = "ok", value_parser = ["ok", "error", "denied"])]
    status: String,
}

fn at_most<const N: usize>(text: &str) -> Result<String, String> {
    if text.len() > N { Err(format!("has {} bytes; at most {N}", text.len())) } else { Ok(text.to_owned()) }
}

impl Send {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        let credentials = self.credentials(s)?;
        let url = self.gateway_url.as_deref().unwrap_or(&s.control.url);
        let gateway = Gateway::new(url, credentials).map_err(|error| unreachable(url, &error))?;
        let (mut results, mut guard) = (Vec::new(), None);
        let mut left = self.count as usize;
        while left > 0 {
            let traces = left.min(BATCH_TRACES);
            let answered =
                gateway.send_lines(self.lines(traces)).await.map_err(|error| self.failure(error))?;
            if answered.results.len() != traces {
                return Err(Failure::new("the gateway answered another number of results than traces"));
            }
            results.extend(answered.results);
            guard = answered.guard.or(guard);
            left -= traces;
        }
        self.report(s, &results, guard)
    }

    fn credentials(&self, s: &Session) -> Outcome<Credentials> {
        if let Some(pak) = self.pak.as_ref().filter(|pak| !pak.is_empty()) {
            return Ok(Credentials { pak: pak.clone(), pak_secret: self.pak_secret.clone() });
        }
        let id = self.client_id.as_str();
        match kept_pak(&s.control.url, id).map_err(|error| Failure::new(error.to_string()))? {
            Some(kept) => {
                Ok(Credentials { pak: kept.pak, pak_secret: self.pak_secret.clone().or(kept.pak_secret) })
            }
            None => Err(Failure::new(format!(
                "no PAK of app `{id}` at {} is kept here, and the server keeps digests only",
                s.control.url
            ))
            .hint(format!(
                "give it by --pak or PANOPTICON_PAK, or make a new one beside it with: {}",
                command(format_args!("rotate {} --grace 1w", shell_word(id)))
            ))),
        }
    }

    fn lines(&self, traces: usize) -> Bytes {
        let now = SystemClock.now();
        let mut lines = Vec::new();
        for i in 0..traces {
            // A millisecond apart, the last one now, so that they have an order.
            let back = std::time::Duration::from_millis((traces - 1 - i) as u64);
            let trace = json!({
                "event_id": Uuid::now_v7(),
                "client_id": self.client_id,
                "user_sub": self.user,
                "tool": self.tool,
                "status": self.status,
                "started_at": now.minus(back),
                "duration_ms": 1,
                "agent": "logi",
                "attributes": {"sent_by": "logi panopticon send"},
            });
            lines.extend_from_slice(trace.to_string().as_bytes());
            lines.push(b'\n');
        }
        lines.into()
    }

    fn failure(&self, error: SendError) -> Failure {
        let id = shell_word(self.client_id.as_str());
        match error {
            SendError::Again { why, .. } => {
                Failure::new(format!("the traces are not confirmed: {why}")).hint("try again in a moment")
            }
            SendError::Divide(body) | SendError::Refused(body) => {
                let failure = Failure::answered(body);
                match failure.code.as_str() {
                    "invalid_token" if self.pak.is_none() => failure.hint(format!(
                        "the PAK kept here is not valid any more; make a new one with: {}",
                        command(format_args!("rotate {id}"))
                    )),
                    "app_disabled" => {
                        failure.hint(format!("enable it with: {}", command(format_args!("enable {id}"))))
                    }
                    "invalid_signature" => failure.hint(
                        "requests of this app must be signed; give the PAK's secret by PANOPTICON_PAK_SECRET",
                    ),
                    _ => failure,
                }
            }
        }
    }

    fn report(&self, s: &Session, results: &[TraceOutcome], guard: Option<String>) -> Outcome {
        let with = |status: &str| {
            results.iter().filter(|result| result.status == status && !result.is_unavailable()).count()
        };
        let (accepted, duplicate) = (with("accepted"), with("duplicate"));
        let not_confirmed = results.iter().filter(|result| result.is_unavailable()).count();
        let rejected = results.iter().find(|result| result.status == "rejected" && !result.is_unavailable());
        if s.out.json {
            s.out.json(&json!({
                "accepted": accepted, "duplicate": duplicate, "rejected": with("rejected"),
                "unavailable": not_confirmed, "guard": guard, "results": results,
            }))?;
        } else {
            s.out.line(format!("{} accepted", counted(accepted as u64, "trace")))?;
            if let Some(last) = results.iter().rfind(|result| result.status == "accepted") {
                let trace = command(format_args!("trace {}", plain(&last.event_id)));
                s.out.line(format!("follow it with: {trace}"))?;
            }
            if let Some(guard) = &guard {
                s.out.line(format!("AI Guard says: {}", plain(guard)))?;
            }
        }
        if let Some(first) = rejected {
            let why =
                first.error_description.as_deref().or(first.error.as_deref()).unwrap_or("no reason given");
            let field = first.field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default();
            let many = counted(with("rejected") as u64, "trace");
            return Err(Failure::new(format!("{many} rejected: {field}{why}")));
        }
        if not_confirmed > 0 {
            let many = counted(not_confirmed as u64, "trace");
            return Err(Failure::new(format!("{many} not confirmed")).hint("try again in a moment"));
        }
        Ok(())
    }
}
