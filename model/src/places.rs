//! Places and marks: from a request to `traces`, through one partition of `traces.raw`.

use stateright::{Model, Property};

use crate::seen::{Asker, Seen};

/// Which trace: what a client sends again under the same id.
pub type Id = u8;
/// An offset of `traces.raw`, which is the place of the one trace that its record holds. In the variant that
/// marks before it appends there is no offset yet, and the number of the request stands for it.
pub type Place = u8;

/// A part of the protocol that a test takes away, to see that the promises need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// A trace is marked after the log has it.
    AppendFirst,
    /// Dedupe keeps a trace whose mark names its own place, and not only one that had no mark.
    OwnPlace,
    /// The partition's progress lies beside the marks and is compared.
    Progress,
    /// With the progress lies which owner of the partition has written it, and an owner takes no older one's
    /// word: none from before the last commit, and none from before itself once it has had an answer.
    Owner,
    /// After a rebuild, a mark below the position counts only if a rebuild has written it.
    Floor,
    /// Each step of a rebuild finds what the steps before have written.
    Unbroken,
    /// After a rebuild, what gateways had noted of records counts no more.
    Epoch,
    /// A worker that another has replaced cannot commit.
    Fence,
}

/// How often the rare things happen, at most.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// New owners of the partition, the one before being dead or only frozen.
    pub takeovers: u8,
    /// Losses of marks: the set emptied, or back to its snapshot.
    pub losses: u8,
}

/// The model.
#[derive(Clone, Debug)]
pub struct Places {
    /// The id that each request brings; every request has a gateway of its own.
    pub requests: Vec<Id>,
    /// What happens to them.
    pub faults: Faults,
    /// What is taken away.
    pub without: Option<Part>,
}

/// What has become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Request {
    Waiting,
    /// Only where marks come first.
    Marked,
    Appended(Place),
    /// Answered, or its gateway is gone.
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Worker {
    generation: u8,
    /// The oldest owner whose word on the progress it takes.
    trusts: Option<u8>,
    position: Place,
    step: Step,
}

impl Worker {
    fn asks(&self) -> Asker {
        Asker { generation: self.generation, trusts: self.trusts, from: self.position }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    /// Marks were lost: these are still to be written, from what has been kept.
    Rebuilding {
        left: Vec<Place>,
        done: u8,
    },
    /// Ready to commit.
    Decided {
        to: Place,
        keep: Vec<Place>,
    },
}

/// A state of the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    requests: Vec<Request>,
    /// Which request's record lies at each offset of `traces.raw`.
    raw: Vec<usize>,
    /// What lies in `traces`, by its place in `traces.raw`.
    kept: Vec<Place>,
    /// How far the group has come.
    position: Place,
    /// Who has brought it there.
    committer: Option<u8>,
    generation: u8,
    workers: Vec<Worker>,
    seen: Seen,
    snapshot: Option<Seen>,
    losses: u8,
    /// `duplicate` was answered though the log had no other record of the id.
    lied: bool,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The request's trace is appended to `traces.raw`.
    Append(usize),
    /// Its gateway marks it and answers.
    Mark(usize),
    /// Its gateway answers without the seen set, or dies, or gives up though the log has the record.
    LeaveUnmarked(usize),
    /// The worker takes the records before `to` and marks them.
    Decide(usize, Place),
    /// The worker writes the next of the lost marks, or the progress after the last.
    Rebuild(usize),
    /// The worker commits what it keeps and its position.
    Commit(usize),
    /// The worker is killed.
    Kill(usize),
    /// A new worker takes the partition over.
    TakeOver,
    /// The seen set is written to disk.
    Snapshot,
    /// The seen set is emptied.
    Empty,
    /// The seen set is again what was written to disk.
    Reload,
}

impl Places {
    /// What a rebuild or a comparison knows a record by.
    fn place(&self, state: &State, offset: Place) -> Place {
        match self.without {
            Some(Part::AppendFirst) => state.raw[usize::from(offset)] as Place,
            _ => offset,
        }
    }

