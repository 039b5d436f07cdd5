//! One process on one file: ingestion, memory, and a restart on what was stored.

use std::time::{Duration, Instant};

use crate::{
    Bench, bare,
    load::{self, Shape},
    report::{Report, Row},
    room::Room,
    samples::Spread,
    server::Server,
    system::embedded_environment,
};

const SINGLE: Shape = Shape::Http(64);
const BATCHES: Shape = Shape::Batches(500, 4);

/// Measures it.
pub async fn measure(report: &mut Report, bench: &Bench) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let environment = embedded_environment(folder.path());
    let program = bench.bin.join("panopticon");
    let server = Server::start(&program, &["serve"], &environment).await?;
    let room = Room::at(server.address)?;
    let mut accepted = 0;

    let handler = bare::Handler::start("axum").await?;
    let (mut pairs, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..bench.repeat {
        let bare = load::run(handler.address, SINGLE, bench.span).await?;
        let before = server.process.cpu_seconds();
        let http = load::run(server.address, SINGLE, bench.span).await?;
        accepted += http.accepted;
        room.caught_up(accepted).await?;
        pairs.push((http.per_second(), bare.per_second()));
        cpu.push(http.per_million(server.process.cpu_seconds() - before));
    }
    report.add(
        Row::pairs("embedded: single HTTP traces, 64 connections", "axum handler", "traces/s", &pairs)
            .cpu(vec![("all stages".to_owned(), Spread::of(cpu).median)])
            .peak(server.process.peak_mib())
            .note("answered after fsync"),
    );

    let (mut pairs, mut cpu, mut behind) = (Vec::new(), Vec::new(), Duration::ZERO);
    for _ in 0..bench.repeat {
        let bare = bare::sqlite::rows(bench.span.min(Duration::from_secs(3)))?;
        let before = server.process.cpu_seconds();
        let grpc = load::run(server.address, BATCHES, bench.span).await?;
        let answered = Instant::now();
        accepted += grpc.accepted;
        room.caught_up(accepted).await?;
        behind = behind.max(answered.elapsed());
        pairs.push((grpc.per_second(), bare));
        cpu.push(grpc.per_million(server.process.cpu_seconds() - before));
    }
    report.add(
        Row::pairs("embedded: gRPC IngestBatch of 500", "synced inserts of 200 bytes", "traces/s", &pairs)
            .cpu(vec![("all stages".to_owned(), Spread::of(cpu).median)])
            .peak(server.process.peak_mib())
            .note(format!("all stored at most {:.1} s after the last answer", behind.as_secs_f64())),
    );

    let resident = server.process.resident_mib();
    server.stop().await?;
    let server = Server::start(&program, &["serve"], &environment).await?;
    report.add(
        Row::alone(
            format!("embedded: restart on {accepted} stored traces"),
            "s",
            [server.started_in.as_secs_f64()],
        )
        .peak(server.process.peak_mib())
        .note(format!("{resident:.0} MiB resident before")),
    );
    server.stop().await
}
