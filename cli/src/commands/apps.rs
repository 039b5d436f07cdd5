//! Apps: enabled, disabled, listed, and their PAKs.

use std::time::Duration;

use clap::Args;
use http::Method;
use panopticon_core::{
    api::{AppAnswer, AppRequest, KillAnswer, RotateAnswer, RotateRequest},
    ids::ClientId,
    time::{Clock as _, SystemClock},
};
use uuid::Uuid;

use super::Session;
use crate::{
    called::command,
    control::{path, row},
    failure::{Outcome, shell_word},
    output::{or_dash, plain, shown},
    paks::{KeptPak, keep_pak},
    when::parse_span,
};

/// Enable an app, and print its PAK once
#[derive(Debug, Args)]
#[command(after_help = "\
The PAK (Panopticon access key) is shown this once: the server keeps a digest only. It is also kept in \
logi/paks.toml of your configuration folder (mode 0600), so that `send` and `panopticon replay` find it; \
--no-save leaves that out. Enabling an app again changes what you name and lifts `disable`.

Examples:
  logi panopticon enable my-app
  logi panopticon enable my-app --name 'My agent' --scopes mail:read,mail:send
  logi panopticon enable my-app --hmac       # every request must be signed with the PAK's secret")]
pub(crate) struct Enable {
    /// The app's OAuth client identifier
    client_id: ClientId,
    /// A name for people
    #[arg(long)]
    name: Option<String>,
    /// The OAuth scopes that it may use, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "A,B")]
    scopes: Option<Vec<String>>,
    /// Whether every request must be signed
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    hmac: Option<bool>,
    /// Do not keep the PAK in your configuration folder
    #[arg(long)]
    no_save: bool,
}

impl Enable {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        let id = self.client_id.as_str();
        let wanted =
            AppRequest { name: self.name, scopes: self.scopes, hmac: self.hmac, disabled: Some(false) };
        let answer = s.control.send(Method::PUT, &path(&["apps", id]), &wanted).await?;
        let app: AppAnswer = answer.read()?;
        let pak = app.pak.map(|pak| (pak, app.pak_secret));
        if let Some((pak, secret)) = &pak
            && !self.no_save
        {
            save(s, id, pak, secret.as_deref());
        }
        if s.out.json {
            return s.out.line(crate::output::plain_json(&answer.text));
        }
        s.out.line(format!("app `{}` is enabled", plain(id)))?;
        match pak {
            Some((pak, secret)) => show_pak(s, id, &pak, secret.as_deref()),
            None => {
                s.out.line("its PAK was shown when it was made; for a new one:")?;
                s.out.line(format!("  {}", command(format_args!("rotate {}", shell_word(id)))))
            }
        }
    }
}

/// Issue a new PAK, and print it once
#[derive(Debug, Args)]
#[command(after_help = "\
Older PAKs stay valid for the grace period (the server's default is 10 minutes, the most is 1w). \
The new PAK is kept for `send` and `panopticon replay` as `enable` does; --no-save leaves that out.

Examples:
  logi panopticon rotate my-app
  logi panopticon rotate my-app --grace 1w     # time to roll the new PAK out
  logi panopticon rotate my-app --grace 0s     # the old one has leaked")]
pub(crate) struct Rotate {
    /// The app
    client_id: ClientId,
    /// How long older PAKs stay valid, such as 10m or 1w
    #[arg(long, value_name = "SPAN", value_parser = parse_span)]
    grace: Option<Duration>,
    /// Do not keep the PAK in your configuration folder
    #[arg(long)]
    no_save: bool,
}

impl Rotate {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        let id = self.client_id.as_str();
        let wanted = RotateRequest { grace_secs: self.grace.map(|grace| grace.as_secs()) };
        let answer = s.control.send(Method::POST, &path(&["apps", id, "pak"]), &wanted).await;
        let answer = answer.map_err(|failure| failure.about_app(id))?;
        let new: RotateAnswer = answer.read()?;
        if !self.no_save {
            save(s, id, &new.pak, new.pak_secret.as_deref());
        }
        if s.out.json {
            return s.out.line(crate::output::plain_json(&answer.text));
        }
        s.out.line(format!("app `{}` has a new PAK", plain(id)))?;
        s.out.line(format!("older PAKs end at {}", shown(new.previous_valid_until)))?;
        show_pak(s, id, &new.pak, new.pak_secret.as_deref())
    }
}

/// Disable an app: its traces are refused from now on
#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is deleted; `logi panopticon enable` lifts it. To stop an agent but go on recording: `kill`.

Example:
  logi panopticon disable my-app")]
