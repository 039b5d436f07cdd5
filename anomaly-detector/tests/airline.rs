//! The bundled traces of a real agent hold two incidents, and the rules find just these.
#![allow(clippy::unwrap_used)]

use std::{fs::File, io::BufReader};

use panopticon_anomaly_detector::{
    backtest::{BacktestError, Counts, TraceRule, backtest_to, read_ndjson, write_json},
    settings::SettingsOf,
};
use panopticon_core::{api::RateLimitBody, store::StoreError};
use panopticon_guard_enforcer::rate_limit::RateLimitRule;
use serde_json::Value;

fn rate_limit() -> Vec<Box<dyn TraceRule>> {
    vec![Box::new(RateLimitRule::new(1_000, |_: &str| RateLimitBody::default()))]
}

fn airline() -> BufReader<flate2::read::GzDecoder<File>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/airline-traces.ndjson.gz");
    BufReader::new(flate2::read::GzDecoder::new(File::open(path).unwrap()))
}

fn backtest(input: impl std::io::BufRead) -> (Counts, Vec<Value>) {
    let mut output = Vec::new();
    let traces = read_ndjson(input).unwrap().into_iter().map(Ok);
    let write = |detection: &_| write_json(&mut output, detection);
    let counts = backtest_to(traces, &SettingsOf::default(), &mut rate_limit(), write).unwrap();
    let lines = output.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    (counts, lines.map(|line| serde_json::from_slice(line).unwrap()).collect())
}

#[test]
fn both_incidents_are_found_and_nothing_else() {
    let (counts, found) = backtest(airline());
    assert_eq!(counts, Counts { traces: 1_316, late: 0, started: 2, ended: 0 });
    let [runaway, denials] = &found[..] else { panic!("{found:?}") };
    for (field, expected) in [
        ("rule", "rate_limit"),
        ("kind", "per_tool"),
        ("phase", "started"),
        ("user_sub", "user_f577f1a0"),
        ("tool", "search_direct_flight"),
        ("deciding_event_id", "d68db41a-7ff5-501f-8780-2798f6aa92e6"),
        ("detected_at", "2026-06-30T17:59:13.174000Z"),
    ] {
        assert_eq!(runaway[field], expected, "{field}");
    }
    for (field, expected) in [
        ("rule", "failed_auth"),
        ("kind", "by_source"),
        ("phase", "started"),
        ("source_ip", "198.51.100.23"),
        ("deciding_event_id", "aa94f8d3-0476-5992-8638-25e1857fd707"),
        ("detected_at", "2026-06-30T17:59:56.106000Z"),
    ] {
        assert_eq!(denials[field], expected, "{field}");
    }
    assert!(runaway.get("emitted_at").is_none());
}

#[test]
fn the_order_of_the_lines_changes_nothing() {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut airline(), &mut text).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(backtest(lines.join("\n").as_bytes()), backtest(airline()));
}

#[test]
fn a_line_that_is_no_trace_is_named() {
    let mut text = String::from("\n{\"event_id\":\"7\"}\n");
    let error = read_ndjson(text.as_bytes()).unwrap_err();
    assert!(matches!(error, BacktestError::Line { line: 2, .. }), "{error}");
    text = "[]".to_owned();
    assert!(read_ndjson(text.as_bytes()).unwrap_err().to_string().starts_with("line 1: "));
}

#[test]
fn a_backtest_ends_where_reading_or_writing_fails() {
    let traces = || read_ndjson(airline()).unwrap().into_iter().map(Ok);
    let away = || StoreError::Unavailable("away".to_owned());
    let cut = traces().take(100).chain([Err(away().into())]).chain(traces());
    let error = backtest_to(cut, &SettingsOf::default(), &mut rate_limit(), |_| Ok(())).unwrap_err();
    assert!(matches!(error, BacktestError::Store(_)), "{error}");
    let (mut written, mut read) = (0, 0);
    let counted = traces().inspect(|_| read += 1);
    let full = |_: &_| {
        written += 1;
        Err(std::io::ErrorKind::StorageFull.into())
    };
    let error = backtest_to(counted, &SettingsOf::default(), &mut rate_limit(), full).unwrap_err();
    assert!(matches!(error, BacktestError::Write(_)) && written == 1 && read < 1_316, "{error}, {read} read");
}

#[test]
fn with_a_received_at_traces_can_be_late() {
    let line = |n: u8, received: &str| {
        format!(
            r#"{{"event_id":"00000000-0000-0000-0000-0000000000{n:02x}","client_id":"app","user_sub":"u","tool":"t","status":"denied","started_at":"2026-06-30T12:00:{n:02}Z","duration_ms":0,"received_at":{received}}}"#
        )
    };
    let all = |received: &str| (0..9).map(|n| line(n, received)).collect::<Vec<_>>().join("\n");
    assert_eq!(backtest(all("null").as_bytes()).0.started, 1);
    assert_eq!(backtest(all("\"2026-06-30T12:00:30Z\"").as_bytes()).0.started, 1);
    let late = backtest(all("\"2026-06-30T12:01:30Z\"").as_bytes()).0;
    assert_eq!((late.late, late.started), (9, 0));
}
