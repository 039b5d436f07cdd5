//! The runtime's own loop, on a lease that forgets.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::*;
use crate::{
    config::Config,
    log::{
        Bounds, Commit, Committed, ExclusiveWriter, PartitionLag, Poll, Record, Subscription, Tail, TailFrom,
        TopicInfo,
    },
    time::SystemClock,
};

fn away<T>() -> Result<T, LogError> {
    Err(LogError::Unavailable("the broker is away".to_owned()))
}

/// Nothing of it is asked for here.
struct NoLog;

#[async_trait]
impl EventLog for NoLog {
    async fn topic(&self, _: Topic) -> Result<TopicInfo, LogError> {
        away()
    }
    async fn append(&self, _: Topic, _: u32, _: Record) -> Result<Option<u64>, LogError> {
        away()
    }
    async fn bounds(&self, _: Topic, _: u32) -> Result<Bounds, LogError> {
        away()
    }
    async fn read(&self, _: Topic, _: u32, _: u64, _: u64, _: usize) -> Result<Vec<Stored>, LogError> {
        away()
    }
    async fn table(&self, _: Topic, _: u32) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        away()
    }
    async fn tail(&self, _: Topic, _: TailFrom) -> Result<Tail, LogError> {
        away()
    }
    async fn subscribe(&self, _: &'static str, _: Topic) -> Result<Box<dyn Subscription>, LogError> {
        away()
    }
    async fn writer(&self, _: &'static str) -> Result<Box<dyn ExclusiveWriter>, LogError> {
        away()
    }
    async fn lag(&self, _: &'static str, _: Topic) -> Result<Vec<PartitionLag>, LogError> {
        away()
    }
}

/// Knows how far the group has come only at the third time of asking.
struct Forgetful {
    known: Committed,
    asked: usize,
}

#[async_trait]
impl Lease for Forgetful {
    fn partition(&self) -> u32 {
        0
    }
    fn committed(&self) -> &Committed {
        &self.known
    }
    async fn poll(&mut self, _: PollLimits) -> Result<Poll, LogError> {
        away()
    }
    async fn commit(&mut self, _: Commit) -> Result<(), LogError> {
        away()
    }
    async fn rewind(&mut self) -> Result<(), LogError> {
        self.asked += 1;
        if self.asked < 3 {
            return away();
        }
        self.known.offset = Some(7);
        Ok(())
    }
    async fn revoked(&mut self) {
        std::future::pending().await
    }
}

/// Fails once, then ends.
#[derive(Default)]
struct Once {
    runs: AtomicUsize,
}

#[async_trait]
impl Stage for Once {
    fn name(&self) -> &'static str {
        "once"
    }
    fn input(&self) -> Topic {
        Topic::Traces
    }
    async fn run(&self, lease: &mut dyn Lease, _: &PartitionContext) -> Result<(), StageError> {
        match self.runs.fetch_add(1, Ordering::SeqCst) {
            0 => Err(StageError::Store(StoreError::Unavailable("an insert was interrupted".to_owned()))),
            _ => {
                assert_eq!(lease.committed().offset, Some(7), "it began from what was known before");
                Ok(())
            }
        }
    }
}

#[tokio::test]
async fn after_an_error_a_stage_begins_only_from_the_position_that_is_committed_by_then() {
    let mut limits = Config::default().stages;
    (limits.retry_min_ms, limits.retry_max_ms) = (1, 1);
    let runtime = Runtime {
        log: Arc::new(NoLog),
        clock: Arc::new(SystemClock),
        health: Health::default(),
        limits,
        shutdown: CancellationToken::new(),
    };
    let stage = Arc::new(Once::default());
    let lease = Forgetful { known: Committed { offset: Some(3), ..Committed::default() }, asked: 0 };
    work(stage.clone(), runtime, Box::new(lease)).await;
    assert_eq!(stage.runs.load(Ordering::SeqCst), 2);
}
