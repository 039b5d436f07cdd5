//! Traces as the dedupe stage sees them: their bytes, and the little that it has to know of each.

use std::borrow::Cow;

use panopticon_core::{
    ids::{ClientId, EventId, Place, SeenKey},
    seen::Mark,
    time::Time,
    trace::{TakenRef, WireError, entries},
};

/// More than what [`panopticon_core::trace::EnvelopeWriter::keep`] adds to a trace.
const ADDED_BYTES: usize = 48;

/// A trace of `traces.raw` or of `traces`.
pub(crate) struct Arrival<'a> {
    /// As they travel on.
    pub(crate) bytes: Cow<'a, [u8]>,
    pub(crate) key: SeenKey,
    /// Where it entered the log.
    pub(crate) place: Place,
    pub(crate) started_at: Time,
    pub(crate) received_at: Time,
}

/// The traces of an envelope: those of `traces.raw` lie at the place of their record, `at`, those of `traces`
/// name their own. All of each trace is read, so that none of the stages behind stumbles over one.
pub(crate) fn arrivals(envelope: &[u8], at: Option<Place>) -> Result<Vec<Arrival<'_>>, WireError> {
    (0..)
        .zip(entries(envelope)?)
        .map(|(index, bytes)| {
            let taken = TakenRef::read(&bytes)?;
            let facts = taken.facts()?;
            let place =
                at.map(|at| Place { index, ..at }).or(taken.place).ok_or(WireError::Field("place"))?;
            let key = SeenKey::of(taken.trace.client_id, facts.event_id);
            let (started_at, received_at) = (facts.started_at, taken.received_at);
            Ok(Arrival { bytes, key, place, started_at, received_at })
        })
        .collect()
}

impl Arrival<'_> {
    pub(crate) const fn mark(&self) -> Mark {
        Mark { key: self.key, place: self.place }
    }

    /// What the trace store knows it by.
    pub(crate) fn identity(&self) -> Option<(ClientId, EventId)> {
        let trace = TakenRef::read(&self.bytes).ok()?.trace;
        Some((ClientId::new(trace.client_id).ok()?, EventId::parse(trace.event_id)?))
    }

    /// The most bytes that it takes in an envelope.
    pub(crate) fn encoded_size(&self) -> usize {
        self.bytes.len() + ADDED_BYTES
    }
}