    fn id(&self, state: &State, offset: Place) -> Id {
        self.requests[state.raw[usize::from(offset)]]
    }

    fn rows(&self, state: &State, id: Id) -> usize {
        state.kept.iter().filter(|offset| self.id(state, **offset) == id).count()
    }

    fn offsets<'a>(&'a self, state: &'a State, id: Id) -> impl Iterator<Item = Place> + 'a {
        (0..state.raw.len() as Place).filter(move |offset| self.id(state, *offset) == id)
    }

    fn append(&self, state: &mut State, request: usize) {
        state.raw.push(request);
        state.requests[request] = match self.without {
            Some(Part::AppendFirst) => Request::Over,
            _ => Request::Appended(state.raw.len() as Place - 1),
        };
    }

    /// Marks a request's trace. What came first elsewhere is answered `duplicate`.
    fn mark(&self, state: &mut State, request: usize) {
        let id = self.requests[request];
        let own = match state.requests[request] {
            Request::Appended(offset) => offset,
            _ => request as Place,
        };
        let is_first = state.seen.mark_one(id, own, self.without) == own;
        state.requests[request] = match state.requests[request] {
            Request::Waiting if is_first => Request::Marked,
            _ => Request::Over,
        };
        let others = self.offsets(state, id).any(|offset| state.raw[usize::from(offset)] != request);
        state.lied |= !is_first && !others;
    }

    fn decide(&self, state: &mut State, worker: usize, to: Place) {
        let asker = state.workers[worker].asks();
        let from = asker.from;
        let batch: Vec<(Id, Place)> =
            (from..to).map(|at| (self.id(state, at), self.place(state, at))).collect();
        let unmarked: Vec<bool> = match self.without {
            Some(Part::OwnPlace) => batch.iter().map(|(id, _)| !state.seen.knows(*id)).collect(),
            _ => vec![true; batch.len()],
        };
        state.workers[worker].step = match state.seen.mark_batch(asker, &batch, self.without) {
            None => {
                state.seen.begin_rebuild(asker);
                Step::Rebuilding { left: state.kept.clone(), done: 0 }
            }
            Some(first) => {
                state.workers[worker].trusts = Some(asker.generation);
                let own = batch.iter().zip(first).map(|((_, place), first)| *place == first);
                let keep = (from..to).zip(own.zip(unmarked));
                Step::Decided { to, keep: keep.filter(|(_, (a, b))| *a && *b).map(|(at, _)| at).collect() }
            }
        };
    }

    fn rebuild(&self, state: &mut State, worker: usize) {
        let asker = state.workers[worker].asks();
        let Step::Rebuilding { left, done } = &mut state.workers[worker].step else { return };
        let before = *done;
        *done += 1;
        let next = left.pop();
        let whole = match next {
            Some(offset) => {
                let (id, place) = (self.id(state, offset), self.place(state, offset));
                state.seen.restore(asker, id, place, before, self.without)
            }
            None => state.seen.restored(asker, before, self.without),
        };
        if whole && next.is_none() {
            state.workers[worker].trusts = Some(asker.generation);
        }
        if !whole || next.is_none() {
            state.workers[worker].step = Step::Idle;
        }
    }

    fn commit(&self, state: &mut State, worker: usize) {
        let Step::Decided { to, keep } = state.workers[worker].step.clone() else { return };
        if state.workers[worker].generation != state.generation && self.without != Some(Part::Fence) {
            state.workers.remove(worker);
            return;
        }
        state.kept.extend(keep);
        state.position = to;
        state.committer = Some(state.workers[worker].generation);
        state.workers[worker].position = to;
        state.workers[worker].step = Step::Idle;
    }
}

