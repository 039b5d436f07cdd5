//! The seen set as its scripts treat it: marks, each partition's progress, and what tells marks that still
//! count from such as were left behind by a loss. Every method is one script, and so one step.

use std::collections::{BTreeMap, BTreeSet};

use crate::places::{Id, Part, Place};

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
    generation: u8,
    reached: Place,
}

/// Who asks dedupe's question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    /// Which owner of the partition it is.
    pub(crate) generation: u8,
    /// The oldest owner whose word it takes: itself once it has had an answer, before that whoever made the
    /// last commit; `None` when there was no commit.
    pub(crate) trusts: Option<u8>,
    /// Where its batch begins.
    pub(crate) from: Place,
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
    /// Whose rebuild is under way, and how many marks it has written.
    rebuild: Option<(u8, u8)>,
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

    /// Dedupe's marks of a batch, with the comparison of the progress; `None` when marks were lost.
    pub(crate) fn mark_batch(
        &mut self,
        asker: Asker,
        batch: &[(Id, Place)],
        without: Option<Part>,
    ) -> Option<Vec<Place>> {
        let reached = self.progress.map_or(0, |progress| progress.reached);
        let trusted = match self.progress {
            Some(progress) => asker.trusts.is_none_or(|oldest| progress.generation >= oldest),
            None => asker.trusts.is_none(),
        };
        if (reached < asker.from && without != Some(Part::Progress))
            || (!trusted && ![Some(Part::Progress), Some(Part::Owner)].contains(&without))
        {
            return None;
        }
        let mut first = Vec::new();
        let mut to = asker.from;
        for (id, place) in batch {
            let is_clean = self.clean.remove(place);
            first.push(if is_clean { *place } else { self.mark(*id, *place, without) });
            to += 1;
        }
        self.progress = Some(Progress { generation: asker.generation, reached: reached.max(to) });
        Some(first)
    }

    /// Whether the id has any mark.
    pub(crate) fn knows(&self, id: Id) -> bool {
        self.marks.contains_key(&id)
    }

    /// The first step of a rebuild.
    pub(crate) fn begin_rebuild(&mut self, asker: Asker) {
        self.rebuild = Some((asker.generation, 0));
    }

    /// A step of a rebuild: sets what was kept, over what is there. `false` when what the rebuild has written
    /// before is there no more, or another has begun.
    pub(crate) fn restore(
        &mut self,
        asker: Asker,
        id: Id,
        place: Place,
        done: u8,
        without: Option<Part>,
    ) -> bool {
        if self.rebuild != Some((asker.generation, done)) && without != Some(Part::Unbroken) {
            return false;
        }
        self.rebuild = Some((asker.generation, done + 1));
        self.begin_epoch(without);
        self.marks.insert(id, Mark { place, kept: true });
        true
    }

    /// The last step of a rebuild.
    pub(crate) fn restored(&mut self, asker: Asker, done: u8, without: Option<Part>) -> bool {
        if self.rebuild != Some((asker.generation, done)) && without != Some(Part::Unbroken) {
            return false;
        }
        self.rebuild = None;
        self.begin_epoch(without);
        self.progress = Some(Progress { generation: asker.generation, reached: asker.from });
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
