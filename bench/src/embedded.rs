//! One process on one file.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    bare, load,
    report::{Figure, Report},
    server::{CLIENT_ID, Server, TOKEN},
};

const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(120);

/// Measures ingestion, the stages behind it, memory, and a restart on what was stored.
pub async fn measure(bin: &Path, span: Duration) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let folder = tempfile::tempdir()?;
    let environment = [("PANOPTICON_DATA_DIR", folder.path().display().to_string())];
    let program = bin.join("panopticon");
    let server = Server::start(&program, &["serve"], &environment).await?;

    let bare_axum = bare::axum_handler().await?;
    let bare_http = load::http(bare_axum, "/panopticon/trace", 64, span.min(Duration::from_secs(5))).await?;
    let cpu = server.cpu_seconds();
    let http = load::http(server.address, "/panopticon/trace", 64, span).await?;
    caught_up(&server, http.accepted).await?;
    report.add(Figure {
        what: "single HTTP traces, 64 connections, answered after fsync".to_owned(),
        per_second: http.per_second(),
        cpu_s_per_million: (server.cpu_seconds() - cpu) * 1e6 / http.accepted as f64,
        peak_mib: server.peak_mib(),
        bare_per_second: Some(bare_http.per_second()),
        note: "bare: an axum handler that answers at once".to_owned(),
    });

    let bare_rows = bare::sqlite_rows(Duration::from_secs(3))?;
    let cpu = server.cpu_seconds();
    let grpc = load::grpc(server.address, 500, 4, span).await?;
    let behind = Instant::now();
    caught_up(&server, http.accepted + grpc.accepted).await?;
    report.add(Figure {
        what: "gRPC IngestBatch of 500, answered after fsync".to_owned(),
        per_second: grpc.per_second(),
        cpu_s_per_million: (server.cpu_seconds() - cpu) * 1e6 / grpc.accepted as f64,
        peak_mib: server.peak_mib(),
        bare_per_second: Some(bare_rows),
        note: format!(
            "all rows stored {:.1} s after the last answer; bare: one synced insert of 200 bytes a row",
            behind.elapsed().as_secs_f64()
        ),
    });

    let (stored, resident) = (http.accepted + grpc.accepted, server.resident_mib());
    server.stop().await?;
    let server = Server::start(&program, &["serve"], &environment).await?;
    report.add(Figure {
        what: format!("restart on {stored} stored traces"),
        per_second: 0.0,
        cpu_s_per_million: 0.0,
        peak_mib: server.peak_mib(),
        bare_per_second: None,
        note: format!(
            "ready after {:.2} s; {resident:.0} MiB resident before",
            server.started_in.as_secs_f64()
        ),
    });
    server.stop().await?;
    Ok(report)
}

/// Waits until the usage figures count as many traces as were accepted.
pub async fn caught_up(server: &Server, accepted: u64) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://{}/api/v1/panopticon/apps/{CLIENT_ID}/usage", server.address);
    let began = Instant::now();
    loop {
        let answer: serde_json::Value =
            client.get(&url).bearer_auth(TOKEN).send().await?.error_for_status()?.json().await?;
        let stored: u64 = answer["items"]
            .as_array()
            .map(|days| days.iter().filter_map(|day| day["traces"].as_u64()).sum())
            .unwrap_or_default();
        anyhow::ensure!(stored <= accepted, "{stored} stored but only {accepted} accepted");
        if stored == accepted {
            return Ok(());
        }
        anyhow::ensure!(
            began.elapsed() < CATCH_UP_TIMEOUT,
            "{stored} of {accepted} stored after {CATCH_UP_TIMEOUT:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
