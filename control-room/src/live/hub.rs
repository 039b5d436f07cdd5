//! Follows the topic `traces` once for all viewers of the process.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use panopticon_core::{
    health::PartHealth,
    log::{EventLog, LogError, Stored, TailFrom},
    topic::Topic,
    trace::{TakenRef, WireError, entries},
};
use tracing::{debug, warn};

use super::{Position, Shared, queue::Queue, trace_frame};

/// Before the log is asked again after an error.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// How far the feed has come, and who watches what. A record is given to all who watch and passed in one
/// go, under the lock of the hub: who enters sees it in whole or not at all.
pub(super) struct Hub {
    pub(super) at: Position,
    audiences: HashMap<String, HashMap<u64, Arc<Queue>>>,
    seats_given: u64,
}

impl Hub {
    fn at(at: Position) -> Self {
        Self { at, audiences: HashMap::new(), seats_given: 0 }
    }

    /// Lets a viewer in: `queue` gets everything of `client_id` from [`Hub::at`] on.
    pub(super) fn enter(&mut self, client_id: &str, queue: Arc<Queue>) -> u64 {
        self.seats_given += 1;
        self.audiences.entry(client_id.to_owned()).or_default().insert(self.seats_given, queue);
        self.seats_given
    }

    /// A viewer has gone.
    pub(super) fn leave(&mut self, client_id: &str, seat: u64) {
        if let Some(audience) = self.audiences.get_mut(client_id) {
            audience.remove(&seat);
            if audience.is_empty() {
                self.audiences.remove(client_id);
            }
        }
    }

    /// Gives a record's traces to those who watch their apps.
    fn take_in(&mut self, partition: usize, stored: &Stored) {
        if self.at.next.get(partition).is_none_or(|next| stored.offset < *next) {
            return;
        }
        let audiences = &self.audiences;
        if !audiences.is_empty() {
            let watched = |client_id: &str| audiences.contains_key(client_id);
            each_frame(&self.at, partition, stored, 0, watched, |client_id, frame| {
                for queue in audiences.get(client_id).into_iter().flat_map(HashMap::values) {
                    queue.push(frame.clone());
                }
            });
        }
        self.at.pass(partition, stored.offset);
    }

    /// Retention was faster: goes on where there are records again, and tells everybody.
    fn jump(&mut self, partition: usize, low: u64) {
        if let Some(next) = self.at.next.get_mut(partition) {
            *next = (*next).max(low);
        }
        self.audiences.values().flat_map(HashMap::values).for_each(|queue| queue.lose_track());
    }
}

/// Calls `give` with the event of each trace of a record after the first `skip`, whose app is `watched`.
/// A trace is turned into JSON once, however many watch it.
pub(super) fn each_frame(
    at: &Position,
    partition: usize,
    stored: &Stored,
    skip: u64,
    watched: impl Fn(&str) -> bool,
    mut give: impl FnMut(&str, Bytes),
) {
    // A replayed record is for one stage alone.
    if stored.record.replay.is_some() {
        return;
    }
    let traces = match entries(stored.record.bytes()) {
        Ok(traces) => traces,
        Err(error) => return undecodable(partition, stored, &error),
    };
    for (index, bytes) in (0_u64..).zip(&traces).skip_while(|(index, _)| *index < skip) {
        let frame = TakenRef::read(bytes).map_err(WireError::from).and_then(|taken| {
            if !watched(taken.trace.client_id) {
                return Ok(());
            }
            let id = at.within(partition, stored.offset, index + 1).encode();
            // Numbers, strings and a flat map of strings: this cannot fail.
            let json = serde_json::to_string(&taken.to_owned()?).unwrap_or_default();
            give(taken.trace.client_id, trace_frame(&id, &json));
            Ok(())
        });
        if let Err(error) = frame {
            undecodable(partition, stored, &error);
        }
    }
}

fn undecodable(partition: usize, stored: &Stored, error: &dyn std::error::Error) {
    warn!(partition, offset = stored.offset, %error, "live: a record that cannot be read is left out");
    metrics::counter!("panopticon_live_undecodable_total").increment(1);
}

/// Feeds the hub until shutdown, going on after errors at the place where it was.
pub(super) async fn feed(shared: Arc<Shared>, part: PartHealth) {
    loop {
        let error = tokio::select! {
            () = shared.shutdown.cancelled() => return,
            error = follow(&shared, &part) => error,
        };
        match error {
            LogError::Hole { partition, low, .. } => {
                warn!(partition, low, "live: retention was faster than the feed; it goes on after the hole");
                if let Some(hub) = &mut *shared.hub.lock() {
                    hub.jump(partition as usize, low);
                }
            }
            error => {
                debug!(%error, "live: lost the log; trying again");
                part.waiting(error.to_string());
            }
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = tokio::time::sleep(RETRY_PAUSE) => {}
        }
    }
}

/// Follows the topic until that fails.
async fn follow(shared: &Shared, part: &PartHealth) -> LogError {
    let next = match place(shared).await {
        Ok(next) => next,
        Err(error) => return error,
    };
    let mut tail = match shared.log.tail(Topic::Traces, TailFrom::Offsets(next)).await {
        Ok(tail) => tail,
        Err(error) => return error,
    };
    part.running();
    while let Some(record) = tail.next().await {
        match record {
            Ok((partition, stored)) => {
                if let Some(hub) = &mut *shared.hub.lock() {
                    hub.take_in(partition as usize, &stored);
                }
            }
            Err(error) => return error,
        }
    }
    LogError::Unavailable("the tail of `traces` ended".to_owned())
}

/// Where to go on: at the end of the log the first time, later where the feed was.
async fn place(shared: &Shared) -> Result<Vec<u64>, LogError> {
    if let Some(hub) = &*shared.hub.lock() {
        return Ok(hub.at.next.clone());
    }
    let topic = shared.log.topic(Topic::Traces).await?;
    let next = end_of(&*shared.log, topic.partitions).await?;
    *shared.hub.lock() = Some(Hub::at(Position::before(topic.log_id, next.clone())));
    shared.connected.send_replace(true);
    Ok(next)
}

async fn end_of(log: &dyn EventLog, partitions: u32) -> Result<Vec<u64>, LogError> {
    let mut next = Vec::new();
    for partition in 0..partitions {
        next.push(log.bounds(Topic::Traces, partition).await?.high);
    }
    Ok(next)
}
