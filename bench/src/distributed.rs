//! Separate workers on real servers, all on one machine.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    embedded::caught_up,
    load,
    report::{Figure, Report},
    server::Server,
};

/// The workers beside the gateway and the control room.
const WORKERS: [(&str, &[&str]); 4] = [
    ("stream-workers", &[]),
    ("anomaly-detector", &[]),
    ("guard-enforcer", &[]),
    ("webhook-dispatcher", &[]),
];

/// Measures the road from gRPC to rows.
pub async fn measure(bin: &Path, span: Duration) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let prefix = format!("bench{}.", std::process::id());
    let environment = [
        ("PANOPTICON_ENGINE", "distributed".to_owned()),
        ("PANOPTICON_KAFKA__TOPIC_PREFIX", prefix.clone()),
        ("PANOPTICON_KAFKA__ALLOW_UNREPLICATED", "true".to_owned()),
        ("PANOPTICON_KAFKA__REPLICATION", "1".to_owned()),
        ("PANOPTICON_REDIS__KEY_PREFIX", prefix.clone()),
        ("PANOPTICON_CLICKHOUSE__DATABASE", prefix.replace('.', "")),
        ("PANOPTICON_SECRETS__KEY", "YmVuY2hiZW5jaGJlbmNoYmVuY2hiZW5jaGJlbmNoISE=".to_owned()),
    ];
    let room = Server::start(&bin.join("control-room"), &[], &environment).await?;
    let gateway = Server::start(&bin.join("ingest-gateway"), &[], &environment).await?;
    let mut workers = Vec::new();
    for (name, arguments) in WORKERS {
        workers.push((name, Server::start(&bin.join(name), arguments, &environment).await?));
    }
    let mut accepted = 0;
    for batch in [500, 100, 10] {
        let cpu = gateway.cpu_seconds();
        let before: Vec<f64> = workers.iter().map(|(_, worker)| worker.cpu_seconds()).collect();
        let began = Instant::now();
        let load = load::grpc(gateway.address, batch, 16, span).await?;
        accepted += load.accepted;
        let million = load.accepted as f64 / 1e6;
        let gateway_cpu = (gateway.cpu_seconds() - cpu) / million;
        caught_up(&room, accepted).await?;
        let road = load.accepted as f64 / began.elapsed().as_secs_f64();
        let shares: Vec<String> = workers
            .iter()
            .zip(before)
            .map(|((name, worker), before)| {
                format!("{name} {:.1}", (worker.cpu_seconds() - before) / million)
            })
            .collect();
        report.add(Figure {
            what: format!("gRPC IngestBatch of {batch}: the gateway"),
            per_second: load.per_second(),
            cpu_s_per_million: gateway_cpu,
            peak_mib: gateway.peak_mib(),
            bare_per_second: None,
            note: format!("to rows {road:.0}/s; CPU s a million: {}", shares.join(", ")),
        });
    }
    for (name, worker) in workers {
        report.add(Figure {
            what: format!("memory of {name}"),
            per_second: 0.0,
            cpu_s_per_million: 0.0,
            peak_mib: worker.peak_mib(),
            bare_per_second: None,
            note: String::new(),
        });
        worker.stop().await?;
    }
    gateway.stop().await?;
    room.stop().await.map(|()| report)
}
