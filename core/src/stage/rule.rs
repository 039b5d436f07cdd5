//! Stages with memory: rules over the messages of one partition.
//!
//! A rule's state is a checkpoint plus replay. Entities that changed are written to a compacted topic, in
//! the transaction of the offsets: those whose episode began or ended at once, the others every
//! `stages.checkpoint_ms`. On assignment the entities are loaded, and what lies between the checkpoint and
//! the committed position is replayed into the windows without a word: whether an episode is open is never
//! inferred, it stands in the entity as it was committed together with its message.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use panopticon_proto::log::{Checkpoint, Denial, DenialBatch, Detection, EntityState, RollupBatch};
use prost::Message;
use tracing::{debug, warn};

use super::{
    PartitionContext, Rollups, Seeds, Stage, StageError, Transform, calm::Calm, decode_each, transform,
};
use crate::{
    ids::partition_of,
    log::{EventLog, Lease, LogError, Output, Record, Stored},
    store::Activity,
    time::{SharedClock, Time},
    topic::Topic,
    trace::{AcceptedTrace, TakenRef, WireError, entries},
};

/// What a rule has to say.
#[derive(Debug, Default)]
pub struct Findings {
    /// Episodes that began or ended.
    pub detections: Vec<Detection>,
    /// Slim copies for the rules that look at sources.
    pub denials: Vec<Denial>,
    /// Counts for the rules that look at apps.
    pub rollups: Rollups,
}

/// A state machine over the messages of one partition: deterministic, without clock or input of its own.
pub trait Rule: Send + 'static {
    /// What it looks at: a trace, a denial or a rollup.
    type Event: Send;

    /// The events of one record.
    fn decode(payload: &[u8]) -> Result<Vec<Self::Event>, WireError>;

    /// Looks at an event that lies at `offset`. In a `replay` it only takes it into its windows, unless
    /// its entity already holds it (`offset` is before the entity's `as_of`).
    fn observe(&mut self, event: &Self::Event, offset: u64, replay: bool, findings: &mut Findings);

    /// Takes in what the aggregates say of a user or a tool of which nothing is committed. Before any event; says
    /// nothing.
    fn learn(&mut self, _activity: &Activity) {}

    /// Learns that no event received before `now` is outstanding: ends what has ended by then.
    fn advance(&mut self, now: Time, findings: &mut Findings);

    /// Whether an episode may have ended by `now`.
    fn ends_by(&self, now: Time) -> bool;

    /// Takes up an entity from the checkpoint.
    fn load(&mut self, key: &[u8], state: EntityState) -> Result<(), WireError>;

    /// The entities to write (`None`: to forget), as of input offset `next`: with `all`, everything that
    /// changed since it was last written; without, only those whose episode began or ended.
    fn changed(&mut self, next: u64, all: bool) -> Vec<(Vec<u8>, Option<EntityState>)>;

    /// When the event was received, for [`Rule::advance`].
    fn received_at(event: &Self::Event) -> Time;
}

/// Encodes a rule's entity.
pub fn entity_bytes<M: Message>(message: &M, as_of: u64) -> EntityState {
    EntityState { state: message.encode_to_vec(), as_of }
}

/// Runs a rule as a stage.
pub struct RuleStage<R, F> {
    name: &'static str,
    input: Topic,
    state: Topic,
    /// Makes a rule without memory.
    make: F,
    seeds: Option<Seeds>,
    rule: std::marker::PhantomData<fn() -> R>,
}

impl<R: Rule, F: Fn() -> R + Send + Sync + 'static> RuleStage<R, F> {
    /// A stage `name` that shows the messages of `input` to rules made by `make` and keeps their entities
    /// in the compacted topic `state`.
    pub fn new(name: &'static str, input: Topic, state: Topic, make: F) -> Self {
        Self { name, input, state, make, seeds: None, rule: std::marker::PhantomData }
    }

    /// The same, with rules that begin with what the trace store knows.
    pub fn seeded(self, seeds: Option<Seeds>) -> Self {
        Self { seeds, ..self }
    }
}

#[async_trait]
impl<R: Rule, F: Fn() -> R + Send + Sync + 'static> Stage for RuleStage<R, F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn input(&self) -> Topic {
        self.input
    }

    async fn run(&self, lease: &mut dyn Lease, context: &PartitionContext) -> Result<(), StageError> {
        let runtime = &context.runtime;
        let mut memory = Memory {
            rule: (self.make)(),
            log: runtime.log.clone(),
            clock: runtime.clock.clone(),
            stage: self.name,
            input: self.input,
            state: self.state,
            partition: lease.partition(),
            detections: runtime.log.topic(Topic::Detections).await?.partitions,
            denials: runtime.log.topic(Topic::Denials).await?.partitions,
            rollups: runtime.log.topic(Topic::Rollups).await?.partitions,
            checkpoint_every: Duration::from_millis(runtime.limits.checkpoint_ms),
            checkpointed_at: runtime.clock.now(),
            next: lease.committed().offset.unwrap_or(0),
            unwritten: false,
            calm: Calm::new(self.input, lease.partition()),
        };
        memory.recall(lease.committed().offset, self.seeds.as_ref()).await?;
        transform(lease, context, memory).await
    }
}

