//! The work on one partition: actions come in, attempts go out, what came of them is written down.
//!
//! The table `webhook-deliveries` is the only state; this loop holds a copy of it. Every change is committed
//! first and taken into the copy then, so after an error the table is simply read again.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use panopticon_core::{
    log::{Commit, Lease, LogError, Output, Poll, PollLimits, Stored},
    stage::{IDLE_WAIT, PartitionContext, StageError},
    time::Time,
    topic::Topic,
};
use panopticon_proto::log::Delivery;
use prost::Message as _;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::{
    Dispatcher,
    book::Book,
    delivery::{self, Attempt, CANCELLED, Outcome, PENDING},
    disable::{Cause, Disabling, disable},
    intake::Intake,
    streak::Streaks,
};

/// Guard actions taken up at once; each becomes one delivery per endpoint, in one commit.
const ACTIONS_AT_ONCE: usize = 100;
/// Changed deliveries in one commit.
const CHANGES_AT_ONCE: usize = 500;
/// How often old deliveries are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// The work on one partition.
pub struct Desk<'a> {
    dispatcher: &'a Dispatcher,
    context: &'a PartitionContext,
    partition: u32,
    book: Book,
    streaks: Streaks,
    under_way: JoinSet<Attempt>,
    /// Attempts that wait for their turn when this is cancelled are not made.
    closing: CancellationToken,
    disabling: JoinSet<Disabling>,
    being_disabled: HashSet<String>,
    swept_at: Time,
    full: bool,
}

/// What woke the loop.
enum Event {
    Polled(Poll),
    Attempted(Result<Attempt, JoinError>),
    Disabled(Result<Disabling, JoinError>),
    Due,
    ControlChanged,
    Shutdown,
}

impl<'a> Desk<'a> {
    /// Takes a partition over: reads its table.
    pub async fn open(
        dispatcher: &'a Dispatcher,
        context: &'a PartitionContext,
        partition: u32,
    ) -> Result<Self, StageError> {
        dispatcher.control.view().read_to_end().await?;
        let mut deliveries = Vec::new();
        for (key, value) in context.runtime.log.table(Topic::WebhookDeliveries, partition).await? {
            match Delivery::decode(&*value) {
                Ok(delivery) if Uuid::parse_str(&delivery.delivery_id).is_ok() => deliveries.push(delivery),
                _ => {
                    warn!(partition, key = %String::from_utf8_lossy(&key), "an entry of webhook-deliveries is no delivery and is skipped");
                }
            }
        }
        let streaks = Streaks::of(&deliveries);
        let mut book = Book::new(dispatcher.limits);
        for delivery in deliveries {
            book.put(id_of(&delivery), delivery);
        }
        info!(partition, pending = book.pending(), "took over the deliveries of a partition");
        Ok(Self {
            dispatcher,
            context,
            partition,
            book,
            streaks,
            under_way: JoinSet::new(),
            closing: CancellationToken::new(),
            disabling: JoinSet::new(),
            being_disabled: HashSet::new(),
            swept_at: Time::EPOCH,
            full: false,
        })
    }

    /// Works until the partition is to be given up.
    pub async fn work(mut self, lease: &mut dyn Lease) -> Result<(), StageError> {
        let shutdown = self.context.runtime.shutdown.clone();
        let mut control = self.dispatcher.control.view().changes();
        self.cancel_withdrawn(lease).await?;
        loop {
            self.start_due();
            self.sweep(lease).await?;
            let (limits, room, until_due) = (self.poll_limits(), self.room(), self.until_due());
            let event = tokio::select! {
                polled = next_actions(lease, room, limits) => Event::Polled(polled?),
                Some(attempt) = self.under_way.join_next() => Event::Attempted(attempt),
                Some(ended) = self.disabling.join_next() => Event::Disabled(ended),
                () = tokio::time::sleep(until_due) => Event::Due,
                Ok(()) = control.changed() => Event::ControlChanged,
                () = shutdown.cancelled() => Event::Shutdown,
            };
            match event {
                Event::Polled(Poll::Records(records)) => self.take_in(lease, &records).await?,
                Event::Attempted(attempt) => self.settle(lease, attempt).await?,
                Event::Disabled(ended) => self.disabled(ended),
                Event::ControlChanged => self.cancel_withdrawn(lease).await?,
                Event::Due => {}
                Event::Polled(Poll::Revoked) | Event::Shutdown => return self.drain(lease).await,
            }
        }
    }

    fn now(&self) -> Time {
        self.context.runtime.clock.now()
    }

