//! What a rule remembers, by entity (an app's user, an address): found without allocating, written when it
//! changed, forgotten when nothing in it can matter any more, and never more than a limit of them.
//!
//! Each entity stands in at most one place of each of two heaps by the time at which it has to be looked
//! at: when its episode may end, or when it fades. The places are corrected when they come up, so a trace
//! costs no heap operation, and [`Entities::next_end`] costs what ends, not what there is.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    hash::BuildHasher,
    mem,
    ops::{Index, IndexMut},
};

use hashbrown::{DefaultHashBuilder, HashTable};
use panopticon_proto::log::EntityState;

use super::keys::{KeyAt, Keys};
use crate::{time::Time, trace::WireError};

/// What a rule remembers of one entity. Both times may only move forward while the episode stays as it is.
pub trait Entity: Default + Send + 'static {
    /// The earliest time at which its open episode may end; `None`: none is open.
    fn ends_at(&self) -> Option<Time>;

    /// The time from which on nothing in it can change what a rule finds, unless an episode is open.
    fn fades_at(&self) -> Time;

    /// The rule's own encoding.
    fn encode(&self) -> Vec<u8>;

    /// Reads what [`Entity::encode`] wrote.
    fn decode(state: &[u8]) -> Result<Self, WireError>;
}

/// How many forgotten entities the list of changed ones may name beside the living.
const STALE_DIRT: usize = 1_024;

/// Where an entity lies, until it is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u32);

/// Where an entity lies, with what is noted of it. There may be millions, so each byte counts.
struct Berth<E> {
    /// A default one where none lies here.
    entity: E,
    key: KeyAt,
    /// How many have lain here before.
    generation: u32,
    marks: Marks,
}

/// Several of the marks below, in one byte.
#[derive(Debug, Clone, Copy, Default)]
struct Marks(u8);

/// The compacted topic has it.
const WRITTEN: u8 = 1;
/// Its episode began or ended since it was last written; stands in `urgent`.
const URGENT: u8 = 2;
/// It changed since it was last written; stands in `dirty`.
const DIRTY: u8 = 4;
/// Stands in `ends`.
const AWAITS_END: u8 = 8;
/// Stands in `fades`.
const AWAITS_FADING: u8 = 16;
/// An entity lies here.
const TAKEN: u8 = 32;

impl Marks {
    const fn has(self, mark: u8) -> bool {
        self.0 & mark != 0
    }

    /// Sets a mark; answers whether it was not set before.
    const fn set(&mut self, mark: u8) -> bool {
        let new = !self.has(mark);
        self.0 |= mark;
        new
    }

    const fn clear(&mut self, mark: u8) {
        self.0 &= !mark;
    }
}

/// When an episode may end, of which slot, and of which of those that have lain in it.
type End = Reverse<(Time, u32, u32)>;

/// The second in which an entity fades, and its slot. Who is forgotten has been taken out before.
type Fading = Reverse<(u32, u32)>;

/// Whole seconds since 1970, until 2106.
fn second(time: Time) -> u32 {
    u32::try_from(time.secs().max(0)).unwrap_or(u32::MAX)
}

/// The entities of a rule in one partition.
pub struct Entities<E> {
    rule: &'static str,
    limit: usize,
    hasher: DefaultHashBuilder,
    index: HashTable<u32>,
    keys: Keys,
    berths: Vec<Berth<E>>,
    free: Vec<u32>,
    /// Only while events are replayed: what lies before this offset is in the entity that was loaded.
    as_of: HashMap<u32, u64>,
    ends: BinaryHeap<End>,
    fades: BinaryHeap<Fading>,
    /// May name slots that were left since, or twice.
    dirty: Vec<u32>,
    urgent: Vec<u32>,
    /// Forgotten but still in the compacted topic; with whether that has to change at once.
    gone: Vec<(Box<[u8]>, bool)>,
}

/// Stands between the parts of a key; all but the last must not hold one.
const SEPARATOR: &[u8] = b"\0";

fn is_joined(key: &[u8], [first, second]: [&str; 2]) -> bool {
    key.len() == first.len() + 1 + second.len()
        && key.starts_with(first.as_bytes())
        && key[first.len()] == 0
        && key.ends_with(second.as_bytes())
}

