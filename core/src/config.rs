//! Configuration: built-in defaults, then `panopticon.toml`, then environment variables `PANOPTICON_…`
//! with `__` between levels. Every limit of the system is here, with its unit in its name.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use figment::{
    Figment,
    providers::{Env, Format, Serialized, Toml},
};
use serde::{Deserialize, Serialize};

pub use self::{
    connections::{SaslMechanism, TlsFiles},
    telemetry::TelemetryConfig,
};

mod connections;
mod telemetry;

/// A value that is never printed.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { "\"[redacted]\"" })
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(if self.0.is_empty() { "" } else { "[redacted]" })
    }
}

/// Which implementation of the ports is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// One process, one SQLite file.
    Embedded,
    /// Apache Kafka, Redis and ClickHouse.
    Distributed,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Everything that can be configured.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `embedded` (default) or `distributed`.
    pub engine: Engine,
    /// Where HTTP and gRPC are served.
    pub listen: SocketAddr,
    /// Where `/healthz`, `/readyz` and `/metrics` are served (the first two on `listen` too where a gateway
    /// or control room runs). Unset: 127.0.0.1:7421, or a free port where another process has that one.
    pub metrics_listen: Option<SocketAddr>,
    /// Folder of the embedded engine's file, the admin token and the key file.
    pub data_dir: PathBuf,
    /// The URL by which RPs reach this installation, for `error_uri` and printed commands; empty: as listened.
    pub public_url: String,
    /// A token with the role admin, for unattended set-up; empty: made in the data directory.
    pub admin_token: Secret,
    /// Whether `migrate` runs at start.
    pub migrate_at_start: bool,
    /// Default level, as in `info` or `info,panopticon_core=debug`.
    pub log: String,
    /// `text` or `json`.
    pub log_format: LogFormat,
    /// Apps that exist from the start.
    pub apps: Vec<AppSeed>,
    /// The embedded engine.
    pub embedded: EmbeddedConfig,
    /// Apache Kafka.
    pub kafka: KafkaConfig,
    /// Redis.
    pub redis: RedisConfig,
    /// ClickHouse.
    pub clickhouse: ClickhouseConfig,
    /// The gateway.
    pub gateway: GatewayConfig,
    /// Stages.
    pub stages: StagesConfig,
    /// The store stage.
    pub store: StoreConfig,
    /// How long things are kept.
    pub retention: RetentionConfig,
    /// Webhooks.
    pub webhooks: WebhooksConfig,
    /// Live trace.
    pub live: LiveConfig,
    /// Encryption of what must be kept readable.
    pub secrets: SecretsConfig,
    /// Export of the process's own spans.
    pub telemetry: TelemetryConfig,
}

/// An app given by configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppSeed {
    /// Its OAuth client identifier.
    pub client_id: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its PAK, as `pano_pak_…`.
    #[serde(default)]
    pub pak: Secret,
}

/// The embedded engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddedConfig {
    /// Partitions of the traces' topics; fixed when the file is made.
    pub partitions: u32,
    /// Write jobs that may wait for the writer; one more is refused as full.
    pub queue_jobs: usize,
    /// Size of the write-ahead log at which it is moved into the file.
    pub checkpoint_bytes: u64,
    /// Memory for cached pages.
    pub cache_bytes: u64,
    /// Connections that read.
    pub readers: usize,
}

/// Apache Kafka.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// `host:port,…`.
    pub brokers: String,
    /// Before every topic, group and transactional id.
    pub topic_prefix: String,
    /// Partitions of the traces' topics; fixed when they are created.
    pub partitions: u32,
    /// Replicas of each partition.
    pub replication: u16,
    /// Allows fewer than 3 replicas, for development.
    pub allow_unreplicated: bool,
    /// How long the producer tries to get a record acknowledged.
    pub message_timeout_ms: u64,
    /// How long a transaction may be open before the broker aborts it.
    pub transaction_timeout_ms: u64,
    /// After how long without a heartbeat a member's partitions move.
    pub session_timeout_ms: u64,
    /// Largest record.
    pub max_record_bytes: usize,
    /// Whether connections are encrypted.
    pub tls: bool,
    /// Certificates (PEM) of the authorities that the brokers' certificates are from; empty: the system's.
    pub ca_file: PathBuf,
    /// This client's own certificate (PEM), where the brokers ask for one.
    pub client_cert_file: PathBuf,
    /// Its key (PEM).
    pub client_key_file: PathBuf,
    /// How this client proves who it is; unset: not at all, or by its certificate.
    pub sasl_mechanism: Option<SaslMechanism>,
    /// Its name; with OAUTHBEARER the client id.
    pub username: String,
    /// Its password; with OAUTHBEARER the client secret.
    pub password: Secret,
    /// Where OAUTHBEARER gets its tokens (OpenID Connect, client credentials).
    pub oauth_token_url: String,
    /// The scope that it asks for; empty: none.
    pub oauth_scope: String,
    /// Further librdkafka properties, such as `security.protocol`.
    pub properties: std::collections::BTreeMap<String, Secret>,
}

