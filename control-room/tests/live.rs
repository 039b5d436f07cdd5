//! What the live trace promises: everything once, in order, or a word about what is missing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that panics has failed")]

mod support;

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    http::Request,
};
use futures::StreamExt as _;
use serde_json::{Value, json};
use support::{ADMIN, House, url};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tower::ServiceExt as _;

/// One event of a stream.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    name: String,
    id: Option<String>,
    data: Value,
}

impl Event {
    /// The number of the trace, as [`House::a_trace`] numbered it.
    fn number(&self) -> u128 {
        assert_eq!(self.name, "trace", "{self:?}");
        self.data["event_id"].as_str().unwrap().parse::<uuid::Uuid>().unwrap().as_u128()
    }
}

/// A viewer that reads its stream.
struct Watcher {
    stream: BodyDataStream,
    text: String,
}

impl Watcher {
    async fn enter(house: &House, client_id: &str, last_event_id: Option<&str>) -> Self {
        let mut request = Request::get(url(&format!("/apps/{client_id}/live")))
            .header("authorization", format!("Bearer {ADMIN}"));
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = house.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { stream: response.into_body().into_data_stream(), text: String::new() }
    }

    /// Enters and takes the first ping, after which nothing is missed.
    async fn enter_now(house: &House, client_id: &str) -> (Self, String) {
        let mut watcher = Self::enter(house, client_id, None).await;
        let ping = watcher.event().await;
        assert_eq!(ping.name, "ping");
        (watcher, ping.id.unwrap())
    }

    async fn event(&mut self) -> Event {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                return parse(&event);
            }
            let next = tokio::time::timeout(Duration::from_secs(10), self.stream.next()).await;
            let chunk = next.expect("an event within 10 s").expect("the stream goes on").unwrap();
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..count {
            events.push(self.event().await);
        }
        events
    }

    async fn numbers(&mut self, count: usize) -> Vec<u128> {
        self.events(count).await.iter().map(Event::number).collect()
    }

    /// Nothing more comes for a while.
    async fn is_quiet(&mut self) -> bool {
        self.text.is_empty()
            && tokio::time::timeout(Duration::from_millis(300), self.stream.next()).await.is_err()
    }
}

fn parse(text: &str) -> Event {
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    };
    Event {
        name: field("event").unwrap(),
        id: field("id"),
        data: serde_json::from_str(&field("data").unwrap()).unwrap(),
    }
}

/// Appends traces with these numbers, `per_envelope` to a record, users spread over the partitions.
async fn trace(house: &House, client_id: &str, numbers: std::ops::Range<u128>, per_envelope: usize) {
    let numbers: Vec<u128> = numbers.collect();
    for chunk in numbers.chunks(per_envelope) {
        let user = format!("user-{}", chunk[0]);
        house.trace_all(chunk.iter().map(|number| house.a_trace(client_id, &user, *number)).collect()).await;
    }
}

#[tokio::test]
async fn a_viewer_gets_the_traces_of_its_app_as_they_come_and_no_others() {
    let house = House::open().await;
    house.enable("shop").await;
    let (mut first, _) = Watcher::enter_now(&house, "shop").await;
    trace(&house, "shop", 1..2, 1).await;
    assert_eq!(first.numbers(1).await, [1]);
    let (mut watcher, _) = Watcher::enter_now(&house, "shop").await;
    trace(&house, "bank", 10..12, 1).await;
    trace(&house, "shop", 20..22, 2).await;
    let events = watcher.events(2).await;
    assert_eq!(events.iter().map(Event::number).collect::<Vec<_>>(), [20, 21]);
    let data = &events[0].data;
    assert_eq!(
        (&data["client_id"], &data["tool"], &data["late"]),
        (&json!("shop"), &json!("search"), &json!(false))
    );
    assert_eq!(data["received_at"], "2026-06-30T12:00:00.000000Z");
    assert_ne!(events[0].id, events[1].id);
    assert!(watcher.is_quiet().await);
}

#[tokio::test]
async fn a_viewer_that_resumes_misses_nothing_and_sees_nothing_twice_wherever_it_left_off() {
    let house = House::open().await;
    house.enable("shop").await;
    let (mut first, before_all) = Watcher::enter_now(&house, "shop").await;
    trace(&house, "bank", 500..510, 3).await;
    trace(&house, "shop", 0..30, 3).await;
    let seen = first.events(30).await;
    let mut left_off = vec![(before_all, 0)];
    left_off.extend(seen.iter().enumerate().map(|(i, event)| (event.id.clone().unwrap(), i + 1)));
    drop(first);
    for (id, shown) in left_off {
        let mut watcher = Watcher::enter(&house, "shop", Some(&id)).await;
        let mut all: Vec<u128> = seen[..shown].iter().map(Event::number).collect();
        all.extend(watcher.numbers(30 - shown).await);
        all.sort_unstable();
        assert_eq!(all, (0..30).collect::<Vec<_>>(), "left off after {shown}");
        assert!(shown % 10 != 0 || watcher.is_quiet().await);
    }
}

