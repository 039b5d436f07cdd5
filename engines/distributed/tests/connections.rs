//! Servers that want TLS, a user or sentinels, and what is said when something about that is wrong.
//!
//! `cargo xtask stack up` starts Kafka and Redis with secured listeners beside the open ones; ClickHouse is behind a
//! TLS proxy of the test's own, sentinels are started by the test.

// Everything here runs in tests only.
#![allow(clippy::unwrap_used)]

#[cfg(feature = "kafka-tls")]
#[path = "connections/kafka_token.rs"]
mod kafka_token;
#[path = "connections/redis_again.rs"]
mod redis_again;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use panopticon_core::{
    config::{Config, SaslMechanism, Secret},
    ids::{EventId, LogId, Place, SeenKey},
    log::{EventLog as _, Record},
    seen::{Mark, Marked, Owner, Progress, Rebuild, Restored, SeenError, SeenSet as _},
    store::{TimelineQuery, TraceStore as _},
    time::SystemClock,
    topic::Topic,
};
use panopticon_distributed::{
    check,
    clickhouse::{self, ClickhouseStore},
    kafka::{self, KafkaLog},
    redis::RedisSeen,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, rustls};

const PATIENCE: Duration = Duration::from_secs(40);

fn variable(name: &str) -> Option<String> {
    let value = env::var(format!("PANOPTICON_TEST_{name}")).ok();
    if value.is_none() {
        println!("skipped: PANOPTICON_TEST_{name} is not set");
    }
    value
}

fn tls_file(name: &str) -> PathBuf {
    Path::new(&variable("TLS").unwrap()).join(name)
}

fn config() -> Config {
    let mut config = Config::default();
    let name = LogId::random();
    config.kafka.topic_prefix = format!("test-{name}.");
    config.kafka.partitions = 1;
    config.kafka.allow_unreplicated = true;
    config.redis.key_prefix = format!("test:{name}:");
    config.clickhouse.database = format!("test_{name}");
    config
}

fn kafka_with(mechanism: SaslMechanism, listener: &str) -> Option<Config> {
    let mut config = config();
    let kafka = &mut config.kafka;
    kafka.brokers = variable(listener)?;
    kafka.sasl_mechanism = Some(mechanism);
    kafka.username = variable("USER")?;
    kafka.password = Secret::new(variable("PASSWORD")?);
    Some(config)
}

/// Whether a log can be made, written and read.
async fn log_works(config: &Config) {
    kafka::migrate(config).await.unwrap();
    let log = KafkaLog::connect(config).await.unwrap();
    log.append(Topic::Audit, 0, Record::message("a word")).await.unwrap();
    let read = log.read(Topic::Audit, 0, 0, u64::MAX, 1 << 20).await.unwrap();
    assert_eq!(read.len(), 1);
}

async fn log_error(config: &Config) -> String {
    KafkaLog::connect(config).await.err().expect("the connection must fail").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_lets_in_who_has_the_password_and_says_what_to_check_else() {
    let Some(mut config) = kafka_with(SaslMechanism::Plain, "KAFKA_SASL") else { return };
    log_works(&config).await;
    config.kafka.password = Secret::new("hush");
    let error = log_error(&config).await;
    assert!(error.contains("`kafka.password`") && !error.contains("hush"), "{error}");
    (config.kafka.sasl_mechanism, config.kafka.username) = (None, String::new());
    config.kafka.password = Secret::default();
    let error = log_error(&config).await;
    assert!(error.contains("`kafka.sasl_mechanism`"), "{error}");
}

#[cfg(not(feature = "kafka-tls"))]
#[test]
fn what_this_build_cannot_do_with_kafka_is_refused_with_the_feature_that_can() {
    let refused = |change: fn(&mut Config), told: &str| {
        let mut config = config();
        config.kafka.username = "me".to_owned();
        change(&mut config);
        let error = check(&config).unwrap_err();
        assert!(error.contains(told) && error.contains("--features kafka-tls"), "{error}");
    };
    refused(|c| c.kafka.tls = true, "`kafka.tls`");
    refused(|c| c.kafka.sasl_mechanism = Some(SaslMechanism::ScramSha256), "SCRAM-SHA-256");
    refused(|c| c.kafka.sasl_mechanism = Some(SaslMechanism::OauthBearer), "OAUTHBEARER");
    refused(
        |c| _ = c.kafka.properties.insert("security.protocol".to_owned(), Secret::new("SASL_SSL")),
        "`kafka.properties.security.protocol`",
    );
}

#[cfg(feature = "kafka-tls")]
#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_reached_over_tls_with_each_mechanism() {
    for mechanism in [SaslMechanism::Plain, SaslMechanism::ScramSha256, SaslMechanism::ScramSha512] {
        for (listener, tls) in [("KAFKA_SASL", false), ("KAFKA_SASL_TLS", true)] {
            let Some(mut config) = kafka_with(mechanism, listener) else { return };
            if tls {
                config.kafka.tls = true;
                config.kafka.ca_file = tls_file("ca.pem");
            }
            log_works(&config).await;
            config.kafka.password = Secret::new("hush");
            let error = log_error(&config).await;
            assert!(error.contains("`kafka.password`"), "{mechanism} {listener}: {error}");
        }
    }
}