/// Redis.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// `redis://[user:password@]host:port[/db]`, or `rediss://` for TLS.
    pub url: Secret,
    /// The ACL user; empty: the one of `url`.
    pub username: String,
    /// Their password; empty: the one of `url`.
    pub password: Secret,
    /// Certificates (PEM) of the authority that the server's certificate is from; empty: the system's.
    pub ca_file: PathBuf,
    /// This client's own certificate (PEM), where the server asks for one.
    pub client_cert_file: PathBuf,
    /// Its key (PEM).
    pub client_key_file: PathBuf,
    /// Sentinels, `host:port,…`: they say where the primary is, in place of the address of `url`.
    pub sentinels: String,
    /// What the sentinels call the primary.
    pub sentinel_primary: String,
    /// The sentinels' ACL user; empty: their default user.
    pub sentinel_username: String,
    /// Their password.
    pub sentinel_password: Secret,
    /// Before every key.
    pub key_prefix: String,
    /// How long one call may take.
    pub timeout_ms: u64,
    /// Accepts a server that may evict keys, for development.
    pub allow_eviction: bool,
}

/// ClickHouse.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClickhouseConfig {
    /// `http://host:8123`, or `https://host:8443`.
    pub url: String,
    /// Certificates (PEM) of the authorities that the server's certificate is from; empty: the system's.
    pub ca_file: PathBuf,
    /// This client's own certificate (PEM), where the server asks for one.
    pub client_cert_file: PathBuf,
    /// Its key (PEM).
    pub client_key_file: PathBuf,
    /// The cluster on which `migrate` makes replicated tables; empty: tables of the one server.
    pub cluster: String,
    /// The database.
    pub database: String,
    /// The user.
    pub user: String,
    /// Their password.
    pub password: Secret,
    /// How long one insert may take.
    pub insert_timeout_ms: u64,
    /// Least time between two inserts from one partition, unless the second is full.
    pub insert_pace_ms: u64,
    /// How long one query of the control room may take.
    pub query_timeout_ms: u64,
}

/// The gateway.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// Threads of a gateway process that serve requests.
    pub threads: usize,
    /// Largest body of a single trace.
    pub max_trace_bytes: usize,
    /// Largest body of a batch, after decompression too.
    pub max_batch_bytes: usize,
    /// Most traces in a batch.
    pub max_batch_traces: usize,
    /// Traces that may wait for a partition's append; one more is answered 503.
    pub queue_traces: usize,
    /// Largest envelope.
    pub max_envelope_bytes: usize,
    /// Appends that may be under way at once in a partition.
    pub appends_in_flight: usize,
    /// How long a round of appends waits for the one before it to end, at most; requests gather meanwhile.
    pub append_pace_ms: u64,
    /// How long a client may take to send a body.
    pub body_timeout_ms: u64,
    /// How long a request waits for the log before it is answered 503.
    pub append_timeout_ms: u64,
    /// How long a request waits for the seen set before it is answered without it.
    pub mark_timeout_ms: u64,
    /// What `Retry-After` says.
    pub retry_after_secs: u64,
    /// Refused credentials from one address in a minute before it is answered 429.
    pub bad_credentials_per_minute: u32,
    /// Batches of one gRPC stream that may be under way at once.
    pub stream_window: usize,
    /// How far a signature's timestamp may be off.
    pub hmac_tolerance_secs: u64,
    /// How long a rotated PAK stays valid unless the rotation says otherwise.
    pub pak_grace_secs: u64,
}

/// Stages.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagesConfig {
    /// Most records that a stage takes at once.
    pub batch_records: usize,
    /// Most bytes that a stage takes at once.
    pub batch_bytes: usize,
    /// Records that may wait in memory for a partition.
    pub queue_records: usize,
    /// Least time between two commits of a stage in one partition; what comes meanwhile goes into the next.
    pub pace_ms: u64,
    /// How long a stage holds back outputs that nobody waits for; a position without outputs, four times as
    /// long.
    pub commit_ms: u64,
    /// First pause after an error.
    pub retry_min_ms: u64,
    /// Longest pause after an error.
    pub retry_max_ms: u64,
    /// How often stateful stages write what changed.
    pub checkpoint_ms: u64,
    /// How long a rule that knows nothing yet waits for what the trace store knows.
    pub seeding_ms: u64,
    /// Time for finishing what is under way after SIGTERM.
    pub drain_timeout_ms: u64,
    /// A partition with work but without progress for this long makes the process not ready.
    pub stuck_after_ms: u64,
    /// Most entities that a stateful stage keeps in memory, over all its partitions.
    pub max_entities: usize,
}

