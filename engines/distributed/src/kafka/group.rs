//! The thread of a membership: it keeps the member in its group, and answers the group's decisions.
//!
//! A partition's way: assigned by the group → its transactional producer taken over and its committed
//! position read, on a helper thread → fetched from there and offered as a lease → revoked: the lease is
//! asked for back, and only when its work has ended the group is told that the partition is free.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use panopticon_core::log::LogError;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
};
use tokio::sync::{Notify, mpsc::UnboundedSender};

use super::{
    error::{failed, is_missing, is_refusal},
    member::{Offer, Shared},
    rebalance::{Decision, Rebalances},
    record::{partition_number, raw_offset},
    slot::{Failure, Slot},
    takeover::{self, Outcome, Takeover},
};

/// Longest sleep of the thread; records, decisions and requests wake it.
const IDLE: Duration = Duration::from_millis(50);
/// How many events are taken before requests are looked at again.
const BURST: usize = 64;
/// How long the driver may take to turn to another position; it asks no broker for that.
const SEEK_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause before a partition whose lease was given back unasked is offered again.
const REOFFER: Duration = Duration::from_millis(250);
/// First and longest pause before a partition that could not be taken over is tried again.
const TAKEOVER_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

enum Stage {
    /// Waits before it is taken over (again).
    Waiting(Instant),
    /// A helper thread takes it over.
    TakingOver,
    /// There is, or was, a lease.
    Leased(Arc<Slot>),
}

struct Partition {
    stage: Stage,
    /// Whether the consumer has it in its assignment.
    fetched: bool,
    /// Tells late results of an earlier assignment from those of this one.
    assignment: u64,
    failures: u32,
}

/// A revocation that waits for leases.
struct Revocation {
    partitions: Vec<u32>,
    deadline: Instant,
}

pub(super) struct Group {
    shared: Arc<Shared>,
    consumer: Arc<BaseConsumer<Rebalances>>,
    offered: UnboundedSender<Result<Offer, LogError>>,
    partitions: BTreeMap<u32, Partition>,
    assignments: u64,
    revocation: Option<Revocation>,
    taken_over: (Sender<Outcome>, Receiver<Outcome>),
}

impl Group {
    pub(super) fn start(
        shared: Arc<Shared>,
        consumer: Arc<BaseConsumer<Rebalances>>,
        offered: UnboundedSender<Result<Offer, LogError>>,
    ) -> Result<JoinHandle<()>, LogError> {
        let what = format!("join the group of {}", shared.stage);
        consumer.subscribe(&[&shared.name]).map_err(|error| failed(&what, &error))?;
        let group = Self {
            shared,
            consumer,
            offered,
            partitions: BTreeMap::new(),
            assignments: 0,
            revocation: None,
            taken_over: channel(),
        };
        thread::Builder::new()
            .name("kafka-group".to_owned())
            .spawn(move || group.run())
            .map_err(|error| LogError::Unavailable(format!("{what}: {error}")))
    }

    fn run(mut self) {
        while !self.shared.is_leaving() {
            self.attend();
            let decisions = self.consumer.context().take();
            let quiet = decisions.is_empty();
            decisions.into_iter().for_each(|decision| self.decide(decision));
            self.settle_revocation();
            // While a revocation waits nothing is fetched, and a change would be taken for the answer.
            if self.revocation.is_none() {
                self.seek();
                self.open();
                self.renew();
                self.find_holes();
            }
            // A decision ends a round of events, though more may wait behind it.
            if quiet {
                self.shared.wake.wait(IDLE);
            }
        }
        self.leave();
    }

    /// Takes the consumer's events. Records do not come this way: each partition has a queue of its own.
    fn attend(&self) {
        for _ in 0..BURST {
            match self.consumer.poll(Duration::ZERO) {
                None => return,
                Some(Err(error)) => self.complain(&error),
                Some(Ok(message)) => {
                    tracing::warn!(partition = message.partition(), "a record came past its queue");
                    self.refetch();
                }
            }
        }
    }

    fn complain(&self, error: &KafkaError) {
        let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        match error.rdkafka_error_code() {
            Some(code) if is_missing(code) => self.tell(LogError::NoTopic(self.shared.topic)),
            Some(code) if fatal || is_refusal(code) => {
                self.tell(LogError::Broken(format!("group of {}: {error}", self.shared.stage)));
            }
            // The driver connects again and goes on.
            _ => tracing::debug!(stage = self.shared.stage, %error, "the group's consumer complains"),
        }
    }

    /// Tells leases whose position the brokers do not have: retention has overtaken them, or the topic is
    /// another one than it was.
    fn find_holes(&self) {
        for (partition, slot) in self.leased().filter(|(_, slot)| slot.take_astray()) {
            let (topic, wanted) = (self.shared.topic, slot.next());
            match self.shared.offsets.bounds(topic, partition) {
                Ok(bounds) if wanted < bounds.low => {
                    slot.fail(Failure::Hole { topic, partition, wanted, low: bounds.low });
                }
                Ok(bounds) => slot.fail(Failure::Broken(format!(
                    "the group of {} stands at {wanted} in {topic}-{partition}, which ends at {}: was the topic recreated?",
                    self.shared.stage, bounds.high
                ))),
                Err(error) => slot.fail(Failure::Broken(error.to_string())),
            }
        }
    }