#[tokio::test]
async fn resuming_meets_the_live_feed_without_gap_or_repeat_while_traces_keep_coming() {
    let house = Arc::new(House::open_with(|config| config.live.buffer_traces = 100_000).await);
    house.enable("shop").await;
    let (first, before_all) = Watcher::enter_now(&house, "shop").await;
    drop(first);
    trace(&house, "shop", 0..2_000, 50).await;
    let writing = tokio::spawn({
        let house = house.clone();
        async move { trace(&house, "shop", 2_000..3_000, 5).await }
    });
    // Comes and goes while it catches up: each time it goes on where it was.
    let (mut id, mut all) = (before_all, Vec::new());
    for take in [700, 801, 333, 1_166] {
        let mut watcher = Watcher::enter(&house, "shop", Some(&id)).await;
        let events = watcher.events(take).await;
        id = events.last().unwrap().id.clone().unwrap();
        all.extend(events.iter().map(Event::number));
    }
    writing.await.unwrap();
    all.sort_unstable();
    assert_eq!(all, (0..3_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn one_users_traces_keep_their_order_when_resumed() {
    let house = House::open().await;
    house.enable("shop").await;
    let (first, id) = Watcher::enter_now(&house, "shop").await;
    drop(first);
    for number in 0..50 {
        house
            .trace_all(vec![house.a_trace("shop", "one", number), house.a_trace("shop", "one", 100 + number)])
            .await;
    }
    let wanted: Vec<u128> = (0..50).flat_map(|number| [number, 100 + number]).collect();
    assert_eq!(Watcher::enter(&house, "shop", Some(&id)).await.numbers(100).await, wanted);
}

#[tokio::test]
async fn a_stalled_viewer_is_told_exactly_what_it_missed_and_slows_nobody() {
    let house = House::open_with(|config| config.live.buffer_traces = 10).await;
    house.enable("shop").await;
    let (mut stalled, _) = Watcher::enter_now(&house, "shop").await;
    let (mut brisk, _) = Watcher::enter_now(&house, "shop").await;
    for number in 0..25 {
        trace(&house, "shop", number..number + 1, 1).await;
        assert_eq!(brisk.numbers(1).await, [number]);
    }
    assert_eq!(stalled.numbers(10).await, (0..10).collect::<Vec<_>>());
    let missed = stalled.event().await;
    assert_eq!((missed.name.as_str(), &missed.data), ("missed", &json!({"count": 15})));
    trace(&house, "shop", 25..26, 1).await;
    assert_eq!(stalled.numbers(1).await, [25]);
}

#[tokio::test]
async fn a_position_that_the_log_does_not_have_begins_anew_with_a_word_about_it() {
    let (house, other) = (House::open().await, House::open().await);
    house.enable("shop").await;
    other.enable("shop").await;
    let (_, foreign) = Watcher::enter_now(&other, "shop").await;
    for id in [foreign.as_str(), "nonsense"] {
        let mut watcher = Watcher::enter(&house, "shop", Some(id)).await;
        let missed = watcher.event().await;
        assert_eq!((missed.name.as_str(), &missed.data), ("missed", &json!({"count": 0})), "{id}");
        assert_eq!(watcher.event().await.name, "ping");
        trace(&house, "shop", 7..8, 1).await;
        assert_eq!(watcher.numbers(1).await, [7]);
    }
}

#[tokio::test]
async fn an_idle_stream_carries_pings_and_ends_with_its_token() {
    let house = House::open_with(|config| config.live.ping_secs = 1).await;
    house.enable("shop").await;
    let token = house.post("/tokens", json!({"name": "x", "role": "read"})).await;
    let request = Request::get(url("/apps/shop/live"))
        .header("authorization", format!("Bearer {}", token.text("token")));
    let response = house.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let mut watcher = Watcher { stream: response.into_body().into_data_stream(), text: String::new() };
    assert_eq!(watcher.event().await.name, "ping");
    assert_eq!(watcher.event().await, Event { name: "ping".to_owned(), id: None, data: json!({}) });
    house.delete(&format!("/tokens/{}", token.text("id"))).await;
    let end = async { while watcher.stream.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(5), end).await.expect("the stream ends");
}

#[tokio::test]
async fn over_a_connection_one_viewer_too_many_is_answered_503_until_another_leaves() {
    let house = House::open_with(|config| config.live.max_subscribers = 2).await;
    house.enable("shop").await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(axum::serve(listener, house.router.clone()).into_future());
    let (first, second) = (connect(address).await, connect(address).await);
    assert!(first.1.starts_with("HTTP/1.1 200") && second.1.starts_with("HTTP/1.1 200"), "{}", first.1);
    let refused = connect(address).await.1;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 1\r\n"), "{refused}");
    drop(first);
    let left = std::time::Instant::now();
    while !connect(address).await.1.starts_with("HTTP/1.1 200") {
        assert!(left.elapsed() < Duration::from_secs(5), "a viewer that has gone still has its seat");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    serving.abort();
}

/// Asks for the live trace over a connection of its own; answers it with the head of the answer.
async fn connect(address: std::net::SocketAddr) -> (TcpStream, String) {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {ADMIN}\r\n\r\n",
        url("/apps/shop/live")
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut head = String::new();
    while !head.contains("\r\n\r\n") {
        let mut bytes = [0; 4096];
        let count = connection.read(&mut bytes).await.unwrap();
        assert!(count > 0, "{head}");
        head.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    (connection, head)
}

#[tokio::test]
async fn streams_end_when_the_process_does() {
    let house = House::open().await;
    house.enable("shop").await;
    let (mut watcher, _) = Watcher::enter_now(&house, "shop").await;
    house.shutdown.cancel();
    assert!(tokio::time::timeout(Duration::from_secs(5), watcher.stream.next()).await.unwrap().is_none());
}
