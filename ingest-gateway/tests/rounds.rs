//! What the log is asked for while it is slow, on the embedded engine.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use panopticon_core::{
    admission::{Admitted, admit_json},
    config::Config,
    ids::partition_of_hash,
    log::{
        Bounds, EventLog, ExclusiveWriter, LogError, PartitionLag, Record, Stored, Subscription, Tail,
        TailFrom, TopicInfo,
    },
    time::{Clock as _, SystemClock},
    topic::Topic,
    trace::decode_envelope,
};
use panopticon_embedded::Embedded;
use panopticon_ingest_gateway::{intake::Intake, verdict::Verdict};
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

const APP: &str = "app";

/// A log that takes nothing in a partition before it is told to.
struct Held {
    inner: Arc<dyn EventLog>,
    gates: Vec<Semaphore>,
    /// Partition and traces of each append as it is asked for.
    asked: mpsc::UnboundedSender<(u32, usize)>,
}

#[async_trait]
impl EventLog for Held {
    async fn topic(&self, topic: Topic) -> Result<TopicInfo, LogError> {
        self.inner.topic(topic).await
    }
    async fn append(&self, topic: Topic, partition: u32, record: Record) -> Result<Option<u64>, LogError> {
        let traces = decode_envelope(record.bytes()).unwrap().len();
        self.asked.send((partition, traces)).unwrap();
        self.gates[partition as usize].acquire().await.unwrap().forget();
        self.inner.append(topic, partition, record).await
    }
    async fn bounds(&self, topic: Topic, partition: u32) -> Result<Bounds, LogError> {
        self.inner.bounds(topic, partition).await
    }
    async fn read(
        &self,
        topic: Topic,
        partition: u32,
        from: u64,
        to: u64,
        max_bytes: usize,
    ) -> Result<Vec<Stored>, LogError> {
        self.inner.read(topic, partition, from, to, max_bytes).await
    }
    async fn table(&self, topic: Topic, partition: u32) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        self.inner.table(topic, partition).await
    }
    async fn tail(&self, topic: Topic, from: TailFrom) -> Result<Tail, LogError> {
        self.inner.tail(topic, from).await
    }
    async fn subscribe(&self, stage: &'static str, topic: Topic) -> Result<Box<dyn Subscription>, LogError> {
        self.inner.subscribe(stage, topic).await
    }
    async fn writer(&self, id: &'static str) -> Result<Box<dyn ExclusiveWriter>, LogError> {
        self.inner.writer(id).await
    }
    async fn lag(&self, stage: &'static str, topic: Topic) -> Result<Vec<PartitionLag>, LogError> {
        self.inner.lag(stage, topic).await
    }
}

struct House {
    intake: Arc<Intake>,
    log: Arc<Held>,
    asked: mpsc::UnboundedReceiver<(u32, usize)>,
    partitions: u32,
    _folder: tempfile::TempDir,
}

impl House {
    async fn open(configure: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: folder.path().to_owned(), ..Config::default() };
        configure(&mut config);
        let clock = Arc::new(SystemClock);
        let engine = Embedded::open(&config, clock.clone()).unwrap();
        let partitions = engine.log.topic(Topic::TracesRaw).await.unwrap().partitions;
        let (asking, asked) = mpsc::unbounded_channel();
        let gates = (0..partitions).map(|_| Semaphore::new(0)).collect();
        let log = Arc::new(Held { inner: engine.log.clone(), gates, asked: asking });
        let intake = Intake::open(log.clone(), engine.seen.clone(), None, &config, clock).await.unwrap();
        Self { intake: Arc::new(intake), log, asked, partitions, _folder: folder }
    }

    /// Has the log take so many more appends to a partition.
    fn let_go(&self, partition: u32, appends: usize) {
        self.log.gates[partition as usize].add_permits(appends);
    }

    /// A fresh trace whose user's partition this is.
    fn trace(&self, partition: u32) -> Admitted {
        static USERS: AtomicU64 = AtomicU64::new(0);
        loop {
            let user = USERS.fetch_add(1, Ordering::Relaxed);
            let trace = admitted(&format!("user-{user}"));
            if partition_of_hash(trace.partition_hash, self.partitions) == partition {
                return trace;
            }
        }
    }

    fn send(&self, traces: Vec<Admitted>) -> tokio::task::JoinHandle<Vec<Verdict>> {
        let intake = self.intake.clone();
        tokio::spawn(async move { intake.take_in(APP, traces).await })
    }
}