    /// Has the driver fetch on. It pauses all partitions for a decision of the group, and after the answer
    /// would notice only up to a second later that they are to be fetched again; a seek makes it look.
    fn refetch(&self) {
        for (partition, slot) in self.leased().filter(|(_, slot)| !slot.is_over() && !slot.is_revoked()) {
            let next = Offset::Offset(raw_offset(slot.next()));
            let sought =
                self.consumer.seek(&self.shared.name, partition_number(partition), next, SEEK_TIMEOUT);
            if let Err(error) = sought {
                tracing::debug!(%error, partition, "cannot hurry a partition on");
            }
        }
    }

    fn decide(&mut self, decision: Decision) {
        match decision {
            Decision::Assigned(partitions) => {
                // The answer comes first: partitions join the fetch one by one, when they are taken over.
                self.report(
                    "answer an assignment",
                    self.consumer.incremental_assign(&TopicPartitionList::new()),
                );
                self.refetch();
                for partition in partitions {
                    self.assignments += 1;
                    let fresh = Partition {
                        stage: Stage::Waiting(Instant::now()),
                        fetched: false,
                        assignment: self.assignments,
                        failures: 0,
                    };
                    self.partitions.insert(partition, fresh);
                }
            }
            Decision::Revoked(partitions) => {
                for partition in &partitions {
                    if let Some(Stage::Leased(slot)) = self.partitions.get(partition).map(|p| &p.stage) {
                        slot.revoke();
                    }
                }
                let deadline = Instant::now() + self.shared.clients.transaction_timeout();
                self.revocation = Some(Revocation { partitions, deadline });
            }
        }
    }

    /// Agrees to a revocation once the leases have been given back, or have had their time.
    fn settle_revocation(&mut self) {
        let Some(revocation) = &self.revocation else { return };
        let late = Instant::now() >= revocation.deadline;
        for partition in &revocation.partitions {
            let Some(Stage::Leased(slot)) = self.partitions.get(partition).map(|p| &p.stage) else {
                continue;
            };
            if slot.is_over() {
                continue;
            }
            if !late {
                return;
            }
            tracing::warn!(
                stage = self.shared.stage,
                partition,
                "a revoked partition's work did not end in time"
            );
            slot.close();
        }
        let Some(Revocation { partitions, .. }) = self.revocation.take() else { return };
        let revoked: Vec<(u32, Partition)> =
            partitions.iter().filter_map(|number| self.partitions.remove_entry(number)).collect();
        let fetched: Vec<u32> =
            revoked.iter().filter(|(_, p)| p.fetched).map(|(number, _)| *number).collect();
        self.report("give up partitions", self.consumer.incremental_unassign(&self.list(&fetched)));
        self.refetch();
    }

    /// Goes back where leases have asked for it.
    fn seek(&mut self) {
        for seek in self.shared.take_seeks() {
            let partition = seek.slot.partition;
            let current = match self.partitions.get(&partition).map(|p| &p.stage) {
                Some(Stage::Leased(slot)) => Arc::ptr_eq(slot, &seek.slot) && !slot.is_revoked(),
                _ => false,
            };
            let outcome = if current {
                self.fetch_from(partition, seek.to, true).map(|()| seek.slot.restart(seek.to.unwrap_or(0)))
            } else {
                Err(self.shared.fenced(partition))
            };
            // The lease may be gone.
            let _ = seek.done.send(outcome);
        }
    }

    /// Has the consumer fetch `partition` from `offset` on, or from its first record.
    fn fetch_from(&self, partition: u32, offset: Option<u64>, fetched: bool) -> Result<(), LogError> {
        let offset = offset.map_or(Offset::Beginning, |offset| Offset::Offset(raw_offset(offset)));
        let number = partition_number(partition);
        let outcome = if fetched {
            // Nothing from before the seek is handed out after it.
            self.consumer.seek(&self.shared.name, number, offset, SEEK_TIMEOUT)
        } else {
            let mut list = TopicPartitionList::with_capacity(1);
            list.add_partition_offset(&self.shared.name, number, offset)
                .and_then(|()| self.consumer.incremental_assign(&list))
        };
        outcome.map_err(|error| failed(&format!("fetch {}-{partition}", self.shared.topic), &error))
    }

