//! Which topics there are: the identity that `migrate` gave each of them, read from `control`.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use panopticon_core::{
    ids::LogId,
    log::{LogError, Output, TopicInfo},
    proto::control::LogIdentity,
    topic::Topic,
};
use parking_lot::RwLock;
use prost::Message;

use super::{
    blocking,
    client::{Clients, QUESTION_TIMEOUT},
    offsets::Offsets,
    reader::Readers,
};

/// Where the identity of `topic` is in `control`.
pub(super) fn identity_key(topic: Topic) -> String {
    format!("log/{topic}")
}

/// The identities among the rows of `control`.
pub(super) fn identities(rows: &[(Bytes, Bytes)]) -> HashMap<Topic, LogIdentity> {
    let identity = |(key, payload): &(Bytes, Bytes)| {
        let topic = Topic::parse(std::str::from_utf8(key).ok()?.strip_prefix("log/")?)?;
        Some((topic, LogIdentity::decode(&payload[..]).ok()?))
    };
    rows.iter().filter_map(identity).collect()
}

/// Knows the topics, once they were asked for.
pub(super) struct Topics {
    clients: Arc<Clients>,
    offsets: Arc<Offsets>,
    readers: Arc<Readers>,
    known: RwLock<HashMap<Topic, TopicInfo>>,
}

impl Topics {
    pub(super) fn new(clients: &Arc<Clients>, offsets: &Arc<Offsets>, readers: &Arc<Readers>) -> Self {
        Self {
            clients: Arc::clone(clients),
            offsets: Arc::clone(offsets),
            readers: Arc::clone(readers),
            known: RwLock::default(),
        }
    }

    /// The partitions and the identity of `topic`.
    pub(super) async fn info(self: &Arc<Self>, topic: Topic) -> Result<TopicInfo, LogError> {
        if let Some(info) = self.known.read().get(&topic) {
            return Ok(*info);
        }
        let this = Arc::clone(self);
        let info = blocking(move || this.look_up(topic)).await?;
        self.known.write().insert(topic, info);
        Ok(info)
    }

    /// The full name of `topic`, which has a partition `partition`.
    pub(super) async fn name(self: &Arc<Self>, topic: Topic, partition: u32) -> Result<String, LogError> {
        let TopicInfo { partitions, .. } = self.info(topic).await?;
        if partition >= partitions {
            return Err(LogError::Broken(format!(
                "{topic}-{partition} does not exist: the topic has {partitions} partitions"
            )));
        }
        Ok(self.clients.topic(topic))
    }

    /// The full names of the topics that `outputs` go to, in their order.
    pub(super) async fn names_of(self: &Arc<Self>, outputs: &[Output]) -> Result<Vec<String>, LogError> {
        let mut names = Vec::with_capacity(outputs.len());
        for output in outputs {
            names.push(self.name(output.topic, output.partition).await?);
        }
        Ok(names)
    }

    /// Blocks.
    fn look_up(&self, topic: Topic) -> Result<TopicInfo, LogError> {
        let exists = |topic| self.offsets.partitions(&self.clients.topic(topic), QUESTION_TIMEOUT);
        let (Some(_), Some(partitions)) = (exists(Topic::Control)?, exists(topic)?) else {
            return Err(LogError::NoTopic(topic));
        };
        let rows = self.readers.table(Topic::Control, 0)?;
        let Some(identity) = identities(&rows).remove(&topic) else {
            return Err(LogError::NoTopic(topic));
        };
        if identity.partitions != partitions {
            return Err(LogError::Broken(format!(
                "`{}` has {partitions} partitions but was created with {}: they are fixed at creation",
                self.clients.topic(topic),
                identity.partitions
            )));
        }
        Ok(TopicInfo { partitions, log_id: LogId(identity.log_id) })
    }
}
