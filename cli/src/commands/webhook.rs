//! Webhook endpoints and what was delivered to them.

use clap::{Args, Subcommand};
use http::Method;
use panopticon_core::{
    api::{TestAnswer, WebhookAnswer, WebhookRequest},
    ids::ClientId,
};
use serde_json::{Value, json, value::RawValue};

use super::{Session, cell};
use crate::{
    called::command,
    control::{path, row},
    failure::{Failure, Outcome, shell_word},
    output::{or_dash, plain, plain_json, shown},
};

/// The types of messages that an endpoint may ask for.
pub(crate) const TYPES: [&str; 4] = [
    "panopticon.anomaly_detected",
    "panopticon.anomaly_resolved",
    "panopticon.kill_switch",
    "panopticon.test",
];

#[derive(Debug, Subcommand)]
pub(crate) enum Webhook {
    Add(Add),
    List(List),
    Remove(Remove),
    Rotate(Rotate),
    Test(Test),
    Deliveries(Deliveries),
    Replay(Replay),
    Listen(super::listen::Listen),
}

impl Webhook {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        match self {
            Self::Add(command) => command.run(s).await,
            Self::List(command) => command.run(s).await,
            Self::Remove(command) => command.run(s).await,
            Self::Rotate(command) => command.run(s).await,
            Self::Test(command) => command.run(s).await,
            Self::Deliveries(command) => command.run(s).await,
            Self::Replay(command) => command.run(s).await,
            Self::Listen(command) => command.run(s).await,
        }
    }
}

/// Add an endpoint, and print its secret once
#[derive(Debug, Args)]
#[command(after_help = "\
Messages are signed as in Standard Webhooks (webhook-id, webhook-timestamp, webhook-signature) and by \
X-Logi-Signature. Types: panopticon.anomaly_detected, panopticon.anomaly_resolved, \
panopticon.kill_switch, panopticon.test. Without --type an endpoint gets all of them.

Examples:
  logi panopticon webhook add my-app https://rp.example/hooks/panopticon
  logi panopticon webhook add my-app https://rp.example/hooks --type panopticon.kill_switch")]
pub(crate) struct Add {
    /// The app
    client_id: ClientId,
    /// Where messages go
    #[arg(value_name = "URL")]
    endpoint_url: String,
    /// A type of message that it wants; may be given more than once
    #[arg(long = "type", value_name = "TYPE", value_parser = TYPES)]
    types: Vec<String>,
}

/// Adds an endpoint.
pub(crate) async fn add(
    s: &Session,
    app: &str,
    url: String,
    types: Vec<String>,
) -> Outcome<(String, WebhookAnswer)> {
    let types = (!types.is_empty()).then_some(types);
    let wanted = WebhookRequest { url: Some(url), types, disabled: None };
    let answer = s.control.send(Method::POST, &path(&["apps", app, "webhooks"]), &wanted).await;
    let answer = answer.map_err(|failure| failure.about_app(app))?;
    let endpoint = answer.read()?;
    Ok((answer.text, endpoint))
}

fn show_secret(s: &Session, text: &str, endpoint: &WebhookAnswer, what: &str) -> Outcome {
    if s.out.json {
        return s.out.line(plain_json(text));
    }
    s.out.line(format!("endpoint {} {what}: {}", plain(&endpoint.id), plain(&endpoint.url)))?;
    s.out.line(format!("secret (shown this once)   {}", plain(endpoint.secret.as_deref().unwrap_or("-"))))?;
    s.out.line(format!("key id                     {}", plain(&endpoint.kid)))
}

impl Add {
    async fn run(self, s: &Session) -> Outcome {
        let app = self.client_id.as_str();
        let (text, endpoint) = add(s, app, self.endpoint_url, self.types).await?;
        show_secret(s, &text, &endpoint, "is added")?;
        if s.out.json {
            return Ok(());
        }
        let test = command(format_args!("webhook test {} {}", shell_word(app), shell_word(&endpoint.id)));
        s.out.line(format!("\ntry it with: {test}"))
    }
}

