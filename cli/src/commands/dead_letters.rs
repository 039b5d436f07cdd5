//! Records that a stage could not take.

use clap::{Args, Subcommand};
use panopticon_core::api::DeadLetterReplayAnswer;
use serde_json::{Value, value::RawValue};

use super::{Session, cell};
use crate::{
    control::{path, row},
    failure::{Failure, Outcome},
    output::{counted, plain, shown},
};

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetters {
    List(List),
    Replay(Replay),
}

impl DeadLetters {
    pub(crate) async fn run(self, s: &Session) -> Outcome {
        match self {
            Self::List(command) => command.run(s).await,
            Self::Replay(command) => command.run(s).await,
        }
    }
}

/// List the records that a stage could not take, newest first
#[derive(Debug, Args)]
#[command(after_help = "\
States: dead, replayed (appended again; if it fails again, that is a dead letter of its own).

Examples:
  logi panopticon dead-letters list
  logi panopticon dead-letters list --limit 500 --json")]
pub(crate) struct List {
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

impl List {
    async fn run(self, s: &Session) -> Outcome {
        let rows = s.control.list("/dead-letters", &[], self.limit).await?;
        if s.out.json {
            return s.out.json_list(&rows);
        }
        let cells = rows.iter().map(|raw| {
            let letter: Value = row(raw)?;
            let place = format!(
                "{} {}/{}",
                cell(&letter, "topic"),
                cell(&letter, "partition"),
                cell(&letter, "offset")
            );
            Ok([
                cell(&letter, "at"),
                cell(&letter, "stage"),
                place,
                cell(&letter, "size"),
                cell(&letter, "state"),
                cell(&letter, "error"),
                cell(&letter, "dead_letter_id"),
            ])
        });
        let heading = ["AT", "STAGE", "PLACE", "BYTES", "STATE", "ERROR", "ID"];
        s.out.table(heading, cells.collect::<Outcome<_>>()?, "no dead letters")
    }
}

/// Append dead letters to their topics again, each for the stage that could not take it
#[derive(Debug, Args)]
#[command(after_help = "\
Mend the cause first. A letter is replayed once; asking again is harmless. The other stages skip the record: \
they have had it. Needs a token with the role admin.

Examples:
  logi panopticon dead-letters replay 0190b0a0-7b1a-5c3e-9d2a-000000000001
  logi panopticon dead-letters replay --all --stage store")]
pub(crate) struct Replay {
    /// The letters' ids, from `dead-letters list`
    #[arg(value_name = "DEAD_LETTER_ID", required_unless_present = "all")]
    ids: Vec<String>,
    /// All that are dead, oldest first
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// With --all: only those of this stage
    #[arg(long, value_name = "STAGE", requires = "all")]
    stage: Option<String>,
    /// With --all: only among the newest N
    #[arg(long, value_name = "N", default_value_t = 1_000, requires = "all")]
    limit: usize,
}

impl Replay {
    async fn run(self, s: &Session) -> Outcome {
        let ids = if self.all { self.dead(s).await? } else { self.ids };
        let mut answers: Vec<Box<RawValue>> = Vec::new();
        for id in ids {
            let answer = s.control.post(&path(&["dead-letters", &id, "replay"])).await?;
            if !s.out.json {
                let replayed: DeadLetterReplayAnswer = answer.read()?;
                s.out.line(format!(
                    "{} was appended to {} for {} at {}",
                    plain(&replayed.dead_letter_id),
                    plain(&replayed.topic),
                    plain(&replayed.stage),
                    shown(replayed.replayed_at)
                ))?;
            }
            answers.push(answer.read()?);
        }
        match s.out.json {
            true => s.out.json_list(&answers),
            false => s.out.line(format!("replayed {}", counted(answers.len() as u64, "dead letter"))),
        }
    }

    /// The ids of the letters that nobody has replayed, oldest first.
    async fn dead(&self, s: &Session) -> Outcome<Vec<String>> {
        let mut ids = Vec::new();
        for raw in s.control.list("/dead-letters", &[], self.limit).await? {
            let letter: Value = row(&raw)?;
            let wanted = self.stage.as_ref().is_none_or(|stage| letter["stage"] == stage.as_str());
            if letter["state"] == "dead" && wanted {
                let id = letter["dead_letter_id"].as_str();
                ids.push(
                    id.ok_or_else(|| Failure::new("the server lists a dead letter without id"))?.to_owned(),
                );
            }
        }
        ids.reverse();
        Ok(ids)
    }
}
