//! Traces for tests.
#![allow(dead_code)]

use std::collections::BTreeMap;

use panopticon_anomaly_detector::{
    backtest::backtest,
    settings::{Settings, SettingsOf},
};
use panopticon_core::{
    ids::EventId,
    time::Time,
    trace::{AcceptedTrace, Status, Trace},
};
use panopticon_proto::log::Detection;

/// 2026-06-30T12:00:00Z.
pub const NOON: i64 = 1_782_820_800_000_000;

/// Seconds after noon.
pub fn at(secs: i64) -> Time {
    Time::from_micros(NOON + secs * 1_000_000)
}

/// Seconds after noon of microseconds.
pub fn secs(time: i64) -> i64 {
    (time - NOON) / 1_000_000
}

/// A call of `tool` by a user of `app` from an address, received at once.
pub fn trace(n: u128, user: &str, source_ip: &str, status: Status, started: Time) -> AcceptedTrace {
    let trace = Trace {
        event_id: EventId(uuid::Uuid::from_u128(n)),
        client_id: "app".parse().expect("a client id"),
        user_sub: user.to_owned(),
        tool: "tool".to_owned(),
        scope_used: String::new(),
        status,
        started_at: started,
        duration_ms: 0,
        session_id: String::new(),
        agent: String::new(),
        source_ip: source_ip.to_owned(),
        error_code: String::new(),
        attributes: BTreeMap::new(),
    };
    AcceptedTrace::new(trace, started)
}

/// A refused call.
pub fn denied(n: u128, user: &str, source_ip: &str, second: i64) -> AcceptedTrace {
    trace(n, user, source_ip, Status::Denied, at(second))
}

/// A call that did its work.
pub fn ok(n: u128, user: &str, source_ip: &str, second: i64) -> AcceptedTrace {
    trace(n, user, source_ip, Status::Ok, at(second))
}

/// What is found in `traces` with these settings.
pub fn detections_with(
    settings: Settings,
    traces: impl IntoIterator<Item = AcceptedTrace>,
) -> Vec<Detection> {
    let mut found = Vec::new();
    backtest(traces, &SettingsOf::all(settings), &mut [], |detection| found.push(detection));
    found
}

/// What is found in `traces`.
pub fn detections(traces: impl IntoIterator<Item = AcceptedTrace>) -> Vec<Detection> {
    detections_with(Settings::default(), traces)
}

/// Kind, user and address of what began.
pub fn started(found: &[Detection]) -> Vec<(&str, &str, &str)> {
    let started = found.iter().filter(|d| d.phase == "started");
    started.map(|d| (d.kind.as_str(), d.user_sub.as_str(), d.source_ip.as_str())).collect()
}