/// List an app's endpoints
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  logi panopticon webhook list my-app")]
pub(crate) struct List {
    /// The app
    client_id: ClientId,
}

async fn endpoints(s: &Session, app: &str) -> Outcome<Vec<Box<RawValue>>> {
    let rows = s.control.list(&path(&["apps", app, "webhooks"]), &[], usize::MAX).await;
    rows.map_err(|failure| failure.about_app(app))
}

impl List {
    async fn run(self, s: &Session) -> Outcome {
        let rows = endpoints(s, self.client_id.as_str()).await?;
        if s.out.json {
            return s.out.json_list(&rows);
        }
        let cells = rows.iter().map(|raw| {
            let endpoint: WebhookAnswer = row(raw)?;
            let state = match (endpoint.disabled, endpoint.disabled_reason.as_str()) {
                (false, _) => "enabled".to_owned(),
                (true, "") => "disabled".to_owned(),
                (true, why) => format!("disabled: {why}"),
            };
            let types = if endpoint.types.is_empty() { "all".to_owned() } else { endpoint.types.join(" ") };
            Ok([endpoint.id, endpoint.url, types, state, shown(endpoint.created_at)])
        });
        let heading = ["ID", "URL", "TYPES", "STATE", "ADDED AT"];
        s.out.table(heading, cells.collect::<Outcome<_>>()?, "no endpoints")
    }
}

/// One endpoint of an app.
#[derive(Debug, Args)]
struct Endpoint {
    /// The app
    client_id: ClientId,
    /// The endpoint's id, from `webhook list`
    #[arg(value_name = "ENDPOINT_ID")]
    id: String,
}

impl Endpoint {
    fn path(&self, more: &[&str]) -> String {
        path(&[&["apps", self.client_id.as_str(), "webhooks", &self.id], more].concat())
    }
}

/// Remove an endpoint
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  logi panopticon webhook remove my-app 0190b0a0-7b1a-7c3e-9d2a-000000000001"
)]
pub(crate) struct Remove {
    #[command(flatten)]
    endpoint: Endpoint,
}

impl Remove {
    async fn run(self, s: &Session) -> Outcome {
        s.control.delete(&self.endpoint.path(&[])).await?;
        let id = &self.endpoint.id;
        match s.out.json {
            true => s.out.json(&json!({"id": id, "removed": true})),
            false => s.out.line(format!("endpoint {} is removed", plain(id))),
        }
    }
}

/// Give an endpoint a new secret, and print it once; the old one stays valid for a day
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  logi panopticon webhook rotate my-app 0190b0a0-7b1a-7c3e-9d2a-000000000001"
)]
pub(crate) struct Rotate {
    #[command(flatten)]
    endpoint: Endpoint,
}

impl Rotate {
    async fn run(self, s: &Session) -> Outcome {
        let answer = s.control.post(&self.endpoint.path(&["secret"])).await?;
        show_secret(s, &answer.text, &answer.read()?, "has a new secret")
    }
}

/// Send a test message to one endpoint, or to all of an app
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  logi panopticon webhook test my-app
  logi panopticon webhook test my-app 0190b0a0-7b1a-7c3e-9d2a-000000000001
  logi panopticon webhook deliveries my-app        # what became of it")]
pub(crate) struct Test {
    /// The app
    client_id: ClientId,
    /// Only this endpoint
    #[arg(value_name = "ENDPOINT_ID")]
    endpoint_id: Option<String>,
}

/// The ids of the endpoints meant: the one named, or all of the app.
async fn ids(s: &Session, app: &str, named: Option<String>) -> Outcome<Vec<String>> {
    match named {
        Some(id) => Ok(vec![id]),
        None => endpoints(s, app).await?.iter().map(|raw| Ok(row::<WebhookAnswer>(raw)?.id)).collect(),
    }
}

