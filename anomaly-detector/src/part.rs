//! Several rules over one stream.

use panopticon_core::{stage::Findings, store::Activity, time::Time, trace::WireError};
use panopticon_proto::log::EntityState;

/// A rule among others over the same stream of `E`; its methods are those of
/// [`panopticon_core::stage::Rule`].
pub trait Part<E: 'static>: Send + 'static {
    /// Stands before the keys of its entities; holds no slash and never changes.
    fn name(&self) -> &'static str;

    /// Looks at an event at `offset`.
    fn observe(&mut self, event: &E, offset: u64, replay: bool, findings: &mut Findings);

    /// See [`panopticon_core::stage::Rule::learn`].
    fn learn(&mut self, _activity: &Activity) {}

    /// Ends what has ended by `now`.
    fn advance(&mut self, now: Time, findings: &mut Findings);

    /// Whether an episode may have ended by `now`.
    fn ends_by(&self, now: Time) -> bool;

    /// Takes up an entity from the checkpoint.
    fn load(&mut self, key: &[u8], state: EntityState) -> Result<(), WireError>;

    /// The entities to write.
    fn changed(&mut self, next: u64, all: bool) -> Vec<(Vec<u8>, Option<EntityState>)>;
}

/// Rules over one stream, as one.
pub struct Parts<E>(Vec<Box<dyn Part<E>>>);

impl<E: 'static> Parts<E> {
    /// Shows each event to each of `parts`, in this order.
    pub fn new(parts: Vec<Box<dyn Part<E>>>) -> Self {
        Self(parts)
    }

    /// See [`Part::observe`].
    pub fn observe(&mut self, event: &E, offset: u64, replay: bool, findings: &mut Findings) {
        for part in &mut self.0 {
            part.observe(event, offset, replay, findings);
        }
    }

    /// See [`Part::learn`].
    pub fn learn(&mut self, activity: &Activity) {
        for part in &mut self.0 {
            part.learn(activity);
        }
    }

    /// See [`Part::advance`].
    pub fn advance(&mut self, now: Time, findings: &mut Findings) {
        for part in &mut self.0 {
            part.advance(now, findings);
        }
    }

    /// See [`Part::ends_by`].
    pub fn ends_by(&self, now: Time) -> bool {
        self.0.iter().any(|part| part.ends_by(now))
    }

    /// Gives an entity to the rule that its key names.
    pub fn load(&mut self, key: &[u8], state: EntityState) -> Result<(), WireError> {
        let slash = key.iter().position(|byte| *byte == b'/').ok_or(WireError::Field("key"))?;
        let (name, rest) = (&key[..slash], &key[slash + 1..]);
        let part = self.0.iter_mut().find(|part| part.name().as_bytes() == name);
        part.ok_or(WireError::Field("key"))?.load(rest, state)
    }

    /// The entities of all rules that are to be written.
    pub fn changed(&mut self, next: u64, all: bool) -> Vec<(Vec<u8>, Option<EntityState>)> {
        let mut changes = Vec::new();
        for part in &mut self.0 {
            let name = part.name().as_bytes();
            let named = |(key, state): (Vec<u8>, _)| ([name, b"/", &key].concat(), state);
            changes.extend(part.changed(next, all).into_iter().map(named));
        }
        changes
    }
}