pub(crate) struct Disable {
    /// The app
    client_id: ClientId,
}

impl Disable {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        let id = self.client_id.as_str();
        let answer = s.control.delete(&path(&["apps", id])).await;
        let answer = answer.map_err(|failure| failure.about_app(id))?;
        if !s.out.json {
            return s.out.line(format!("app `{}` is disabled: its traces are refused", plain(id)));
        }
        match answer.text.trim() {
            "" => s.out.json(&serde_json::json!({"client_id": id, "disabled": true})),
            text => s.out.line(crate::output::plain_json(text)),
        }
    }
}

/// List the apps
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  logi panopticon apps")]
pub(crate) struct Apps {}

impl Apps {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        let rows = s.control.list("/apps", &[], usize::MAX).await?;
        if s.out.json {
            return s.out.json_list(&rows);
        }
        let cells = rows.iter().map(|raw| {
            let app: AppAnswer = row(raw)?;
            let state = match () {
                () if app.disabled => "disabled".to_owned(),
                () if !app.kills.is_empty() => killed(&app.kills),
                () => "enabled".to_owned(),
            };
            let signed = if app.hmac { "hmac" } else { "-" };
            let scopes = or_dash(&app.scopes.join(" "));
            Ok([
                app.client_id,
                or_dash(&app.name),
                state,
                app.paks.to_string(),
                signed.to_owned(),
                scopes,
                shown(app.created_at),
            ])
        });
        let heading = ["CLIENT_ID", "NAME", "STATE", "PAKS", "SIGNED", "SCOPES", "ENABLED AT"];
        s.out.table(
            heading,
            cells.collect::<Outcome<_>>()?,
            &format!("no apps yet; enable one with: {}", command("enable <client_id>")),
        )
    }
}

/// Who is killed, in a word or two.
pub(crate) fn killed(kills: &[KillAnswer]) -> String {
    if kills.iter().any(|kill| kill.user_sub.is_none()) {
        return "killed".to_owned();
    }
    format!("{} killed", crate::output::counted(kills.len() as u64, "user"))
}

fn save(s: &Session, client_id: &str, pak: &str, pak_secret: Option<&str>) {
    let kept = KeptPak {
        url: s.control.url.clone(),
        client_id: client_id.to_owned(),
        pak: pak.to_owned(),
        pak_secret: pak_secret.map(str::to_owned),
    };
    // The PAK is on its way to the screen; that it cannot be kept must not lose it.
    if let Err(error) = keep_pak(kept) {
        s.out.note(format!("the PAK is not kept for `send`: {error}"));
    }
}

fn show_pak(s: &Session, client_id: &str, pak: &str, pak_secret: Option<&str>) -> Outcome {
    s.out.line("")?;
    s.out.line(format!("PAK (shown this once)     {}", plain(pak)))?;
    if let Some(secret) = pak_secret {
        s.out.line(format!("its secret, for signing   {}", plain(secret)))?;
    }
    s.out.line("\nA first trace:\n")?;
    s.out.line(first_trace(&s.control.url, client_id, pak, pak_secret))?;
    let id = shell_word(client_id);
    let [send, timeline, status] =
        ["send", "timeline", "status"].map(|what| command(format_args!("{what} {id}")));
    s.out.line(format!("\nor `{send}`, and then\n\n  {timeline}\n  {status}"))
}

/// The commands that send a trace with a fresh id and the present time.
fn first_trace(url: &str, client_id: &str, pak: &str, pak_secret: Option<&str>) -> String {
    let trace = serde_json::json!({
        "event_id": Uuid::now_v7(),
        "client_id": client_id,
        "tool": "hello",
        "status": "ok",
        "started_at": shown(SystemClock.now()),
        "duration_ms": 12,
        "user_sub": "first-user",
    });
    let body = shell_word(&trace.to_string());
    let url = shell_word(&format!("{url}/panopticon/trace"));
    let pak = shell_word(pak);
    let headers = format!("-H 'Authorization: Bearer {pak}' -H 'Content-Type: application/json'");
    match pak_secret {
        None => format!("  curl {url} {headers} \\\n    -d {body}"),
        Some(secret) => format!(
            "  body={body}\n  at=$(date +%s)\n  \
             sig=$(printf '%s.%s' \"$at\" \"$body\" | openssl dgst -sha256 -hmac {} | sed 's/.* //')\n  \
             curl {url} {headers} \\\n    -H \"X-Panopticon-Timestamp: $at\" \
             -H \"X-Panopticon-Signature: $sig\" --data-binary \"$body\"",
            shell_word(secret)
        ),
    }
}
