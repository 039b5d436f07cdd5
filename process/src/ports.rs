//! The engine's ports, opened as the configuration says; only those that the process needs.

use std::sync::Arc;

use anyhow::Context as _;
use panopticon_core::{
    config::{Config, Engine},
    health::PartHealth,
    ids::ClientId,
    log::EventLog,
    seen::SeenSet,
    stage::Backoff,
    store::{Parts, TraceStore},
    time::{SharedClock, Time},
    trace::AcceptedTrace,
};
use panopticon_distributed::{clickhouse, kafka, redis};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::Process;

/// Which ports a process needs beside the log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Needs {
    /// The seen set.
    pub seen: NeedOfSeen,
    /// The trace store.
    pub store: NeedOfStore,
}

/// How much of the seen set a process needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NeedOfSeen {
    /// Nothing.
    #[default]
    None,
    /// Its marks, without which it goes on: the process starts and works without it.
    Marks,
    /// Its word on every trace: the process is not ready without it, and awaits [`Ports::seen_there`] before it takes
    /// any work from others that have it.
    Word,
}

/// How much of the trace store a process needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NeedOfStore {
    /// Nothing.
    #[default]
    None,
    /// Answers now and then, which can wait: the process starts and works without it.
    Answers,
    /// It writes to it, beside other work that need not wait: its tables are brought up to date and checked at the
    /// first insert.
    Inserts,
    /// It writes to it or serves from it: its tables are brought up to date and checked first.
    Tables,
}

/// Open ports.
#[derive(Clone)]
pub struct Ports {
    /// The event log.
    pub log: Arc<dyn EventLog>,
    /// The seen set, where it was asked for.
    pub seen: Option<Arc<dyn SeenSet>>,
    /// The trace store, where it was asked for.
    pub store: Option<Arc<dyn TraceStore>>,
    /// Whether the seen set has been reached and found fit.
    seen_there: watch::Receiver<bool>,
    #[cfg(feature = "embedded")]
    embedded: Option<Arc<panopticon_embedded::Embedded>>,
}

impl Ports {
    /// The seen set.
    pub fn seen(&self) -> anyhow::Result<Arc<dyn SeenSet>> {
        self.seen.clone().context("the seen set was not opened")
    }

    /// Waits until the seen set has been reached and found fit; `false` when the process is to end before.
    pub async fn seen_there(&self) -> bool {
        self.seen_there.clone().wait_for(|there| *there).await.is_ok()
    }

    /// The seen set, where it was asked for and has been reached.
    pub(crate) fn reached_seen(&self) -> Option<&Arc<dyn SeenSet>> {
        self.seen.as_ref().filter(|_| *self.seen_there.borrow())
    }

    /// The trace store.
    pub fn store(&self) -> anyhow::Result<Arc<dyn TraceStore>> {
        self.store.clone().context("the trace store was not opened")
    }

    /// Ends the engine in order, after everything that uses it.
    pub async fn close(&self) {
        #[cfg(feature = "embedded")]
        if let Some(embedded) = &self.embedded {
            embedded.close().await;
        }
    }
}

impl Process {
    /// Opens the ports; waits with a clear message for servers that are not there yet.
    pub async fn ports(&self, needs: Needs) -> anyhow::Result<Ports> {
        let part = self.health.part("engine");
        let ports = match self.config.engine {
            Engine::Embedded => self.embedded()?,
            Engine::Distributed => {
                // Waiting mends no setting.
                check_connections(&self.config)?;
                if self.config.migrate_at_start {
                    self.until_there("migrating", || {
                        migrate_distributed(&self.config, needs.store == NeedOfStore::Tables)
                    })
                    .await?;
                }
                self.distributed(needs).await?
            }
        };
        part.progressed();
        drop(part);
        Ok(ports)
    }

    #[cfg(feature = "embedded")]
    fn embedded(&self) -> anyhow::Result<Ports> {
        let embedded = panopticon_embedded::Embedded::open(&self.config, self.clock.clone())?;
        Ok(Ports {
            log: embedded.log.clone(),
            seen: Some(embedded.seen.clone()),
            store: Some(embedded.store.clone()),
            seen_there: watch::channel(true).1,
            embedded: Some(Arc::new(embedded)),
        })
    }

    #[cfg(not(feature = "embedded"))]
    fn embedded(&self) -> anyhow::Result<Ports> {
        anyhow::bail!("this program has no embedded engine; use `panopticon serve`")
    }

