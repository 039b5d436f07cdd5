//! How the primary is connected to: as which user, over TLS or not, and where it is, if sentinels say so.

use std::{
    path::Path,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use panopticon_core::{
    config::{RedisConfig, Secret},
    seen::SeenError,
};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind,
    IntoConnectionInfo as _, RedisError, TlsCertificates,
    aio::{ConnectionManager, ConnectionManagerConfig},
};

use crate::tls;

/// Reconnects that one call waits for, at most, beside the configured timeout.
const RECONNECTS: usize = 3;
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_millis(500);
/// How often sentinels are asked where the primary is.
const SENTINEL_PAUSE: Duration = Duration::from_secs(1);

/// Says who we are, to whichever server.
#[derive(Clone)]
pub(super) struct Access {
    config: RedisConfig,
    /// As `redis.url` has it, with what goes before it.
    primary: ConnectionInfo,
    tls: Option<TlsCertificates>,
}

impl Access {
    pub(super) fn new(config: &RedisConfig) -> Result<Self, SeenError> {
        // The error of a URL that cannot be read is not shown: it may repeat the password.
        let mut primary = config.url.expose().into_connection_info().map_err(|_| {
            SeenError::Broken(
                "`redis.url` is not of the form redis://[user:password@]host:port[/db], or rediss://".into(),
            )
        })?;
        primary = with_user(primary, &config.username, &config.password);
        let tls = config.tls().then(|| certificates(config)).transpose()?;
        let access = Self { config: config.clone(), primary, tls };
        // Certificates and keys that cannot be read are told now, and not at the first connection.
        access.client(access.primary.clone())?;
        Ok(access)
    }

    fn client(&self, info: ConnectionInfo) -> Result<Client, SeenError> {
        let made = match &self.tls {
            Some(tls) => Client::build_with_tls(info, tls.clone()),
            None => Client::open(info),
        };
        made.map_err(|error| SeenError::Broken(format!("`redis`: {error}")))
    }

    /// The same for a server at another address.
    fn at(&self, like: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
        let host = host.to_owned();
        like.clone().set_addr(match self.tls {
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            None => ConnectionAddr::Tcp(host, port),
        })
    }

    fn manager(&self) -> ConnectionManagerConfig {
        let timeout = Duration::from_millis(self.config.timeout_ms);
        ConnectionManagerConfig::new()
            .set_number_of_retries(RECONNECTS)
            .set_min_delay(RECONNECT_MIN)
            .set_max_delay(RECONNECT_MAX)
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout))
    }

    /// Why it could not be done, with the setting to look at.
    pub(super) fn explain(&self, address: &str, error: &RedisError) -> SeenError {
        let text = format!("Redis at {address}: {error}");
        let refused = error.kind() == ErrorKind::AuthenticationFailed
            || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"));
        if refused {
            return SeenError::Broken(format!(
                "{text}; check `redis.username` and `redis.password`, or those of `redis.url`"
            ));
        }
        if error.code() == Some("NOPERM") {
            return SeenError::Broken(format!("{text}; the ACL of `redis.username` must allow it"));
        }
        match tls::advice(&text, &self.config.tls_files()) {
            Some(advice) => SeenError::Broken(format!("{text}; {advice}")),
            None => SeenError::Unavailable(text),
        }
    }
}

fn with_user(info: ConnectionInfo, username: &str, password: &Secret) -> ConnectionInfo {
    let mut settings = info.redis_settings().clone();
    if !username.is_empty() {
        settings = settings.set_username(username);
    }
    if !password.is_empty() {
        settings = settings.set_password(password.expose());
    }
    info.set_redis_settings(settings)
}

fn certificates(config: &RedisConfig) -> Result<TlsCertificates, SeenError> {
    let files = config.tls_files();
    let read = |file: &Path| -> Result<Option<Vec<u8>>, SeenError> {
        if file.as_os_str().is_empty() {
            return Ok(None);
        }
        let bytes = std::fs::read(file);
        bytes.map(Some).map_err(|error| SeenError::Broken(format!("{}: {error}", file.display())))
    };
    // What rustls would say later is said now, naming the setting.
    tls::client(&files).map_err(SeenError::Broken)?;
    let client_tls = match (read(files.certificate)?, read(files.key)?) {
        (Some(client_cert), Some(client_key)) => Some(ClientTlsConfig { client_cert, client_key }),
        _ => None,
    };
    Ok(TlsCertificates { client_tls, root_cert: read(files.ca)? })
}

/// Those who know where the primary is.
#[derive(Clone)]
struct Sentinels {
    access: Access,
    addresses: Vec<(String, u16)>,
    /// As which user they are asked; the address is each one's own.
    like: ConnectionInfo,
}

impl Sentinels {
    fn of(access: &Access) -> Result<Option<Self>, SeenError> {
        let config = &access.config;
        let addresses = config.sentinels().map_err(SeenError::Broken)?;
        let Some((host, port)) = addresses.first() else { return Ok(None) };
        let plain = (host.as_str(), *port)
            .into_connection_info()
            .map_err(|error| SeenError::Broken(format!("`redis.sentinels`: {error}")))?;
        let like = with_user(plain, &config.sentinel_username, &config.sentinel_password);
        Ok(Some(Self { access: access.clone(), addresses, like }))
    }

