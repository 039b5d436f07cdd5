//! How many traces a second one core shows to each rule: `cargo bench -p panopticon-anomaly-detector`.

use std::{hint::black_box, time::Instant};

use panopticon_anomaly_detector::{rules, settings::SettingsOf};
use panopticon_core::{
    api::RateLimitBody,
    ids::{ClientId, EventId},
    stage::{Findings, Rule},
    time::Time,
    trace::{AcceptedTrace, Status, Trace},
};
use panopticon_guard_enforcer::rate_limit::RateLimitRule;

const TRACES: u64 = 2_000_000;

/// `users` users in turn, each with eight tools, a trace every 100 µs, up to a second out of order.
fn traces(users: u64, denied_every: u64) -> Vec<AcceptedTrace> {
    let client_id: ClientId = "bench".parse().unwrap_or_else(|_| unreachable!());
    (0..TRACES)
        .map(|n| {
            let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            let started_at =
                Time::from_micros(1_780_000_000_000_000 + (n * 100) as i64 - (mixed % 1_000_000) as i64);
            let trace = Trace {
                event_id: EventId(uuid::Uuid::from_u128(n.into())),
                client_id: client_id.clone(),
                user_sub: format!("user_{}", mixed % users),
                tool: format!("tool.number.{}", mixed / 7 % 8),
                scope_used: String::new(),
                status: if n % denied_every == 0 { Status::Denied } else { Status::Ok },
                started_at,
                duration_ms: 5,
                session_id: String::new(),
                agent: String::new(),
                source_ip: format!("198.51.100.{}", mixed % 250),
                error_code: String::new(),
                attributes: std::collections::BTreeMap::new(),
            };
            AcceptedTrace::new(trace, Time::from_micros(1_780_000_000_010_000 + (n * 100) as i64))
        })
        .collect()
}

fn run<R: Rule>(name: &str, mut rule: R, events: &[R::Event]) -> Findings {
    let mut findings = Findings::default();
    let began = Instant::now();
    for (offset, event) in (0..).zip(events) {
        rule.advance(R::received_at(event), &mut findings);
        rule.observe(event, offset, false, &mut findings);
    }
    let took = began.elapsed();
    let rate = events.len() as f64 / took.as_secs_f64();
    println!("{name:44} {rate:>12.0}/s {:>8} detections", findings.detections.len());
    black_box(&rule);
    findings
}

fn main() {
    // Cargo runs benches in tests too, without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    for (users, denied_every) in [(100, 20), (10_000, 20), (1_000_000, 1)] {
        let traces = traces(users, denied_every);
        let limits = |_: &str| RateLimitBody::default();
        println!("{users} users, every {denied_every}. trace denied");
        run("  rate_limit", RateLimitRule::new(200_000, limits), &traces);
        let (by_trace, by_source) = rules(200_000, &SettingsOf::default());
        let findings = run("  failed_auth by user, and copies", by_trace, &traces);
        run("  failed_auth by source", by_source, &findings.denials);
    }
}