    async fn distributed(&self, needs: Needs) -> anyhow::Result<Ports> {
        let (config, clock) = (&self.config, &self.clock);
        let connect = || async { Ok(kafka::KafkaLog::connect(config).await?) };
        let log: Arc<dyn EventLog> = Arc::new(self.until_there("Kafka", connect).await?);
        let (reached, seen_there) = watch::channel(false);
        let seen: Option<Arc<dyn SeenSet>> = (needs.seen != NeedOfSeen::None).then(|| {
            let seen = Arc::new(redis::RedisSeen::later(config, SharedClock::clone(clock)));
            let (process, set) = (self.clone(), seen.clone());
            let part = (needs.seen == NeedOfSeen::Word).then(|| self.health.part("Redis"));
            let reach = async move || Ok(set.reach().await?);
            tokio::spawn(async move {
                if process.keep_trying("Redis", part, reach).await.is_ok() {
                    info!("Redis is there: traces are marked");
                    reached.send_replace(true);
                }
            });
            seen as Arc<dyn SeenSet>
        });
        let store: Option<Arc<dyn TraceStore>> = match needs.store {
            NeedOfStore::None => None,
            NeedOfStore::Answers => {
                Some(Arc::new(clickhouse::ClickhouseStore::later(config, clock.clone())?))
            }
            NeedOfStore::Inserts => {
                Some(Arc::new(clickhouse::ClickhouseStore::later_with_tables(config, clock.clone())?))
            }
            NeedOfStore::Tables => {
                let connect =
                    || async { Ok(clickhouse::ClickhouseStore::connect(config, clock.clone()).await?) };
                Some(Arc::new(self.until_there("ClickHouse", connect).await?))
            }
        };
        Ok(Ports {
            log,
            seen,
            store,
            seen_there,
            #[cfg(feature = "embedded")]
            embedded: None,
        })
    }

    /// Tries until it works, the process not being ready meanwhile: servers may come up in any order.
    async fn until_there<T>(
        &self,
        what: &str,
        attempt: impl AsyncFnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.keep_trying(what, Some(self.health.part(what)), attempt).await
    }

    /// Tries until it works or the process is told to end; `part` is what waits for it, if anything does.
    async fn keep_trying<T>(
        &self,
        what: &str,
        part: Option<PartHealth>,
        mut attempt: impl AsyncFnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let mut pause = Backoff::new(&self.config.stages);
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => {
                    warn!("{what}: {error:#}; trying again");
                    if let Some(part) = &part {
                        part.waiting(format!("{error:#}"));
                    }
                }
            }
            pause.wait(&self.shutdown).await;
            anyhow::ensure!(!self.shutdown.is_cancelled(), "told to end while waiting: {what}");
        }
    }
}

/// What of the configuration no connection can be made with, in this build; asks no server.
pub fn check_connections(config: &Config) -> anyhow::Result<()> {
    panopticon_distributed::check(config).map_err(anyhow::Error::msg).context("configuration")
}

async fn migrate_distributed(config: &Config, store: bool) -> anyhow::Result<()> {
    kafka::migrate(config).await.context("Kafka")?;
    if store {
        clickhouse::migrate(config).await.context("ClickHouse")?;
    }
    Ok(())
}

/// Brings topics and tables to this version's form; the embedded engine does so whenever it opens its file.
pub async fn migrate(config: &Config, clock: SharedClock) -> anyhow::Result<()> {
    match config.engine {
        Engine::Distributed => migrate_distributed(config, true).await?,
        #[cfg(feature = "embedded")]
        Engine::Embedded => panopticon_embedded::Embedded::open(config, clock)?.close().await,
        #[cfg(not(feature = "embedded"))]
        Engine::Embedded => {
            let _ = clock;
            anyhow::bail!("this program has no embedded engine; use `panopticon migrate`");
        }
    }
    info!("migrated");
    Ok(())
}

/// The stored traces of an app that were received in a period, as [`TraceStore::arrivals`] brings them; beside a
/// running system, which it does not disturb.
pub async fn arrivals(
    config: &Config,
    clock: SharedClock,
    client_id: &ClientId,
    since: Time,
    until: Time,
) -> anyhow::Result<Parts<AcceptedTrace>> {
    match config.engine {
        Engine::Distributed => {
            let store = clickhouse::ClickhouseStore::connect(config, clock).await?;
            Ok(store.arrivals(client_id, since, until))
        }
        #[cfg(feature = "embedded")]
        Engine::Embedded => Ok(panopticon_embedded::arrivals(config, clock.now(), client_id, since, until)?),
        #[cfg(not(feature = "embedded"))]
        Engine::Embedded => {
            let _ = (clock, client_id, since, until);
            anyhow::bail!("this program has no embedded engine; use `panopticon`");
        }
    }
}