impl Test {
    async fn run(self, s: &Session) -> Outcome {
        let app = self.client_id.as_str();
        let ids = ids(s, app, self.endpoint_id).await?;
        if ids.is_empty() {
            return Err(Failure::new(format!("app `{app}` has no webhook endpoint")).hint(format!(
                "add one with: {}",
                command(format_args!("webhook add {} URL", shell_word(app)))
            )));
        }
        let mut sent = Vec::new();
        for id in ids {
            let answer = s.control.post(&path(&["apps", app, "webhooks", &id, "test"])).await?;
            let test: TestAnswer = answer.read()?;
            if !s.out.json {
                s.out.line(format!(
                    "test message {} is on its way to {}",
                    plain(&test.webhook_id),
                    plain(&id)
                ))?;
            }
            sent.push(json!({"endpoint_id": id, "webhook_id": test.webhook_id}));
        }
        if s.out.json {
            return s.out.json(&sent);
        }
        let deliveries = command(format_args!("webhook deliveries {}", shell_word(app)));
        s.out.line(format!("see what becomes of it: {deliveries}"))
    }
}

/// Show what was delivered to one endpoint, or to all of an app, newest first
#[derive(Debug, Args)]
#[command(after_help = "\
States: pending (tried again by itself), delivered, dead (given up; `replay` makes it again), cancelled.

Examples:
  logi panopticon webhook deliveries my-app
  logi panopticon webhook deliveries my-app 0190b0a0-7b1a-7c3e-9d2a-000000000001 --json")]
pub(crate) struct Deliveries {
    /// The app
    client_id: ClientId,
    /// Only this endpoint's
    #[arg(value_name = "ENDPOINT_ID")]
    endpoint_id: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

impl Deliveries {
    async fn run(self, s: &Session) -> Outcome {
        let app = self.client_id.as_str();
        let mut rows: Vec<(String, Box<RawValue>)> = Vec::new();
        for id in ids(s, app, self.endpoint_id).await? {
            let base = path(&["apps", app, "webhooks", &id, "deliveries"]);
            for raw in s.control.list(&base, &[], self.limit).await? {
                // RFC 3339 in UTC with a fixed number of digits sorts as text.
                let at = row::<Value>(&raw)?["created_at"].as_str().unwrap_or_default().to_owned();
                rows.push((at, raw));
            }
        }
        rows.sort_by(|a, b| b.0.cmp(&a.0));
        rows.truncate(self.limit);
        let rows: Vec<Box<RawValue>> = rows.into_iter().map(|(_, raw)| raw).collect();
        if s.out.json {
            return s.out.json_list(&rows);
        }
        let cells = rows.iter().map(|raw| {
            let delivery: Value = row(raw)?;
            let last = match (delivery["last_status"].as_u64().unwrap_or(0), cell(&delivery, "last_error")) {
                (0, error) => error,
                (status, error) if error == "-" => format!("HTTP {status}"),
                (status, error) => format!("HTTP {status}, {error}"),
            };
            Ok([
                cell(&delivery, "created_at"),
                cell(&delivery, "type"),
                cell(&delivery, "state"),
                cell(&delivery, "attempts"),
                or_dash(&last),
                cell(&delivery, "delivery_id"),
            ])
        });
        let heading = ["CREATED AT", "TYPE", "STATE", "TRIES", "LAST ANSWER", "DELIVERY ID"];
        s.out.table(heading, cells.collect::<Outcome<_>>()?, "nothing was delivered yet")
    }
}

/// Make a delivery again
#[derive(Debug, Args)]
#[command(after_help = "\
The message keeps its webhook-id, so that a receiver that has it can tell.

Example:
  logi panopticon webhook replay 0190b0a0-7b1a-7c3e-9d2a-000000000001")]
pub(crate) struct Replay {
    /// The delivery's id, from `webhook deliveries`
    #[arg(value_name = "DELIVERY_ID")]
    id: String,
}

impl Replay {
    async fn run(self, s: &Session) -> Outcome {
        s.control.post(&path(&["deliveries", &self.id, "replay"])).await?;
        match s.out.json {
            true => s.out.json(&json!({"delivery_id": self.id, "replayed": true})),
            false => s.out.line(format!("delivery {} is on its way again", plain(&self.id))),
        }
    }
}
