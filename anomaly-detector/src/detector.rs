//! What the stages run: rules over traces, over sources and over apps.

use std::net::IpAddr;

use panopticon_core::{
    stage::{Findings, Rule, traces_of},
    time::Time,
    trace::{AcceptedTrace, WireError},
};
use panopticon_proto::log::{Denial, DenialBatch, EntityState, Rollup, RollupBatch};
use prost::Message as _;

use crate::{
    failed_auth::Standing,
    part::{Part, Parts},
};

/// The rules over traces; also counts them for the rules over apps.
pub struct DetectorRule {
    parts: Parts<AcceptedTrace>,
}

impl DetectorRule {
    /// Runs `parts`.
    pub fn new(parts: Vec<Box<dyn Part<AcceptedTrace>>>) -> Self {
        Self { parts: Parts::new(parts) }
    }
}

impl Rule for DetectorRule {
    type Event = AcceptedTrace;

    fn decode(payload: &[u8]) -> Result<Vec<AcceptedTrace>, WireError> {
        traces_of(payload)
    }

    fn observe(&mut self, accepted: &AcceptedTrace, offset: u64, replay: bool, findings: &mut Findings) {
        self.parts.observe(accepted, offset, replay, findings);
        if !replay {
            findings.rollups.add(accepted);
        }
    }

    fn ends_by(&self, now: Time) -> bool {
        self.parts.ends_by(now)
    }

    fn advance(&mut self, now: Time, findings: &mut Findings) {
        self.parts.advance(now, findings);
    }

    fn load(&mut self, key: &[u8], state: EntityState) -> Result<(), WireError> {
        self.parts.load(key, state)
    }

    fn changed(&mut self, next: u64, all: bool) -> Vec<(Vec<u8>, Option<EntityState>)> {
        self.parts.changed(next, all)
    }

    fn received_at(accepted: &AcceptedTrace) -> Time {
        accepted.received_at
    }
}

/// The slim copy of a trace that names a source, with what is known of its user.
pub(crate) fn denial_of(accepted: &AcceptedTrace, standing: Standing) -> Denial {
    let trace = &accepted.trace;
    Denial {
        event_id: trace.event_id.0.as_bytes().to_vec(),
        client_id: trace.client_id.to_string(),
        user_sub: trace.user_sub.clone(),
        source_ip: one_spelling(&trace.source_ip),
        tool: trace.tool.clone(),
        denied: trace.is_denied(),
        error_code: trace.error_code.clone(),
        event_time: accepted.event_time().micros(),
        received_at: accepted.received_at.micros(),
        late: accepted.late,
        user_known: standing.known,
        usual_gap_ms: standing.usual_gap_ms,
    }
}

/// An address can be written in several ways, and must not count as several sources.
fn one_spelling(source_ip: &str) -> String {
    match source_ip.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => source_ip.to_owned(),
    }
}

/// The rules over sources.
pub struct SourcesRule {
    parts: Parts<Denial>,
}

impl SourcesRule {
    /// Runs `parts`.
    pub fn new(parts: Vec<Box<dyn Part<Denial>>>) -> Self {
        Self { parts: Parts::new(parts) }
    }
}

impl Rule for SourcesRule {
    type Event = Denial;

    fn decode(payload: &[u8]) -> Result<Vec<Denial>, WireError> {
        let denials = DenialBatch::decode(payload)?.denials;
        match denials.iter().all(|denial| denial.event_id.len() == 16) {
            true => Ok(denials),
            false => Err(WireError::Field("event_id")),
        }
    }

    fn observe(&mut self, denial: &Denial, offset: u64, replay: bool, findings: &mut Findings) {
        self.parts.observe(denial, offset, replay, findings);
    }

    fn ends_by(&self, now: Time) -> bool {
        self.parts.ends_by(now)
    }

    fn advance(&mut self, now: Time, findings: &mut Findings) {
        self.parts.advance(now, findings);
    }

    fn load(&mut self, key: &[u8], state: EntityState) -> Result<(), WireError> {
        self.parts.load(key, state)
    }

    fn changed(&mut self, next: u64, all: bool) -> Vec<(Vec<u8>, Option<EntityState>)> {
        self.parts.changed(next, all)
    }

    fn received_at(denial: &Denial) -> Time {
        Time::from_micros(denial.received_at)
    }
}

/// The rules over apps.
pub struct AppsRule {
    parts: Parts<Rollup>,
}

impl AppsRule {
    /// Runs `parts`.
    pub fn new(parts: Vec<Box<dyn Part<Rollup>>>) -> Self {
        Self { parts: Parts::new(parts) }
    }
}

impl Rule for AppsRule {
    type Event = Rollup;

    fn decode(payload: &[u8]) -> Result<Vec<Rollup>, WireError> {
        Ok(RollupBatch::decode(payload)?.rollups)
    }

    fn observe(&mut self, rollup: &Rollup, offset: u64, replay: bool, findings: &mut Findings) {
        self.parts.observe(rollup, offset, replay, findings);
    }

    fn ends_by(&self, now: Time) -> bool {
        self.parts.ends_by(now)
    }

    fn advance(&mut self, now: Time, findings: &mut Findings) {
        self.parts.advance(now, findings);
    }

    fn load(&mut self, key: &[u8], state: EntityState) -> Result<(), WireError> {
        self.parts.load(key, state)
    }

    fn changed(&mut self, next: u64, all: bool) -> Vec<(Vec<u8>, Option<EntityState>)> {
        self.parts.changed(next, all)
    }

    fn received_at(rollup: &Rollup) -> Time {
        Time::from_micros(rollup.received_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_source_however_it_is_written() {
        for (written, read) in [
            ("2001:DB8:0:0::1", "2001:db8::1"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("192.0.2.7", "192.0.2.7"),
            ("not an address", "not an address"),
        ] {
            assert_eq!(one_spelling(written), read);
        }
    }

    #[test]
    fn a_copy_without_an_event_id_is_refused() {
        let batch = DenialBatch { denials: vec![Denial::default()] };
        assert!(SourcesRule::decode(&batch.encode_to_vec()).is_err());
    }
}