fn admitted(user: &str) -> Admitted {
    let now = SystemClock.now();
    let text = serde_json::json!({
        "event_id": Uuid::new_v4(), "client_id": APP, "user_sub": user, "tool": "search", "status": "ok",
        "started_at": now.to_string(), "duration_ms": 1
    });
    admit_json(text.to_string().as_bytes(), now, |_| ()).unwrap().0
}

#[tokio::test]
async fn requests_that_come_while_a_round_is_under_way_share_the_next_append() {
    let mut house = House::open(|_| {}).await;
    let first = house.send(vec![house.trace(1)]);
    assert_eq!(house.asked.recv().await, Some((1, 1)));
    let others: Vec<_> = (0..20).map(|_| house.send(vec![house.trace(1), house.trace(1)])).collect();
    house.let_go(1, 1);
    assert_eq!(first.await.unwrap(), [Verdict::Accepted]);
    assert_eq!(house.asked.recv().await, Some((1, 40)));
    house.let_go(1, 1);
    for other in others {
        assert_eq!(other.await.unwrap(), [Verdict::Accepted; 2]);
    }
}

#[tokio::test]
async fn traces_of_all_partitions_that_arrive_together_go_out_together() {
    let mut house = House::open(|_| {}).await;
    let partitions: Vec<u32> = (0..house.partitions).collect();
    let requests: Vec<_> =
        partitions.iter().map(|partition| house.send(vec![house.trace(*partition)])).collect();
    let mut asked = BTreeSet::new();
    // Nobody was let go: each append is asked for while the others are under way.
    for _ in &partitions {
        asked.insert(house.asked.recv().await.unwrap());
    }
    assert_eq!(asked, partitions.iter().map(|partition| (*partition, 1)).collect());
    partitions.iter().for_each(|partition| house.let_go(*partition, 1));
    for request in requests {
        assert_eq!(request.await.unwrap(), [Verdict::Accepted]);
    }
}

#[tokio::test]
async fn a_partition_that_does_not_answer_holds_nobody_else_up() {
    let mut house = House::open(|_| {}).await;
    let held = house.send(vec![house.trace(0)]);
    assert_eq!(house.asked.recv().await, Some((0, 1)));
    house.let_go(1, 100);
    for _ in 0..3 {
        assert_eq!(house.send(vec![house.trace(1)]).await.unwrap(), [Verdict::Accepted]);
    }
    assert!(!held.is_finished());
    // A request of both waits for the slower one.
    let both = house.send(vec![house.trace(1), house.trace(0)]);
    house.let_go(0, 2);
    assert_eq!(held.await.unwrap(), [Verdict::Accepted]);
    assert_eq!(both.await.unwrap(), [Verdict::Accepted; 2]);
}

#[tokio::test]
async fn what_the_log_has_not_taken_by_the_deadline_is_not_confirmed_and_the_rest_of_its_request_is() {
    let house = House::open(|config| config.gateway.append_timeout_ms = 50).await;
    house.let_go(1, 1);
    let verdicts = house.send(vec![house.trace(0), house.trace(1)]).await.unwrap();
    assert_eq!(verdicts, [Verdict::Unavailable, Verdict::Accepted]);
}

#[tokio::test]
async fn a_partition_whose_queue_is_full_takes_no_more_until_there_is_room() {
    let mut house = House::open(|config| config.gateway.queue_traces = 2).await;
    let waiting = house.send(vec![house.trace(0), house.trace(0)]);
    assert_eq!(house.asked.recv().await, Some((0, 2)));
    house.let_go(1, 1);
    let verdicts = house.send(vec![house.trace(0), house.trace(1)]).await.unwrap();
    assert_eq!(verdicts, [Verdict::Unavailable, Verdict::Accepted]);
    house.let_go(0, 2);
    assert_eq!(waiting.await.unwrap(), [Verdict::Accepted; 2]);
    assert_eq!(house.send(vec![house.trace(0)]).await.unwrap(), [Verdict::Accepted]);
}
