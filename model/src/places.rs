//! Places and marks: from a request to `traces`, through one partition of `traces.raw`.

use stateright::{Model, Property};

use crate::seen::{Asker, Call, Seen};

/// Which trace: what a client sends again under the same id.
pub type Id = u8;
/// An offset of `traces.raw`, which is the place of the one trace that its record holds. In the variant that
/// marks before it appends there is no offset yet, and the number of the request stands for it.
pub type Place = u8;

/// An owner of the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// One more than that of the owner whose commit it began at.
    pub number: u8,
    /// Tells owners apart that began at the same commit. (As built it is random; here it is also their order,
    /// which only the log knows.)
    pub generation: u8,
}

impl Owner {
    /// Whether it is `oldest` or surely came after it. Of two that began at the same commit neither is known
    /// to have come after the other.
    pub(crate) fn is_since(self, oldest: Self) -> bool {
        self == oldest || self.number > oldest.number
    }
}

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
    /// A rebuild begins at what is committed: a worker that has gone further begins anew.
    AtCommitted,
    /// Each call of a rebuild finds what the calls before have written.
    Unbroken,
    /// Each call of a batch's marks finds what the calls before have written.
    UnbrokenBatch,
    /// After a rebuild, what gateways had noted of records counts no more.
    Epoch,
    /// A worker that another has replaced cannot commit.
    Fence,
    /// After an error a worker begins anew at what is committed, and does not go on behind what it had taken up.
    Rewind,
    /// Before it does, it makes certain that what it has read is still its own to go on from.
    Claim,
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
    /// Most marks of one call of the seen set; a batch of more takes several.
    pub marks_per_call: u8,
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
    owner: Owner,
    /// The oldest owner whose word on the progress it takes.
    trusts: Option<Owner>,
    position: Place,
    /// It has passed records that it has not committed: there was nothing to keep.
    ahead: bool,
    step: Step,
}

impl Worker {
    /// A worker that knows no more than what was committed, and by whom.
    fn begin(generation: u8, position: Place, trusts: Option<Owner>) -> Self {
        let owner = Owner { number: trusts.map_or(0, |before| before.number) + 1, generation };
        Self { owner, trusts, position, ahead: false, step: Step::Idle }
    }