/// The store stage.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// A batch ends with this many rows,
    pub batch_rows: usize,
    /// with this many bytes,
    pub batch_bytes: usize,
    /// or after this time.
    pub batch_ms: u64,
    /// Batches of one table that are inserted at once by a process.
    pub inserts_in_flight: usize,
}

/// How long things are kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionConfig {
    /// Raw traces, from `received_at`.
    pub raw_days: u32,
    /// Topics that carry traces.
    pub log_hours: u32,
    /// How long an event id is remembered by the seen set.
    pub seen_hours: u32,
    /// The same in seconds, for tests; 0: `seen_hours` counts.
    pub seen_secs: u64,
    /// Finished deliveries, in the log.
    pub deliveries_days: u32,
}

impl RetentionConfig {
    /// How long an event id is remembered.
    pub fn seen_window(&self) -> Duration {
        match self.seen_secs {
            0 => Duration::from_secs(u64::from(self.seen_hours) * 3600),
            secs => Duration::from_secs(secs),
        }
    }

    /// How long raw traces are kept.
    pub fn raw(&self) -> Duration {
        Duration::from_secs(u64::from(self.raw_days) * 86_400)
    }

    /// How long topics that carry traces are kept.
    pub fn log(&self) -> Duration {
        Duration::from_secs(u64::from(self.log_hours) * 3600)
    }
}

/// Webhooks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhooksConfig {
    /// Allows endpoints on loopback addresses, http included; unset: allowed where `listen` is loopback.
    pub allow_loopback: Option<bool>,
    /// Networks (CIDR) in which endpoints may be, http included.
    pub allow_networks: Vec<String>,
    /// How long one attempt may take.
    pub timeout_ms: u64,
    /// How much of an answer is read.
    pub max_response_bytes: usize,
    /// Pause before the second attempt; doubles from then on, with jitter.
    pub retry_first_ms: u64,
    /// Longest pause between two attempts.
    pub retry_max_ms: u64,
    /// A message that was not delivered for this long is dead.
    pub give_up_after_secs: u64,
    /// An endpoint on which everything failed for this long is disabled.
    pub disable_after_secs: u64,
    /// Attempts under way at once per endpoint.
    pub in_flight_per_endpoint: usize,
    /// Attempts under way at once in a process.
    pub in_flight: usize,
    /// Deliveries of one partition that may be pending; beyond that new actions wait in the log.
    pub max_pending: usize,
    /// Deliveries of one partition that may be pending to one endpoint; one more is dead at once, and can be
    /// replayed: so an endpoint that is away does not use up the room of the others.
    pub max_pending_per_endpoint: usize,
    /// Finished deliveries of one partition that are kept; beyond that the oldest go before their time.
    pub max_finished: usize,
    /// Most endpoints of one app.
    pub max_endpoints_per_app: usize,
    /// How long a rotated secret still signs.
    pub secret_grace_secs: u64,
}

/// Live trace.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveConfig {
    /// Traces that may wait for a slow subscriber; it is told how many it missed beyond that.
    pub buffer_traces: usize,
    /// Subscribers of a process; one more is answered 503.
    pub max_subscribers: usize,
    /// How often an idle stream carries a `ping`.
    pub ping_secs: u64,
}

