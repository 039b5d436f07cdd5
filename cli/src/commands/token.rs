//! API tokens.

use clap::{Args, Subcommand};
use http::Method;
use panopticon_core::{
    api::{TokenAnswer, TokenRequest},
    ids::ClientId,
};

use super::Session;
use crate::{
    control::{path, row},
    failure::Outcome,
    output::{or_dash, plain, plain_json, shown, shown_or_dash},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    Create(Create),
    List(List),
    Revoke(Revoke),
}

/// Make a token, and print it once
#[derive(Debug, Args)]
#[command(after_help = "\
Roles: admin (everything), owner (everything about the apps named), read (only looking; all apps unless \
some are named). Without --expires-in-days a token lasts 90 days.

Examples:
  logi panopticon token create --name ci --role read
  logi panopticon token create --name alice --role owner --app my-app --expires-in-days 30")]
pub(crate) struct Create {
    /// A name for people and the audit record
    #[arg(long)]
    name: String,
    /// What it may do
    #[arg(long, value_parser = ["admin", "owner", "read"])]
    role: String,
    /// An app that it is for; may be given more than once
    #[arg(long = "app", value_name = "CLIENT_ID")]
    apps: Vec<ClientId>,
    /// Days until it expires
    #[arg(long, value_name = "N")]
    expires_in_days: Option<u32>,
}

/// List the tokens
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  logi panopticon token list")]
pub(crate) struct List {}

/// End a token at once
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  logi panopticon token revoke 0190b0a0-7b1a-7c3e-9d2a-000000000001")]
pub(crate) struct Revoke {
    /// The token's id, from `token list`
    #[arg(value_name = "ID")]
    id: String,
}

impl Token {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        match self {
            Self::Create(create) => create.run(s).await,
            Self::List(_) => list(s).await,
            Self::Revoke(Revoke { id }) => {
                s.control.delete(&path(&["tokens", &id])).await?;
                match s.out.json {
                    true => s.out.json(&serde_json::json!({"id": id, "revoked": true})),
                    false => s.out.line(format!("token {} is revoked", plain(&id))),
                }
            }
        }
    }
}

impl Create {
    async fn run(self, s: &Session) -> Outcome {
        let wanted = TokenRequest {
            name: self.name,
            role: self.role,
            apps: self.apps.into_iter().map(Into::into).collect(),
            expires_in_days: self.expires_in_days,
        };
        let answer = s.control.send(Method::POST, "/tokens", &wanted).await?;
        if s.out.json {
            return s.out.line(plain_json(&answer.text));
        }
        let token: TokenAnswer = answer.read()?;
        s.out.line(format!("token `{}` with role {}", plain(&token.name), plain(&token.role)))?;
        s.out.line(format!("id                        {}", plain(&token.id)))?;
        s.out.line(format!("expires                   {}", shown_or_dash(token.expires_at)))?;
        s.out.line(format!("token (shown this once)   {}", plain(token.token.as_deref().unwrap_or("-"))))?;
        s.out.line("\nuse it as LOGI_TOKEN, or as `Authorization: Bearer …`")
    }
}

async fn list(s: &Session) -> Outcome {
    let rows = s.control.list("/tokens", &[], usize::MAX).await?;
    if s.out.json {
        return s.out.json_list(&rows);
    }
    let cells = rows.iter().map(|raw| {
        let token: TokenAnswer = row(raw)?;
        Ok([
            token.id,
            token.name,
            token.role,
            or_dash(&token.apps.join(" ")),
            shown(token.created_at),
            token.expires_at.map_or_else(|| "never".to_owned(), shown),
        ])
    });
    let heading = ["ID", "NAME", "ROLE", "APPS", "MADE AT", "EXPIRES"];
    s.out.table(heading, cells.collect::<Outcome<_>>()?, "no tokens")
}
