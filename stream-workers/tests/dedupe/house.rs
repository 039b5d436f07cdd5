//! An engine with dedupe on it.

use std::{sync::Arc, time::Duration};

use panopticon_core::{
    config::Config,
    health::Health,
    ids::{ClientId, EventId, Place, SeenKey},
    log::{PartitionLag, Record, Replay},
    seen::{Mark, Marked, SeenSet},
    stage::{Runtime, run_stage},
    time::{SharedClock, SystemClock},
    topic::Topic,
    trace::{AcceptedTrace, Status, Trace, decode_envelope, encode_envelope},
};
use panopticon_embedded::Embedded;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

pub struct House {
    pub engine: Embedded,
    /// What dedupe is given for a seen set.
    pub seen: Arc<dyn SeenSet>,
    pub config: Config,
    clock: SharedClock,
    _dir: tempfile::TempDir,
}

impl House {
    pub fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { data_dir: dir.path().join("data"), ..Config::default() };
        let clock: SharedClock = Arc::new(SystemClock);
        let engine = Embedded::open(&config, clock.clone()).unwrap();
        Self { seen: engine.seen.clone(), engine, config, clock, _dir: dir }
    }

    pub fn trace(&self, number: u128) -> AcceptedTrace {
        let trace = Trace {
            event_id: EventId(Uuid::from_u128(number)),
            client_id: ClientId::new("app").unwrap(),
            user_sub: "alice".to_owned(),
            tool: "search".to_owned(),
            scope_used: String::new(),
            status: Status::Ok,
            started_at: self.clock.now(),
            duration_ms: 5,
            session_id: String::new(),
            agent: String::new(),
            source_ip: String::new(),
            error_code: String::new(),
            attributes: Default::default(),
        };
        AcceptedTrace::new(trace, self.clock.now())
    }

    pub async fn append(&self, traces: &[AcceptedTrace], replay: Option<Replay>) -> u64 {
        let record = Record { replay, ..Record::message(encode_envelope(traces.to_vec())) };
        self.engine.log.append(Topic::TracesRaw, 0, record).await.unwrap().unwrap()
    }

    /// A record that dedupe passes by, as a dead letter.
    pub async fn dead(&self, traces: &[AcceptedTrace]) -> u64 {
        self.append(traces, Some(Replay { stage: "another".to_owned(), first_offset: 0 })).await
    }

    /// Marks the traces of a record, as the gateway does.
    pub async fn mark(&self, traces: &[AcceptedTrace], offset: u64) {
        let log_id = self.engine.log.topic(Topic::TracesRaw).await.unwrap().log_id;
        let mark = |(index, trace): (u32, &AcceptedTrace)| Mark {
            key: SeenKey::of("app", trace.trace.event_id),
            place: Place { log_id, partition: 0, offset, index },
        };
        let marks = (0..).zip(traces).map(mark).collect();
        assert!(matches!(self.engine.seen.mark(marks, None).await.unwrap(), Marked::First(_)));
    }

    pub async fn replay(&self, traces: &[AcceptedTrace], first_offset: u64) {
        self.append(traces, Some(Replay { stage: "dedupe".to_owned(), first_offset })).await;
    }

    /// Runs dedupe until it has taken everything; answers the numbers of the traces that it has kept so far.
    pub async fn kept(&self) -> Vec<u128> {
        let (log, seen, store) = (self.engine.log.clone(), self.seen.clone(), self.engine.store.clone());
        let stage = panopticon_stream_workers::dedupe(seen, store, &self.config).pop().unwrap();
        let shutdown = CancellationToken::new();
        let runtime = Runtime {
            log: log.clone(),
            clock: self.clock.clone(),
            health: Health::default(),
            limits: self.config.stages.clone(),
            shutdown: shutdown.clone(),
        };
        let running = tokio::spawn(run_stage(stage, runtime));
        let finished = |of: &PartitionLag| of.committed.offset.unwrap_or(of.bounds.low) >= of.bounds.high;
        let idle = async {
            while !log.lag("dedupe", Topic::TracesRaw).await.unwrap().iter().all(finished) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, idle).await.unwrap();
        shutdown.cancel();
        running.await.unwrap();
        let bounds = log.bounds(Topic::Traces, 0).await.unwrap();
        let kept = log.read(Topic::Traces, 0, bounds.low, bounds.high, 1 << 20).await.unwrap();
        kept.iter()
            .flat_map(|stored| decode_envelope(stored.record.bytes()).unwrap())
            .map(|trace| trace.trace.event_id.0.as_u128())
            .collect()
    }
}
