//! Group commit: what waits for the log goes to it in rounds, an envelope a partition.
//!
//! What an append costs, here and at the broker, hardly depends on how many traces are in it; and threads and
//! servers that are woken for all partitions at once are woken less often. So requests gather while a round is under
//! way: the busier the gateway, the larger the envelopes. The first request after a pause waits only for those that
//! have arrived with it. A partition that does not answer holds back nobody else for longer than the pace.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use panopticon_core::{
    config::GatewayConfig,
    log::{EventLog, TopicInfo},
    seen::SeenSet,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    task::yield_now,
    time::{Instant, timeout_at},
};

use crate::{
    appender::{Appender, Load},
    marker::Marker,
    parcel::Parcel,
};

/// Takes the parcels of a request.
pub(crate) type Door = mpsc::UnboundedSender<Vec<Parcel>>;
/// Behind the door.
type Queue = mpsc::UnboundedReceiver<Vec<Parcel>>;

/// How often, at most, other tasks are let go before a round. Requests that were there come in one or two; under load
/// there are always more.
const MOST_PASSES: usize = 4;

/// Brings parcels into rounds, of all partitions.
pub(crate) struct Rounds {
    appender: Arc<Appender>,
    lanes: Vec<Lane>,
    /// Told when an append has ended.
    ended: Arc<Notify>,
    max_envelope_bytes: usize,
    pace: Duration,
}

/// What waits for one partition. The rooms of its parcels bound it.
struct Lane {
    parcels: VecDeque<Parcel>,
    /// How many appends to it may be under way at once.
    most: usize,
    under_way: Arc<Semaphore>,
}

impl Lane {
    fn new(most: usize) -> Self {
        Self { parcels: VecDeque::new(), most, under_way: Arc::new(Semaphore::new(most)) }
    }

    fn is_idle(&self) -> bool {
        self.under_way.available_permits() == self.most
    }

    fn is_ready(&self) -> bool {
        !self.parcels.is_empty() && self.under_way.available_permits() > 0
    }

    /// As many parcels as fit into an envelope, if one may go.
    fn load(&mut self, max_bytes: usize, ended: &Arc<Notify>) -> Option<Load> {
        if self.parcels.is_empty() {
            return None;
        }
        let permit = self.under_way.clone().try_acquire_owned().ok()?;
        let (mut bytes, mut count) = (0, 0);
        for parcel in &self.parcels {
            bytes += parcel.bytes;
            if count > 0 && bytes > max_bytes {
                break;
            }
            count += 1;
        }
        let parcels = self.parcels.drain(..count).collect();
        Some(Load { parcels, turn: Turn { permit: Some(permit), ended: ended.clone() } })
    }
}

/// The right to append to a partition, given back when it is dropped.
pub(crate) struct Turn {
    permit: Option<OwnedSemaphorePermit>,
    ended: Arc<Notify>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Before it is told: whoever hears of it finds it free.
        self.permit = None;
        self.ended.notify_one();
    }
}

impl Rounds {
    /// Starts rounds over so many partitions; they end once the door is closed and nothing waits any more.
    pub(crate) fn start(
        log: Arc<dyn EventLog>,
        seen: Arc<dyn SeenSet>,
        topic: TopicInfo,
        limits: &GatewayConfig,
    ) -> Door {
        let marker = Marker::start(seen, Duration::from_millis(limits.mark_timeout_ms));
        let rounds = Self {
            appender: Arc::new(Appender { log, marker, log_id: topic.log_id }),
            lanes: (0..topic.partitions).map(|_| Lane::new(limits.appends_in_flight)).collect(),
            ended: Arc::default(),
            max_envelope_bytes: limits.max_envelope_bytes,
            pace: Duration::from_millis(limits.append_pace_ms),
        };
        let (door, queue) = mpsc::unbounded_channel();
        tokio::spawn(rounds.run(queue));
        door
    }

    async fn run(mut self, mut queue: Queue) {
        let (mut next, mut is_open) = (Instant::now(), true);
        loop {
            while !self.lanes.iter().any(Lane::is_ready) {
                if !is_open && self.lanes.iter().all(|lane| lane.parcels.is_empty()) {
                    return;
                }
                tokio::select! {
                    parcels = queue.recv(), if is_open => match parcels {
                        Some(parcels) => self.put(parcels),
                        None => is_open = false,
                    },
                    () = self.ended.notified() => {}
                }
            }
            while Instant::now() < next && !self.lanes.iter().all(Lane::is_idle) {
                let _ = timeout_at(next, self.ended.notified()).await;
            }
            self.gather(&mut queue).await;
            next = Instant::now() + self.pace;
            tokio::spawn(self.appender.clone().append_all(self.loads()));
        }
    }

    /// Takes in what has come, and what comes of the requests that other tasks are about to read: they are let go
    /// first, until none of them brings anything.
    async fn gather(&mut self, queue: &mut Queue) {
        for _ in 0..MOST_PASSES {
            yield_now().await;
            let mut came = false;
            while let Ok(parcels) = queue.try_recv() {
                self.put(parcels);
                came = true;
            }
            if !came {
                return;
            }
        }
    }

    fn put(&mut self, parcels: Vec<Parcel>) {
        for parcel in parcels {
            if let Some(lane) = self.lanes.get_mut(parcel.partition as usize) {
                lane.parcels.push_back(parcel);
            }
        }
    }

    /// Of each partition as many envelopes as may go.
    fn loads(&mut self) -> Vec<Load> {
        let (max_bytes, ended) = (self.max_envelope_bytes, &self.ended);
        self.lanes.iter_mut().flat_map(|lane| std::iter::from_fn(|| lane.load(max_bytes, ended))).collect()
    }
}
