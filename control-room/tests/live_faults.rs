//! The live trace while the log fails.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{body::Body, http::Request};
use futures::StreamExt as _;
use panopticon_core::{
    log::{
        Bounds, EventLog, ExclusiveWriter, LogError, PartitionLag, Record, Stored, Subscription, Tail,
        TailFrom, TopicInfo,
    },
    topic::Topic,
};
use support::{ADMIN, House, url};
use tower::ServiceExt as _;

/// Breaks every tail of `traces` after two records, and says that offsets are gone when told so.
struct Flaky {
    inner: Arc<dyn EventLog>,
    tails: Arc<AtomicUsize>,
    gone: Arc<AtomicBool>,
}

#[async_trait]
impl EventLog for Flaky {
    async fn topic(&self, topic: Topic) -> Result<TopicInfo, LogError> {
        self.inner.topic(topic).await
    }
    async fn append(&self, topic: Topic, partition: u32, record: Record) -> Result<Option<u64>, LogError> {
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
        if topic == Topic::Traces && self.gone.swap(false, Ordering::SeqCst) {
            let low = from + 2;
            return Err(LogError::Hole { topic, partition, wanted: from, low });
        }
        self.inner.read(topic, partition, from, to, max_bytes).await
    }
    async fn table(
        &self,
        topic: Topic,
        partition: u32,
    ) -> Result<Vec<(bytes::Bytes, bytes::Bytes)>, LogError> {
        self.inner.table(topic, partition).await
    }
    async fn tail(&self, topic: Topic, from: TailFrom) -> Result<Tail, LogError> {
        let tail = self.inner.tail(topic, from).await?;
        if topic != Topic::Traces {
            return Ok(tail);
        }
        self.tails.fetch_add(1, Ordering::SeqCst);
        let end =
            futures::stream::once(async { Err(LogError::Unavailable("broken by the test".to_owned())) });
        Ok(tail.take(2).chain(end).boxed())
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

/// The text of a stream until it has so many events of a kind.
async fn text_until(house: &House, last_event_id: Option<&str>, event: &str, count: usize) -> String {
    let mut request = Request::get(url("/apps/shop/live")).header("authorization", format!("Bearer {ADMIN}"));
    if let Some(id) = last_event_id {
        request = request.header("last-event-id", id);
    }
    let response = house.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let mut stream = response.into_body().into_data_stream();
    let mut text = String::new();
    while text.matches(&format!("event: {event}\n")).count() < count {
        let chunk = tokio::time::timeout(Duration::from_secs(10), stream.next()).await;
        text.push_str(std::str::from_utf8(&chunk.expect("in time").unwrap().unwrap()).unwrap());
    }
    text
}

async fn open() -> (House, Arc<AtomicUsize>, Arc<AtomicBool>) {
    let (tails, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (t, g) = (tails.clone(), gone.clone());
    let house = House::open_on(|_| {}, move |inner| Arc::new(Flaky { inner, tails: t, gone: g })).await;
    house.enable("shop").await;
    (house, tails, gone)
}

#[tokio::test]
async fn the_feed_goes_on_where_it_was_when_its_tail_breaks() {
    let (house, tails, _) = open().await;
    let first = text_until(&house, None, "ping", 1).await;
    let id = first.lines().find_map(|line| line.strip_prefix("id: ")).unwrap();
    let watching = text_until(&house, Some(id), "trace", 7);
    let tracing = async {
        for number in 0..7 {
            house.trace_all(vec![house.a_trace("shop", "one", number)]).await;
        }
    };
    let (text, ()) = tokio::join!(watching, tracing);
    let seen: Vec<u128> = (0..7)
        .filter(|number| text.matches(&uuid::Uuid::from_u128(*number).to_string()).count() == 1)
        .collect();
    assert_eq!(seen, (0..7).collect::<Vec<_>>(), "each once: {text}");
    assert!(tails.load(Ordering::SeqCst) >= 3, "the tail broke");
}

#[tokio::test]
async fn who_resumes_where_retention_was_faster_is_told_and_gets_the_rest() {
    let (house, _, gone) = open().await;
    let first = text_until(&house, None, "ping", 1).await;
    let id = first.lines().find_map(|line| line.strip_prefix("id: ")).unwrap();
    for number in 0..5 {
        house.trace_all(vec![house.a_trace("shop", "one", number)]).await;
    }
    // When the feed has seen them all, one who resumes reads them from the log.
    text_until(&house, Some(id), "trace", 5).await;
    gone.store(true, Ordering::SeqCst);
    let text = text_until(&house, Some(id), "trace", 3).await;
    assert!(text.starts_with("event: missed\ndata: {\"count\":0}\n\n"), "{text}");
    for (number, wanted) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1)] {
        let count = text.matches(&uuid::Uuid::from_u128(number).to_string()).count();
        assert_eq!(count, wanted, "{number} in {text}");
    }
}