    fn asks(&self) -> Asker {
        Asker { owner: self.owner, trusts: self.trusts, from: self.position }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    /// Marks were lost: these are still to be written, from what has been kept, once that is read.
    Rebuilding {
        left: Option<Vec<Place>>,
        call: Call,
    },
    /// In the midst of a batch's marks.
    Marking {
        to: Place,
        at: Place,
        call: Call,
        keep: Vec<Place>,
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
    committer: Option<Owner>,
    generation: u8,
    workers: Vec<Worker>,
    seen: Seen,
    snapshot: Option<Seen>,
    losses: u8,
    /// `duplicate` was answered though the log had no other record of the id.
    lied: bool,
}

impl State {
    /// A number for a work that no work has of which anything is left. (As built it is random.)
    fn unused_work(&self) -> u8 {
        let seen = [Some(&self.seen), self.snapshot.as_ref()].into_iter().flatten();
        let in_sets = seen.filter_map(|seen| seen.under_way);
        let in_workers = self.workers.iter().filter_map(|worker| match worker.step {
            Step::Rebuilding { call, .. } | Step::Marking { call, .. } => Some(call),
            _ => None,
        });
        let used: Vec<u8> = in_sets.chain(in_workers).map(|call| call.work).collect();
        (0..).find(|work| !used.contains(work)).unwrap_or_default()
    }
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
    /// The worker takes the records before `to` and marks the first of them.
    Decide(usize, Place),
    /// The worker marks what comes next of its batch.
    MarkNext(usize),
    /// The worker reads what was kept; or it writes the next of the lost marks, or the progress after the last.
    Rebuild(usize),
    /// The worker commits what it keeps and its position.
    Commit(usize),
    /// The worker goes on without a commit: it keeps nothing; or, without [`Part::Rewind`], its commit was undone. (To
    /// begin anew is to be another owner, who takes over.)
    PassBy(usize),
    /// The worker, which was replaced, begins anew at what its successor has committed.
    BeginAnew(usize),
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
        let call = Call { work: state.unused_work(), done: 0 };
        let Worker { position: at, .. } = state.workers[worker];
        self.mark_next(state, worker, (at, to), call, Vec::new());
    }

    /// A call of a batch's marks: those before `to` that are left from `at` on, as many as a call takes.
    fn mark_next(
        &self,
        state: &mut State,
        worker: usize,
        (at, to): (Place, Place),
        call: Call,
        mut keep: Vec<Place>,
    ) {
        let asker = state.workers[worker].asks();
        let next = to.min(at.saturating_add(self.marks_per_call));
        let marks: Vec<(Id, Place)> =
            (at..next).map(|at| (self.id(state, at), self.place(state, at))).collect();
        let unmarked: Vec<bool> = match self.without {
            Some(Part::OwnPlace) => marks.iter().map(|(id, _)| !state.seen.knows(*id)).collect(),
            _ => vec![true; marks.len()],
        };
        let end = (next == to).then_some(to);
        let first = state.seen.mark_batch(asker, &marks, call, end, self.without);
        state.workers[worker].step = match first {
            // To begin anew is to be another owner, who takes over.
            None if state.workers[worker].ahead && self.without != Some(Part::AtCommitted) => {
                state.workers.remove(worker);
                return;
            }
            None => {
                let work = state.unused_work();
                state.seen.begin_rebuild(work);
                Step::Rebuilding { left: None, call: Call { work, done: 1 } }
            }
            Some(first) => {
                let own = marks.iter().zip(first).map(|((_, place), first)| *place == first);
                let kept = (at..next).zip(own.zip(unmarked)).filter(|(_, (a, b))| *a && *b);
                keep.extend(kept.map(|(at, _)| at));
                match end {
                    Some(_) => {
                        state.workers[worker].trusts = Some(asker.owner);
                        Step::Decided { to, keep }
                    }
                    None => Step::Marking { to, at: next, call: Call { done: call.done + 1, ..call }, keep },
                }
            }
        };
    }

    fn rebuild(&self, state: &mut State, worker: usize) {
        let asker = state.workers[worker].asks();
        let Step::Rebuilding { left, call } = &mut state.workers[worker].step else { return };
        let Some(left) = left else {
            *left = Some(state.kept.clone());
            return;
        };
        let now = *call;
        call.done += 1;
        let next = left.pop();
        let whole = match next {
            Some(offset) => {
                let (id, place) = (self.id(state, offset), self.place(state, offset));
                state.seen.restore(id, place, now, self.without)
            }
            None => state.seen.restored(asker, now, self.without),
        };
        if whole && next.is_none() {
            state.workers[worker].trusts = Some(asker.owner);
        }
        if !whole || next.is_none() {
            state.workers[worker].step = Step::Idle;
        }
    }

    fn commit(&self, state: &mut State, worker: usize) {
        let Step::Decided { to, keep } = state.workers[worker].step.clone() else { return };
        if state.workers[worker].owner.generation != state.generation && self.without != Some(Part::Fence) {
            state.workers.remove(worker);
            return;
        }
        state.kept.extend(keep);
        state.position = to;
        state.committer = Some(state.workers[worker].owner);
        self.go_on(state, worker, to, false);
    }

    fn go_on(&self, state: &mut State, worker: usize, to: Place, ahead: bool) {
        let worker = &mut state.workers[worker];
        (worker.position, worker.ahead, worker.step) = (to, ahead, Step::Idle);
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
            workers: vec![Worker::begin(0, 0, None)],
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
                Step::Marking { .. } => actions.push(Action::MarkNext(number)),
                Step::Decided { ref keep, .. } => {
                    actions.push(Action::Commit(number));
                    if keep.is_empty() || self.without == Some(Part::Rewind) {
                        actions.push(Action::PassBy(number));
                    }
                }
            }
            if state.generation < self.faults.takeovers {
                actions.push(Action::Kill(number));
            }
            if self.without == Some(Part::Claim) && worker.owner.generation != state.generation {
                actions.push(Action::BeginAnew(number));
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
            Action::MarkNext(worker) => {
                let Step::Marking { to, at, call, keep } = last.workers[worker].step.clone() else {
                    return None;
                };
                self.mark_next(&mut state, worker, (at, to), call, keep);
            }
            Action::Rebuild(worker) => self.rebuild(&mut state, worker),
            Action::Commit(worker) => self.commit(&mut state, worker),
            Action::PassBy(worker) => {
                let Step::Decided { to, .. } = last.workers[worker].step else { return None };
                self.go_on(&mut state, worker, to, true);
            }
            Action::BeginAnew(worker) => {
                let generation = last.workers[worker].owner.generation;
                state.workers[worker] = Worker::begin(generation, last.position, last.committer);
            }
            Action::Kill(worker) => {
                state.workers.remove(worker);
            }
            Action::TakeOver => {
                state.generation += 1;
                state.workers.push(Worker::begin(state.generation, last.position, last.committer));
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