/// The parts of a key.
fn parts(key: &[u8]) -> (&[u8], &[u8]) {
    let split = key.iter().position(|byte| *byte == 0).unwrap_or(key.len());
    (&key[..split], key.get(split + 1..).unwrap_or_default())
}

impl<E: Entity> Entities<E> {
    /// At most `limit` entities of `rule`.
    pub fn new(rule: &'static str, limit: usize) -> Self {
        Self {
            rule,
            limit: limit.clamp(1, u32::MAX as usize - 1),
            hasher: DefaultHashBuilder::default(),
            index: HashTable::new(),
            keys: Keys::default(),
            berths: Vec::new(),
            free: Vec::new(),
            as_of: HashMap::new(),
            ends: BinaryHeap::new(),
            fades: BinaryHeap::new(),
            dirty: Vec::new(),
            urgent: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The entity of `(app, what)`, new if need be, to take in an event at `offset`. `None` in a `replay`
    /// when it already holds the event, and when every entity there may be has an open episode (counted).
    pub fn take_up(&mut self, parts: [&str; 2], offset: u64, replay: bool) -> Option<Slot> {
        let hash = self.hasher.hash_one((parts[0].as_bytes(), parts[1].as_bytes()));
        let (berths, keys) = (&self.berths, &self.keys);
        let is_it = |slot: &u32| is_joined(keys.get(berths[*slot as usize].key), parts);
        let slot = match self.index.find(hash, is_it) {
            Some(slot) => *slot,
            None => {
                let [first, second] = parts.map(str::as_bytes);
                self.put(&[first, SEPARATOR, second], hash, E::default(), Marks::default())?
            }
        };
        if replay {
            if self.as_of.get(&slot).is_some_and(|as_of| offset < *as_of) {
                return None;
            }
        } else if !self.as_of.is_empty() {
            self.as_of = HashMap::new();
        }
        if self.berths[slot as usize].marks.set(DIRTY) {
            self.dirty.push(slot);
            self.drop_stale_dirt();
        }
        Some(Slot(slot))
    }

    /// Has the entity looked at when it fades, or when its episode may end; call it after each event taken
    /// in. Costs nothing while the entity waits for the same.
    pub fn watch(&mut self, slot: Slot) {
        let Berth { entity, generation, marks, .. } = &mut self.berths[slot.0 as usize];
        match entity.ends_at() {
            Some(end) if marks.set(AWAITS_END) => self.ends.push(Reverse((end, slot.0, *generation))),
            None if marks.set(AWAITS_FADING) => {
                self.fades.push(Reverse((second(entity.fades_at()), slot.0)));
            }
            _ => {}
        }
    }

    /// Has the entity written with the next commit: its episode began or ended.
    pub fn write_soon(&mut self, slot: Slot) {
        let marks = &mut self.berths[slot.0 as usize].marks;
        // The end to wait for may now be an earlier one than that which it waits for.
        marks.clear(AWAITS_END);
        if marks.set(URGENT) {
            self.urgent.push(slot.0);
        }
    }

    /// Whether an episode may have ended by `now`; [`Entities::next_end`] says which have.
    pub fn ends_by(&self, now: Time) -> bool {
        self.ends.peek().is_some_and(|Reverse((at, ..))| *at <= now)
    }

    /// The next entity whose episode has ended by `now`; the caller ends it and watches the entity again.
    pub fn next_end(&mut self, now: Time) -> Option<Slot> {
        while let Some(Reverse((at, slot, generation))) = self.ends.peek().copied() {
            if at > now {
                return None;
            }
            self.ends.pop();
            let berth = &mut self.berths[slot as usize];
            if berth.generation != generation {
                continue;
            }
            berth.marks.clear(AWAITS_END);
            match berth.entity.ends_at() {
                Some(end) if end <= now => return Some(Slot(slot)),
                _ => self.watch(Slot(slot)),
            }
        }
        None
    }

    /// Has `end` look at each entity whose episode has ended by `now`, which answers whether it did end, then forgets
    /// the entities that have faded by then.
    pub fn advance(&mut self, now: Time, mut end: impl FnMut(&mut E) -> bool) {
        while let Some(slot) = self.next_end(now) {
            if end(&mut self[slot]) {
                self.write_soon(slot);
            }
            self.watch(slot);
        }
        self.forget(now);
    }

    /// Forgets the entities that have faded by `now`.
    fn forget(&mut self, now: Time) {
        while let Some(slot) = self.oldest(|at| at <= now) {
            self.remove(slot);
        }
    }

    /// Takes up an entity from the checkpoint.
    pub fn load(&mut self, key: &[u8], state: EntityState) -> Result<(), WireError> {
        let entity = E::decode(&state.state)?;
        let hash = self.hasher.hash_one(parts(key));
        if let Some(slot) = self.put(&[key], hash, entity, Marks(WRITTEN)) {
            self.as_of.insert(slot, state.as_of);
            self.watch(Slot(slot));
        }
        Ok(())
    }

    /// What [`crate::stage::Rule::changed`] promises: first what to forget, then what to write.
    pub fn changed(&mut self, next: u64, all: bool) -> Vec<(Vec<u8>, Option<EntityState>)> {
        let mut changes = Vec::new();
        self.gone.retain(|(key, at_once)| {
            let now = all || *at_once;
            if now {
                changes.push((key.to_vec(), None));
            }
            !now
        });
        let urgent = mem::take(&mut self.urgent);
        let dirty = if all { mem::take(&mut self.dirty) } else { Vec::new() };
        for slot in urgent.into_iter().chain(dirty) {
            let Berth { entity, key, marks, .. } = &mut self.berths[slot as usize];
            // Written already, or another lies here now.
            if !(marks.has(URGENT) || (all && marks.has(DIRTY))) {
                continue;
            }
            marks.clear(URGENT);
            marks.set(WRITTEN);
            // An urgent one that is dirty stays in the list of those, and is written once more.
            if all {
                marks.clear(DIRTY);
            }
            let state = EntityState { state: entity.encode(), as_of: next };
            changes.push((self.keys.get(*key).to_vec(), Some(state)));
        }
        if all {
            metrics::gauge!("panopticon_entities", "rule" => self.rule).set(self.len() as f64);
        }
        changes
    }

    /// Keeps a flood of entities that come and go between two checkpoints from growing the list.
    fn drop_stale_dirt(&mut self) {
        if self.dirty.len() > 2 * self.len() + STALE_DIRT {
            self.dirty.sort_unstable();
            self.dirty.dedup();
            self.dirty.retain(|slot| self.berths[*slot as usize].marks.has(DIRTY));
        }
    }

    /// Whether one more may come; makes room by forgetting the one without an episode that has been
    /// without activity for longest.
    fn has_room(&mut self) -> bool {
        while self.len() >= self.limit {
            let Some(slot) = self.oldest(|_| true) else { return false };
            metrics::counter!("panopticon_entities_evicted_total", "rule" => self.rule).increment(1);
            self.remove(slot);
        }
        true
    }

    /// The entity without an episode that fades first, to the second, if its time satisfies `due`.
    fn oldest(&mut self, due: impl Fn(Time) -> bool) -> Option<u32> {
        while let Some(Reverse((at, slot))) = self.fades.peek().copied() {
            if !due(Time::from_secs(at.into())) {
                return None;
            }
            let Berth { entity, marks, .. } = &mut self.berths[slot as usize];
            let fades_at = entity.ends_at().is_none().then(|| entity.fades_at());
            let still = fades_at.filter(|fades_at| second(*fades_at) == at);
            if still.is_some_and(|fades_at| !due(fades_at)) {
                return None;
            }
            self.fades.pop();
            marks.clear(AWAITS_FADING);
            if still.is_some() {
                return Some(slot);
            }
            // With an episode it comes back here when that has ended.
            if fades_at.is_some() {
                self.watch(Slot(slot));
            }
        }
        None
    }

    /// A slot for a new entity, whose key is made of these parts; `None` (counted) when there is no room.
    fn put(&mut self, key: &[&[u8]], hash: u64, entity: E, marks: Marks) -> Option<u32> {
        let key = if self.has_room() { self.add_key(key) } else { None };
        let Some(key) = key else {
            metrics::counter!("panopticon_entities_refused_total", "rule" => self.rule).increment(1);
            return None;
        };
        let marks = Marks(marks.0 | TAKEN);
        let slot = match self.free.pop() {
            Some(slot) => {
                let berth = &mut self.berths[slot as usize];
                (berth.entity, berth.key, berth.marks) = (entity, key, marks);
                slot
            }
            None => {
                self.berths.push(Berth { entity, key, generation: 0, marks });
                // There are never more than `limit`, which is less than 2³².
                (self.berths.len() - 1) as u32
            }
        };
        let (hasher, berths, keys) = (&self.hasher, &self.berths, &self.keys);
        let hash_of = |slot: &u32| hasher.hash_one(parts(keys.get(berths[*slot as usize].key)));
        self.index.insert_unique(hash, slot, hash_of);
        Some(slot)
    }

    fn add_key(&mut self, key: &[&[u8]]) -> Option<KeyAt> {
        let in_use = self.berths.iter_mut().filter(|berth| berth.marks.has(TAKEN));
        self.keys.close_gaps(in_use.map(|berth| &mut berth.key));
        self.keys.add(key)
    }

    fn remove(&mut self, slot: u32) {
        let berth = &mut self.berths[slot as usize];
        berth.generation = berth.generation.wrapping_add(1);
        berth.entity = E::default();
        let (key, marks) = (berth.key, mem::take(&mut berth.marks));
        let hash = self.hasher.hash_one(parts(self.keys.get(key)));
        if let Ok(found) = self.index.find_entry(hash, |other| *other == slot) {
            found.remove();
        }
        if marks.has(WRITTEN) {
            // An end that was not yet written must not be undone by what the topic still holds.
            self.gone.push((self.keys.get(key).into(), marks.has(URGENT)));
        }
        self.keys.release(key);
        self.as_of.remove(&slot);
        self.free.push(slot);
    }
}

impl<E> Index<Slot> for Entities<E> {
    type Output = E;
    fn index(&self, slot: Slot) -> &E {
        &self.berths[slot.0 as usize].entity
    }
}

impl<E> IndexMut<Slot> for Entities<E> {
    fn index_mut(&mut self, slot: Slot) -> &mut E {
        &mut self.berths[slot.0 as usize].entity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fades ten seconds after its last call; has an episode while `open`.
    #[derive(Default)]
    struct Calls {
        last: i64,
        open: bool,
    }

    impl Entity for Calls {
        fn ends_at(&self) -> Option<Time> {
            self.open.then(|| Time::from_secs(self.last + 5))
        }
        fn fades_at(&self) -> Time {
            Time::from_secs(self.last + 10)
        }
        fn encode(&self) -> Vec<u8> {
            [i64::from(self.open).to_le_bytes(), self.last.to_le_bytes()].concat()
        }
        fn decode(state: &[u8]) -> Result<Self, WireError> {
            let number = |from: usize| {
                let bytes = state.get(from..from + 8).and_then(|bytes| bytes.try_into().ok());
                bytes.map(i64::from_le_bytes).ok_or(WireError::Field("state"))
            };
            Ok(Self { open: number(0)? == 1, last: number(8)? })
        }
    }

    fn call(entities: &mut Entities<Calls>, user: &str, at: i64, open: bool) -> Option<Slot> {
        let slot = entities.take_up(["app", user], 0, false)?;
        entities[slot].last = at;
        entities[slot].open = open;
        entities.watch(slot);
        Some(slot)
    }

    fn names(changes: &[(Vec<u8>, Option<EntityState>)]) -> Vec<(String, bool)> {
        changes
            .iter()
            .map(|(key, state)| (String::from_utf8_lossy(key).into_owned(), state.is_some()))
            .collect()
    }

    #[test]
    fn a_flood_of_new_entities_evicts_the_longest_idle_and_never_an_open_episode() {
        let mut entities = Entities::new("test", 100);
        call(&mut entities, "open", 0, true);
        call(&mut entities, "busy", 1, false);
        for n in 2..10_000 {
            call(&mut entities, &format!("made-up-{n}"), n, false).unwrap();
            call(&mut entities, "busy", n, false).unwrap();
            assert!(entities.len() <= 100);
        }
        assert!(entities.keys.len() < 300_000);
        assert!(entities.berths.len() <= 101 && entities.fades.len() <= 201 && entities.dirty.len() <= 1_300);
        let there = names(&entities.changed(1, true));
        assert!(there.iter().any(|(name, _)| name == "app\0open"));
        assert!(there.iter().any(|(name, _)| name == "app\0busy"));
    }

    #[test]
    fn with_open_episodes_only_a_new_entity_is_refused() {
        let mut entities = Entities::new("test", 2);
        call(&mut entities, "a", 0, true).unwrap();
        call(&mut entities, "b", 0, true).unwrap();
        assert_eq!(call(&mut entities, "c", 0, false), None);
    }

    #[test]
    fn an_episode_ends_when_the_entity_says_so_however_often_that_moved() {
        let mut entities = Entities::new("test", 10);
        let slot = call(&mut entities, "a", 0, true).unwrap();
        call(&mut entities, "a", 100, true);
        assert_eq!(entities.next_end(Time::from_secs(104)), None);
        assert_eq!(entities.next_end(Time::from_secs(105)), Some(slot));
        entities[slot].open = false;
        entities.watch(slot);
        assert_eq!(entities.next_end(Time::from_secs(1_000)), None);
        entities.forget(Time::from_secs(109));
        assert_eq!(entities.len(), 1);
        entities.forget(Time::from_secs(110));
        assert!(entities.is_empty());
    }

    #[test]
    fn a_second_episode_that_ends_before_the_first_is_told_in_time() {
        let mut entities = Entities::new("test", 10);
        let slot = call(&mut entities, "a", 100, true).unwrap();
        entities[slot].last = 50;
        entities.write_soon(slot);
        entities.watch(slot);
        assert_eq!(entities.next_end(Time::from_secs(55)), Some(slot));
    }

    #[test]
    fn changes_are_written_once_and_beginnings_and_ends_at_once() {
        let mut entities = Entities::new("test", 10);
        let open = call(&mut entities, "open", 0, true).unwrap();
        call(&mut entities, "quiet", 0, false);
        entities.write_soon(open);
        assert_eq!(names(&entities.changed(1, false)), [("app\0open".to_owned(), true)]);
        assert!(entities.changed(1, false).is_empty());
        let all = names(&entities.changed(2, true));
        assert!(all.contains(&("app\0quiet".to_owned(), true)));
        assert!(entities.changed(3, true).is_empty());
    }

    #[test]
    fn what_was_written_leaves_a_tombstone_and_an_unwritten_end_does_at_once() {
        let mut entities = Entities::new("test", 10);
        call(&mut entities, "never-written", 0, false);
        entities.forget(Time::from_secs(50));
        assert!(entities.changed(1, true).is_empty());

        call(&mut entities, "written", 60, false);
        let open = call(&mut entities, "open", 60, true).unwrap();
        entities.changed(2, true);
        entities[open].open = false;
        entities.write_soon(open);
        entities.watch(open);
        entities.forget(Time::from_secs(100));
        assert_eq!(names(&entities.changed(3, false)), [("app\0open".to_owned(), false)]);
        assert_eq!(names(&entities.changed(3, true)), [("app\0written".to_owned(), false)]);
    }

    #[test]
    fn a_replay_skips_what_an_entity_already_holds() {
        let mut entities = Entities::<Calls>::new("test", 10);
        let state = EntityState { state: Calls { last: 7, open: true }.encode(), as_of: 5 };
        entities.load(b"app\0user\0with zero", state).unwrap();
        assert_eq!(entities.take_up(["app", "user\0with zero"], 4, true), None);
        let slot = entities.take_up(["app", "user\0with zero"], 5, true).unwrap();
        assert_eq!(entities[slot].last, 7);
        assert!(entities.load(b"app\0other", EntityState::default()).is_err());
    }
}
