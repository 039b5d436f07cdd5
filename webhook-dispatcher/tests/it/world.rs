//! A dispatcher on the embedded engine, and a receiver that answers as it is told.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, State},
    response::{IntoResponse, Response},
};
use futures::StreamExt as _;
use http::{HeaderMap, StatusCode};
use panopticon_core::{
    config::{Config, Secret},
    control::{Actor, Change, ControlView, ControlWriter, key},
    health::Health,
    ids::partition_of,
    log::{EventLog, Record, TailFrom},
    secrets::{Sealer, random_seal_key, random_webhook_secret},
    stage::{Runtime, run_stage},
    time::{Clock, SharedClock, SystemClock, Time},
    topic::Topic,
};
use panopticon_embedded::Embedded;
use panopticon_proto::{
    control::{WebhookEndpoint, WebhookSecret},
    log::{AuditEntry, Delivery, GuardAction, KillSwitch},
};
use panopticon_webhook_dispatcher::{sealed_for, stages};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// The system's clock, which can be put forward.
#[derive(Default)]
pub struct ForwardClock(AtomicI64);

impl ForwardClock {
    pub fn forward(&self, days: i64) {
        self.0.fetch_add(days * 86_400_000_000, Ordering::SeqCst);
    }
}

impl Clock for ForwardClock {
    fn now(&self) -> Time {
        Time::from_micros(SystemClock.now().micros() + self.0.load(Ordering::SeqCst))
    }
}

pub fn actor() -> Actor {
    Actor { name: "test".to_owned(), request_id: String::new() }
}

/// A message as it came in.
#[derive(Debug, Clone)]
pub struct Received {
    pub headers: HeaderMap,
    pub body: Bytes,
    pub at: Instant,
    pub peer: SocketAddr,
}

impl Received {
    pub fn id(&self) -> &str {
        self.headers["webhook-id"].to_str().unwrap()
    }
}

/// How the receiver answers.
#[derive(Clone)]
pub enum Reply {
    Status(u16),
    With(u16, &'static str, &'static str),
    /// Never.
    Silence,
    Long,
}

type Choose = Box<dyn Fn(&Received) -> Reply + Send + Sync>;

struct Script {
    next: Mutex<VecDeque<Reply>>,
    otherwise: Choose,
    received: mpsc::UnboundedSender<Received>,
}

pub struct Receiver {
    pub address: SocketAddr,
    received: mpsc::UnboundedReceiver<Received>,
    server: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Receiver {
    /// Answers with `replies` in turn, then with 200.
    pub async fn new(replies: impl IntoIterator<Item = Reply>) -> Self {
        Self::choosing(replies, |_| Reply::Status(200)).await
    }

    pub async fn choosing(
        replies: impl IntoIterator<Item = Reply>,
        otherwise: impl Fn(&Received) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let (sender, received) = mpsc::unbounded_channel();
        let script = Script {
            next: Mutex::new(replies.into_iter().collect()),
            otherwise: Box::new(otherwise),
            received: sender,
        };
        let app = Router::new().fallback(receive).with_state(Arc::new(script));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = app.into_make_service_with_connect_info::<SocketAddr>();
        let server = tokio::spawn(async move { axum::serve(listener, service).await.unwrap() });
        Self { address, received, server }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hooks", self.address)
    }

    pub async fn next(&mut self) -> Received {
        soon("a webhook", self.received.recv()).await.unwrap()
    }

    pub fn nothing_more(&mut self) -> bool {
        self.received.try_recv().is_err()
    }
}

async fn receive(
    State(script): State<Arc<Script>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let received = Received { headers, body, at: Instant::now(), peer };
    let reply = script.next.lock().pop_front().unwrap_or_else(|| (script.otherwise)(&received));
    script.received.send(received).unwrap();
    match reply {
        Reply::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Reply::With(status, name, value) => {
            (StatusCode::from_u16(status).unwrap(), [(name, value)]).into_response()
        }
        Reply::Silence => std::future::pending().await,
        Reply::Long => "x".repeat(1 << 20).into_response(),
    }
}

/// Settings that make everything quick.
pub fn quick() -> Config {
    let mut config = Config::default();
    config.webhooks.allow_loopback = Some(true);
    config.webhooks.retry_first_ms = 20;
    config.webhooks.retry_max_ms = 100;
    config.webhooks.timeout_ms = 5_000;
    config.stages.drain_timeout_ms = 400;
    config
}

pub struct World {
    pub config: Config,
    pub clock: Arc<ForwardClock>,
    pub log: Arc<dyn EventLog>,
    pub control: Arc<ControlWriter>,
    pub sealer: Sealer,
    engine: Embedded,
    _dir: Arc<tempfile::TempDir>,
    shutdown: CancellationToken,
    stage: JoinHandle<()>,
}

impl World {
    pub async fn new(config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config;
        config.data_dir = dir.path().to_owned();
        let sealer = Sealer::new(&random_seal_key()).unwrap();
        Self::open(config, Arc::new(dir), Arc::default(), sealer).await
    }

