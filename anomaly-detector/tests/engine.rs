//! The stages of detector and enforcer on the embedded engine, from traces to guard actions, with restarts
//! in the middle.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use panopticon_anomaly_detector::settings::SettingsOf;
use panopticon_core::{
    admission::trace_from_json,
    config::Config,
    control::ControlView,
    health::Health,
    ids::partition_of,
    log::{Commit, EventLog, PollLimits, Record, Stored},
    stage::{IDLE_WAIT, Runtime, Stage, run_stage},
    time::{Clock, Time},
    topic::Topic,
    trace::{AcceptedTrace, encode_envelope},
};
use panopticon_embedded::Embedded;
use panopticon_proto::log::{DeadLetter, Detection, GuardAction};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Says what the test has set.
struct SetClock(AtomicI64);

impl SetClock {
    fn set(&self, now: Time) {
        self.0.store(now.micros(), Ordering::SeqCst);
    }
}

impl Clock for SetClock {
    fn now(&self) -> Time {
        Time::from_micros(self.0.load(Ordering::SeqCst))
    }
}

/// One life of the process.
struct Process {
    engine: Embedded,
    stages: JoinSet<()>,
    shutdown: CancellationToken,
}

const STAGES: [(&str, Topic); 5] = [
    ("rate-limit", Topic::Traces),
    ("detector", Topic::Traces),
    ("detector-sources", Topic::Denials),
    ("detector-apps", Topic::Rollups),
    ("guard-actions", Topic::Detections),
];

impl Process {
    async fn start(data_dir: &Path, clock: Arc<SetClock>) -> Self {
        let mut config = Config { data_dir: data_dir.to_owned(), ..Config::default() };
        config.embedded.partitions = 2;
        // Small, so that there is much to take up again.
        config.stages.batch_records = 3;
        let engine = Embedded::open(&config, clock.clone()).unwrap();
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        let view = ControlView::open(engine.log.clone(), &health, shutdown.clone()).await.unwrap();
        let runtime = Runtime {
            log: engine.log.clone(),
            clock,
            health,
            limits: config.stages.clone(),
            shutdown: shutdown.clone(),
        };
        let partitions = engine.log.topic(Topic::Traces).await.unwrap().partitions;
        let mut all: Vec<Arc<dyn Stage>> =
            panopticon_anomaly_detector::stages(&config.stages, partitions, &SettingsOf::default(), None);
        all.extend(panopticon_guard_enforcer::stages(view, &config.stages, partitions));
        let mut stages = JoinSet::new();
        for stage in all {
            stages.spawn(run_stage(stage, runtime.clone()));
        }
        Self { engine, stages, shutdown }
    }

    async fn stop(mut self, in_order: bool) {
        if in_order {
            self.shutdown.cancel();
            while self.stages.join_next().await.is_some() {}
        } else {
            self.stages.shutdown().await;
            self.shutdown.cancel();
        }
        self.engine.close().await;
    }

    async fn append(&self, traces: Vec<AcceptedTrace>) {
        let mut envelopes: BTreeMap<u32, Vec<AcceptedTrace>> = BTreeMap::new();
        for accepted in traces {
            let parts = [accepted.trace.client_id.as_str(), &accepted.trace.user_sub];
            envelopes.entry(partition_of(&parts, 2)).or_default().push(accepted);
        }
        for (partition, traces) in envelopes {
            let record = Record::message(encode_envelope(traces));
            self.engine.log.append(Topic::Traces, partition, record).await.unwrap();
        }
    }

    /// Waits until every stage has done what there is to do.
    async fn settle(&self) {
        for (stage, topic) in STAGES {
            let done = async {
                while !self.engine.log.lag(stage, topic).await.unwrap().iter().all(|lag| {
                    lag.bounds.high == lag.bounds.low || lag.committed.offset >= Some(lag.bounds.high)
                }) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), done).await.expect(stage);
        }
    }

    async fn read<M: prost::Message + Default>(&self, topic: Topic) -> Vec<M> {
        let partitions = self.engine.log.topic(topic).await.unwrap().partitions;
        let mut messages = Vec::new();
        for partition in 0..partitions {
            let records = read_all(&*self.engine.log, topic, partition).await;
            messages.extend(records.iter().map(|stored| M::decode(stored.record.bytes()).unwrap()));
        }
        messages
    }
}

async fn read_all(log: &dyn EventLog, topic: Topic, partition: u32) -> Vec<Stored> {
    let bounds = log.bounds(topic, partition).await.unwrap();
    let (mut from, mut all) = (bounds.low, Vec::new());
    while from < bounds.high {
        let records = log.read(topic, partition, from, bounds.high, 1 << 20).await.unwrap();
        let Some(last) = records.last() else { break };
        from = last.offset + 1;
        all.extend(records);
    }
    all
}