impl Model for Places {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            requests: vec![Request::Waiting; self.requests.len()],
            raw: Vec::new(),
            kept: Vec::new(),
            position: 0,
            committer: None,
            generation: 0,
            workers: vec![Worker { generation: 0, trusts: None, position: 0, step: Step::Idle }],
            seen: Seen::default(),
            snapshot: None,
            losses: 0,
            lied: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let marks_first = self.without == Some(Part::AppendFirst);
        for (request, condition) in state.requests.iter().enumerate() {
            // Requests with the same id are alike: they may as well begin in their order.
            let alike = |other: usize| self.requests[other] == self.requests[request];
            let waits = (0..request).any(|other| alike(other) && state.requests[other] == Request::Waiting);
            match condition {
                Request::Waiting if waits => {}
                Request::Waiting if marks_first => actions.push(Action::Mark(request)),
                Request::Waiting => actions.push(Action::Append(request)),
                Request::Marked => actions.extend([Action::Append(request), Action::LeaveUnmarked(request)]),
                Request::Appended(_) => {
                    actions.extend([Action::Mark(request), Action::LeaveUnmarked(request)]);
                }
                Request::Over => {}
            }
        }
        for (number, worker) in state.workers.iter().enumerate() {
            match worker.step {
                Step::Idle => actions.extend(
                    (worker.position + 1..=state.raw.len() as Place).map(|to| Action::Decide(number, to)),
                ),
                Step::Rebuilding { .. } => actions.push(Action::Rebuild(number)),
                Step::Decided { .. } => actions.push(Action::Commit(number)),
            }
            if state.generation < self.faults.takeovers {
                actions.push(Action::Kill(number));
            }
        }
        if state.generation < self.faults.takeovers && state.workers.len() < 2 {
            actions.push(Action::TakeOver);
        }
        if state.losses < self.faults.losses {
            actions.push(Action::Empty);
            actions.push(if state.snapshot.is_none() { Action::Snapshot } else { Action::Reload });
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Append(request) => self.append(&mut state, request),
            Action::Mark(request) => self.mark(&mut state, request),
            Action::LeaveUnmarked(request) => state.requests[request] = Request::Over,
            Action::Decide(worker, to) => self.decide(&mut state, worker, to),
            Action::Rebuild(worker) => self.rebuild(&mut state, worker),
            Action::Commit(worker) => self.commit(&mut state, worker),
            Action::Kill(worker) => {
                state.workers.remove(worker);
            }
            Action::TakeOver => {
                state.generation += 1;
                let State { generation, position, committer: trusts, .. } = *last;
                let generation = generation + 1;
                state.workers.push(Worker { generation, trusts, position, step: Step::Idle });
            }
            Action::Snapshot => state.snapshot = Some(state.seen.clone()),
            Action::Empty => {
                state.seen = Seen::default();
                state.losses += 1;
            }
            Action::Reload => {
                state.seen = state.snapshot.clone()?;
                state.losses += 1;
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NEVER_TWICE, |model: &Self, state: &State| {
                model.requests.iter().all(|id| model.rows(state, *id) <= 1)
            }),
            Property::always(NOTHING_LOST, |model: &Self, state: &State| {
                model.requests.iter().all(|id| {
                    let mut offsets = model.offsets(state, *id).peekable();
                    let has_come = offsets.peek().is_some();
                    !has_come || offsets.any(|at| at >= state.position) || model.rows(state, *id) == 1
                })
            }),
            Property::always(DUPLICATE_OF_SOMETHING, |_, state: &State| !state.lied),
            Property::sometimes(ALL_DONE, |_, state: &State| {
                usize::from(state.position) == state.requests.len()
                    && state.losses > 0
                    && state.generation > 0
            }),
        ]
    }
}

/// There is never a second row of an id.
pub const NEVER_TWICE: &str = "never two rows of an id";
/// Once dedupe has passed all records of an id, one of them is kept.
pub const NOTHING_LOST: &str = "every durable trace is kept";
/// `duplicate` is only answered where another record of the id is durable.
pub const DUPLICATE_OF_SOMETHING: &str = "a duplicate is one of something durable";
/// The model gets through with faults.
pub const ALL_DONE: &str = "everything is done in spite of a loss and a takeover";
