//! One viewer: reads the log up to the live feed where it resumes, then follows the feed.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use panopticon_core::{ids::ClientId, log::LogError, topic::Topic};
use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;

use super::{
    MayWatch, Position, Resume, Shared,
    hub::each_frame,
    missed_frame, ping_frame,
    queue::{Item, Queue},
};

/// Read at once from the log while catching up.
const READ_BYTES: usize = 1 << 20;
/// A viewer that is this close to the feed joins it; the feed then waits in its queue for the rest.
const CLOSE_RECORDS: u64 = 64;
/// After so many attempts to come close it joins anyway and may miss traces, which it is told.
const MAX_CHASES: u32 = 16;
/// Before the log is read again after an error.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long the feed of this process may be behind the position that a viewer brings from another.
const FEED_BEHIND: Duration = Duration::from_secs(5);
const FEED_PAUSE: Duration = Duration::from_millis(50);

/// A viewer of one app.
pub(super) struct Viewer {
    shared: Arc<Shared>,
    client_id: ClientId,
    may_watch: MayWatch,
    asked_at: Instant,
    /// Ready for the wire.
    ready: VecDeque<Bytes>,
    phase: Phase,
    /// In the audience, once it has entered it.
    feed: Option<Feed>,
    /// Its place among the viewers of the process, given back with the viewer.
    _seat: OwnedSemaphorePermit,
}

enum Phase {
    /// Reads the log from `at` up to `goal`.
    CatchingUp { at: Position, goal: Vec<u64>, chases: u32 },
    /// Takes what the feed brings.
    Following,
}

/// Membership in the audience of an app; ends when it is dropped.
struct Feed {
    shared: Arc<Shared>,
    client_id: ClientId,
    seat: u64,
    queue: Arc<Queue>,
}

impl Drop for Feed {
    fn drop(&mut self) {
        if let Some(hub) = &mut *self.shared.hub.lock() {
            hub.leave(self.client_id.as_str(), self.seat);
        }
    }
}

impl Viewer {
    /// Lets a viewer in: at once into the feed, or, where it resumes, on its way to it. None while the
    /// feed is not connected.
    pub(super) fn enter(
        shared: Arc<Shared>,
        client_id: ClientId,
        after: Option<Resume>,
        may_watch: MayWatch,
        seat: OwnedSemaphorePermit,
    ) -> Option<Self> {
        let mut viewer = Self {
            shared,
            client_id,
            may_watch,
            asked_at: Instant::now(),
            ready: VecDeque::new(),
            phase: Phase::Following,
            feed: None,
            _seat: seat,
        };
        let feed_at = viewer.feed_at()?;
        match after {
            Some(Resume::At(at)) if at.log_id == feed_at.log_id && at.next.len() == feed_at.next.len() => {
                viewer.phase = Phase::CatchingUp { at, goal: feed_at.next, chases: 0 };
            }
            Some(_) => viewer.join_anew(true),
            None => viewer.join_anew(false),
        }
        Some(viewer)
    }

    fn feed_at(&self) -> Option<Position> {
        self.shared.hub.lock().as_ref().map(|hub| hub.at.clone())
    }

    /// Takes the feed from where it is now, telling that what was before it is missing, or where one
    /// could resume.
    fn join_anew(&mut self, missing: bool) {
        let Some(at) = self.join(|_| true) else { return };
        if missing {
            self.ready.push_back(missed_frame(0));
        }
        self.ready.push_back(ping_frame(Some(&at.encode())));
        self.phase = Phase::Following;
    }

    /// Enters the audience if the feed's position suits; answers that position.
    fn join(&mut self, suits: impl Fn(&Position) -> bool) -> Option<Position> {
        let queue = Arc::new(Queue::new(self.shared.limits.buffer_traces));
        let mut hub = self.shared.hub.lock();
        let hub = hub.as_mut().filter(|hub| suits(&hub.at))?;
        let seat = hub.enter(self.client_id.as_str(), queue.clone());
        let (shared, client_id) = (self.shared.clone(), self.client_id.clone());
        self.feed = Some(Feed { shared, client_id, seat, queue });
        Some(hub.at.clone())
    }

