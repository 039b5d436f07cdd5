//! The tree of commands, and how one of them is run.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use panopticon_core::ids::ClientId;

use crate::{
    commands::{self, Session},
    control::Control,
    failure::{Failure, Outcome},
    output::Output,
};

/// The command line of Panopticon.
#[derive(Debug, Parser)]
#[command(
    name = "logi",
    version,
    about = "The command line of Panopticon: apps, traces, detections, kills, webhooks, tokens",
    propagate_version = true,
    disable_help_subcommand = true,
    after_help = "\
Which server: LOGI_URL and LOGI_TOKEN where they are set, else the server that `panopticon serve` recorded \
last for this user (logi/servers.toml in the configuration folder), else http://127.0.0.1:7420 with the \
token in ./panopticon-data/admin.token.

Times are shown in UTC. `--json` prints JSON: a list command an array, others one object. \
Exit status: 0 done, 1 refused or failed (one line on stderr says why), 2 wrong usage.

Begin with:
  logi panopticon enable my-app          # prints the PAK once and the command for a first trace
  logi panopticon send my-app            # sends a test trace
  logi panopticon timeline my-app        # shows it"
)]
pub struct Logi {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// The server's URL; by default the one that `panopticon serve` recorded last
    #[arg(long, global = true, value_name = "URL", env = "LOGI_URL", hide_env_values = true)]
    url: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch over agents: apps, traces, detections, kills, webhooks
    #[command(subcommand)]
    Panopticon(Panopticon),
    /// Agents as OAuth clients
    #[command(subcommand)]
    Agent(Agent),
}

#[derive(Debug, Subcommand)]
enum Agent {
    /// Stop an app or one of its users at once (the same as `logi panopticon kill`)
    Revoke(commands::kill::Kill),
}

#[derive(Debug, Subcommand)]
enum Panopticon {
    Enable(commands::apps::Enable),
    Rotate(commands::apps::Rotate),
    Disable(commands::apps::Disable),
    Apps(commands::apps::Apps),
    Send(commands::send::Send),
    Status(commands::status::Status),
    Trace(commands::status::TraceRoad),
    Timeline(commands::timeline::Timeline),
    Usage(commands::usage::Usage),
    Detections(commands::detections::Detections),
    Actions(commands::detections::Actions),
    Policy(commands::policy::Policy),
    Kill(commands::kill::Kill),
    Unkill(commands::kill::Unkill),
    Erase(commands::erase::Erase),
    /// Webhook endpoints: add, list, remove, rotate, test, deliveries, replay, listen
    #[command(subcommand)]
    Webhook(commands::webhook::Webhook),
    /// API tokens: create, list, revoke
    #[command(subcommand)]
    Token(commands::token::Token),
    /// Records that a stage could not take: list, replay
    #[command(subcommand, name = "dead-letters")]
    DeadLetters(commands::dead_letters::DeadLetters),
    Audit(commands::records::Audit),
    /// Approvals asked for by agents (not in this build)
    Approvals {
        /// Only this app's
        client_id: Option<ClientId>,
    },
    /// Approve what an agent asked for (not in this build)
    Approve {
        /// The approval's id
        #[arg(value_name = "UUID")]
        id: uuid::Uuid,
    },
    /// Deny what an agent asked for (not in this build)
    Deny {
        /// The approval's id
        #[arg(value_name = "UUID")]
        id: uuid::Uuid,
    },
}

/// Runs a command of `logi`. The exit status is 0 for done and 1 for refused or failed.
pub async fn run(logi: Logi) -> ExitCode {
    let out = Output { json: logi.common.json };
    match dispatch(logi, out).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.output_closed => ExitCode::SUCCESS,
        Err(failure) => {
            out.note(failure.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(logi: Logi, out: Output) -> Outcome {
    let command = match logi.command {
        Command::Agent(Agent::Revoke(kill)) => Panopticon::Kill(kill),
        Command::Panopticon(command) => command,
    };
    if matches!(command, Panopticon::Approvals { .. } | Panopticon::Approve { .. } | Panopticon::Deny { .. })
    {
        return Err(Failure::new("this build does not have approvals yet"));
    }
    let s =
        &Session { control: Control::find(logi.common.url.as_deref().filter(|url| !url.is_empty()))?, out };
    match command {
        Panopticon::Enable(command) => command.run(s).await,
        Panopticon::Rotate(command) => command.run(s).await,
        Panopticon::Disable(command) => command.run(s).await,
        Panopticon::Apps(command) => command.run(s).await,
        Panopticon::Send(command) => command.run(s).await,
        Panopticon::Status(command) => command.run(s).await,
        Panopticon::Trace(command) => command.run(s).await,
        Panopticon::Timeline(command) => command.run(s).await,
        Panopticon::Usage(command) => command.run(s).await,
        Panopticon::Detections(command) => command.run(s).await,
        Panopticon::Actions(command) => command.run(s).await,
        Panopticon::Policy(command) => command.run(s).await,
        Panopticon::Kill(command) => command.run(s).await,
        Panopticon::Unkill(command) => command.run(s).await,
        Panopticon::Erase(command) => command.run(s).await,
        Panopticon::Webhook(command) => command.run(s).await,
        Panopticon::Token(command) => command.run(s).await,
        Panopticon::DeadLetters(command) => command.run(s).await,
        Panopticon::Audit(command) => command.run(s).await,
        Panopticon::Approvals { .. } | Panopticon::Approve { .. } | Panopticon::Deny { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        Logi::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself_by_an_example() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no description");
            for sub in command.get_subcommands() {
                check(sub, &path);
            }
            let absent = ["approvals", "approve", "deny"].contains(&command.get_name());
            if !command.has_subcommands() && !absent {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("logi "), "{path} has no example");
            }
        }
        check(&Logi::command(), "");
    }
}