struct Memory<R> {
    rule: R,
    log: Arc<dyn EventLog>,
    clock: SharedClock,
    stage: &'static str,
    input: Topic,
    state: Topic,
    partition: u32,
    /// Partitions of `detections`, `denials` and `rollups`.
    detections: u32,
    denials: u32,
    rollups: u32,
    checkpoint_every: Duration,
    checkpointed_at: Time,
    next: u64,
    /// Whether anything was observed since the last checkpoint.
    unwritten: bool,
    calm: Calm,
}

const CHECKPOINT_KEY: &str = "@checkpoint";
const REPLAY_BYTES: usize = 4 << 20;

impl<R: Rule> Memory<R> {
    fn key(&self, entity: &[u8]) -> Bytes {
        [self.stage.as_bytes(), b"/", entity].concat().into()
    }

    /// Loads the checkpoint and replays what was committed after it.
    async fn recall(&mut self, committed: Option<u64>, seeds: Option<&Seeds>) -> Result<(), StageError> {
        let prefix = self.key(b"");
        let checkpoint_key = self.key(CHECKPOINT_KEY.as_bytes());
        let mut from = None;
        let mut entities = 0_usize;
        for (key, value) in self.log.table(self.state, self.partition).await? {
            if key == checkpoint_key {
                from = Checkpoint::decode(&*value).ok().map(|checkpoint| checkpoint.offset);
            } else if let Some(entity) = key.strip_prefix(&*prefix) {
                let loaded = EntityState::decode(&*value)
                    .map_err(WireError::from)
                    .and_then(|state| self.rule.load(entity, state));
                match loaded {
                    Ok(()) => entities += 1,
                    Err(error) => {
                        warn!(stage = self.stage, %error, "an entity of an unknown form is forgotten");
                    }
                }
            }
        }
        let low = self.log.bounds(self.input, self.partition).await?.low;
        if let (None, Some(seeds)) = (from, seeds) {
            self.seed(seeds).await?;
        }
        let Some(committed) = committed else { return Ok(()) };
        let mut at = from.unwrap_or(low).max(low);
        let began = at;
        let mut ignored = Findings::default();
        while at < committed {
            let records = self.log.read(self.input, self.partition, at, committed, REPLAY_BYTES).await?;
            let Some(last) = records.last() else { break };
            at = last.offset + 1;
            for stored in &records {
                // What a replay of dead letters names another stage for was skipped.
                if !stored.record.is_for(self.stage) {
                    continue;
                }
                // What cannot be decoded became a dead letter when it was processed.
                for event in R::decode(stored.record.bytes()).unwrap_or_default() {
                    self.rule.observe(&event, stored.offset, true, &mut ignored);
                }
            }
        }
        debug!(
            stage = self.stage,
            partition = self.partition,
            entities,
            from = began,
            to = committed,
            "recalled"
        );
        Ok(())
    }

    /// Begins with what the trace store knows of the time before the log begins.
    async fn seed(&mut self, seeds: &Seeds) -> Result<(), StageError> {
        let partitions = self.log.topic(self.input).await?.partitions;
        let received = |payload: &[u8]| R::decode(payload).ok()?.first().map(R::received_at);
        let mut oldest = oldest(&*self.log, self.input, self.partition, received).await?;
        if self.input != Topic::Traces {
            // What is made of traces follows them, from whichever partition.
            let of_traces = oldest_trace(&*self.log).await?;
            oldest = oldest.into_iter().chain(of_traces).min();
        }
        let until = oldest.unwrap_or_else(|| self.clock.now());
        seeds.sow(&mut self.rule, self.stage, (self.partition, partitions), until).await;
        // The next commit writes all of it, and a checkpoint, so that it is not done again.
        (self.unwritten, self.checkpointed_at) = (true, Time::EPOCH);
        Ok(())
    }

