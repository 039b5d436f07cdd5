//! Following a topic without being a member of a group.

use std::{collections::VecDeque, sync::Arc};

use futures::stream::{self, BoxStream, StreamExt as _};
use panopticon_core::{
    log::{LogError, Stored, Tail, TailFrom},
    topic::Topic,
};
use tokio::sync::watch;

use super::{
    read,
    records::{Limits, Range},
};
use crate::{Core, catalog::Slot};

/// How much a tail reads ahead in each partition.
const READ_AHEAD_BYTES: usize = 1 << 20;
/// The same in records.
const READ_AHEAD_RECORDS: usize = 1_000;

/// Follows all partitions of `topic`.
pub(super) fn tail(core: &Arc<Core>, topic: Topic, from: &TailFrom) -> Result<Tail, LogError> {
    let slots = core.catalog.slots(topic)?;
    let partitions = slots.iter().zip(0_u32..).map(|(&slot, partition)| {
        let end = core.catalog.end(slot);
        let next = match from {
            TailFrom::Start => None,
            TailFrom::End => Some(*end.borrow()),
            // A partition that is not named begins with what is there.
            TailFrom::Offsets(offsets) => offsets.get(partition as usize).copied(),
        };
        Follow {
            core: Arc::clone(core),
            topic,
            partition,
            slot,
            end,
            next,
            ahead: VecDeque::new(),
            over: false,
        }
        .stream()
    });
    Ok(stream::select_all(partitions.collect::<Vec<_>>()).boxed())
}

struct Follow {
    core: Arc<Core>,
    topic: Topic,
    partition: u32,
    slot: Slot,
    end: watch::Receiver<u64>,
    next: Option<u64>,
    ahead: VecDeque<Stored>,
    over: bool,
}

impl Follow {
    fn stream(self) -> BoxStream<'static, Result<(u32, Stored), LogError>> {
        stream::unfold(self, |mut follow| async move {
            if follow.over {
                return None;
            }
            let found = follow.next().await.transpose()?;
            // After an error the tail does not know where it is: it ends, to be taken up again.
            follow.over = found.is_err();
            Some((found.map(|stored| (follow.partition, stored)), follow))
        })
        .boxed()
    }

    /// The next record; `None` once the engine closes.
    async fn next(&mut self) -> Result<Option<Stored>, LogError> {
        let mut closing = self.core.closing.subscribe();
        loop {
            if let Some(stored) = self.ahead.pop_front() {
                return Ok(Some(stored));
            }
            if self.core.is_closing() {
                return Ok(None);
            }
            let end = *self.end.borrow_and_update();
            if self.next.is_none_or(|next| next < end) {
                let range = Range { from: self.next, to: end };
                let limits = Limits { records: READ_AHEAD_RECORDS, bytes: READ_AHEAD_BYTES, exceed: true };
                let found = read(&self.core, self.topic, self.partition, self.slot, range, limits).await?;
                self.next = Some(found.last().map_or(end, |last| last.offset + 1));
                self.ahead = found.into();
                continue;
            }
            tokio::select! {
                _ = self.end.changed() => {}
                _ = closing.changed() => {}
            }
        }
    }
}
