//! The event log.

mod groups;
mod lease;
mod records;
mod retention;
mod tail;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use panopticon_core::{
    log::{
        Bounds, Committed, EventLog, ExclusiveWriter, LogError, Output, PartitionLag, Record, Stored,
        Subscription, Tail, TailFrom, TopicInfo,
    },
    topic::Topic,
};

pub(crate) use self::{groups::Groups, retention::expire};
use self::{
    lease::{Member, Writership},
    records::{Appendable, Limits, Range},
};
use crate::{Core, catalog::Slot, fault::Fault, writer::Durability};

/// The event log of a data directory.
pub(crate) struct Log {
    core: Arc<Core>,
}

impl Log {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[async_trait]
impl EventLog for Log {
    async fn topic(&self, topic: Topic) -> Result<TopicInfo, LogError> {
        self.core.catalog.info(topic)
    }

    async fn append(&self, topic: Topic, partition: u32, record: Record) -> Result<Option<u64>, LogError> {
        let output = Appendable::new(&self.core.catalog, Output { topic, partition, record })?;
        let append = self.core.writer.run(Durability::Durable, move |tx| output.append(tx));
        Ok(Some(append.await?))
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        let slot = self.core.catalog.slot(topic, partition)?;
        Ok(self.core.log_readers.read(move |conn| records::bounds(conn, slot)).await?)
    }

    async fn read(
        &self,
        topic: Topic,
        partition: u32,
        from: u64,
        to: u64,
        max_bytes: usize,
    ) -> Result<Vec<Stored>, LogError> {
        let slot = self.core.catalog.slot(topic, partition)?;
        let limits = Limits { records: usize::MAX, bytes: max_bytes, exceed: false };
        read(&self.core, topic, partition, slot, Range { from: Some(from), to }, limits).await
    }

    async fn table(&self, topic: Topic, partition: u32) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        let slot = self.core.catalog.slot(topic, partition)?;
        Ok(self.core.log_readers.read(move |conn| records::table(conn, slot)).await?)
    }

    async fn tail(&self, topic: Topic, from: TailFrom) -> Result<Tail, LogError> {
        tail::tail(&self.core, topic, &from)
    }

    async fn subscribe(&self, stage: &'static str, topic: Topic) -> Result<Box<dyn Subscription>, LogError> {
        let partitions = self.core.catalog.info(topic)?.partitions;
        let group = self.core.groups.join(stage, topic, partitions);
        Ok(Box::new(Member::new(Arc::clone(&self.core), group)))
    }

    async fn writer(&self, id: &'static str) -> Result<Box<dyn ExclusiveWriter>, LogError> {
        Ok(Box::new(Writership::take(Arc::clone(&self.core), id).await?))
    }

    async fn lag(&self, stage: &'static str, topic: Topic) -> Result<Vec<PartitionLag>, LogError> {
        let slots = self.core.catalog.slots(topic)?.to_vec();
        let lag = self.core.log_readers.read(move |conn| {
            let partitions = slots.into_iter().zip(0_u32..).map(|(slot, partition)| {
                Ok(PartitionLag {
                    partition,
                    committed: records::committed(conn, stage, slot)?,
                    bounds: records::bounds(conn, slot)?,
                })
            });
            partitions.collect::<Result<Vec<_>, Fault>>()
        });
        Ok(lag.await?)
    }
}

/// Reads a range of a partition; finding that its beginning is gone is a hole.
async fn read(
    core: &Core,
    topic: Topic,
    partition: u32,
    slot: Slot,
    range: Range,
    limits: Limits,
) -> Result<Vec<Stored>, LogError> {
    match core.log_readers.read(move |conn| records::read(conn, slot, range, limits)).await? {
        Ok(records) => Ok(records),
        Err(gone) => Err(LogError::Hole { topic, partition, wanted: gone.wanted, low: gone.low }),
    }
}

/// How far a group has come, asked behind all commits that wait: none of them can change it afterwards.
async fn committed(core: &Core, stage: &'static str, slot: Slot) -> Result<Committed, Fault> {
    core.writer.run(Durability::Lazy, move |tx| records::committed(tx.conn, stage, slot)).await
}
