//! The store's intent: from one partition of `traces` to rows and counts in the trace store.

use stateright::{Model, Property};

use crate::trace_store::{Block, RECORDS, TraceStore};

/// A part of the protocol that a test takes away, to see that the promises need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The end of a batch stands beside the offset before the batch is sent.
    Intent,
    /// A batch of unknown outcome is settled by looking at what is there, and not by its token alone.
    Look,
    /// Statements carry tokens, which stop an old owner's that arrive late.
    Tokens,
    /// A settlement that finds rows but misses something begins with the whole batch under its own token, and
    /// repairs only what is missing then: by then no late statement of that token can put anything in.
    OwnTokenFirst,
    /// A worker that another has replaced cannot commit.
    Fence,
    /// After an error a worker begins anew at what is committed by then, not at what it knew when it took over.
    Rewind,
    /// Before it does, it makes certain that what it has read is still its own to go on from.
    Claim,
}

/// How often the rare things happen, at most.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// New owners of the partition, the one before being dead or only frozen.
    pub takeovers: u8,
    /// Kills of the trace store.
    pub kills: u8,
    /// Answers that a worker does not wait for to the end.
    pub timeouts: u8,
}

/// The model.
#[derive(Clone, Debug)]
pub struct Intent {
    /// What happens.
    pub faults: Faults,
    /// What is taken away.
    pub without: Option<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Worker {
    generation: u8,
    position: u8,
    step: Step,
    /// The position and the intent that it has found when it took over, where it goes back to them.
    found: (u8, Option<u8>),
}

/// A settlement: where its batch ends, and how often something was put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Settling {
    to: u8,
    round: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    /// The intent is committed.
    Intended(u8),
    /// The batch was sent for the first time.
    Inserting(u8),
    /// About to stop old statements.
    Stopping(Settling),
    /// About to look.
    Looking(Settling),
    /// About to put in rows that are missing, and then perhaps counts.
    Repairing(Settling, bool, bool),
    /// The statement of a settlement was sent; whether counts are to follow.
    Sent(Settling, bool),
    /// Everything before this end is in.
    Inserted(u8),
}

impl Step {
    fn settle(to: u8) -> Self {
        Self::Stopping(Settling { to, round: 0 })
    }
}

/// A state of the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    position: u8,
    /// The end that the commit's metadata names.
    intent: Option<u8>,
    generation: u8,
    workers: Vec<Worker>,
    store: TraceStore,
    kills: u8,
    timeouts: u8,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The worker ends a batch before this record, as its own limits say, and commits the intent.
    Intend(usize, u8),
    /// The worker does the next thing by itself.
    Advance(usize),
    /// The worker commits; perhaps with the intent of the next batch.
    Commit(usize, Option<u8>),
    /// The worker waits no longer for the trace store.
    TimeOut(usize),
    /// The worker is killed; what it has sent goes on.
    Kill(usize),
    /// A new worker takes the partition over.
    TakeOver,
    /// The trace store does the next step of a statement.
    Execute(usize),
    /// The trace store is killed, perhaps in the midst of a statement.
    KillStore(Option<usize>),
}

/// Rounds of a settlement before it begins again; as built it is six.
const MAX_ROUNDS: u8 = 4;

impl Intent {
    fn has(&self, part: Part) -> bool {
        self.without != Some(part)
    }

    /// Whether the worker's commit counts; a worker that was replaced ends.
    fn commit(&self, state: &mut State, worker: usize, position: u8, intent: Option<u8>) -> bool {
        if state.workers[worker].generation != state.generation && self.has(Part::Fence) {
            state.store.abandon(state.workers[worker].generation);
            state.workers.remove(worker);
            return false;
        }
        state.position = position;
        state.intent = intent.filter(|_| self.has(Part::Intent));
        true
    }

    fn advance(&self, state: &mut State, worker: usize) {
        let Worker { generation, position: from, step, .. } = state.workers[worker];
        let store = &mut state.store;
        let next = match step {
            Step::Intended(to) => {
                store.send(generation, from, to, Block::Batch);
                Step::Inserting(to)
            }
            Step::Stopping(settling) => {
                store.stop();
                Step::Looking(settling)
            }
            Step::Looking(settling) if !self.has(Part::Look) => {
                store.send(generation, from, settling.to, Block::Batch);
                Step::Inserting(settling.to)
            }
            Step::Looking(settling) => self.look(store, generation, from, settling),
            Step::Repairing(settling, true, counts) => {
                store.send(generation, from, settling.to, Block::Rows(settling.round));
                Step::Sent(settling, counts)
            }
            Step::Repairing(settling, false, _) => {
                store.send(generation, from, settling.to, Block::Counts(settling.round));
                Step::Sent(settling, false)
            }
            // It waits for something.
            other => other,
        };
        state.workers[worker].step = next;
    }

    fn look(&self, store: &mut TraceStore, generation: u8, from: u8, settling: Settling) -> Step {
        let range = usize::from(from)..usize::from(settling.to);
        let has_rows = store.rows[range.clone()].iter().any(|rows| *rows > 0);
        let has_counts = store.counts[range.clone()].iter().any(|counts| *counts > 0);
        let rows = store.rows[range.clone()].contains(&0);
        let counts = store.counts[range].contains(&0);
        match (rows, counts) {
            (false, false) => Step::Inserted(settling.to),
            _ if settling.round == MAX_ROUNDS => Step::settle(settling.to),
            // Counts without rows: the batch's token is used up already, by a part that did not come to be.
            _ if settling.round == 0
                && (has_rows && self.has(Part::OwnTokenFirst) || !has_rows && !has_counts) =>
            {
                store.send(generation, from, settling.to, Block::Batch);
                Step::Sent(settling, false)
            }
            // Every settlement uses the tokens of repairs in the same order, whatever it begins with: what an
            // older one sends late, the newer has sent before.
            _ => {
                let repairing = Settling { round: settling.round.max(1), ..settling };
                Step::Repairing(repairing, rows, counts)
            }
        }
    }