    /// Where the primary is, as the first sentinel says that answers.
    async fn primary(&self) -> Result<(String, u16), SeenError> {
        let name = &self.access.config.sentinel_primary;
        let mut last = SeenError::Unavailable("`redis.sentinels` is empty".to_owned());
        for (host, port) in &self.addresses {
            match self.ask(host, *port).await {
                Ok(Some(address)) => return Ok(address),
                Ok(None) => {
                    last = SeenError::Broken(format!(
                        "the sentinel at {host}:{port} knows no primary `{name}` (`redis.sentinel_primary`)"
                    ));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask(&self, host: &str, port: u16) -> Result<Option<(String, u16)>, SeenError> {
        let client = self.access.client(self.access.at(&self.like, host, port))?;
        let timeout = Some(Duration::from_millis(self.access.config.timeout_ms));
        let settings =
            AsyncConnectionConfig::new().set_connection_timeout(timeout).set_response_timeout(timeout);
        let asked = async {
            let mut connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
            let name = &self.access.config.sentinel_primary;
            redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name).query_async(&mut connection).await
        };
        asked.await.map_err(|error: RedisError| {
            let why = match error.kind() {
                ErrorKind::AuthenticationFailed => {
                    "; check `redis.sentinel_username` and `redis.sentinel_password`"
                }
                _ => "",
            };
            SeenError::Unavailable(format!("the sentinel at {host}:{port} (`redis.sentinels`): {error}{why}"))
        })
    }
}

/// The connection to the primary, wherever it is.
#[derive(Clone)]
pub(super) struct Primary {
    access: Access,
    now: Arc<ArcSwap<Connection>>,
}

/// A connection, and what a new one to the same server is made with.
pub(super) struct Connection {
    client: Client,
    manager: ConnectionManager,
    since: Instant,
}

impl Connection {
    /// Connects when it is used.
    fn lazy(access: &Access, client: Client) -> Result<Self, RedisError> {
        let manager = ConnectionManager::new_lazy_with_config(client.clone(), access.manager())?;
        Ok(Self { client, manager, since: Instant::now() })
    }

    /// What commands are sent with.
    pub(super) fn commands(&self) -> ConnectionManager {
        self.manager.clone()
    }
}

impl Primary {
    /// Connects; the address is for messages, without user and password.
    pub(super) async fn connect(access: &Access) -> Result<(Self, String), SeenError> {
        let Some(sentinels) = Sentinels::of(access)? else {
            let address = access.primary.addr().to_string();
            let primary = Self::open(access, access.primary.clone(), &address).await?;
            return Ok((primary, address));
        };
        let (host, port) = sentinels.primary().await?;
        let at = access.at(&access.primary, &host, port);
        let primary = Self::open(access, at, &format!("{host}:{port}")).await?;
        tokio::spawn(follow(Arc::downgrade(&primary.now), sentinels, (host, port)));
        let config = &access.config;
        let address = format!("the primary `{}` of {}", config.sentinel_primary, config.sentinels);
        Ok((primary, address))
    }

    async fn open(access: &Access, at: ConnectionInfo, address: &str) -> Result<Self, SeenError> {
        let client = access.client(at)?;
        let manager = client.get_connection_manager_with_config(access.manager()).await;
        let manager = manager.map_err(|error| access.explain(address, &error))?;
        let connection = Connection { client, manager, since: Instant::now() };
        Ok(Self { access: access.clone(), now: Arc::new(ArcSwap::from_pointee(connection)) })
    }

    /// The connection as of now.
    pub(super) fn connection(&self) -> Arc<Connection> {
        self.now.load_full()
    }

    /// Has calls to come connect anew, after one over `used` has failed or was not answered.
    ///
    /// The driver does that by itself only after errors of the network. Where connecting fails in another way (the
    /// server is loading its data, has too many clients, ends in the middle of its answer) it answers every later
    /// call with that same error; and of a connection that nobody answers on, without an error, it hears nothing.
    pub(super) fn renew(&self, used: &Arc<Connection>) {
        if used.since.elapsed() < RECONNECT_MAX {
            return;
        }
        match Connection::lazy(&self.access, used.client.clone()) {
            // Whoever was first did it for all.
            Ok(new) => drop(self.now.compare_and_swap(used, Arc::new(new))),
            Err(error) => tracing::warn!(%error, "cannot connect to Redis anew"),
        }
    }
}

/// Asks the sentinels as long as there is somebody to connect for, and connects to whom they name.
async fn follow(connection: Weak<ArcSwap<Connection>>, sentinels: Sentinels, mut at: (String, u16)) {
    loop {
        tokio::time::sleep(SENTINEL_PAUSE).await;
        let Some(connection) = connection.upgrade() else { return };
        let access = &sentinels.access;
        let named = match sentinels.primary().await {
            Ok(named) if named != at => named,
            Ok(_) => continue,
            Err(error) => {
                tracing::debug!(%error, "no sentinel says where the primary is");
                continue;
            }
        };
        let (host, port) = &named;
        let client = access.client(access.at(&access.primary, host, *port));
        let new = client.and_then(|client| {
            Connection::lazy(access, client)
                .map_err(|error| access.explain(&format!("{host}:{port}"), &error))
        });
        match new {
            Ok(new) => {
                tracing::info!(primary = format!("{host}:{port}"), "the sentinels name another primary");
                metrics::counter!("panopticon_redis_failovers_total").increment(1);
                connection.store(Arc::new(new));
                at = named;
            }
            Err(error) => tracing::warn!(%error, "cannot turn to the new primary"),
        }
    }
}