    /// The next piece of the stream; none: it ends.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Some(frame);
            }
            let shutdown = self.shared.shutdown.clone();
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = self.step() => {}
            }
            if self.asked_at.elapsed() >= self.ping_after() {
                self.asked_at = Instant::now();
                if !(self.may_watch)() {
                    return None;
                }
            }
        }
    }

    fn ping_after(&self) -> Duration {
        Duration::from_secs(self.shared.limits.ping_secs.max(1))
    }

    /// Goes on a little; most often something is ready afterwards.
    async fn step(&mut self) {
        match &self.phase {
            Phase::CatchingUp { .. } => self.catch_up().await,
            Phase::Following => self.follow().await,
        }
    }

    async fn follow(&mut self) {
        let Some(feed) = &self.feed else { return std::future::pending().await };
        match tokio::time::timeout(self.ping_after(), feed.queue.pop()).await {
            Ok(Item::Trace(frame)) => self.ready.push_back(frame),
            Ok(Item::Missed(count)) => self.ready.push_back(missed_frame(count)),
            Err(_) => self.ready.push_back(ping_frame(None)),
        }
    }

    /// Reads one piece of the log, or looks where the feed is now.
    async fn catch_up(&mut self) {
        let Phase::CatchingUp { at, goal, .. } = &mut self.phase else { return };
        // While the feed is behind the viewer its own position says more: nothing is read until it is not.
        let next = if is_ahead(at, goal) { None } else { behind(at, goal) };
        let Some(partition) = next else { return self.approach().await };
        let (from, to) = (at.next[partition], goal[partition]);
        let read = self.shared.log.read(Topic::Traces, partition as u32, from, to, READ_BYTES).await;
        match read {
            Ok(records) => {
                let (client_id, ready) = (&self.client_id, &mut self.ready);
                for stored in &records {
                    // What was shown before is the beginning of the envelope at exactly that offset.
                    let skip = if stored.offset == at.next[partition] { at.shown_of(partition) } else { 0 };
                    let watched = |app: &str| app == client_id.as_str();
                    each_frame(at, partition, stored, skip, watched, |_, frame| ready.push_back(frame));
                    at.pass(partition, stored.offset);
                }
                if records.is_empty() {
                    at.pass(partition, to - 1);
                }
            }
            Err(LogError::Hole { low, .. }) => {
                at.pass(partition, low.max(from + 1) - 1);
                self.ready.push_back(missed_frame(0));
            }
            Err(error) => {
                warn!(%error, partition, "live: the log cannot be read for a viewer that resumes; trying again");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }

    /// Everything up to the goal was read: joins the feed when it is close, else goes after it.
    async fn approach(&mut self) {
        let Phase::CatchingUp { at, goal, chases } = &self.phase else { return };
        if self.feed.is_some() {
            self.phase = Phase::Following;
            return;
        }
        let (at, goal, chases) = (at.clone(), goal.clone(), *chases);
        let may_join = |feed: &Position| {
            let gap: u64 = feed.next.iter().zip(&at.next).map(|(feed, at)| feed.saturating_sub(*at)).sum();
            !is_ahead(&at, &feed.next) && (gap <= CLOSE_RECORDS || chases >= MAX_CHASES)
        };
        if let Some(feed_at) = self.join(may_join) {
            self.phase = Phase::CatchingUp { at, goal: feed_at.next, chases };
            return;
        }
        let Some(feed_at) = self.feed_at() else { return };
        if !is_ahead(&at, &feed_at.next) {
            self.phase = Phase::CatchingUp { at, goal: feed_at.next, chases: chases + 1 };
        } else if FEED_PAUSE * chases < FEED_BEHIND {
            // Another process showed it more than this one has seen.
            self.phase = Phase::CatchingUp { at, goal, chases: chases + 1 };
            tokio::time::sleep(FEED_PAUSE).await;
        } else {
            self.join_anew(true);
        }
    }
}

/// A partition that is behind `goal`: first the one of which an envelope was shown in part.
fn behind(at: &Position, goal: &[u64]) -> Option<usize> {
    let is_behind = |partition: &usize| at.next.get(*partition) < goal.get(*partition);
    Some(at.partition)
        .filter(|partition| at.index > 0 && is_behind(partition))
        .or_else(|| (0..goal.len()).find(is_behind))
}

/// Whether `at` has shown something that the feed, at `feed`, has not brought yet.
fn is_ahead(at: &Position, feed: &[u64]) -> bool {
    let within = at.index > 0 && at.next.get(at.partition) == feed.get(at.partition);
    within || at.next.iter().zip(feed).any(|(at, feed)| at > feed)
}
