//! The kill switch.

use clap::Args;
use http::Method;
use panopticon_core::{
    api::{KillAnswer, KillRequest},
    ids::ClientId,
};

use super::Session;
use crate::{
    called::command,
    control::{path, with_query},
    failure::{Outcome, shell_word},
    output::{plain, plain_json, shown},
};

/// Stop an app or one of its users at once: the RP is told by webhook and with every answer
#[derive(Debug, Args)]
#[command(after_help = "\
Traces are still recorded; the gateway's answers carry `X-Panopticon-Guard: killed`. Killing twice is \
harmless. `logi agent revoke` is the same command.

Examples:
  logi panopticon kill my-app --reason 'runaway loop'
  logi panopticon kill my-app --user alice
  logi agent revoke my-app")]
pub(crate) struct Kill {
    /// The app
    client_id: ClientId,
    /// Only this user of the app
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Why, for the RP and the audit record
    #[arg(long)]
    reason: Option<String>,
}

impl Kill {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        switch(s, Method::POST, self.client_id.as_str(), self.user, self.reason).await
    }
}

/// Lift a kill
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  logi panopticon unkill my-app
  logi panopticon unkill my-app --user alice --reason 'loop fixed'")]
pub(crate) struct Unkill {
    /// The app
    client_id: ClientId,
    /// The kill of this user of the app; without it, the kill of the whole app
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Why, for the RP and the audit record
    #[arg(long)]
    reason: Option<String>,
}

impl Unkill {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        switch(s, Method::DELETE, self.client_id.as_str(), self.user, self.reason).await
    }
}

async fn switch(
    s: &Session,
    method: Method,
    client_id: &str,
    user: Option<String>,
    reason: Option<String>,
) -> Outcome {
    let lifting = method == Method::DELETE;
    let about = match &user {
        Some(user) => format!("user `{}` of app `{}`", plain(user), plain(client_id)),
        None => format!("app `{}`", plain(client_id)),
    };
    let wanted = KillRequest { user_sub: user.clone(), reason };
    // In the query too: a proxy that drops the body of a DELETE must not make it lift the whole app's kill.
    let in_query = [("user_sub", user.clone().filter(|_| lifting))];
    let path = with_query(path(&["apps", client_id, "kill"]), &in_query);
    let answer = s.control.send(method, &path, &wanted).await;
    let answer = answer.map_err(|failure| failure.about_app(client_id))?;
    if answer.text.trim().is_empty() {
        let state = if lifting { "lifted" } else { "killed" };
        return if s.out.json {
            s.out.json(&serde_json::json!({"client_id": client_id, "user_sub": user, "state": state}))
        } else {
            s.out.line(format!("{about}: {state}"))
        };
    }
    if s.out.json {
        return s.out.line(plain_json(&answer.text));
    }
    let kill: KillAnswer = answer.read()?;
    s.out.line(format!(
        "{about} is {} since {} by {}",
        match kill.state.as_str() {
            "lifted" => "not under a kill".to_owned(),
            state => plain(state),
        },
        shown(kill.at),
        plain(&kill.actor)
    ))?;
    if !lifting {
        let user = user.map(|user| format!(" --user {}", shell_word(&user))).unwrap_or_default();
        let unkill = command(format_args!("unkill {}{user}", shell_word(client_id)));
        s.out.line(format!("lift it with: {unkill}"))?;
    }
    Ok(())
}