    /// The trace store has answered each worker whose statement has ended by itself.
    fn answer(&self, state: &mut State) {
        for worker in &mut state.workers {
            if state.store.has_awaited(worker.generation) {
                continue;
            }
            worker.step = match worker.step {
                Step::Inserting(to) => Step::Inserted(to),
                Step::Sent(settling, true) => Step::Repairing(settling, false, true),
                Step::Sent(settling, false) => {
                    Step::Looking(Settling { round: settling.round + 1, ..settling })
                }
                other => other,
            };
        }
    }

    /// Workers whose statements were ended from outside do not know what became of them, and begin anew; one that was
    /// replaced ends.
    fn fail(&self, state: &mut State) {
        let State { position, intent, generation, ref store, .. } = *state;
        let waits = |step| matches!(step, Step::Inserting(_) | Step::Sent(..));
        let has_failed = |worker: &Worker| waits(worker.step) && !store.has_awaited(worker.generation);
        if self.has(Part::Claim) {
            state.workers.retain(|worker| worker.generation == generation || !has_failed(worker));
        }
        for worker in state.workers.iter_mut().filter(|worker| has_failed(worker)) {
            let (position, intent) = if self.has(Part::Rewind) { (position, intent) } else { worker.found };
            *worker = self.begin(worker.generation, position, intent);
        }
    }

    /// A worker that knows no more than what was committed. Without an intent it knows of no batch under way.
    fn begin(&self, generation: u8, position: u8, intent: Option<u8>) -> Worker {
        let found = if self.has(Part::Rewind) { (0, None) } else { (position, intent) };
        Worker { generation, position, step: intent.map_or(Step::Idle, Step::settle), found }
    }
}

impl Model for Intent {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            position: 0,
            intent: None,
            generation: 0,
            workers: vec![self.begin(0, 0, None)],
            store: TraceStore::default(),
            kills: 0,
            timeouts: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (number, worker) in state.workers.iter().enumerate() {
            let ends = |position: u8| (position + 1)..=RECORDS as u8;
            match worker.step {
                Step::Idle => actions.extend(ends(worker.position).map(|to| Action::Intend(number, to))),
                Step::Inserting(_) | Step::Sent(..) => {
                    if state.timeouts < self.faults.timeouts {
                        actions.push(Action::TimeOut(number));
                    }
                }
                Step::Inserted(to) => {
                    actions.push(Action::Commit(number, None));
                    actions.extend(ends(to).map(|end| Action::Commit(number, Some(end))));
                }
                _ => actions.push(Action::Advance(number)),
            }
            if state.generation < self.faults.takeovers {
                actions.push(Action::Kill(number));
            }
        }
        if state.generation < self.faults.takeovers && state.workers.len() < 2 {
            actions.push(Action::TakeOver);
        }
        actions.extend((0..state.store.statements.len()).map(Action::Execute));
        if state.kills < self.faults.kills {
            actions.push(Action::KillStore(None));
            actions.extend((0..state.store.statements.len()).map(|number| Action::KillStore(Some(number))));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Intend(worker, to) => {
                let position = state.workers[worker].position;
                if self.commit(&mut state, worker, position, Some(to)) {
                    state.workers[worker].step = Step::Intended(to);
                }
            }
            Action::Advance(worker) => {
                self.advance(&mut state, worker);
                // To stop old statements ends those that a frozen worker waits for.
                self.fail(&mut state);
            }
            Action::Commit(worker, next) => {
                let Step::Inserted(to) = state.workers[worker].step else { return None };
                if self.commit(&mut state, worker, to, next) {
                    state.workers[worker].position = to;
                    state.workers[worker].step = next.map_or(Step::Idle, Step::Intended);
                }
            }
            Action::TimeOut(worker) => {
                state.timeouts += 1;
                state.store.abandon(state.workers[worker].generation);
                self.fail(&mut state);
            }
            Action::Kill(worker) => {
                state.store.abandon(state.workers[worker].generation);
                state.workers.remove(worker);
            }
            Action::TakeOver => {
                state.generation += 1;
                state.workers.push(self.begin(state.generation, state.position, state.intent));
            }
            Action::Execute(statement) => {
                state.store.step(statement, self.has(Part::Tokens));
                self.answer(&mut state);
            }
            Action::KillStore(torn) => {
                state.kills += 1;
                state.store.kill(torn);
                self.fail(&mut state);
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NEVER_TWICE, |_, state: &State| state.store.rows.iter().all(|rows| *rows <= 1)),
            Property::always(COUNTED_ONCE, |_, state: &State| {
                state.store.counts.iter().all(|counts| *counts <= 1)
            }),
            Property::always(NOTHING_LOST, |_, state: &State| {
                let passed = ..usize::from(state.position);
                !state.store.rows[passed].contains(&0) && !state.store.counts[passed].contains(&0)
            }),
            Property::sometimes(ALL_DONE, |_, state: &State| {
                usize::from(state.position) == RECORDS && state.kills > 0 && state.generation > 0
            }),
        ]
    }
}

/// No row is there twice.
pub const NEVER_TWICE: &str = "never a row twice";
/// No row is counted twice.
pub const COUNTED_ONCE: &str = "never a row counted twice";
/// What the position has passed is there, and counted.
pub const NOTHING_LOST: &str = "what is passed is there and counted";
/// The model gets through with faults.
pub const ALL_DONE: &str = "everything is done in spite of a kill and a takeover";
