//! The seen set as its scripts treat it: marks, each partition's progress, and what tells marks that still
//! count from such as were left behind by a loss. Every method is one script, and so one step.

use std::collections::{BTreeMap, BTreeSet};

use crate::places::{Id, Owner, Part, Place};

/// A trace's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Mark {
    place: Place,
    /// Written by a rebuild, from what has been kept.
    kept: bool,
}

/// How far the partition has come, and which owner said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Progress {
    owner: Owner,
    reached: Place,
}

/// Who asks dedupe's question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) owner: Owner,
    /// The oldest owner whose word it takes: itself once it has had an answer, before that whoever made the
    /// last commit; `None` when there was no commit.
    pub(crate) trusts: Option<Owner>,
    /// Where its batch begins.
    pub(crate) from: Place,
}

/// A call of a work that takes several: a rebuild, or the marks of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Call {
    /// Which work it is; none has another's number.
    pub(crate) work: u8,
    /// How many of its calls were before.
    pub(crate) done: u8,
}

impl Call {
    fn next(self) -> Self {
        Self { done: self.done + 1, ..self }
    }
}

/// The set. What Redis loses, it loses as a whole: emptied, or back as it was at some moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    marks: BTreeMap<Id, Mark>,
    progress: Option<Progress>,
    /// Below it only marks count that a rebuild has written.
    floor: Place,
    /// Records of which the gateway has found every mark to be the record's own, noted in this epoch. (A
    /// set's epochs never come again, so notes of older ones are as good as gone.)
    clean: BTreeSet<Place>,
    /// The call that the work under way comes to next.
    pub(crate) under_way: Option<Call>,
}

impl Seen {
    /// The gateway's mark, set if absent; answers the place that came first.
    pub(crate) fn mark_one(&mut self, id: Id, place: Place, without: Option<Part>) -> Place {
        let first = self.mark(id, place, without);
        let passed = self.progress.is_some_and(|progress| progress.reached > place);
        if first == place && !passed {
            self.clean.insert(place);
        }
        first
    }

    /// A call of dedupe's marks of a batch; the first one compares the progress, the last one advances it to
    /// `to`. `None` when marks were lost.
    pub(crate) fn mark_batch(
        &mut self,
        asker: Asker,
        marks: &[(Id, Place)],
        call: Call,
        to: Option<Place>,
        without: Option<Part>,
    ) -> Option<Vec<Place>> {
        let whole = match call.done {
            0 => self.lost_nothing(asker, without),
            _ => self.under_way == Some(call) || without == Some(Part::UnbrokenBatch),
        };
        if !whole {
            return None;
        }
        let mut first = Vec::new();
        for (id, place) in marks {
            let is_clean = self.clean.remove(place);
            first.push(if is_clean { *place } else { self.mark(*id, *place, without) });
        }
        match to {
            Some(to) => self.advance(asker, to),
            None => self.under_way = Some(call.next()),
        }
        if to.is_some() && call.done > 0 {
            self.under_way = None;
        }
        Some(first)
    }

    /// Whether the set has what it had when the batch before was marked.
    fn lost_nothing(&self, asker: Asker, without: Option<Part>) -> bool {
        let reached = self.progress.map_or(0, |progress| progress.reached);
        let trusted = match (self.progress, asker.trusts) {
            (_, None) => true,
            (Some(progress), Some(oldest)) => progress.owner.is_since(oldest),
            (None, Some(_)) => false,
        };
        (reached >= asker.from || without == Some(Part::Progress))
            && (trusted || matches!(without, Some(Part::Progress | Part::Owner)))
    }

    /// Advances the progress; what a newer owner has said stays.
    fn advance(&mut self, asker: Asker, to: Place) {
        let reached = self.progress.map_or(0, |progress| progress.reached);
        if self.progress.is_none_or(|progress| progress.owner.number <= asker.owner.number) {
            self.progress = Some(Progress { owner: asker.owner, reached: reached.max(to) });
        }
    }

    /// Whether the id has any mark.
    pub(crate) fn knows(&self, id: Id) -> bool {
        self.marks.contains_key(&id)
    }

    /// The first call of a rebuild, before what was kept is read.
    pub(crate) fn begin_rebuild(&mut self, work: u8) {
        self.under_way = Some(Call { work, done: 1 });
    }

    /// A call of a rebuild: sets what was kept, over what is there. `false` when what the rebuild has written
    /// before is there no more, or another work has begun.
    pub(crate) fn restore(&mut self, id: Id, place: Place, call: Call, without: Option<Part>) -> bool {
        if self.under_way != Some(call) && without != Some(Part::Unbroken) {
            return false;
        }
        self.under_way = Some(call.next());
        self.begin_epoch(without);
        self.marks.insert(id, Mark { place, kept: true });
        true
    }

    /// The last call of a rebuild.
    pub(crate) fn restored(&mut self, asker: Asker, call: Call, without: Option<Part>) -> bool {
        if self.under_way != Some(call) && without != Some(Part::Unbroken) {
            return false;
        }
        self.under_way = None;
        self.begin_epoch(without);
        self.progress = Some(Progress { owner: asker.owner, reached: asker.from });
        self.floor = asker.from;
        true
    }

    fn begin_epoch(&mut self, without: Option<Part>) {
        if without != Some(Part::Epoch) {
            self.clean.clear();
        }
    }

    fn mark(&mut self, id: Id, place: Place, without: Option<Part>) -> Place {
        let counts = |mark: &Mark| mark.kept || mark.place >= self.floor || without == Some(Part::Floor);
        match self.marks.get(&id) {
            Some(mark) if counts(mark) => mark.place,
            _ => {
                self.marks.insert(id, Mark { place, kept: false });
                place
            }
        }
    }
}
