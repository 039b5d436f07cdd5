//! The same rules over past traces, stored ones or those of a file.
//!
//! Time is that of the traces: one arrives at its `received_at`, or at its `started_at` where it has
//! none, and then is never late. Nothing else tells the time, so an episode that is open after the last
//! trace stays open, and the same traces always give the same detections.

use std::{
    cell::RefCell,
    io::{self, BufRead, Write},
};

use panopticon_core::{
    admission::{Refusal, rule_trace_from_object},
    stage::{Findings, Rule},
    store::StoreError,
    time::Time,
    trace::AcceptedTrace,
};
use panopticon_proto::log::Detection;
use serde_json::{Map, Value};

use crate::{app_rules, detector::AppsRule, rules, settings::SettingsOf};

/// A rule over traces that takes part in a backtest beside the detector's own, such as the enforcer's
/// `rate_limit`.
pub trait TraceRule {
    /// Lets the time of the trace come, then shows the trace to the rule.
    fn show(&mut self, accepted: &AcceptedTrace, offset: u64, findings: &mut Findings);
}

impl<R: Rule<Event = AcceptedTrace>> TraceRule for R {
    fn show(&mut self, accepted: &AcceptedTrace, offset: u64, findings: &mut Findings) {
        self.advance(accepted.received_at, findings);
        self.observe(accepted, offset, false, findings);
    }
}

/// What a backtest has seen and said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Traces looked at.
    pub traces: u64,
    /// Of these, late ones, which raise nothing.
    pub late: u64,
    /// Episodes that began.
    pub started: u64,
    /// Episodes that ended.
    pub ended: u64,
}

/// The most entities that each rule remembers in a backtest.
pub const MAX_ENTITIES: usize = 1_000_000;

/// Shows `traces`, in the order in which they arrived, to the detector's rules, with these `settings`, and to
/// `further` ones, and gives each detection to `out` as it is made, without `emitted_at`.
pub fn backtest(
    traces: impl IntoIterator<Item = AcceptedTrace>,
    settings: &SettingsOf,
    further: &mut [Box<dyn TraceRule>],
    mut out: impl FnMut(Detection),
) -> Counts {
    let (mut by_trace, mut by_source) = rules(MAX_ENTITIES, settings);
    let mut by_app = app_rules(MAX_ENTITIES, settings);
    let mut counts = Counts::default();
    let mut findings = Findings::default();
    let mut offset = 0;
    let mut traces = traces.into_iter().peekable();
    while let Some(accepted) = traces.next() {
        offset += 1;
        counts.traces += 1;
        counts.late += u64::from(accepted.late);
        for rule in further.iter_mut() {
            rule.show(&accepted, offset, &mut findings);
        }
        by_trace.show(&accepted, offset, &mut findings);
        by_source.advance(accepted.received_at, &mut findings);
        for denial in std::mem::take(&mut findings.denials) {
            by_source.observe(&denial, offset, false, &mut findings);
        }
        // What follows in the same second is counted together.
        let second = accepted.event_time().secs();
        if traces.peek().is_none_or(|next| next.event_time().secs() != second) {
            for rollup in findings.rollups.take() {
                by_app.advance(AppsRule::received_at(&rollup), &mut findings);
                by_app.observe(&rollup, offset, false, &mut findings);
            }
        }
        for detection in findings.detections.drain(..) {
            match detection.phase.as_str() {
                "started" => counts.started += 1,
                _ => counts.ended += 1,
            }
            out(detection);
        }
    }
    counts
}

/// Why a backtest could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BacktestError {
    /// The traces cannot be read.
    #[error("the traces cannot be read: {0}")]
    Read(#[source] io::Error),
    /// The stored traces cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A line is no trace.
    #[error("line {line}: {refusal}")]
    Line {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        #[source]
        refusal: Refusal,
    },
    /// The detections cannot be written.
    #[error("the detections cannot be written: {0}")]
    Write(#[source] io::Error),
}

/// Reads traces, one JSON object a line as `POST /panopticon/trace` takes it, optionally with the
/// `received_at` of the gateway, and puts them in the order in which they arrived (those that arrived at the
/// same time stay as they are). Holds them in memory, without what no rule looks at: some 300 bytes each.
pub fn read_ndjson(input: impl BufRead) -> Result<Vec<AcceptedTrace>, BacktestError> {
    let mut traces = Vec::new();
    for (line, text) in (1_u64..).zip(input.split(b'\n')) {
        let text = text.map_err(BacktestError::Read)?;
        if !text.trim_ascii().is_empty() {
            traces.push(trace_of(&text).map_err(|refusal| BacktestError::Line { line, refusal })?);
        }
    }
    traces.sort_by_key(|accepted| accepted.received_at);
    Ok(traces)
}

/// [`backtest`] over traces that are still being read, with detections that are still to be written: ends at
/// the first error of either.
pub fn backtest_to(
    traces: impl IntoIterator<Item = Result<AcceptedTrace, BacktestError>>,
    settings: &SettingsOf,
    further: &mut [Box<dyn TraceRule>],
    mut write: impl FnMut(&Detection) -> io::Result<()>,
) -> Result<Counts, BacktestError> {
    let failed = RefCell::new(None);
    let readable = traces.into_iter().map_while(|trace| {
        let go_on = failed.borrow().is_none();
        trace.map_err(|error| *failed.borrow_mut() = Some(error)).ok().filter(|_| go_on)
    });
    let counts = backtest(readable, settings, further, |detection| {
        if let Err(error) = write(&detection) {
            failed.borrow_mut().get_or_insert(BacktestError::Write(error));
        }
    });
    match failed.into_inner() {
        Some(error) => Err(error),
        None => Ok(counts),
    }
}

/// No trace of a backtest is too far ahead.
const END_OF_TIME: Time = Time::from_secs(253_402_300_799);

fn trace_of(text: &[u8]) -> Result<AcceptedTrace, Refusal> {
    let refuse = |field: &str, description: String| Refusal {
        field: field.to_owned(),
        description,
        event_id: String::new(),
    };
    let mut object: Map<String, Value> =
        serde_json::from_slice(text).map_err(|error| refuse("", format!("is no JSON object: {error}")))?;
    let received_at = match object.remove("received_at") {
        None | Some(Value::Null) => None,
        Some(Value::String(time)) => Some(time.parse().map_err(|why| refuse("received_at", why))?),
        Some(_) => return Err(refuse("received_at", "must be a string".to_owned())),
    };
    let trace = rule_trace_from_object(object, END_OF_TIME)?;
    Ok(match received_at {
        Some(received_at) => AcceptedTrace::new(trace, received_at),
        None => AcceptedTrace { received_at: trace.started_at, late: false, place: None, trace },
    })
}

/// Writes a detection as a line of JSON.
pub fn write_json(output: &mut impl Write, detection: &Detection) -> io::Result<()> {
    let mut json = serde_json::to_value(detection)?;
    if let Value::Object(fields) = &mut json {
        // There is no wall clock in a backtest.
        fields.remove("emitted_at");
    }
    serde_json::to_writer(&mut *output, &json)?;
    output.write_all(b"\n")
}
