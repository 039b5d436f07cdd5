//! What the two stages run: rules over traces, and rules over sources.

use std::net::IpAddr;

use panopticon_core::{
    stage::{Findings, Rule, traces_of},
    time::Time,
    trace::{AcceptedTrace, WireError},
};
use panopticon_proto::log::{Denial, DenialBatch, EntityState};
use prost::Message as _;

use crate::part::{Part, Parts};

/// The rules over traces; also copies each trace that names a source to the rules over sources.
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
        if !replay && !accepted.trace.source_ip.is_empty() {
            findings.denials.push(denial_of(accepted));
        }
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

/// The slim copy of a trace that names a source.
fn denial_of(accepted: &AcceptedTrace) -> Denial {
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
