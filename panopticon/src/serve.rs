//! All roles in one process: the same stages as the separate workers, on whichever engine is configured.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Router, routing::get};
use panopticon_anomaly_detector::settings::SettingsOf;
use panopticon_control_room::{ControlRoom, ops};
use panopticon_core::{
    control::ControlWriter,
    health::PartHealth,
    secrets,
    stage::{GROUPS, Stage},
    topic::Topic,
};
use panopticon_ingest_gateway::{Gateway, intake::Intake};
use panopticon_process::{
    NeedOfSeen, NeedOfStore, Needs, Ports, Process, bind, condition, run_stages, serve,
};
use panopticon_webhook_dispatcher::egress::Egress;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::welcome;

/// A server that is ready to run.
pub struct Server {
    /// The URL by which it is reached.
    pub url: String,
    process: Process,
    ports: Ports,
    listener: TcpListener,
    router: Router,
    stages: Vec<Arc<dyn Stage>>,
    /// Not ready before everything above is there and served.
    condition: PartHealth,
}

impl Server {
    /// Opens everything.
    pub async fn start(process: &Process) -> anyhow::Result<Self> {
        let config = process.config.clone();
        let starting = process.health.part("http");
        let listener = bind(config.listen, "listen").await?;
        let ports = process.ports(Needs { seen: NeedOfSeen::Marks, store: NeedOfStore::Tables }).await?;
        let (seen, store) = (ports.seen()?, ports.store()?);
        let view = process.control(&ports).await?;
        let sealer = process.sealer()?;
        let admin_token = process.admin_token()?;
        let writer = Arc::new(ControlWriter::new(ports.log.clone(), view.clone(), process.clock.clone()));
        ops::seed(&config, &writer).await?;

        let intake = Intake::open(
            ports.log.clone(),
            seen.clone(),
            Some(store.clone()),
            &config,
            process.clock.clone(),
        )
        .await?;
        let gateway = Gateway::new(
            Arc::new(intake),
            view.clone(),
            Some(sealer.clone()),
            config.clone(),
            process.clock.clone(),
        );

        let egress = Egress::new(&config).context("configuration: `webhooks`")?;
        let mut stages = panopticon_stream_workers::dedupe(seen, store.clone(), &config);
        stages.extend(panopticon_stream_workers::store(&store, &config));
        let partitions = ports.log.topic(Topic::Traces).await?.partitions;
        stages.extend(panopticon_anomaly_detector::stages(
            &config.stages,
            partitions,
            &SettingsOf::in_force(view.clone()),
            Some(store.clone()),
        ));
        stages.extend(panopticon_guard_enforcer::stages(view.clone(), &config.stages, partitions));
        stages.extend(panopticon_webhook_dispatcher::stages(&config, writer.clone(), sealer.clone())?);

        let counts = gateway.intake.counts.clone();
        let room = panopticon_control_room::router(ControlRoom {
            log: ports.log.clone(),
            store,
            view,
            writer,
            sealer,
            config: config.clone(),
            clock: process.clock.clone(),
            health: process.health.clone(),
            admin_digests: vec![secrets::digest(admin_token.expose())],
            stages: GROUPS.to_vec(),
            gateway_counts: Some(Arc::new(move |client_id: &str| counts.of(client_id))),
            check_url: Arc::new(move |url: &str| egress.check_url(url).map_err(|error| error.to_string())),
            shutdown: process.shutdown.clone(),
        });
        let url = if config.public_url.is_empty() {
            format!("http://{}", listener.local_addr()?)
        } else {
            config.url()
        };
        let hello = welcome::text(&url);
        let stuck_after = Duration::from_millis(config.stages.stuck_after_ms);
        let router = Router::new()
            .route("/", get(move || async move { hello }))
            .merge(condition(process.health.clone(), stuck_after))
            .merge(gateway.router())
            .merge(room);
        Ok(Self { url, process: process.clone(), ports, listener, router, stages, condition: starting })
    }

    /// Serves until the process is told to end, then drains: first the requests, then the stages.
    pub async fn run(self) -> anyhow::Result<()> {
        let runtime = self.process.runtime(&self.ports);
        self.process.keep_house(&self.ports);
        let drain = Duration::from_millis(self.process.config.stages.drain_timeout_ms);
        let shutdown: CancellationToken = self.process.shutdown.clone();
        let stages = tokio::spawn(run_stages(self.stages, runtime));
        self.condition.running();
        serve(self.listener, self.router, shutdown, drain).await;
        stages.await.context("a stage ended in a panic")?;
        self.ports.close().await;
        Ok(())
    }
}
