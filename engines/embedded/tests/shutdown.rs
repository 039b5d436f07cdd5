//! What is seen of a close, from inside.

// Tests may, and so may what they share.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use panopticon_core::{
    config::Config,
    log::{LogError, Poll, PollLimits, Record, TailFrom},
    time::SystemClock,
    topic::Topic,
};
use panopticon_embedded::Embedded;
use tempfile::TempDir;

#[tokio::test(flavor = "multi_thread")]
async fn a_close_revokes_leases_waits_for_them_and_leaves_one_file() {
    let directory = TempDir::new().unwrap();
    let config = Config { data_dir: directory.path().to_owned(), ..Config::default() };
    let engine = Embedded::open(&config, Arc::new(SystemClock)).unwrap();
    let mut subscription = engine.log.subscribe("stage", Topic::TracesRaw).await.unwrap();
    let mut lease = subscription.next_lease().await.unwrap();
    let mut other = subscription.next_lease().await.unwrap();
    let mut tail = engine.log.tail(Topic::Traces, TailFrom::Start).await.unwrap();
    let log = Arc::clone(&engine.log);

    let work = tokio::spawn(async move {
        let limits = PollLimits { records: 1, bytes: 1, wait: Duration::from_secs(60) };
        let polled = lease.poll(limits).await.unwrap();
        assert!(matches!(polled, Poll::Revoked), "{polled:?}");
        other.revoked().await;
        // A stage finishes what it has under way: the log still takes it.
        lease.commit(Default::default()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    engine.close().await;
    assert!(work.is_finished());
    work.await.unwrap();

    assert!(tail.next().await.is_none());
    assert!(matches!(subscription.next_lease().await, Err(LogError::Unavailable(_))));
    let refused = log.append(Topic::TracesRaw, 0, Record::message("late")).await;
    assert!(matches!(refused, Err(LogError::Unavailable(_))), "{refused:?}");
    assert!(!directory.path().join("panopticon.db-wal").exists());
    // Although ports are still held.
    Embedded::open(&config, Arc::new(SystemClock)).unwrap();
}