fn airline() -> Vec<AcceptedTrace> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/airline-traces.ndjson.gz");
    let lines = BufReader::new(flate2::read::GzDecoder::new(File::open(path).unwrap())).lines();
    let now: Time = "2026-07-01T00:00:00Z".parse().unwrap();
    lines
        .map(|line| {
            let trace = trace_from_json(line.unwrap().as_bytes(), now).unwrap();
            // In the order of the file, each a little after it began.
            let received_at = trace.started_at.plus(Duration::from_millis(300));
            AcceptedTrace { trace, received_at, late: false, place: None }
        })
        .collect()
}

/// Feeds the airline's traces, with the process dying after every `lives` of them.
async fn found_in(lives: usize, in_order: bool) -> (Vec<Detection>, Vec<GuardAction>) {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(SetClock(AtomicI64::new(0)));
    let traces = airline();
    clock.set(traces[0].received_at);
    let mut process = Process::start(folder.path(), clock.clone()).await;
    for (n, some) in traces.chunks(16).enumerate() {
        clock.set(some.last().unwrap().received_at);
        process.append(some.to_vec()).await;
        if (n + 1) % lives == 0 {
            // In the middle of what there is to do.
            process.stop(in_order).await;
            process = Process::start(folder.path(), clock.clone()).await;
        }
    }
    process.settle().await;
    // Time passes, and both episodes end without a further trace.
    clock.set(traces.last().unwrap().received_at.plus(Duration::from_secs(7_200)));
    let ended = async {
        while process.read::<GuardAction>(Topic::GuardActions).await.len() < 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the episodes end");
    process.settle().await;
    let found = (process.read(Topic::Detections).await, process.read(Topic::GuardActions).await);
    assert_eq!(process.read::<DeadLetter>(Topic::DeadLetters).await, []);
    process.stop(true).await;
    found
}

fn check(detections: &[Detection], actions: &[GuardAction]) {
    let mut told: Vec<(&str, &str, &str)> =
        detections.iter().map(|d| (d.rule.as_str(), d.kind.as_str(), d.phase.as_str())).collect();
    told.sort_unstable();
    assert_eq!(
        told,
        [
            ("failed_auth", "by_source", "ended"),
            ("failed_auth", "by_source", "started"),
            ("rate_limit", "per_tool", "ended"),
            ("rate_limit", "per_tool", "started"),
        ]
    );
    let runaway = detections.iter().filter(|d| d.rule == "rate_limit");
    for detection in runaway {
        assert_eq!(detection.deciding_event_id, "d68db41a-7ff5-501f-8780-2798f6aa92e6");
        assert!(detection.emitted_at > 0);
    }
    let ids: std::collections::HashSet<&str> = actions.iter().map(|a| a.action_id.as_str()).collect();
    assert_eq!((actions.len(), ids.len()), (4, 4));
    for detection in detections {
        let tells = |action: &&GuardAction| action.detection.as_ref() == Some(detection);
        assert_eq!(actions.iter().filter(tells).count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_incidents_become_four_actions_in_one_life() {
    let (detections, actions) = found_in(usize::MAX, true).await;
    check(&detections, &actions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_in_the_middle_lose_and_repeat_nothing() {
    let (detections, actions) = found_in(7, true).await;
    check(&detections, &actions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deaths_in_the_middle_lose_and_repeat_nothing() {
    let (detections, actions) = found_in(3, false).await;
    check(&detections, &actions);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_episode_is_ended_by_the_clock_while_dedupe_stands_still() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(SetClock(AtomicI64::new(0)));
    clock.set(common::at(0));
    let process = Process::start(folder.path(), clock.clone()).await;
    process.append((0..6).map(|n| common::denied(n, "user_1", "", n as i64)).collect()).await;
    process.settle().await;
    // What dedupe has not brought yet may go on with the episode.
    for partition in 0..2 {
        let raw = Record::message(encode_envelope([]));
        process.engine.log.append(Topic::TracesRaw, partition, raw).await.unwrap();
    }
    clock.set(common::at(7_200));
    // Time for the stages to look at the clock, several times.
    tokio::time::sleep(3 * IDLE_WAIT).await;
    assert_eq!(process.read::<Detection>(Topic::Detections).await.len(), 1);

    let mut dedupe = process.engine.log.subscribe("dedupe", Topic::TracesRaw).await.unwrap();
    let mut leases = Vec::new();
    for _ in 0..2 {
        leases.push(dedupe.next_lease().await.unwrap());
    }
    for lease in &mut leases {
        let commit = Commit { next: Some(1), ..Commit::default() };
        let limits = PollLimits { records: 1, bytes: 1, wait: IDLE_WAIT };
        lease.poll(limits).await.unwrap();
        lease.commit(commit).await.unwrap();
    }
    let ended = async {
        while process.read::<Detection>(Topic::Detections).await.len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the episode ends");
    process.stop(true).await;
}
