//! The rule over sources: an entity for each address of an app.

use panopticon_core::{
    ids::EventId,
    stage::{Entities, Entity, Findings, Slot},
    time::Time,
    trace::WireError,
};
use panopticon_proto::log::{Denial, EntityState};
use prost::Message as _;
use uuid::Uuid;

use super::{
    source::{Source, SourceCall},
    state::SourceState,
};
use crate::{part::Part, settings::SettingsOf};

/// Every episode has ended by then.
const END_OF_TIME: Time = Time::from_micros(i64::MAX);

/// Refused calls by source address.
pub struct FailedAuthBySource {
    sources: Entities<Source>,
    settings: SettingsOf,
}

impl FailedAuthBySource {
    /// Remembers at most `max_sources` addresses (app × address).
    pub fn new(max_sources: usize, settings: SettingsOf) -> Self {
        Self { sources: Entities::new("failed_auth_by_source", max_sources), settings }
    }

    fn take_up(
        &mut self,
        denial: &Denial,
        offset: u64,
        replay: bool,
        findings: &mut Findings,
    ) -> Option<Slot> {
        let parts = [denial.client_id.as_str(), denial.source_ip.as_str()];
        let slot = self.sources.take_up(parts, offset, replay);
        if slot.is_some() || replay {
            return slot;
        }
        // All are under attack from their addresses: the one that ends first makes room, so that a flood
        // of addresses hides nobody else.
        let first = self.sources.next_end(END_OF_TIME)?;
        metrics::counter!("panopticon_episodes_cut_short_total", "rule" => "failed_auth").increment(1);
        if self.sources[first].end(END_OF_TIME, findings) {
            self.sources.write_soon(first);
        }
        self.sources.watch(first);
        self.sources.take_up(parts, offset, replay)
    }
}

impl Part<Denial> for FailedAuthBySource {
    fn name(&self) -> &'static str {
        "failed_auth"
    }

    fn observe(&mut self, denial: &Denial, offset: u64, replay: bool, findings: &mut Findings) {
        let Ok(event_id) = Uuid::from_slice(&denial.event_id) else { return };
        let Some(slot) = self.take_up(denial, offset, replay, findings) else { return };
        let settings = self.settings.of(&denial.client_id);
        let call = SourceCall {
            event_id: EventId(event_id),
            app: &denial.client_id,
            user: &denial.user_sub,
            source_ip: &denial.source_ip,
            tool: &denial.tool,
            error_code: &denial.error_code,
            denied: denial.denied,
            at: Time::from_micros(denial.event_time),
            received_at: Time::from_micros(denial.received_at),
            late: denial.late,
            known: denial.user_known,
            usual_gap_ms: denial.usual_gap_ms,
            replay,
            settings: &settings,
        };
        if self.sources[slot].observe(&call, findings) {
            self.sources.write_soon(slot);
        }
        if denial.denied && !denial.late && !replay && self.sources[slot].has_few() {
            findings.rollups.add_few(denial);
        }
        self.sources.watch(slot);
    }

    fn ends_by(&self, now: Time) -> bool {
        self.sources.ends_by(now)
    }

    fn advance(&mut self, now: Time, findings: &mut Findings) {
        self.sources.advance(now, |source| source.end(now, findings));
    }

    fn load(&mut self, key: &[u8], state: EntityState) -> Result<(), WireError> {
        self.sources.load(key, state)
    }

    fn changed(&mut self, next: u64, all: bool) -> Vec<(Vec<u8>, Option<EntityState>)> {
        self.sources.changed(next, all)
    }
}

impl Entity for Source {
    fn ends_at(&self) -> Option<Time> {
        self.trail.as_ref()?.ends_at()
    }

    fn fades_at(&self) -> Time {
        self.fades_at()
    }

    fn encode(&self) -> Vec<u8> {
        SourceState::from(self).encode_to_vec()
    }

    fn decode(state: &[u8]) -> Result<Self, WireError> {
        SourceState::decode(state)?.try_into()
    }
}
