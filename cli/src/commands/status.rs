//! "I sent it, where is it?", for an app and for one trace.

use clap::Args;
use panopticon_core::{
    api::{GatewayCounts, RoadAnswer, RoadStep, StatusAnswer, WebhookHealth},
    ids::{ClientId, EventId},
};

use super::Session;
use crate::{
    called::command,
    control::{path, with_query},
    failure::{Failure, Outcome},
    output::{counted, plain, plain_json, shown, shown_or_dash},
};

/// How an app's traces fare: accepted, refused and why, stages, webhooks
#[derive(Debug, Args)]
#[command(after_help = "\
What the gateway did is counted since it started; the rest is the present state.

Example:
  logi panopticon status my-app")]
pub(crate) struct Status {
    /// The app
    client_id: ClientId,
}

impl Status {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        let id = self.client_id.as_str();
        let answer = s.control.get(&path(&["apps", id, "status"])).await;
        let answer = answer.map_err(|failure| failure.about_app(id))?;
        if s.out.json {
            return s.out.line(plain_json(&answer.text));
        }
        for sentence in sentences(&answer.read()?) {
            s.out.line(plain(&sentence))?;
        }
        Ok(())
    }
}

fn sentences(status: &StatusAnswer) -> Vec<String> {
    let mut said = Vec::new();
    let state = if status.disabled { "disabled: its traces are refused" } else { "enabled" };
    said.push(format!("App `{}` is {state}.", status.client_id));
    for kill in &status.kills {
        let whom = kill.user_sub.as_ref().map_or("The whole app".to_owned(), |user| format!("User `{user}`"));
        let why = if kill.reason.is_empty() { String::new() } else { format!(": {}", kill.reason) };
        said.push(format!("{whom} is killed since {} by {}{why}.", shown(kill.at), kill.actor));
    }
    said.push(match status.last_received_at {
        Some(at) => format!("The latest stored trace was received at {}.", shown(at)),
        None => "No trace of it is stored yet.".to_owned(),
    });
    if let Some(counts) = &status.gateway {
        said.extend(gateway_sentences(counts));
    }
    let behind: Vec<String> = status
        .stages
        .iter()
        .filter(|stage| stage.lag_records > 0)
        .map(|stage| {
            format!("{} by {} of {}", stage.stage, counted(stage.lag_records, "record"), stage.topic)
        })
        .collect();
    said.push(match (status.stages.is_empty(), behind.is_empty()) {
        (true, _) => "Nothing is known of the stages.".to_owned(),
        (false, true) => "Every stage is up to date.".to_owned(),
        (false, false) => format!("Behind are: {}.", behind.join(", ")),
    });
    said.extend(status.webhooks.iter().map(webhook_sentence));
    if status.webhooks.is_empty() {
        said.push("It has no webhook endpoint.".to_owned());
    }
    said.extend(status.hints.iter().map(|hint| format!("→ {hint}")));
    said
}

fn gateway_sentences(counts: &GatewayCounts) -> Vec<String> {
    let mut said = vec![format!(
        "Since it started, the gateway accepted {} (last at {}){}, and found {}.",
        counted(counts.accepted, "trace"),
        shown_or_dash(counts.last_accepted_at),
        if counts.late > 0 { format!(", {} of them late", counts.late) } else { String::new() },
        counted(counts.duplicate, "duplicate"),
    )];
    if counts.unavailable > 0 {
        said.push(format!(
            "{} could not be confirmed and must be sent again.",
            counted(counts.unavailable, "trace")
        ));
    }
    for refusal in &counts.refused {
        let field =
            if refusal.field.is_empty() { String::new() } else { format!(" for `{}`", refusal.field) };
        said.push(format!(
            "Refused: {} with {}{field}, last at {}.",
            counted(refusal.count, "time"),
            refusal.error,
            shown(refusal.last_at)
        ));
    }
    said
}

fn webhook_sentence(hook: &WebhookHealth) -> String {
    let place = format!("Webhook {} ({})", hook.id, hook.url);
    if hook.disabled {
        let why = if hook.disabled_reason.is_empty() {
            String::new()
        } else {
            format!(": {}", hook.disabled_reason)
        };
        return format!("{place} is disabled{why}.");
    }
    let last = match (hook.last_state.as_str(), hook.last_status, hook.last_error.as_str()) {
        ("", _, _) => "nothing was sent to it yet".to_owned(),
        (state, 0, "") => format!("the last message is {state}"),
        (state, 0, error) => format!("the last message is {state} ({error})"),
        (state, status, "") => format!("the last message is {state} (HTTP {status})"),
        (state, status, error) => format!("the last message is {state} (HTTP {status}, {error})"),
    };
    format!("{place}: {last}; {} under way.", counted(hook.pending, "message"))
}

/// Show the road of one trace: accepted, stored, detection, action, delivery
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status 1 where nothing is known of the trace.

Example:
  logi panopticon trace 0190b0a0-7b1a-7c3e-9d2a-000000000001")]
pub(crate) struct TraceRoad {
    /// The trace's event_id
    #[arg(value_name = "EVENT_ID", value_parser = event_id)]
    event_id: EventId,
    /// The app that it is of, where several have a trace with this id
    #[arg(long, value_name = "CLIENT_ID")]
    client_id: Option<ClientId>,
}

fn event_id(text: &str) -> Result<EventId, String> {
    EventId::parse(text).ok_or_else(|| "must be a hyphenated UUID".to_owned())
}

fn see_status() -> String {
    format!("`{}` says what was refused", command("status <client_id>"))
}

impl TraceRoad {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        let id = self.event_id.to_string();
        let path = with_query(path(&["traces", &id]), &[("client_id", self.client_id.map(Into::into))]);
        let answer = s.control.get(&path).await.map_err(|failure| match failure.code.as_str() {
            "not_found" => failure.hint(see_status()),
            _ => failure,
        })?;
        let road: RoadAnswer = answer.read()?;
        if s.out.json {
            s.out.line(plain_json(&answer.text))?;
        }
        let (hints, steps): (Vec<RoadStep>, _) = road.steps.into_iter().partition(|step| step.step == "hint");
        if steps.is_empty() && road.trace.is_none() {
            return Err(match hints.into_iter().next() {
                Some(hint) => Failure::new(hint.summary),
                None => Failure::new(format!("nothing is known of trace {id}")).hint(see_status()),
            });
        }
        if s.out.json {
            return Ok(());
        }
        if let Some(accepted) = &road.trace {
            let trace = &accepted.trace;
            let user =
                if trace.user_sub.is_empty() { String::new() } else { format!(" for `{}`", trace.user_sub) };
            s.out.line(plain(&format!(
                "Trace {id}: `{}` of app `{}`{user}, {} at {}, {} ms{}.",
                trace.tool,
                trace.client_id,
                trace.status,
                shown(trace.started_at),
                trace.duration_ms,
                if accepted.late { ", arrived late" } else { "" }
            )))?;
        }
        let rows = steps.into_iter().map(|step| {
            let about = if step.id.is_empty() { String::new() } else { format!(" [{}]", step.id) };
            [shown_or_dash(step.at), step.step, format!("{}{about}", step.summary)]
        });
        s.out.table(["AT", "STEP", "WHAT HAPPENED"], rows.collect(), "It is stored; no step is recorded.")?;
        for hint in hints {
            s.out.line(plain(&format!("→ {}", hint.summary)))?;
        }
        Ok(())
    }
}