/// Encryption of what must be kept readable.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretsConfig {
    /// 32 bytes in base64; empty: made in the data directory (embedded engine only).
    pub key: Secret,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            engine: Engine::Embedded,
            listen: SocketAddr::from(([127, 0, 0, 1], 7420)),
            metrics_listen: None,
            data_dir: PathBuf::from("panopticon-data"),
            public_url: String::new(),
            admin_token: Secret::default(),
            migrate_at_start: true,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            apps: Vec::new(),
            embedded: EmbeddedConfig {
                partitions: 2,
                queue_jobs: 4_096,
                checkpoint_bytes: 256 << 20,
                cache_bytes: 64 << 20,
                readers: 4,
            },
            kafka: KafkaConfig {
                brokers: "127.0.0.1:9092".to_owned(),
                topic_prefix: "panopticon.".to_owned(),
                partitions: 4,
                replication: 3,
                allow_unreplicated: false,
                message_timeout_ms: 4_000,
                transaction_timeout_ms: 10_000,
                session_timeout_ms: 10_000,
                max_record_bytes: 4 << 20,
                tls: false,
                ca_file: PathBuf::new(),
                client_cert_file: PathBuf::new(),
                client_key_file: PathBuf::new(),
                sasl_mechanism: None,
                username: String::new(),
                password: Secret::default(),
                oauth_token_url: String::new(),
                oauth_scope: String::new(),
                properties: std::collections::BTreeMap::new(),
            },
            redis: RedisConfig {
                url: Secret::new("redis://127.0.0.1:6379"),
                username: String::new(),
                password: Secret::default(),
                ca_file: PathBuf::new(),
                client_cert_file: PathBuf::new(),
                client_key_file: PathBuf::new(),
                sentinels: String::new(),
                sentinel_primary: String::new(),
                sentinel_username: String::new(),
                sentinel_password: Secret::default(),
                key_prefix: "panopticon:".to_owned(),
                timeout_ms: 2_000,
                allow_eviction: false,
            },
            clickhouse: ClickhouseConfig {
                url: "http://127.0.0.1:8123".to_owned(),
                ca_file: PathBuf::new(),
                client_cert_file: PathBuf::new(),
                client_key_file: PathBuf::new(),
                cluster: String::new(),
                database: "panopticon".to_owned(),
                user: "default".to_owned(),
                password: Secret::default(),
                insert_timeout_ms: 30_000,
                insert_pace_ms: 700,
                query_timeout_ms: 10_000,
            },
            gateway: GatewayConfig {
                threads: 1,
                max_trace_bytes: 64 << 10,
                max_batch_bytes: 4 << 20,
                max_batch_traces: 1_000,
                queue_traces: 20_000,
                max_envelope_bytes: 512 << 10,
                appends_in_flight: 1,
                append_pace_ms: 5,
                body_timeout_ms: 30_000,
                append_timeout_ms: 5_000,
                mark_timeout_ms: 1_000,
                retry_after_secs: 1,
                bad_credentials_per_minute: 60,
                stream_window: 16,
                hmac_tolerance_secs: 300,
                pak_grace_secs: 600,
            },
            stages: StagesConfig {
                batch_records: 500,
                batch_bytes: 4 << 20,
                queue_records: 256,
                pace_ms: 40,
                commit_ms: 250,
                retry_min_ms: 100,
                retry_max_ms: 5_000,
                checkpoint_ms: 5_000,
                seeding_ms: 20_000,
                drain_timeout_ms: 10_000,
                stuck_after_ms: 30_000,
                max_entities: 1_000_000,
            },
            store: StoreConfig {
                batch_rows: 60_000,
                batch_bytes: 18 << 20,
                batch_ms: 100,
                inserts_in_flight: 2,
            },
            retention: RetentionConfig {
                raw_days: 90,
                log_hours: 7 * 24,
                seen_hours: 24,
                seen_secs: 0,
                deliveries_days: 7,
            },
            webhooks: WebhooksConfig {
                allow_loopback: None,
                allow_networks: Vec::new(),
                timeout_ms: 10_000,
                max_response_bytes: 4 << 10,
                retry_first_ms: 2_000,
                retry_max_ms: 4 * 3_600_000,
                give_up_after_secs: 86_400,
                disable_after_secs: 5 * 86_400,
                in_flight_per_endpoint: 8,
                in_flight: 256,
                max_pending: 20_000,
                max_pending_per_endpoint: 5_000,
                max_finished: 1_000_000,
                max_endpoints_per_app: 10,
                secret_grace_secs: 86_400,
            },
            live: LiveConfig { buffer_traces: 1_024, max_subscribers: 256, ping_secs: 15 },
            secrets: SecretsConfig { key: Secret::default() },
            telemetry: TelemetryConfig::default(),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file, variable or value is wrong.
    #[error("configuration: {0}")]
    Invalid(String),
    /// The named file is not there.
    #[error("configuration: cannot read {path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Environment variables with the product's prefix that do not configure it.
const OTHER_VARIABLES: &[&str] = &["PANOPTICON_CONFIG", "PANOPTICON_PAK", "PANOPTICON_PAK_SECRET"];
const TEST_PREFIX: &str = "PANOPTICON_TEST_";

/// ClickHouse's times of expiry end in 2106: a row that is to be kept beyond would be expired at once.
const MAX_RAW_DAYS: u32 = 10_000;

