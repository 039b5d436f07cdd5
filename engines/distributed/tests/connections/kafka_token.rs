//! Kafka with OAUTHBEARER, and a token endpoint of the test's own. It hands out unsecured tokens, which Kafka's
//! default validator takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use panopticon_core::{
    config::{Config, SaslMechanism, Secret},
    log::{EventLog as _, Record},
    topic::Topic,
};
use panopticon_distributed::kafka::{self, KafkaLog};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{kafka_with, log_error, log_works, tls_file};

#[tokio::test(flavor = "multi_thread")]
async fn it_is_reached_with_a_token_and_says_what_to_check_without_one() {
    for (listener, tls) in [("KAFKA_SASL", false), ("KAFKA_SASL_TLS", true)] {
        let Some(mut config) = kafka_with(SaslMechanism::OauthBearer, listener) else { return };
        let kafka = &mut config.kafka;
        if tls {
            kafka.tls = true;
            kafka.ca_file = tls_file("ca.pem");
        }
        let endpoint = TokenEndpoint::start(&kafka.username, kafka.password.expose()).await;
        (kafka.oauth_token_url, kafka.oauth_scope) = (endpoint.url.clone(), "kafka".to_owned());
        log_works(&config).await;
        // One for `migrate`, one for the log, whatever the number of their clients.
        assert_eq!(endpoint.granted(), 2, "{listener}");

        let with = |change: fn(&mut Config)| {
            let mut config = config.clone();
            change(&mut config);
            config
        };
        let error = log_error(&with(|c| c.kafka.password = Secret::new("hush"))).await;
        let told = ["401", "unknown secret", "`kafka.password`"];
        assert!(told.iter().all(|told| error.contains(told)) && !error.contains("hush"), "{error}");
        let error = log_error(&with(|c| c.kafka.oauth_scope.clear())).await;
        assert!(error.contains("`kafka.oauth_scope`"), "{error}");
        let error = log_error(&with(|c| c.kafka.oauth_token_url = "http://127.0.0.1:9/".to_owned())).await;
        assert!(error.contains("`kafka.oauth_token_url` cannot be asked"), "{error}");
    }
}

/// The broker ends a connection whose token has expired.
#[tokio::test(flavor = "multi_thread")]
async fn it_is_used_for_longer_than_a_token_lives() {
    let Some(mut config) = kafka_with(SaslMechanism::OauthBearer, "KAFKA_SASL") else { return };
    let kafka = &mut config.kafka;
    let endpoint = TokenEndpoint::start(&kafka.username, kafka.password.expose()).await;
    (kafka.oauth_token_url, kafka.oauth_scope) = (endpoint.url.clone(), "kafka".to_owned());
    kafka::migrate(&config).await.unwrap();
    // The driver looks once a second whether it needs another: for a shorter life that is too seldom.
    let life = Duration::from_secs(20);
    endpoint.grant_for(life.as_secs());
    let log = KafkaLog::connect(&config).await.unwrap();
    let (begun, mut appended) = (Instant::now(), 0);
    while begun.elapsed() < life + Duration::from_secs(5) {
        log.append(Topic::Audit, 0, Record::message("a word")).await.unwrap();
        appended += 1;
        let read = log.read(Topic::Audit, 0, 0, u64::MAX, 1 << 20).await.unwrap();
        assert_eq!(read.len(), appended);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// An endpoint that knows one client.
struct TokenEndpoint {
    url: String,
    state: Arc<State>,
}

struct State {
    authorization: String,
    /// How long its tokens live.
    life_secs: AtomicU64,
    granted: AtomicUsize,
}

impl TokenEndpoint {
    /// For a client with this name and password, whose scope is `kafka`.
    async fn start(client: &str, password: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/oauth/token", listener.local_addr().unwrap());
        let authorization = format!("Basic {}", STANDARD.encode(format!("{client}:{password}")));
        let state = State { authorization, life_secs: AtomicU64::new(300), granted: AtomicUsize::new(0) };
        let state = Arc::new(state);
        let served = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&served)));
            }
        });
        Self { url, state }
    }

    /// From now on its tokens live for so long.
    fn grant_for(&self, secs: u64) {
        self.state.life_secs.store(secs, Ordering::SeqCst);
    }

    /// How many tokens it has handed out.
    fn granted(&self) -> usize {
        self.state.granted.load(Ordering::SeqCst)
    }
}

async fn answer(mut stream: TcpStream, state: Arc<State>) {
    let (head, body) = request(&mut stream).await;
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}: ")));
        line.and_then(|line| line.split_once(": ")).map_or("", |(_, value)| value).to_owned()
    };
    let is_token_request = head.starts_with("POST /oauth/token ")
        && header("content-type") == "application/x-www-form-urlencoded"
        && body.contains("grant_type=client_credentials");
    let (status, answer) = if !is_token_request {
        ("400 Bad Request", r#"{"error":"invalid_request"}"#.to_owned())
    } else if header("authorization") != state.authorization {
        ("401 Unauthorized", r#"{"error":"invalid_client","error_description":"unknown secret"}"#.to_owned())
    } else if !body.contains("scope=kafka") {
        ("400 Bad Request", r#"{"error":"invalid_scope"}"#.to_owned())
    } else {
        state.granted.fetch_add(1, Ordering::SeqCst);
        let life = state.life_secs.load(Ordering::SeqCst);
        let token = unsecured_token(life);
        ("200 OK", format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":{life}}}"#))
    };
    let length = answer.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{answer}"
    );
    let _ = stream.write_all(answer.as_bytes()).await;
}

/// Head and body.
async fn request(stream: &mut TcpStream) -> (String, String) {
    let mut text = String::new();
    let mut bytes = [0; 4096];
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return (head.to_owned(), body.to_owned());
            }
        }
        let read = stream.read(&mut bytes).await.unwrap();
        assert!(read > 0, "half a request: {text}");
        text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
}

/// A JWS without a signature (RFC 7515, `alg` none).
fn unsecured_token(life_secs: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = format!(r#"{{"sub":"service-of-a-test","iat":{now},"exp":{}}}"#, now + life_secs);
    format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(claims))
}