    fn outputs(&mut self, mut findings: Findings, now: Time) -> Vec<Output> {
        let mut outputs = Vec::new();
        for mut detection in findings.detections {
            detection.emitted_at = now.micros();
            metrics::counter!("panopticon_detections_total", "rule" => detection.rule.clone(), "phase" => detection.phase.clone())
                .increment(1);
            outputs.push(Output {
                topic: Topic::Detections,
                partition: partition_of(&[&detection.client_id, &detection.user_sub], self.detections),
                record: Record::message(detection.encode_to_vec()),
            });
        }
        let mut batches: BTreeMap<u32, DenialBatch> = BTreeMap::new();
        for denial in findings.denials {
            let partition = partition_of(&[&denial.client_id, &denial.source_ip], self.denials);
            batches.entry(partition).or_default().denials.push(denial);
        }
        for (partition, batch) in batches {
            outputs.push(Output {
                topic: Topic::Denials,
                partition,
                record: Record::message(batch.encode_to_vec()),
            });
        }
        let mut batches: BTreeMap<u32, RollupBatch> = BTreeMap::new();
        for rollup in findings.rollups.take() {
            let partition = partition_of(&[&rollup.client_id], self.rollups);
            batches.entry(partition).or_default().rollups.push(rollup);
        }
        for (partition, batch) in batches {
            outputs.push(Output {
                topic: Topic::Rollups,
                partition,
                record: Record::message(batch.encode_to_vec()),
            });
        }
        let all = self.unwritten && now.since(self.checkpointed_at) >= self.checkpoint_every;
        for (entity, state) in self.rule.changed(self.next, all) {
            let key = self.key(&entity);
            let record = match state {
                Some(state) => Record::keyed(key, state.encode_to_vec()),
                None => Record::tombstone(key),
            };
            outputs.push(Output { topic: self.state, partition: self.partition, record });
        }
        if all {
            let checkpoint = Checkpoint { offset: self.next, at: now.micros() };
            let record = Record::keyed(self.key(CHECKPOINT_KEY.as_bytes()), checkpoint.encode_to_vec());
            outputs.push(Output { topic: self.state, partition: self.partition, record });
            self.checkpointed_at = now;
            self.unwritten = false;
        }
        outputs
    }
}

#[async_trait]
impl<R: Rule> Transform for Memory<R> {
    async fn process(&mut self, records: &[Stored], next: u64) -> Result<Vec<Output>, StageError> {
        let now = self.clock.now();
        let mut dead = Vec::new();
        let decoded =
            decode_each(records, (self.stage, self.input, self.partition, now), &mut dead, |stored| {
                R::decode(stored.record.bytes())
            });
        let mut findings = Findings::default();
        for (stored, events) in decoded {
            for event in events {
                self.rule.advance(R::received_at(&event), &mut findings);
                self.rule.observe(&event, stored.offset, false, &mut findings);
            }
        }
        self.next = next;
        self.unwritten = true;
        dead.extend(self.outputs(findings, now));
        Ok(dead)
    }

    fn is_urgent(&self, output: &Output) -> bool {
        // Copies and counts feed slower rules, and states are read after a crash.
        matches!(output.topic, Topic::Detections | Topic::DeadLetters)
    }

    async fn idle(&mut self, now: Time) -> Result<Vec<Output>, StageError> {
        let mut findings = Findings::default();
        if self.rule.ends_by(now.minus(IN_FLIGHT)) {
            match self.calm.until(&*self.log, self.next, now).await {
                Ok(Some(seen)) => self.rule.advance(seen.minus(IN_FLIGHT), &mut findings),
                Ok(None) => {}
                Err(error) => {
                    debug!(stage = self.stage, %error, "cannot tell whether a quiet input is calm");
                }
            }
        }
        Ok(self.outputs(findings, now))
    }
}

/// When the oldest record of a partition was received, as `received` reads it.
async fn oldest(
    log: &dyn EventLog,
    topic: Topic,
    partition: u32,
    received: impl Fn(&[u8]) -> Option<Time>,
) -> Result<Option<Time>, LogError> {
    let bounds = log.bounds(topic, partition).await?;
    let records = log.read(topic, partition, bounds.low, bounds.high, 1).await?;
    Ok(records.first().and_then(|stored| received(stored.record.bytes())))
}

/// When the oldest trace of all partitions was received.
async fn oldest_trace(log: &dyn EventLog) -> Result<Option<Time>, LogError> {
    let received = |payload: &[u8]| traces_of(payload).ok()?.first().map(|accepted| accepted.received_at);
    let mut all = None;
    for partition in 0..log.topic(Topic::Traces).await?.partitions {
        let of_partition = oldest(log, Topic::Traces, partition, received).await?;
        all = all.into_iter().chain(of_partition).min();
    }
    Ok(all)
}

/// How long a trace may be on its way from the gateway into the log: with nothing to read, the rule's time is
/// the clock's minus this.
const IN_FLIGHT: Duration = Duration::from_secs(2);

/// The traces of an envelope, as rules over traces see them.
pub fn traces_of(payload: &[u8]) -> Result<Vec<AcceptedTrace>, WireError> {
    entries(payload)?
        .iter()
        .map(|entry| {
            let taken = TakenRef::read(entry)?;
            TakenRef { trace: taken.trace.for_rules(), ..taken }.to_owned()
        })
        .collect()
}
