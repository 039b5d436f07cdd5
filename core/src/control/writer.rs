//! Changes the control table: one writer at a time, the record, its audit entry and its guard action in
//! one commit, back only when this process has read it.

use std::sync::Arc;

use panopticon_proto::log::{AuditEntry, GuardAction};
use prost::Message as _;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{ControlState, ControlView};
use crate::{
    ids::partition_of,
    log::{EventLog, ExclusiveWriter, LogError, Output, Record},
    time::{SharedClock, Time},
    topic::Topic,
};

/// Who makes a change.
#[derive(Debug, Clone)]
pub struct Actor {
    /// Such as `token:ci` or `webhook-dispatcher`.
    pub name: String,
    /// The request that asked for it; empty where there was none.
    pub request_id: String,
}

/// What a change writes.
#[derive(Debug, Default)]
pub struct Change {
    /// Entries by key; `None` deletes.
    pub entries: Vec<(String, Option<Vec<u8>>)>,
    /// What the RP is told.
    pub actions: Vec<GuardAction>,
    /// Records of other topics.
    pub records: Vec<Output>,
    /// For the audit record: what was done, such as `app.rotate`.
    pub action: &'static str,
    /// The app concerned; empty where it is none.
    pub client_id: String,
    /// What else names the thing concerned.
    pub target: String,
    /// What changed, without secrets.
    pub detail: serde_json::Value,
}

impl Change {
    /// A change with one entry.
    pub fn put<M: prost::Message>(
        action: &'static str,
        client_id: &str,
        key: String,
        value: Option<&M>,
    ) -> Self {
        Self {
            entries: vec![(key, value.map(prost::Message::encode_to_vec))],
            action,
            client_id: client_id.to_owned(),
            ..Self::default()
        }
    }
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError<E> {
    /// The caller's own check refused it.
    #[error("{0}")]
    Refused(E),
    /// The log could not take it.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Changes the control table.
pub struct ControlWriter {
    log: Arc<dyn EventLog>,
    view: ControlView,
    clock: SharedClock,
    /// The right to write, once it has been needed.
    right: Mutex<Option<Box<dyn ExclusiveWriter>>>,
}

/// How often a change is tried when other writers come between.
const ATTEMPTS: u32 = 8;

impl ControlWriter {
    /// A writer that decides on what `view` shows.
    pub fn new(log: Arc<dyn EventLog>, view: ControlView, clock: SharedClock) -> Self {
        Self { log, view, clock, right: Mutex::new(None) }
    }

    /// The table that this writer changes.
    pub const fn view(&self) -> &ControlView {
        &self.view
    }

    /// Decides with `decide` on the latest state and commits what it says; `None` changes nothing. May
    /// call `decide` again when another writer came between.
    pub async fn change<T, E>(
        &self,
        actor: &Actor,
        mut decide: impl FnMut(&ControlState, Time) -> Result<(Option<Change>, T), E>,
    ) -> Result<T, ChangeError<E>> {
        let mut right = self.right.lock().await;
        let mut last = LogError::Unavailable("no attempt was made".to_owned());
        for _ in 0..ATTEMPTS {
            let mut writer = match right.take() {
                Some(writer) => writer,
                None => self.log.writer("control").await?,
            };
            self.view.read_to_end().await?;
            let now = self.clock.now();
            let (change, answer) = decide(&self.view.state(), now).map_err(ChangeError::Refused)?;
            let Some(change) = change else {
                *right = Some(writer);
                return Ok(answer);
            };
            let outputs = self.outputs(actor, change, now).await?;
            match writer.commit(outputs).await {
                Ok(_) => {
                    *right = Some(writer);
                    self.view.read_to_end().await?;
                    return Ok(answer);
                }
                Err(error @ (LogError::Fenced(_) | LogError::Aborted(_))) => last = error,
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.into())
    }

    async fn outputs(&self, actor: &Actor, change: Change, now: Time) -> Result<Vec<Output>, LogError> {
        let audit = AuditEntry {
            audit_id: Uuid::now_v7().to_string(),
            at: now.micros(),
            actor: actor.name.clone(),
            action: change.action.to_owned(),
            client_id: change.client_id,
            target: change.target,
            detail: if change.detail.is_null() { String::new() } else { change.detail.to_string() },
            request_id: actor.request_id.clone(),
        };
        let mut outputs: Vec<Output> = change
            .entries
            .into_iter()
            .map(|(key, value)| Output {
                topic: Topic::Control,
                partition: 0,
                record: Record { key: key.into(), payload: value.map(Into::into), replay: None },
            })
            .collect();
        outputs.extend(change.records);
        outputs.push(Output {
            topic: Topic::Audit,
            partition: 0,
            record: Record::message(audit.encode_to_vec()),
        });
        if !change.actions.is_empty() {
            let partitions = self.log.topic(Topic::GuardActions).await?.partitions;
            outputs.extend(change.actions.into_iter().map(|action| Output {
                topic: Topic::GuardActions,
                partition: partition_of(&[&action.client_id, &action.user_sub], partitions),
                record: Record::message(action.encode_to_vec()),
            }));
        }
        Ok(outputs)
    }
}
