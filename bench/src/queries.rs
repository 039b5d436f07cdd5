//! Questions of operators over many stored traces: a page of the timeline, the usage of 30 days.

use std::time::{Duration, Instant};

use reqwest::Method;

use crate::{
    Bench,
    report::{Reach, Report, Row},
    room::Room,
    samples::Times,
    servers::Servers,
    system::Installation,
};

const APPS: u64 = 2_000;
const DAYS: u64 = 30;
const REACH_MS: f64 = 50.0;
/// Rows that one statement makes.
const STEP: u64 = 1_000_000;
/// Questions in a round, each about another app.
const QUESTIONS: u64 = 200;
/// Partitions of the log that the rows say they came from.
const LOG_PARTITIONS: u64 = 4;
const WARM_UP: u64 = 20;
const USERS_OF_AN_APP: u64 = 50;

/// The path that asks about an app.
type Question = fn(u64) -> String;

/// Fills the product's tables with `rows` traces, then asks.
pub async fn measure(report: &mut Report, bench: &Bench, rows: u64) -> anyhow::Result<()> {
    let servers = Servers::from_environment()?;
    let installation = Installation::new(&bench.bin);
    let server = installation.start(&["control-room"]).await?;
    let room = Room::at(server.address)?;
    for app in 0..APPS {
        if app % (APPS / QUESTIONS) == 0 {
            room.call(Method::PUT, &format!("/apps/app-{app}"), Some(serde_json::json!({}))).await?;
        }
    }
    let filled = Instant::now();
    for first in (0..rows).step_by(STEP as usize) {
        eprintln!("  {first} of {rows} rows after {:.0} s", filled.elapsed().as_secs_f64());
        servers.sql.run(&insert(&installation.database, first, STEP.min(rows - first))).await?;
    }
    let stored = servers.sql.number(&format!("SELECT count() FROM {}.traces", installation.database)).await?;
    anyhow::ensure!(stored == rows, "{stored} of {rows} rows are there");
    let questions: [(&str, Question); 4] = [
        ("timeline, first page of 100", |app| format!("/apps/app-{app}/timeline")),
        ("timeline of a user, first page", |app| {
            format!("/apps/app-{app}/timeline?user_sub=user_{}", app % USERS_OF_AN_APP)
        }),
        ("timeline of a week ago, page of 100", |app| {
            let week_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(7 * 24);
            format!("/apps/app-{app}/timeline?until={week_ago:.0}")
        }),
        ("usage of 30 days", |app| format!("/apps/app-{app}/usage")),
    ];
    for (what, path) in questions {
        ask(&room, path, WARM_UP).await?;
        let mut rounds = Vec::new();
        for _ in 0..bench.repeat {
            rounds.push(ask(&room, path, QUESTIONS).await?);
        }
        report.add(
            Row::alone(
                format!("{what}, {rows} traces of {APPS} apps, p95"),
                "ms",
                rounds.iter().map(|times| times.quantile_ms(0.95)),
            )
            .reach(Reach::AtMost(REACH_MS))
            .note(rounds.last().map_or(String::new(), Times::summary)),
        );
    }
    server.stop().await?;
    servers.sql.run(&format!("DROP DATABASE {}", installation.database)).await.map(drop)
}

/// Asks one question after the other, each about another app; answers must tell of something.
async fn ask(room: &Room, path: Question, questions: u64) -> anyhow::Result<Times> {
    let mut times: Vec<Duration> = Vec::new();
    for n in 0..questions {
        let path = path(n * (APPS / QUESTIONS));
        let began = Instant::now();
        let answer = room.call(Method::GET, &path, None).await?;
        times.push(began.elapsed());
        let items = answer["items"].as_array().map_or(0, Vec::len);
        anyhow::ensure!(items > 0, "{path}: nothing was found");
    }
    Ok(Times::of(times))
}

/// Rows of all apps over all days, as the store stage would have written them; the views take their share.
fn insert(database: &str, first: u64, rows: u64) -> String {
    // Rows spread over the apps and, independently, over the time.
    format!(
        "INSERT INTO {database}.traces (event_id, client_id, user_sub, tool, scope_used, status, started_at, \
         duration_ms, session_id, agent, source_ip, error_code, attributes, received_at, late, log_id, \
         log_partition, log_offset, log_index, repaired) \
         SELECT generateUUIDv4(number), concat('app-', toString(number % {APPS})), \
         concat('user_', toString(intDiv(number, {APPS}) % {USERS_OF_AN_APP})), \
         ['calendar.read', 'calendar.write', 'mail.search', 'mail.send', 'files.read', 'files.write', \
         'crm.lookup', 'web.search'][cityHash64(number, 1) % 8 + 1], 'calendar:read', \
         if(cityHash64(number, 2) % 50 = 0, 'error', 'ok'), \
         now64(6, 'UTC') - toIntervalMicrosecond(cityHash64(number, 3) % ({DAYS} * 86400 * 1000000)) AS at, \
         100 + number % 400, concat('session-', toString(number % 100000)), 'bench-agent', '', '', map(), at, \
         false, 1, number % {LOG_PARTITIONS}, intDiv(number, 500), number % 500, false \
         FROM numbers({first}, {rows}) \
         SETTINGS max_partitions_per_insert_block = 0, async_insert = 0, max_insert_threads = 1"
    )
}
