//! The right to write under one name.

use std::sync::Arc;

use async_trait::async_trait;
use panopticon_core::log::{ExclusiveWriter, LogError, Output};
use parking_lot::Mutex;

use super::{
    blocking,
    client::Clients,
    topics::Topics,
    txn::{Target, TxnProducer},
};

/// Writes as one transactional id, outside any group.
pub(super) struct Writer {
    topics: Arc<Topics>,
    producer: Arc<Mutex<TxnProducer>>,
}

impl Writer {
    pub(super) async fn open(
        clients: &Arc<Clients>,
        topics: &Arc<Topics>,
        name: &str,
    ) -> Result<Self, LogError> {
        let (factory, id) = (Arc::clone(clients), clients.id(name));
        let producer = blocking(move || TxnProducer::open(&factory, &id)).await?;
        Ok(Self { topics: Arc::clone(topics), producer: Arc::new(Mutex::new(producer)) })
    }
}

#[async_trait]
impl ExclusiveWriter for Writer {
    async fn commit(&mut self, outputs: Vec<Output>) -> Result<Vec<u64>, LogError> {
        if outputs.is_empty() {
            return Ok(Vec::new());
        }
        let names = self.topics.names_of(&outputs).await?;
        let producer = Arc::clone(&self.producer);
        let offsets = blocking(move || {
            let targets = targets(&names, &outputs);
            producer.lock().commit(&targets, None)
        })
        .await?;
        offsets
            .into_iter()
            .map(|offset| {
                offset.ok_or_else(|| {
                    LogError::Unavailable(
                        "committed, but an acknowledgement came without an offset".to_owned(),
                    )
                })
            })
            .collect()
    }
}

/// `outputs` with the full names of their topics, which are in the same order.
pub(super) fn targets<'a>(names: &'a [String], outputs: &'a [Output]) -> Vec<Target<'a>> {
    let target = |(name, output): (&'a String, &'a Output)| Target {
        topic: name,
        partition: output.partition,
        record: &output.record,
    };
    names.iter().zip(outputs).map(target).collect()
}