    /// Whether new actions are taken up.
    fn room(&mut self) -> bool {
        let full = !self.book.has_room();
        if full && !self.full {
            warn!(
                partition = self.partition,
                pending = self.book.pending(),
                "too many deliveries are pending; new actions wait in the log"
            );
            metrics::counter!("panopticon_webhook_backlog_full_total", "of" => "partition").increment(1);
        }
        self.full = full;
        !full
    }

    fn poll_limits(&self) -> PollLimits {
        let limits = self.context.poll_limits(IDLE_WAIT);
        PollLimits { records: limits.records.min(ACTIONS_AT_ONCE), ..limits }
    }

    fn until_due(&self) -> Duration {
        self.book.next_due_at().map_or(SWEEP_EVERY, |due| due.since(self.now()).min(SWEEP_EVERY))
    }

    /// New actions become pending deliveries, together with the position.
    async fn take_in(&mut self, lease: &mut dyn Lease, records: &[Stored]) -> Result<(), StageError> {
        self.context.took(records);
        let Some(last) = records.last() else { return Ok(()) };
        // An endpoint that was there before the action is told.
        let control = self.dispatcher.control.view();
        control.read_to_end().await?;
        let now = self.now();
        let mut intake = Intake::read(records, self.partition, &control.state(), &self.book, now);
        intake.look_up(&self.context.runtime.log, self.partition, &self.book, now).await?;
        self.commit(lease, intake.deliveries, intake.dead_letters, Some(last.offset + 1)).await?;
        self.context.finished(records.len());
        Ok(())
    }

    /// Begins an attempt at every delivery that is due; each waits for its own turn.
    fn start_due(&mut self) {
        let runtime = &self.context.runtime;
        while let Some((id, delivery)) = self.book.next_due(runtime.clock.now()) {
            let (courier, clock) = (self.dispatcher.courier.clone(), runtime.clock.clone());
            let (delivery, closing) = (delivery.clone(), self.closing.clone());
            self.under_way.spawn(async move { courier.attempt(id, delivery, clock, closing).await });
        }
    }

    /// Writes down what came of this attempt and of all others that have ended by now.
    async fn settle(
        &mut self,
        lease: &mut dyn Lease,
        first: Result<Attempt, JoinError>,
    ) -> Result<(), StageError> {
        let mut changed = Vec::new();
        let mut next = Some(first);
        while let Some(ended) = next {
            let attempt =
                ended.map_err(|panic| StageError::Broken(format!("an attempt ended in a panic: {panic}")))?;
            changed.extend(self.settled(&attempt));
            next = (changed.len() < CHANGES_AT_ONCE).then(|| self.under_way.try_join_next()).flatten();
        }
        self.commit(lease, changed, Vec::new(), None).await
    }

    /// The delivery as it stands after the attempt.
    fn settled(&mut self, attempt: &Attempt) -> Option<(Uuid, Delivery)> {
        let mut delivery = self.book.get(attempt.id)?.clone();
        if attempt.outcome == Outcome::NotTried {
            return None;
        }
        delivery::attempted(&mut delivery, attempt, &self.dispatcher.retry, rand::random());
        let endpoint_id = delivery.endpoint_id.clone();
        match attempt.outcome {
            Outcome::Delivered => self.streaks.succeeded(&endpoint_id),
            Outcome::Gone => self.disable(endpoint_id, Cause::Gone { at: attempt.at }),
            Outcome::Failed(_) => {
                let endpoint = self.dispatcher.control.view().state().webhook(&endpoint_id).cloned();
                if let Some(endpoint) = endpoint {
                    let changed_at = Time::from_micros(endpoint.updated_at);
                    let since = self.streaks.failed(&endpoint_id, attempt.at, changed_at);
                    if attempt.at.since(since) >= self.dispatcher.disable_after {
                        self.disable(endpoint_id, Cause::Failing { since });
                    }
                }
            }
            Outcome::Withdrawn | Outcome::NotTried => {}
        }
        Some((attempt.id, delivery))
    }

    fn disable(&mut self, endpoint_id: String, cause: Cause) {
        if self.being_disabled.insert(endpoint_id.clone()) {
            let (log, control) = (self.context.runtime.log.clone(), self.dispatcher.control.clone());
            self.disabling.spawn(disable(log, control, endpoint_id, cause));
        }
    }

    fn disabled(&mut self, ended: Result<Disabling, JoinError>) {
        match ended {
            Ok(Disabling { endpoint_id, delivered_at }) => {
                self.being_disabled.remove(&endpoint_id);
                if let Some(at) = delivered_at {
                    self.streaks.succeeded_elsewhere(&endpoint_id, at);
                }
            }
            Err(panic) => {
                warn!(error = %panic, "disabling an endpoint ended in a panic");
                self.being_disabled.clear();
            }
        }
    }

