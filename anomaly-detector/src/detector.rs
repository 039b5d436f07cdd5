//! What the stages run: rules over traces, over sources and over apps.

use std::net::IpAddr;

use panopticon_core::{
    stage::{Findings, Rule, traces_of},
    store::Activity,
    time::Time,
    trace::{AcceptedTrace, WireError},
};
use panopticon_proto::log::{Denial, DenialBatch, EntityState, Rollup, RollupBatch};
use prost::Message as _;

use crate::{
    failed_auth::Standing,
    part::{Part, Parts},
};

/// What rules look at, as it lies in a topic.
pub trait Event: Sized + Send + 'static {
    /// The events of one record.
    fn decode(payload: &[u8]) -> Result<Vec<Self>, WireError>;

    /// When the gateway had it.
    fn received_at(&self) -> Time;
}

/// The rules over one stream, as a stage and a backtest run them.
pub struct Rules<E> {
    parts: Parts<E>,
}

/// The rules over traces.
pub type DetectorRule = Rules<AcceptedTrace>;
/// The rules over sources.
pub type SourcesRule = Rules<Denial>;
/// The rules over apps.
pub type AppsRule = Rules<Rollup>;

impl<E: Event> Rules<E> {
    /// Runs `parts`.
    pub fn new(parts: Vec<Box<dyn Part<E>>>) -> Self {
        Self { parts: Parts::new(parts) }
    }
}

impl<E: Event> Rule for Rules<E> {
    type Event = E;

    fn decode(payload: &[u8]) -> Result<Vec<E>, WireError> {
        E::decode(payload)
    }

    fn observe(&mut self, event: &E, offset: u64, replay: bool, findings: &mut Findings) {
        self.parts.observe(event, offset, replay, findings);
    }

    fn learn(&mut self, activity: &Activity) {
        self.parts.learn(activity);
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

    fn received_at(event: &E) -> Time {
        event.received_at()
    }
}

impl Event for AcceptedTrace {
    fn decode(payload: &[u8]) -> Result<Vec<Self>, WireError> {
        traces_of(payload)
    }

    fn received_at(&self) -> Time {
        self.received_at
    }
}

impl Event for Denial {
    fn decode(payload: &[u8]) -> Result<Vec<Self>, WireError> {
        let denials = DenialBatch::decode(payload)?.denials;
        match denials.iter().all(|denial| denial.event_id.len() == 16) {
            true => Ok(denials),
            false => Err(WireError::Field("event_id")),
        }
    }

    fn received_at(&self) -> Time {
        Time::from_micros(self.received_at)
    }
}

impl Event for Rollup {
    fn decode(payload: &[u8]) -> Result<Vec<Self>, WireError> {
        Ok(RollupBatch::decode(payload)?.rollups)
    }

    fn received_at(&self) -> Time {
        Time::from_micros(self.received_at)
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
        assert!(<SourcesRule as Rule>::decode(&batch.encode_to_vec()).is_err());
    }
}