impl Config {
    /// Reads `file`, or `panopticon.toml` of the working directory where it exists, and the environment.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(DefaultsWithSecrets::default()));
        match file {
            Some(path) => {
                std::fs::metadata(path)
                    .map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
                figment = figment.merge(Toml::file_exact(path));
            }
            None => figment = figment.merge(Toml::file("panopticon.toml")),
        }
        let environment = Env::prefixed("PANOPTICON_")
            .filter(|key| {
                let name = format!("PANOPTICON_{}", key.as_str().to_ascii_uppercase());
                !OTHER_VARIABLES.contains(&name.as_str()) && !name.starts_with(TEST_PREFIX)
            })
            .split("__");
        let config: Self = figment.merge(environment).extract().map_err(|error| {
            let all: Vec<String> = error.into_iter().map(|e| explain(&e)).collect();
            ConfigError::Invalid(all.join("; "))
        })?;
        config.check()?;
        Ok(config)
    }

    /// Whether webhooks may go to loopback addresses.
    pub fn webhooks_to_loopback(&self) -> bool {
        self.webhooks.allow_loopback.unwrap_or(self.listen.ip().is_loopback())
    }

    /// The URL by which this installation is reached.
    pub fn url(&self) -> String {
        if self.public_url.is_empty() {
            format!("http://{}", self.listen)
        } else {
            self.public_url.trim_end_matches('/').to_owned()
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        for (name, value) in [
            ("embedded.partitions", u64::from(self.embedded.partitions)),
            ("kafka.partitions", u64::from(self.kafka.partitions)),
            ("gateway.max_batch_traces", self.gateway.max_batch_traces as u64),
            ("gateway.threads", self.gateway.threads as u64),
            ("gateway.queue_traces", self.gateway.queue_traces as u64),
            ("gateway.appends_in_flight", self.gateway.appends_in_flight as u64),
            ("store.inserts_in_flight", self.store.inserts_in_flight as u64),
            ("gateway.stream_window", self.gateway.stream_window as u64),
            ("stages.batch_records", self.stages.batch_records as u64),
            ("stages.queue_records", self.stages.queue_records as u64),
            ("store.batch_rows", self.store.batch_rows as u64),
            ("live.buffer_traces", self.live.buffer_traces as u64),
            ("live.ping_secs", self.live.ping_secs),
            ("retention.raw_days", u64::from(self.retention.raw_days)),
            ("webhooks.in_flight", self.webhooks.in_flight as u64),
            ("webhooks.in_flight_per_endpoint", self.webhooks.in_flight_per_endpoint as u64),
            ("webhooks.timeout_ms", self.webhooks.timeout_ms),
            ("webhooks.max_pending", self.webhooks.max_pending as u64),
            ("webhooks.max_pending_per_endpoint", self.webhooks.max_pending_per_endpoint as u64),
        ] {
            if value == 0 {
                return invalid(format!("`{name}` must be at least 1"));
            }
        }
        if self.retention.log() < self.retention.seen_window() {
            return invalid("`retention.log_hours` must be at least `retention.seen_hours`".to_owned());
        }
        if self.retention.log_hours > 90 * 24 {
            return invalid("`retention.log_hours` must be at most 2160 (90 days)".to_owned());
        }
        if self.retention.raw_days > MAX_RAW_DAYS {
            return invalid(format!("`retention.raw_days` must be at most {MAX_RAW_DAYS}"));
        }
        connections::check(self).map_err(ConfigError::Invalid)?;
        self.telemetry.check().map_err(ConfigError::Invalid)?;
        if self.engine == Engine::Distributed && self.kafka.brokers.is_empty() {
            return invalid("`kafka.brokers` is empty".to_owned());
        }
        Ok(())
    }
}

/// Serializing a [`Secret`] redacts it, so the defaults of secrets are written out for figment.
#[derive(Default)]
struct DefaultsWithSecrets(Config);

impl Serialize for DefaultsWithSecrets {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut value = serde_json::to_value(&self.0).map_err(serde::ser::Error::custom)?;
        value["redis"]["url"] = self.0.redis.url.expose().into();
        value.serialize(out)
    }
}

fn explain(error: &figment::Error) -> String {
    let path = if error.path.is_empty() { String::new() } else { format!("`{}`: ", error.path.join(".")) };
    let from = error.metadata.as_ref().map(|m| format!(" (from {})", m.name)).unwrap_or_default();
    match &error.kind {
        figment::error::Kind::UnknownField(field, known) => {
            // Some sources put the field at the end of the path already.
            let mut parts = error.path.clone();
            if parts.last().is_none_or(|last| last != field) {
                parts.push(field.clone());
            }
            format!("unknown key `{}`{from}; known here: {}", parts.join("."), known.join(", "))
        }
        kind => format!("{path}{kind}{from}"),
    }
}