    async fn open(
        config: Config,
        dir: Arc<tempfile::TempDir>,
        clock: Arc<ForwardClock>,
        sealer: Sealer,
    ) -> Self {
        let shared: SharedClock = clock.clone();
        let engine = Embedded::open(&config, shared.clone()).unwrap();
        let (log, health, shutdown) = (engine.log.clone(), Health::default(), CancellationToken::new());
        let view = ControlView::open(log.clone(), &health, shutdown.clone()).await.unwrap();
        let control = Arc::new(ControlWriter::new(log.clone(), view, shared.clone()));
        let limits = config.stages.clone();
        let runtime = Runtime { log: log.clone(), clock: shared, health, limits, shutdown: shutdown.clone() };
        let stage = stages(&config, control.clone(), sealer.clone()).unwrap().remove(0);
        let stage = tokio::spawn(run_stage(stage, runtime));
        Self { config, clock, log, control, sealer, engine, _dir: dir, shutdown, stage }
    }

    pub async fn stop(self) -> (Config, Arc<tempfile::TempDir>, Arc<ForwardClock>, Sealer) {
        self.shutdown.cancel();
        soon("the stage to end", self.stage).await.unwrap();
        self.engine.close().await;
        (self.config, self._dir, self.clock, self.sealer)
    }

    /// Ends the process and begins another on the same data.
    pub async fn restart(self) -> Self {
        self.restart_after(0).await
    }

    /// The same with some days in between.
    pub async fn restart_after(self, days: i64) -> Self {
        let (config, dir, clock, sealer) = self.stop().await;
        clock.forward(days);
        Self::open(config, dir, clock, sealer).await
    }

    /// Adds or replaces an endpoint of `client_id`; returns its secrets, newest first.
    pub async fn endpoint(&self, id: &str, client_id: &str, url: &str, secrets: usize) -> Vec<Secret> {
        let made: Vec<Secret> = (0..secrets).map(|_| random_webhook_secret()).collect();
        let now = self.clock.now().micros();
        let sealed = made.iter().enumerate().map(|(age, secret)| WebhookSecret {
            kid: format!("k{age}"),
            sealed: self.sealer.seal(&sealed_for(id), secret),
            created_at: now - age as i64,
            expires_at: if age == 0 { 0 } else { now + 3_600_000_000 },
        });
        let endpoint = WebhookEndpoint {
            endpoint_id: id.to_owned(),
            client_id: client_id.to_owned(),
            url: url.to_owned(),
            secrets: sealed.collect(),
            created_at: now,
            updated_at: now,
            ..WebhookEndpoint::default()
        };
        self.put(id, Some(&endpoint)).await;
        made
    }

