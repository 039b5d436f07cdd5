//! One stream of requests, one at a time: collects what is due, sends it, and sends again what was not
//! confirmed.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use panopticon_core::{api::ErrorBody, time::Time};
use tokio::sync::mpsc;

use super::{
    MAX_BATCH_TRACES, Pace, ReplayError, ReplayOptions,
    grpc::GrpcGateway,
    rewrite::{Outgoing, Payload},
    tally::{Event, Rejection, Tally},
};
use crate::gateway::{BatchOutcome, Gateway, MAX_BODY_BYTES, SendError, TraceOutcome};

/// How long a request that could be fuller waits for more.
const LINGER: Duration = Duration::from_millis(20);
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long a server that has never answered is asked: it may be starting, or the URL may be wrong.
const FIRST_CONTACT: Duration = Duration::from_secs(15);

/// How traces travel.
pub(super) enum Carrier {
    Http(Gateway),
    Grpc(GrpcGateway),
}

impl Carrier {
    async fn send(&self, traces: &[Outgoing]) -> Result<BatchOutcome, SendError> {
        match self {
            Self::Http(gateway) => {
                let mut body = Vec::with_capacity(traces.iter().map(Outgoing::bytes).sum());
                for trace in traces {
                    if let Payload::Json(text) = &trace.payload {
                        body.extend_from_slice(text);
                        body.push(b'\n');
                    }
                }
                gateway.send_lines(body.into()).await
            }
            Self::Grpc(gateway) => gateway.send(traces).await,
        }
    }
}

/// Sends the traces of one queue in their order.
pub(super) struct Lane<'a, F> {
    carrier: Arc<Carrier>,
    url: &'a str,
    pace: Pace,
    batch: usize,
    give_up_after: Duration,
    queue: mpsc::Receiver<Outgoing>,
    waiting: VecDeque<Outgoing>,
    /// When the first trace was sent, and its time: what pacing counts from.
    beginning: Option<(Instant, Time)>,
    tally: &'a Tally<F>,
}