#[cfg(feature = "kafka-tls")]
#[tokio::test(flavor = "multi_thread")]
async fn kafka_over_tls_says_which_setting_is_wrong() {
    let Some(mut config) = kafka_with(SaslMechanism::ScramSha256, "KAFKA_SASL_TLS") else { return };
    let error = log_error(&config).await;
    assert!(error.contains("`kafka.tls`"), "TLS is not on: {error}");
    config.kafka.tls = true;
    let error = log_error(&config).await;
    assert!(error.contains("`kafka.ca_file`"), "an unknown authority: {error}");
    config.kafka.brokers = variable("KAFKA_SASL").unwrap();
    let error = log_error(&config).await;
    assert!(error.contains("`kafka.tls`"), "a port without TLS: {error}");
    config.kafka.ca_file = tls_file("server.key");
    let error = check(&config).unwrap_err();
    assert!(error.contains("`kafka"), "a key is no certificate: {error}");
}

fn mark(n: u128) -> Vec<Mark> {
    let place = Place { log_id: LogId(7), partition: 0, offset: n as u64, index: 0 };
    vec![Mark { key: SeenKey::of("app", EventId(uuid::Uuid::from_u128(n))), place }]
}

async fn seen(config: &Config) -> Result<RedisSeen, String> {
    RedisSeen::connect(config, Arc::new(SystemClock)).await.map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_reached_over_tls_by_a_user_with_few_rights() {
    let Some(url) = variable("REDIS_TLS") else { return };
    let mut config = config();
    config.redis.url = Secret::new(url);
    config.redis.username = variable("USER").unwrap();
    config.redis.password = Secret::new(variable("PASSWORD").unwrap());
    let error = seen(&config).await.err().unwrap();
    assert!(error.contains("`redis.ca_file`"), "an unknown authority: {error}");
    config.redis.ca_file = tls_file("ca.pem");
    let set = seen(&config).await.unwrap();
    let (marks, places) = (mark(1), vec![mark(1)[0].place]);
    assert_eq!(set.mark(marks.clone(), None).await.unwrap(), Marked::First(places.clone()));
    let owner = Owner::after(None);
    let mut rebuild =
        Rebuild::new(Progress { log_id: LogId(7), partition: 0, from: 2, to: 2, owner, trusts: Some(owner) });
    assert_eq!(set.restore(&mut rebuild, marks.clone()).await.unwrap(), Restored::Whole);
    assert_eq!(set.end_rebuild(rebuild).await.unwrap(), Restored::Whole);
    assert_eq!(set.mark(marks, None).await.unwrap(), Marked::First(places));
    set.expire().await.unwrap();

    config.redis.password = Secret::new("hush");
    let error = seen(&config).await.err().unwrap();
    assert!(error.contains("`redis.password`") && !error.contains("hush"), "{error}");
}

/// A Redis server of the test's own.
struct Server {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl Server {
    fn start(sentinel: bool, settings: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = env::temp_dir().join(format!("panopticon-redis-{}", LogId::random()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("redis.conf");
        let dir = folder.display();
        let settings = settings.replace("{port}", &port.to_string());
        std::fs::write(&file, format!("port {port}\nbind 127.0.0.1\ndir {dir}\n{settings}\n")).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(&file).args(sentinel.then_some("--sentinel"));
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        Self { child, port, folder }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Tries until it works.
async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{what}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_that_the_sentinels_name_is_followed_when_it_fails() {
    if variable("REDIS_URL").is_none() {
        return;
    }
    let secured = "requirepass pw\nmasterauth pw\nrepl-diskless-sync-delay 0";
    let primary = Server::start(false, secured);
    let replica = Server::start(false, &format!("{secured}\nreplicaof 127.0.0.1 {}", primary.port));
    let sentinel = Server::start(
        true,
        &format!(
            "requirepass sentry\nsentinel monitor one 127.0.0.1 {} 1\nsentinel auth-pass one pw\n\
             sentinel down-after-milliseconds one 1000\nsentinel failover-timeout one 4000",
            primary.port
        ),
    );
    let mut config = config();
    // Nobody is there: the sentinels say where the primary is.
    config.redis.url = Secret::new("redis://127.0.0.1:1");
    config.redis.password = Secret::new("pw");
    config.redis.sentinels = format!("127.0.0.1:9,127.0.0.1:{}", sentinel.port);
    config.redis.sentinel_primary = "another".to_owned();
    config.redis.sentinel_password = Secret::new("sentry");
    eventually("an unknown name", async || match seen(&config).await {
        Err(error) if error.contains("`redis.sentinel_primary`") => Ok(()),
        other => Err(format!("{:?}", other.err())),
    })
    .await;
    config.redis.sentinel_primary = "one".to_owned();
    let set = eventually("a connection", async || seen(&config).await).await;
    set.mark(mark(1), None).await.unwrap();
    // The sentinel knows its replica, and it has everything.
    let client = redis::Client::open(format!("redis://:pw@127.0.0.1:{}", replica.port)).unwrap();
    eventually("a replica in step", async || {
        let mut connection = client.get_multiplexed_async_connection().await.map_err(|e| e.to_string())?;
        let size: u64 =
            redis::cmd("DBSIZE").query_async(&mut connection).await.map_err(|error| error.to_string())?;
        if size > 0 { Ok(()) } else { Err("empty".to_owned()) }
    })
    .await;
    let client = redis::Client::open(format!("redis://:sentry@127.0.0.1:{}", sentinel.port)).unwrap();
    eventually("a sentinel that knows it", async || {
        let mut connection = client.get_multiplexed_async_connection().await.map_err(|e| e.to_string())?;
        let known: Vec<redis::Value> = redis::cmd("SENTINEL")
            .arg("REPLICAS")
            .arg("one")
            .query_async(&mut connection)
            .await
            .map_err(|error| error.to_string())?;
        if known.is_empty() { Err("no replica".to_owned()) } else { Ok(()) }
    })
    .await;

    drop(primary);
    assert!(set.mark(mark(2), None).await.is_err(), "the primary is gone");
    let later = Place { offset: 99, ..mark(1)[0].place };
    let again = vec![Mark { place: later, ..mark(1)[0] }];
    let marked = eventually("the new primary", async || {
        set.mark(again.clone(), None).await.map_err(|error| error.to_string())
    });
    assert_eq!(marked.await, Marked::First(vec![mark(1)[0].place]), "it has what was marked before");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_marked_on_a_redis_before_it_is_there_and_fit() {
    if variable("REDIS_URL").is_none() {
        return;
    }
    let evicting = Server::start(false, "maxmemory 100mb\nmaxmemory-policy allkeys-lru");
    let mut config = config();
    config.redis.url = Secret::new(format!("redis://127.0.0.1:{}", evicting.port));
    let set = RedisSeen::later(&config, Arc::new(SystemClock));
    let error = set.mark(mark(1), None).await.unwrap_err();
    assert!(matches!(error, SeenError::Unavailable(_)), "nobody has connected yet: {error}");
    eventually("a refusal", async || match set.reach().await {
        Err(SeenError::Broken(error)) if error.contains("noeviction") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let error = set.mark(mark(1), None).await.unwrap_err();
    assert!(matches!(&error, SeenError::Broken(text) if text.contains("noeviction")), "{error}");
    let client = redis::Client::open(config.redis.url.expose()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let keys: u64 = redis::cmd("DBSIZE").query_async(&mut connection).await.unwrap();
    assert_eq!(keys, 0, "it was marked on a server that may evict");

    let mend = redis::cmd("CONFIG").arg(&["SET", "maxmemory-policy", "noeviction"]).to_owned();
    mend.exec_async(&mut connection).await.unwrap();
    set.reach().await.unwrap();
    assert_eq!(set.mark(mark(1), None).await.unwrap(), Marked::First(vec![mark(1)[0].place]));
}

/// A TLS listener in front of a plain one.
async fn tls_proxy(to: String) -> u16 {
    let certificates = CertificateDer::pem_file_iter(tls_file("server.pem")).unwrap().map(Result::unwrap);
    let key = PrivateKeyDer::from_pem_file(tls_file("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let settings = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates.collect(), key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(settings));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, to) = (acceptor.clone(), to.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut server = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_is_reached_over_tls_and_says_which_setting_is_wrong() {
    let (Some(url), Some(_)) = (variable("CLICKHOUSE_URL"), variable("TLS")) else { return };
    let port = tls_proxy(url.strip_prefix("http://").unwrap().to_owned()).await;
    let mut config = config();
    config.clickhouse.url = format!("https://localhost:{port}");
    let error = clickhouse::migrate(&config).await.unwrap_err().to_string();
    assert!(error.contains("`clickhouse.ca_file`"), "an unknown authority: {error}");
    config.clickhouse.ca_file = tls_file("ca.pem");
    clickhouse::migrate(&config).await.unwrap();
    let store = ClickhouseStore::connect(&config, Arc::new(SystemClock)).await.unwrap();
    let app = panopticon_core::ids::ClientId::new("app").unwrap();
    let query = TimelineQuery { limit: 1, ..TimelineQuery::default() };
    assert!(store.timeline(&app, &query).await.unwrap().items.is_empty());

    let mut stranger = config.clone();
    stranger.clickhouse.user = "stranger".to_owned();
    stranger.clickhouse.password = Secret::new("hush");
    let error = clickhouse::migrate(&stranger).await.unwrap_err().to_string();
    assert!(error.contains("`clickhouse.user`") && !error.contains("hush"), "{error}");

    let client = ::clickhouse::Client::default().with_url(&url);
    client.query_raw(&format!("DROP DATABASE {} SYNC", config.clickhouse.database)).execute().await.unwrap();
}