    /// Offers partitions that were taken over.
    fn open(&mut self) {
        while let Ok((number, assignment, outcome)) = self.taken_over.1.try_recv() {
            let fetched = match self.partitions.get(&number) {
                Some(partition) if partition.assignment == assignment => partition.fetched,
                // Meanwhile revoked: the producer is dropped, its successor has fenced it anyway.
                _ => continue,
            };
            let opened = outcome.and_then(|takeover| self.offer(number, fetched, takeover));
            let Some(partition) = self.partitions.get_mut(&number) else { continue };
            match opened {
                Ok(slot) => {
                    partition.fetched = true;
                    partition.failures = 0;
                    partition.stage = Stage::Leased(slot);
                }
                Err(error) => {
                    let pause = TAKEOVER_RETRY.0 * 2u32.saturating_pow(partition.failures.min(10));
                    partition.failures += 1;
                    partition.stage = Stage::Waiting(Instant::now() + pause.min(TAKEOVER_RETRY.1));
                    tracing::warn!(stage = self.shared.stage, partition = number, %error, "cannot take over yet");
                    // A producer that was fenced, or given up, is lost alone: the partition is still this member's.
                    if !error.is_transient() && !matches!(error, LogError::Fenced(_)) {
                        self.tell(error);
                    }
                }
            }
        }
    }

    fn offer(&self, partition: u32, fetched: bool, takeover: Takeover) -> Result<Arc<Slot>, LogError> {
        let Takeover { producer, committed, low } = takeover;
        let (shared, next) = (&self.shared, committed.offset);
        // Before the partition is fetched: otherwise its records would come out among the events.
        let queue = self.consumer.split_partition_queue(&shared.name, partition_number(partition));
        let Some(mut queue) = queue else {
            return Err(LogError::Broken(format!("{} has no partition {partition}", shared.name)));
        };
        let arrived = Arc::new(Notify::new());
        let bell = Arc::clone(&arrived);
        queue.set_nonempty_callback(move || bell.notify_one());
        let place = (shared.topic, partition);
        let slot = Arc::new(Slot::new(place, next.unwrap_or(0), Box::new(queue), arrived, &shared.wake));
        if let Some(wanted) = next.filter(|next| *next < low) {
            slot.fail(Failure::Hole { topic: shared.topic, partition, wanted, low });
        }
        self.fetch_from(partition, next, fetched)?;
        // Nobody takes offers any more when this member is about to leave.
        let _ = self.offered.send(Ok(Offer { slot: Arc::clone(&slot), producer, committed }));
        Ok(slot)
    }

    /// Takes partitions over whose time has come; also those whose lease was given back unasked, as after
    /// having been fenced: the group still counts on this member.
    fn renew(&mut self) {
        let now = Instant::now();
        for (number, partition) in &mut self.partitions {
            match &partition.stage {
                Stage::Leased(slot) if slot.is_over() => {
                    partition.stage = Stage::Waiting(now + REOFFER);
                }
                Stage::Waiting(until) if *until <= now => {
                    partition.stage = Stage::TakingOver;
                    let done = self.taken_over.0.clone();
                    let spawned = takeover::start(&self.shared, *number, partition.assignment, done);
                    if let Err(error) = spawned {
                        tracing::warn!(%error, "no thread to take a partition over with");
                        partition.stage = Stage::Waiting(now + TAKEOVER_RETRY.1);
                    }
                }
                _ => {}
            }
        }
    }

    /// Asks for all leases back, then leaves the group.
    fn leave(mut self) {
        self.leased().for_each(|(_, slot)| slot.revoke());
        let deadline = Instant::now() + self.shared.clients.transaction_timeout();
        while Instant::now() < deadline && !self.leased().all(|(_, slot)| slot.is_over()) {
            self.attend();
            self.shared.wake.wait(IDLE);
        }
        self.leased().for_each(|(_, slot)| slot.close());
        self.consumer.context().close();
        // Decisions that nobody has answered yet.
        for decision in self.consumer.context().take() {
            let answer = match decision {
                Decision::Assigned(_) => self.consumer.incremental_assign(&TopicPartitionList::new()),
                Decision::Revoked(_) => {
                    self.consumer.assignment().and_then(|all| self.consumer.incremental_unassign(&all))
                }
            };
            self.report("leave", answer);
        }
        if self.revocation.take().is_some() {
            let all = self.consumer.assignment();
            self.report("leave", all.and_then(|all| self.consumer.incremental_unassign(&all)));
        }
        let mut consumer = self.consumer;
        loop {
            // A lease looks at the consumer for a moment at a time; closing it must not fall to one.
            match Arc::try_unwrap(consumer) {
                Ok(last) => return drop(last),
                Err(shared) => consumer = shared,
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn leased(&self) -> impl Iterator<Item = (u32, &Arc<Slot>)> {
        self.partitions.iter().filter_map(|(number, partition)| match &partition.stage {
            Stage::Leased(slot) => Some((*number, slot)),
            _ => None,
        })
    }

    fn list(&self, partitions: &[u32]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            list.add_partition(&self.shared.name, partition_number(*partition));
        }
        list
    }

    /// Tells whoever waits for leases.
    fn tell(&self, error: LogError) {
        let _ = self.offered.send(Err(error));
    }

    fn report(&self, what: &str, outcome: KafkaResult<()>) {
        if let Err(error) = outcome {
            tracing::warn!(stage = self.shared.stage, topic = %self.shared.topic, %error, "cannot {what}");
        }
    }
}
