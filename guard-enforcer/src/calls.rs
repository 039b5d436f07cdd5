//! One user's recent calls: all of them, and by tool.

use panopticon_core::{
    api::RateLimitBody,
    stage::{Course, Crossing, Entity, SlidingWindow, Span},
    time::Time,
    trace::WireError,
};
use prost::Message as _;

use crate::rate_limit::{FORM, WINDOW};

/// The most tools of one user whose calls are counted apart; with one more, the one unused for longest is
/// forgotten (counted).
pub(crate) const TOOLS_PER_USER: usize = 256;

/// Which limit was exceeded, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Over {
    /// Whether it is the limit for one tool.
    pub per_tool: bool,
    pub limit: u32,
    pub crossing: Crossing,
}

/// The state of one app × user.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    pub course: Course,
    all: SlidingWindow,
    tools: Vec<ToolCalls>,
}

#[derive(Debug)]
struct ToolCalls {
    tool: Box<str>,
    window: SlidingWindow,
}

/// `None`: not limited.
fn span(limit: u32) -> Option<Span> {
    (limit > 0).then(|| Span::new(WINDOW, limit.min(RateLimitBody::MAX)))
}

impl Calls {
    /// Counts a call of `tool`. The limits that windows with it exceed, the one for the tool first.
    pub fn count(&mut self, at: Time, tool: &str, limits: RateLimitBody) -> [Option<Over>; 2] {
        let not_before = self.course.not_before();
        let over = |window: &mut SlidingWindow, limit: u32, per_tool: bool| {
            let span = span(limit)?;
            let position = window.insert(at, (), span)?;
            let crossing = window.crossing(position, span, not_before)?;
            Some(Over { per_tool, limit: span.limit, crossing })
        };
        let for_tool = if limits.per_tool_per_minute == 0 {
            self.tools = Vec::new();
            None
        } else {
            over(self.tool(tool), limits.per_tool_per_minute, true)
        };
        if limits.per_minute == 0 {
            self.all = SlidingWindow::default();
        }
        [for_tool, over(&mut self.all, limits.per_minute, false)]
    }

    /// The calls of one tool, without those that matter no more.
    fn tool(&mut self, tool: &str) -> &mut SlidingWindow {
        let horizon = self.course.horizon(WINDOW);
        let position = match self.tools.iter().position(|calls| &*calls.tool == tool) {
            Some(position) => position,
            None => {
                self.make_room(horizon);
                self.tools.push(ToolCalls { tool: tool.into(), window: SlidingWindow::default() });
                self.tools.len() - 1
            }
        };
        let window = &mut self.tools[position].window;
        window.drop_before(horizon);
        window
    }

    fn make_room(&mut self, horizon: Time) {
        self.tools.retain(|calls| calls.window.newest().is_some_and(|newest| newest > horizon));
        if self.tools.len() >= TOOLS_PER_USER {
            let oldest = self.tools.iter().enumerate().min_by_key(|(_, calls)| calls.window.newest());
            if let Some((position, _)) = oldest {
                self.tools.swap_remove(position);
                metrics::counter!("panopticon_rate_limit_tools_evicted_total").increment(1);
            }
        }
    }
}

/// How it is written down.
#[derive(Clone, PartialEq, prost::Message)]
struct CallsState {
    #[prost(message, optional, tag = "1")]
    course: Option<Course>,
    #[prost(sint64, repeated, tag = "2")]
    all: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    tools: Vec<ToolState>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ToolState {
    #[prost(string, tag = "1")]
    tool: String,
    #[prost(sint64, repeated, tag = "2")]
    calls: Vec<i64>,
}

fn window_of(steps: &[i64]) -> SlidingWindow {
    SlidingWindow::from_steps(steps, std::iter::repeat(()))
}

impl Entity for Calls {
    fn ends_at(&self) -> Option<Time> {
        self.course.ends_at(&FORM)
    }

    fn fades_at(&self) -> Time {
        self.course.fades_at(&FORM)
    }

    fn encode(&self) -> Vec<u8> {
        let horizon = self.course.horizon(WINDOW);
        let live = self.tools.iter().filter(|calls| calls.window.newest().is_some_and(|at| at > horizon));
        CallsState {
            course: Some(self.course.clone()),
            all: self.all.to_steps().0,
            tools: live
                .map(|calls| ToolState { tool: calls.tool.to_string(), calls: calls.window.to_steps().0 })
                .collect(),
        }
        .encode_to_vec()
    }

    fn decode(state: &[u8]) -> Result<Self, WireError> {
        let state = CallsState::decode(state)?;
        let tools = state.tools.into_iter().take(TOOLS_PER_USER);
        Ok(Self {
            course: state.course.unwrap_or_default(),
            all: window_of(&state.all),
            tools: tools
                .map(|calls| ToolCalls { tool: calls.tool.into(), window: window_of(&calls.calls) })
                .collect(),
        })
    }
}
