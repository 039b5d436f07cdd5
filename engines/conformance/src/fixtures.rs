//! What the promises are tried with.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt as _;
use panopticon_core::{
    ids::{ClientId, EventId, LogId, Place, SeenKey},
    log::{Lease, Output, Poll, PollLimits, Record, Stored, Subscription, Tail},
    store::{BatchRange, Row, Rows},
    time::{Clock as _, Time},
    topic::Topic,
    trace::{AcceptedTrace, Status, Trace},
};
use uuid::Uuid;

use crate::Ports;

/// The stage of whose group the tests are members.
pub(crate) const STAGE: &str = "conformance";

/// How long anything may take before the test fails: leases can take seconds to move.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long is waited for what should not happen.
pub(crate) const QUIET: Duration = Duration::from_millis(400);

pub(crate) const READ_BYTES: usize = 1 << 20;

pub(crate) fn message(text: &str) -> Record {
    Record::message(text.as_bytes().to_vec())
}

pub(crate) fn output(topic: Topic, partition: u32, text: &str) -> Output {
    Output { topic, partition, record: message(text) }
}

pub(crate) fn text(stored: &Stored) -> String {
    String::from_utf8(stored.record.bytes().to_vec()).unwrap()
}

pub(crate) fn texts(records: &[Stored]) -> Vec<String> {
    records.iter().map(text).collect()
}

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

impl Ports {
    pub(crate) async fn append(&self, topic: Topic, partition: u32, text: &str) -> u64 {
        let offset = self.log.append(topic, partition, message(text)).await.unwrap();
        match offset {
            Some(offset) => offset,
            // The log did not say; it is the last record that is there.
            None => self.read_all(topic, partition).await.last().unwrap().offset,
        }
    }

    pub(crate) async fn read_all(&self, topic: Topic, partition: u32) -> Vec<Stored> {
        let bounds = self.log.bounds(topic, partition).await.unwrap();
        let (mut from, mut all) = (bounds.low, Vec::new());
        while from < bounds.high {
            let part = self.log.read(topic, partition, from, bounds.high, READ_BYTES).await.unwrap();
            let Some(last) = part.last() else { break };
            from = last.offset + 1;
            all.extend(part);
        }
        all
    }

    pub(crate) async fn subscribe(&self, topic: Topic) -> Box<dyn Subscription> {
        self.log.subscribe(STAGE, topic).await.unwrap()
    }

    /// Joins the group and waits for the lease of `partition`; the other leases that came are kept, so that
    /// nobody has to move.
    pub(crate) async fn lease(&self, topic: Topic, partition: u32) -> Held {
        let mut subscription = self.subscribe(topic).await;
        let mut others = Vec::new();
        loop {
            let lease = within("a lease", subscription.next_lease()).await.unwrap();
            if lease.partition() == partition {
                return Held { lease, _others: others, _subscription: subscription };
            }
            others.push(lease);
        }
    }

    pub(crate) async fn log_id(&self, topic: Topic) -> LogId {
        self.log.topic(topic).await.unwrap().log_id
    }

    pub(crate) async fn range(&self, topic: Topic, partition: u32, from: u64, to: u64) -> BatchRange {
        BatchRange { topic, log_id: self.log_id(topic).await, partition, from, to }
    }

    pub(crate) fn now(&self) -> Time {
        // To the microsecond, as stores keep it.
        self.clock.now()
    }
}

/// A lease, and what it hangs on.
pub(crate) struct Held {
    pub(crate) lease: Box<dyn Lease>,
    _others: Vec<Box<dyn Lease>>,
    _subscription: Box<dyn Subscription>,
}

impl Held {
    /// Polls until there are `wanted` records.
    pub(crate) async fn take(&mut self, wanted: usize) -> Vec<Stored> {
        let limits = PollLimits { records: wanted, bytes: READ_BYTES, wait: Duration::from_secs(1) };
        let mut all: Vec<Stored> = Vec::new();
        within("records", async {
            while all.len() < wanted {
                match self.lease.poll(PollLimits { records: wanted - all.len(), ..limits }).await.unwrap() {
                    Poll::Records(records) => all.extend(records),
                    Poll::Revoked => panic!("the lease was revoked"),
                }
            }
        })
        .await;
        all
    }
}

/// The next `wanted` records of a tail, as (partition, text) in the order of their partitions.
pub(crate) async fn from_tail(tail: &mut Tail, wanted: usize) -> Vec<(u32, String)> {
    let mut all = Vec::new();
    for n in 0..wanted {
        let (partition, stored) =
            within(&format!("record {n} of a tail"), tail.next()).await.unwrap().unwrap();
        all.push((partition, text(&stored)));
    }
    // Partitions come in any order, the records of one in theirs.
    all.sort_by_key(|(partition, _)| *partition);
    all
}

pub(crate) async fn nothing_from(tail: &mut Tail) {
    if let Ok(more) = tokio::time::timeout(QUIET, tail.next()).await {
        panic!("the tail brought {more:?}");
    }
}

pub(crate) fn client(name: &str) -> ClientId {
    ClientId::new(name).unwrap()
}

pub(crate) fn event(n: u128) -> EventId {
    // Spread, so that the order of ids is not that of their making.
    EventId(Uuid::from_u128(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)))
}

pub(crate) fn key(n: u128) -> SeenKey {
    SeenKey::of("app", event(n))
}

pub(crate) fn place(offset: u64) -> Place {
    Place { log_id: LogId(0xfedc_ba98_7654_3210), partition: 1, offset, index: 7 }
}

/// The `n`th trace of an app.
pub(crate) fn trace(client_id: &ClientId, n: u128, started_at: Time, received_at: Time) -> AcceptedTrace {
    let trace = Trace {
        event_id: event(n),
        client_id: client_id.clone(),
        user_sub: format!("user_{}", n % 3),
        tool: format!("tool_{}", n % 4),
        scope_used: if n.is_multiple_of(2) { "read".to_owned() } else { String::new() },
        status: [Status::Ok, Status::Error, Status::Denied, Status::Ok][(n % 4) as usize],
        started_at,
        duration_ms: (n % 1_000) as u32,
        session_id: String::new(),
        agent: String::new(),
        source_ip: String::new(),
        error_code: String::new(),
        attributes: BTreeMap::new(),
    };
    AcceptedTrace { trace, received_at, late: false, place: None }
}

/// Rows that came in records of `per_record` from offset `from` on.
pub(crate) fn rows<T: Clone>(values: &[T], from: u64, per_record: usize) -> Vec<Row<T>> {
    values
        .iter()
        .enumerate()
        .map(|(i, value)| Row {
            offset: from + (i / per_record) as u64,
            index: (i % per_record) as u32,
            value: value.clone(),
        })
        .collect()
}

/// Puts traces in as records of their own from offset `from` on.
pub(crate) async fn put_traces(ports: &Ports, from: u64, traces: &[AcceptedTrace]) {
    let range = ports.range(Topic::Traces, 0, from, from + traces.len() as u64).await;
    let refused = ports
        .store
        .insert(range, Rows::of_traces(rows(traces, from, 1)), panopticon_core::store::Attempt::First)
        .await
        .unwrap();
    assert_eq!(refused, []);
}