    /// Changes or removes an endpoint.
    pub async fn put(&self, id: &str, endpoint: Option<&WebhookEndpoint>) {
        let change = || Change::put("webhook.change", "", key("webhook", &[id]), endpoint);
        self.control.change(&actor(), |_, _| Ok::<_, String>((Some(change()), ()))).await.unwrap();
    }

    /// An endpoint as it stands now.
    pub fn stored(&self, id: &str) -> WebhookEndpoint {
        (**self.control.view().state().webhook(id).unwrap()).clone()
    }

    /// Appends a kill as a guard action.
    pub async fn kill(&self, action_id: &str, client_id: &str, user_sub: &str) {
        let kill = KillSwitch {
            client_id: client_id.to_owned(),
            user_sub: user_sub.to_owned(),
            state: "killed".to_owned(),
            reason: "test".to_owned(),
            actor: "test".to_owned(),
        };
        let action = GuardAction {
            action_id: action_id.to_owned(),
            r#type: "panopticon.kill_switch".to_owned(),
            client_id: client_id.to_owned(),
            user_sub: user_sub.to_owned(),
            created_at: self.clock.now().micros(),
            kill: Some(kill),
            ..GuardAction::default()
        };
        self.act(&action).await;
    }

    pub async fn act(&self, action: &GuardAction) {
        self.append(&action.client_id, &action.user_sub, action.encode_to_vec()).await;
    }

    pub async fn append(&self, client_id: &str, user_sub: &str, payload: Vec<u8>) {
        let partitions = self.log.topic(Topic::GuardActions).await.unwrap().partitions;
        let partition = partition_of(&[client_id, user_sub], partitions);
        self.log.append(Topic::GuardActions, partition, Record::message(payload)).await.unwrap();
    }

    /// The first state of a delivery, from the beginning of the log on, that is as wanted.
    pub async fn until(&self, what: &str, mut wanted: impl FnMut(&Delivery) -> bool) -> Delivery {
        let mut tail = self.log.tail(Topic::WebhookDeliveries, TailFrom::Start).await.unwrap();
        soon(what, async {
            loop {
                let (_, stored) = tail.next().await.unwrap().unwrap();
                let Some(payload) = stored.record.payload else { continue };
                let delivery = Delivery::decode(payload).unwrap();
                if wanted(&delivery) {
                    return delivery;
                }
            }
        })
        .await
    }

    /// Waits until some delivery of this message is in this state.
    pub async fn until_state(&self, webhook_id: &str, state: &str) -> Delivery {
        let what = format!("{webhook_id} to be {state}");
        self.until(&what, |delivery| delivery.webhook_id == webhook_id && delivery.state == state).await
    }

    /// Waits for the first record of a topic that `pick` makes something of.
    pub async fn first<T>(&self, topic: Topic, mut pick: impl FnMut(Record) -> Option<T>) -> T {
        let mut tail = self.log.tail(topic, TailFrom::Start).await.unwrap();
        soon(topic.name(), async {
            loop {
                let (_, stored) = tail.next().await.unwrap().unwrap();
                if let Some(picked) = pick(stored.record) {
                    return picked;
                }
            }
        })
        .await
    }

    /// Waits until the endpoint is disabled, and returns its audit entry.
    pub async fn until_disabled(&self, id: &str) -> AuditEntry {
        let entry = self
            .first(Topic::Audit, |record| {
                let entry = AuditEntry::decode(record.bytes()).unwrap();
                (entry.action == "webhook.disable" && entry.target == id).then_some(entry)
            })
            .await;
        self.control.view().read_to_end().await.unwrap();
        entry
    }

    /// All deliveries that the table holds.
    pub async fn table(&self) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        for partition in 0..self.log.topic(Topic::WebhookDeliveries).await.unwrap().partitions {
            for (_, value) in self.log.table(Topic::WebhookDeliveries, partition).await.unwrap() {
                deliveries.push(Delivery::decode(value).unwrap());
            }
        }
        deliveries
    }
}