    /// Cancels what is scheduled to endpoints that are disabled or removed; what is under way sees it itself.
    async fn cancel_withdrawn(&mut self, lease: &mut dyn Lease) -> Result<(), StageError> {
        let now = self.now();
        let mut cancelled = Vec::new();
        {
            let control = self.dispatcher.control.view().state();
            for endpoint_id in self.book.endpoints() {
                let why = match control.webhook(endpoint_id) {
                    None => "the endpoint was removed",
                    Some(endpoint) if endpoint.disabled => "the endpoint is disabled",
                    Some(_) => continue,
                };
                for id in self.book.scheduled_to(endpoint_id) {
                    let Some(mut delivery) = self.book.get(id).cloned() else { continue };
                    delivery::end(&mut delivery, CANCELLED, why, now);
                    cancelled.push((id, delivery));
                }
            }
        }
        while !cancelled.is_empty() {
            let rest = cancelled.split_off(cancelled.len().min(CHANGES_AT_ONCE));
            self.commit(lease, cancelled, Vec::new(), None).await?;
            cancelled = rest;
        }
        Ok(())
    }

    /// Takes deliveries out of the table that ended long enough ago.
    async fn sweep(&mut self, lease: &mut dyn Lease) -> Result<(), StageError> {
        let now = self.now();
        if now.since(self.swept_at) < SWEEP_EVERY {
            return Ok(());
        }
        let old = self.book.forget(now.minus(self.dispatcher.keep_finished), CHANGES_AT_ONCE);
        if old.len() < CHANGES_AT_ONCE {
            self.swept_at = now;
        }
        if old.is_empty() {
            return Ok(());
        }
        debug!(partition = self.partition, deliveries = old.len(), "old deliveries leave the table");
        metrics::counter!("panopticon_webhook_tombstones_total").increment(old.len() as u64);
        let outputs = old.into_iter().map(|id| delivery::tombstone(id, self.partition)).collect();
        Ok(lease.commit(Commit { outputs, next: None, metadata: String::new() }).await?)
    }

    /// Commits deliveries as they now stand, then takes them into the book.
    async fn commit(
        &mut self,
        lease: &mut dyn Lease,
        changed: Vec<(Uuid, Delivery)>,
        mut outputs: Vec<Output>,
        next: Option<u64>,
    ) -> Result<(), StageError> {
        if changed.is_empty() && outputs.is_empty() && next.is_none() {
            return Ok(());
        }
        outputs.extend(changed.iter().map(|(_, delivery)| delivery::record(delivery, self.partition)));
        lease.commit(Commit { outputs, next, metadata: String::new() }).await?;
        let mut reached: BTreeMap<String, u64> = BTreeMap::new();
        for (id, delivery) in changed {
            if delivery.state != PENDING || delivery.attempts == 0 {
                *reached.entry(delivery.state.clone()).or_default() += 1;
            }
            self.book.put(id, delivery);
        }
        for (state, count) in reached {
            metrics::counter!("panopticon_webhook_deliveries_total", "state" => state).increment(count);
        }
        self.show_pending(self.book.pending());
        Ok(())
    }

    fn show_pending(&self, pending: usize) {
        metrics::gauge!("panopticon_webhook_pending", "partition" => self.partition.to_string())
            .set(pending as f64);
    }

    /// Before the partition is given up: attempts under way are waited for, those in the queue are not made.
    /// What does not end in time is made again by the next owner.
    async fn drain(mut self, lease: &mut dyn Lease) -> Result<(), StageError> {
        self.closing.cancel();
        let half = Duration::from_millis(self.context.runtime.limits.drain_timeout_ms / 2);
        let deadline = tokio::time::Instant::now() + half;
        while !(self.under_way.is_empty() && self.disabling.is_empty()) {
            tokio::select! {
                Some(attempt) = self.under_way.join_next() => self.settle(lease, attempt).await?,
                Some(ended) = self.disabling.join_next() => self.disabled(ended),
                () = tokio::time::sleep_until(deadline) => {
                    warn!(partition = self.partition, attempts = self.under_way.len(), "the drain deadline passed; these attempts will be made again");
                    break;
                }
            }
        }
        self.show_pending(0);
        Ok(())
    }
}

/// Of a delivery whose id was checked.
fn id_of(delivery: &Delivery) -> Uuid {
    Uuid::parse_str(&delivery.delivery_id).unwrap_or_default()
}

/// The next actions, or only the revocation where there is no room for them.
async fn next_actions(lease: &mut dyn Lease, room: bool, limits: PollLimits) -> Result<Poll, LogError> {
    if room {
        return lease.poll(limits).await;
    }
    lease.revoked().await;
    Ok(Poll::Revoked)
}
