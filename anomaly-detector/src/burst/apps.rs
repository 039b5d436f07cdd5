//! The rule `burst` for whole tools of an app, over `rollups`.

use panopticon_core::{
    stage::{Entities, Entity, FEW_FROM_SOURCE, Findings},
    store::Activity,
    time::Time,
    trace::WireError,
};
use panopticon_proto::log::{EntityState, Rollup};
use uuid::Uuid;

use super::{Burst, spell::Seen};
use crate::{part::Part, settings::SettingsOf};

/// Bursts of tools.
pub struct ToolBursts {
    tools: Entities<ToolBurst>,
    settings: SettingsOf,
}

/// The rule for one app × tool.
#[derive(Debug, Default)]
struct ToolBurst(Burst);

impl ToolBursts {
    /// Remembers at most `max_tools` tools (app × tool).
    pub fn new(max_tools: usize, settings: SettingsOf) -> Self {
        Self { tools: Entities::new("tool_burst", max_tools), settings }
    }
}

impl Part<Rollup> for ToolBursts {
    fn name(&self) -> &'static str {
        "tool_burst"
    }

    fn observe(&mut self, rollup: &Rollup, offset: u64, replay: bool, findings: &mut Findings) {
        // These calls are counted among those refused, too.
        if rollup.status == FEW_FROM_SOURCE {
            return;
        }
        let app = rollup.client_id.as_str();
        let Some(slot) = self.tools.take_up([app, &rollup.tool], offset, replay) else { return };
        let tool = &mut self.tools[slot];
        if tool.ends_at().is_none() && Time::from_micros(rollup.received_at) >= tool.fades_at() {
            *tool = ToolBurst::default();
        }
        let settings = self.settings.of(app);
        let seen = Seen {
            app,
            user: "",
            tool: &rollup.tool,
            example: &rollup.tool,
            event_id: Uuid::from_slice(&rollup.event_id).unwrap_or_default(),
            at: Time::from_micros(rollup.event_time),
            calls: u32::try_from(rollup.traces).unwrap_or(u32::MAX),
            late: rollup.late,
            replay,
            settings: &settings,
        };
        if tool.0.observe(&seen, findings) {
            self.tools.write_soon(slot);
        }
        self.tools.watch(slot);
    }

    fn learn(&mut self, activity: &Activity) {
        // As a replay from the beginning: a tool of which something is committed stays as committed.
        let Some(slot) = self.tools.take_up([&activity.client_id, &activity.name], 0, true) else { return };
        self.tools[slot].0.learn(activity);
        self.tools.watch(slot);
    }

    fn ends_by(&self, now: Time) -> bool {
        self.tools.ends_by(now)
    }

    fn advance(&mut self, now: Time, findings: &mut Findings) {
        self.tools.advance(now, |tool| tool.0.end(now, findings));
    }

    fn load(&mut self, key: &[u8], state: EntityState) -> Result<(), WireError> {
        self.tools.load(key, state)
    }

    fn changed(&mut self, next: u64, all: bool) -> Vec<(Vec<u8>, Option<EntityState>)> {
        self.tools.changed(next, all)
    }
}

impl Entity for ToolBurst {
    fn ends_at(&self) -> Option<Time> {
        self.0.ends_at()
    }

    fn fades_at(&self) -> Time {
        self.0.fades_at()
    }

    fn encode(&self) -> Vec<u8> {
        self.0.encode()
    }

    fn decode(state: &[u8]) -> Result<Self, WireError> {
        Ok(Self(Burst::decode(state)?))
    }
}