impl<'a, F: FnMut(Event<'_>) + Send> Lane<'a, F> {
    pub(super) fn new(
        carrier: Arc<Carrier>,
        options: &'a ReplayOptions,
        queue: mpsc::Receiver<Outgoing>,
        tally: &'a Tally<F>,
    ) -> Self {
        Self {
            carrier,
            url: &options.url,
            pace: options.pace,
            batch: options.batch.clamp(1, MAX_BATCH_TRACES),
            give_up_after: options.give_up_after,
            queue,
            waiting: VecDeque::new(),
            beginning: None,
            tally,
        }
    }

    /// Until the queue has ended and everything is sent.
    pub(super) async fn run(mut self) -> Result<(), ReplayError> {
        loop {
            if self.waiting.is_empty() {
                match self.queue.recv().await {
                    Some(trace) => self.waiting.push_back(trace),
                    None => return Ok(()),
                }
            }
            let due = match self.pace {
                Pace::Max => {
                    self.fill().await;
                    self.waiting.len()
                }
                Pace::Times(speed) => self.wait_until_due(speed).await,
            };
            let traces = self.take(due);
            self.deliver(traces).await?;
        }
    }

    /// Fills a request, or waits a moment for more.
    async fn fill(&mut self) {
        let deadline = tokio::time::Instant::now() + LINGER;
        while self.waiting.len() < self.batch {
            match tokio::time::timeout_at(deadline, self.queue.recv()).await {
                Ok(Some(trace)) => self.waiting.push_back(trace),
                Ok(None) | Err(_) => break,
            }
        }
    }

    /// Waits until the first trace is due; how many of those waiting are due then.
    async fn wait_until_due(&mut self, speed: f64) -> usize {
        if let Some(due) = self.waiting.front().and_then(|first| first.started_at) {
            let due = self.due(due, speed);
            tokio::time::sleep_until(due.into()).await;
        }
        while self.waiting.len() < self.batch {
            match self.queue.try_recv() {
                Ok(trace) => self.waiting.push_back(trace),
                Err(_) => break,
            }
        }
        let now = Instant::now();
        let mut due = 0;
        while let Some(trace) = self.waiting.get(due) {
            // What has no time goes with what is before it.
            if due > 0 && trace.started_at.is_some_and(|at| self.due(at, speed) > now) {
                break;
            }
            due += 1;
        }
        due
    }

    fn due(&mut self, at: Time, speed: f64) -> Instant {
        let (began, first) = *self.beginning.get_or_insert_with(|| (Instant::now(), at));
        let after = Duration::try_from_secs_f64(at.since(first).as_secs_f64() / speed);
        // Never, where that is beyond what a clock can hold.
        after
            .ok()
            .and_then(|after| began.checked_add(after))
            .unwrap_or(began + Duration::from_secs(u32::MAX.into()))
    }

    /// The next request: at most `due` traces, and at most as much as a gateway takes.
    fn take(&mut self, due: usize) -> Vec<Outgoing> {
        let (mut bytes, mut n) = (0, 0);
        for trace in self.waiting.iter().take(due.min(self.batch)) {
            bytes += trace.bytes();
            if n > 0 && bytes > MAX_BODY_BYTES {
                break;
            }
            n += 1;
        }
        self.waiting.drain(..n).collect()
    }

    /// Sends traces until each has come to an end; in parts where the gateway does not take them together.
    async fn deliver(&self, traces: Vec<Outgoing>) -> Result<(), ReplayError> {
        let mut parts = vec![traces];
        while let Some(part) = parts.pop() {
            if let Some(mut first) = self.send(part).await? {
                let second = first.split_off(first.len() / 2);
                parts.extend([second, first]);
            }
        }
        Ok(())
    }

    /// Sends traces until each is confirmed or refused. Gives back those that must be sent in parts.
    async fn send(&self, mut left: Vec<Outgoing>) -> Result<Option<Vec<Outgoing>>, ReplayError> {
        let (mut waits, mut asked_since) = (waits(), Instant::now());
        loop {
            let (why, after, answered) = match self.carrier.send(&left).await {
                Ok(outcome) => {
                    let before = left.len();
                    left = self.settle(left, outcome)?;
                    if left.is_empty() {
                        return Ok(None);
                    }
                    if left.len() < before {
                        (waits, asked_since) = (self::waits(), Instant::now());
                    }
                    ("some traces were not confirmed".to_owned(), None, true)
                }
                Err(SendError::Again { why, after, answered }) => (why, after, answered),
                Err(SendError::Divide(_)) if left.len() > 1 => return Ok(Some(left)),
                Err(SendError::Divide(body)) => {
                    for trace in &left {
                        self.tally.rejected(&refused_line(trace, &body));
                    }
                    return Ok(None);
                }
                Err(SendError::Refused(body)) => {
                    self.tally.not_confirmed(left.len());
                    let ErrorBody { error: code, error_description: description, .. } = body;
                    return Err(ReplayError::Refused { code, description });
                }
            };
            let wait = waits.next().unwrap_or(LONGEST_WAIT).max(after.unwrap_or_default());
            let first_contact = !answered && !self.tally.reached();
            let limit =
                if first_contact { FIRST_CONTACT.min(self.give_up_after) } else { self.give_up_after };
            let waited = asked_since.elapsed();
            if waited + wait > limit {
                self.tally.not_confirmed(left.len());
                return Err(ReplayError::GaveUp { url: self.url.to_owned(), waited, why });
            }
            self.tally.retrying(left.len(), &why, wait);
            tokio::time::sleep(wait).await;
        }
    }

    /// Counts the results; what was not confirmed is left.
    fn settle(&self, sent: Vec<Outgoing>, outcome: BatchOutcome) -> Result<Vec<Outgoing>, ReplayError> {
        let BatchOutcome { results, guard } = outcome;
        if results.len() != sent.len() {
            self.tally.not_confirmed(sent.len());
            let description =
                format!("the gateway answered {} results for {} traces", results.len(), sent.len());
            return Err(ReplayError::Refused { code: String::new(), description });
        }
        let (mut accepted, mut duplicate, mut left) = (0, 0, Vec::new());
        for (trace, result) in sent.into_iter().zip(results) {
            match result.status.as_str() {
                _ if result.is_unavailable() => left.push(trace),
                "accepted" => accepted += 1,
                "duplicate" => duplicate += 1,
                _ => self.tally.rejected(&rejection(&trace, result)),
            }
        }
        self.tally.add(accepted, duplicate, guard);
        Ok(left)
    }
}

fn waits() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_WAIT)
        .with_max_delay(LONGEST_WAIT)
        .with_jitter()
        .without_max_times()
        .build()
}

fn rejection(trace: &Outgoing, result: TraceOutcome) -> Rejection {
    Rejection {
        line: trace.line,
        error: result.error.unwrap_or(result.status),
        field: result.field.unwrap_or_default(),
        description: result.error_description.unwrap_or_default(),
    }
}

fn refused_line(trace: &Outgoing, body: &ErrorBody) -> Rejection {
    Rejection {
        line: trace.line,
        error: body.error.clone(),
        field: body.field.clone().unwrap_or_default(),
        description: body.error_description.clone(),
    }
}
