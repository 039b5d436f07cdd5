//! One transactional producer: outputs and a group's position become visible together or not at all.
//!
//! Everything here blocks; callers run it on threads that may.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::sync_channel,
    },
    thread,
    time::{Duration, Instant},
};

use panopticon_core::{
    log::{LogError, Record},
    topic::Topic,
};
use parking_lot::Mutex;
use rdkafka::{
    ClientContext, TopicPartitionList,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    consumer::ConsumerGroupMetadata,
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::Message,
    producer::{BaseProducer, DeliveryResult, Producer, ProducerContext},
};

use super::{
    client::{Clients, QUESTION_TIMEOUT},
    context::Voice,
    error::{failed, is_fencing, is_refusal},
    keeper::{Idle, dispose, drain},
    record::{check_size, offset_number, outgoing},
};

/// Pause before a retriable step is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long the broker may still be writing a transaction's markers after its commit has returned. Adding
/// partitions meanwhile is refused, and the driver tries that again only 20 ms later; adding a position is
/// tried again at once.
const MARKERS: Duration = Duration::from_millis(20);
/// After so many transactions in a row have failed, the producer itself is the reason.
const MAX_FAILURES: u32 = 3;
/// Pause between two looks at the delivery reports. The driver's own wait lasts as long as it may, reports or
/// not, and burns its last millisecond.
const LOOK_PAUSE: Duration = Duration::from_micros(300);
/// A step is given so long even where its time is over, so that it says what it would wait for.
const LEAST_WAIT: Duration = Duration::from_millis(1);
/// How much longer than it was told to the driver may take to say what became of a position.
const POSITION_GRACE: Duration = Duration::from_secs(1);
/// How often delivery reports are taken while a transaction is aborted.
const ABORT_POLL: Duration = Duration::from_millis(5);

/// A record and the topic's full name.
pub(super) struct Target<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: u32,
    pub(super) record: &'a Record,
}

/// Where a group shall stand after the transaction, and as whom it says so.
pub(super) struct Position {
    pub(super) offsets: TopicPartitionList,
    pub(super) member: Arc<ConsumerGroupMetadata>,
}

/// What became of a transaction's records.
#[derive(Default)]
struct Landed {
    offsets: Vec<Option<u64>>,
    failure: Option<Code>,
}

struct Reports {
    voice: Voice,
    landed: Mutex<Landed>,
}

impl ClientContext for Reports {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.voice.token()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.voice.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.voice.error(error, reason);
    }
}

impl ProducerContext for Reports {
    /// Which of the transaction's records it is.
    type DeliveryOpaque = usize;

    fn delivery(&self, report: &DeliveryResult<'_>, index: usize) {
        let mut landed = self.landed.lock();
        match report {
            Ok(message) => {
                if let Some(offset) = landed.offsets.get_mut(index) {
                    *offset = offset_number(message.offset());
                }
            }
            Err((error, _)) => {
                landed.failure = landed.failure.or(error.rdkafka_error_code());
            }
        }
    }
}

impl Idle for BaseProducer<Reports> {
    fn drain(&self) {
        // Taking delivery reports beside a commit under way does no harm.
        drain(|time| self.poll(time));
    }
}

/// How far the last transaction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// None is open.
    Clean,
    /// Begun; to be aborted unless it is committed.
    Open,
    /// The commit was asked for, its outcome not heard yet.
    Committing,
    /// A call of the driver does not return, and refuses every other one: only a new producer of the same id goes on.
    Stuck,
}

/// The right to write as one transactional id.
pub(super) struct TxnProducer {
    id: String,
    /// In an option so that dropping can hand it to another thread.
    producer: Option<Arc<BaseProducer<Reports>>>,
    state: State,
    committed_at: Option<Instant>,
    /// Transactions that have failed since the last one that was committed.
    failures: u32,
    timeout: Duration,
    max_record_bytes: usize,
}

impl TxnProducer {
    /// Takes over `id`: whoever had it is fenced, and what they had begun is undone or finished.
    pub(super) fn open(clients: &Clients, id: &str) -> Result<Self, LogError> {
        let context = Reports { voice: clients.voice(id), landed: Mutex::default() };
        let producer: Arc<BaseProducer<Reports>> =
            Arc::new(clients.create(clients.transactional(id), context)?);
        let as_idle: Arc<dyn Idle> = Arc::<BaseProducer<Reports>>::clone(&producer);
        clients.keeper.keep(Arc::downgrade(&as_idle));
        let opened = Self {
            id: id.to_owned(),
            producer: Some(producer),
            state: State::Clean,
            committed_at: None,
            failures: 0,
            timeout: clients.transaction_timeout(),
            max_record_bytes: clients.kafka.max_record_bytes,
        };
        let deadline = opened.deadline();
        // Any question to a partition's leader waits for a connection. Without one the driver would look for
        // the coordinator half a second later. Should no broker answer, the next step says so.
        let control = clients.topic(Topic::Control);
        let _ = opened.producer().client().fetch_watermarks(&control, 0, QUESTION_TIMEOUT);
        let taken = repeat(opened.producer(), deadline, |producer, left| producer.init_transactions(left));
        taken.map_err(|error| {
            let why = opened.reports().voice.last_error().map(|why| format!(" ({why})")).unwrap_or_default();
            failed(&format!("take over `{id}`{why}"), &error)
        })?;
        Ok(opened)
    }

    /// Commits `targets` and `position`; the offsets of the records, where the acks had them.
    pub(super) fn commit(
        &mut self,
        targets: &[Target<'_>],
        position: Option<Position>,
    ) -> Result<Vec<Option<u64>>, LogError> {
        let outcome = self.transact(targets, position);
        self.judge(outcome)
    }

    fn transact(
        &mut self,
        targets: &[Target<'_>],
        position: Option<Position>,
    ) -> Result<Vec<Option<u64>>, LogError> {
        for target in targets {
            check_size(target.record, self.max_record_bytes)?;
        }
        self.end_open()?;
        let deadline = self.deadline();
        *self.reports().landed.lock() = Landed { offsets: vec![None; targets.len()], failure: None };
        repeat(self.producer(), deadline, |producer, _| producer.begin_transaction())
            .map_err(|error| self.explain("begin", &error))?;
        self.state = State::Open;
        match self.fill(targets, position, deadline) {
            Ok(offsets) => self.finish(deadline).map(|()| offsets),
            Err(error) => Err(self.undo(error)),
        }
    }

    /// Ends what an earlier commit has left open, one way or the other.
    pub(super) fn settle(&mut self) -> Result<(), LogError> {
        let outcome = self.end_open();
        self.judge(outcome)
    }

    /// Gives the id up where nothing but failures came of it. After the cluster was without a leader or a
    /// coordinator for a moment, the driver may never find them again; a new producer of the same id does,
    /// and ends what this one had begun.
    fn judge<T>(&mut self, outcome: Result<T, LogError>) -> Result<T, LogError> {
        match outcome {
            Err(LogError::Unavailable(why) | LogError::Aborted(why)) if self.failures + 1 >= MAX_FAILURES => {
                Err(LogError::Fenced(format!("given up after {MAX_FAILURES} failures: {why}")))
            }
            Err(error) => {
                self.failures += 1;
                Err(error)
            }
            Ok(done) => Ok(done),
        }
    }

    fn end_open(&mut self) -> Result<(), LogError> {
        match self.state {
            State::Clean => Ok(()),
            State::Open | State::Stuck => self.abort(),
            State::Committing => match self.finish(self.deadline()) {
                // Undone is settled too.
                Err(LogError::Aborted(_)) => Ok(()),
                outcome => outcome,
            },
        }
    }

    /// Writes everything into the open transaction.
    fn fill(
        &mut self,
        targets: &[Target<'_>],
        position: Option<Position>,
        deadline: Instant,
    ) -> Result<Vec<Option<u64>>, LogError> {
        if self.committed_at.is_some_and(|at| at.elapsed() < MARKERS) {
            self.write_position(position, deadline)?;
            self.send_all(targets, deadline)?;
        } else {
            // The position is written while the records are on their way.
            self.send_all(targets, deadline)?;
            self.write_position(position, deadline)?;
        }
        // With records in flight the driver's commit would take a tenth of a second at least.
        while self.producer().in_flight_count() > 0 {
            if Instant::now() >= deadline {
                return Err(LogError::Unavailable(format!("records of `{}` were not acknowledged", self.id)));
            }
            self.look();
        }
        let landed = std::mem::take(&mut *self.reports().landed.lock());
        match landed.failure {
            Some(code) => Err(self.explain("write", &KafkaError::MessageProduction(code))),
            None => Ok(landed.offsets),
        }
    }

    /// Takes the delivery reports that are there, or waits a moment for some.
    fn look(&self) {
        let before = self.producer().in_flight_count();
        self.producer().poll(Duration::ZERO);
        if self.producer().in_flight_count() == before {
            thread::sleep(LOOK_PAUSE);
        }
    }

    /// Writes the position, on a thread that can be left behind: the driver does not keep to the time that it is given.
    /// Where it has not found the group's coordinator (a broker that has just started names none) it waits for another
    /// broker to come or go, for good if need be (librdkafka 2.12, `creq_ts_timeout` is never looked at).
    fn write_position(&mut self, position: Option<Position>, deadline: Instant) -> Result<(), LogError> {
        let Some(Position { offsets, member }) = position else { return Ok(()) };
        let (tell, told) = sync_channel(1);
        let producer = Arc::clone(self.producer());
        let ask = move || {
            let outcome = repeat(&producer, deadline, |producer, left| {
                producer.send_offsets_to_transaction(&offsets, &member, left)
            });
            // Nobody hears a late answer.
            let _ = tell.send(outcome);
        };
        let unasked = |error| LogError::Unavailable(format!("commit the position as `{}`: {error}", self.id));
        thread::Builder::new().name("kafka-position".to_owned()).spawn(ask).map_err(unasked)?;
        match told.recv_timeout(deadline.saturating_duration_since(Instant::now()) + POSITION_GRACE) {
            Ok(outcome) => outcome.map_err(|error| self.explain("commit the position", &error)),
            Err(_) => {
                self.state = State::Stuck;
                Err(self.stuck())
            }
        }
    }

    fn stuck(&self) -> LogError {
        LogError::Fenced(format!(
            "given up: the driver does not say what became of the position of `{}`",
            self.id
        ))
    }

    fn send_all(&self, targets: &[Target<'_>], deadline: Instant) -> Result<(), LogError> {
        let mut targets = targets.iter().enumerate();
        targets.try_for_each(|(index, target)| self.send(index, target, deadline))
    }

    fn send(&self, index: usize, target: &Target<'_>, deadline: Instant) -> Result<(), LogError> {
        loop {
            let record = outgoing(target.topic, target.partition, target.record, index);
            match self.producer().send(record) {
                Ok(()) => return Ok(()),
                Err((error, _)) => {
                    let full = error.rdkafka_error_code() == Some(Code::QueueFull);
                    if !full || Instant::now() >= deadline {
                        return Err(self.explain("write", &error));
                    }
                    self.look();
                }
            }
        }
    }

    /// Asks for the commit until its outcome is known.
    fn finish(&mut self, deadline: Instant) -> Result<(), LogError> {
        self.state = State::Committing;
        match repeat(self.producer(), deadline, |producer, left| producer.commit_transaction(left)) {
            Ok(()) => {
                self.state = State::Clean;
                self.failures = 0;
                self.committed_at = Some(Instant::now());
                Ok(())
            }
            Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
                let error = self.explain("commit", &KafkaError::Transaction(error));
                Err(self.undo(error))
            }
            Err(error) => Err(self.explain("commit", &error)),
        }
    }

    /// Aborts, and says what that makes of `error`.
    fn undo(&mut self, error: LogError) -> LogError {
        match (self.abort(), error) {
            (Err(worse), _) => worse,
            (Ok(()), LogError::Unavailable(why)) => LogError::Aborted(why),
            (Ok(()), error) => error,
        }
    }

    fn abort(&mut self) -> Result<(), LogError> {
        if self.state == State::Stuck {
            return Err(self.stuck());
        }
        self.state = State::Open;
        let deadline = self.deadline();
        let aborted = AtomicBool::new(false);
        // The driver's abort waits until the delivery reports of what it drops have been taken.
        let outcome = thread::scope(|scope| {
            scope.spawn(|| {
                while !aborted.load(Ordering::Acquire) {
                    self.producer().poll(ABORT_POLL);
                }
            });
            let outcome =
                repeat(self.producer(), deadline, |producer, left| producer.abort_transaction(left));
            aborted.store(true, Ordering::Release);
            outcome
        });
        outcome.map_err(|error| self.explain("abort", &error))?;
        self.state = State::Clean;
        Ok(())
    }

    /// The error of doing `what` in a transaction, for the port.
    fn explain(&self, what: &str, error: &KafkaError) -> LogError {
        let text = format!("{what} as `{}`: {error}", self.id);
        // After a fatal error every call only says that there was one.
        let fatal = self.producer().client().fatal_error();
        let code = fatal.as_ref().map(|(code, _)| *code).or(error.rdkafka_error_code());
        match (code, fatal) {
            (Some(code), _) if is_refusal(code) => LogError::Broken(text),
            (_, Some((_, why))) => LogError::Fenced(format!("{text} ({why})")),
            (Some(code), _) if is_fencing(code) => LogError::Fenced(text),
            (Some(Code::MessageSizeTooLarge), _) => {
                LogError::TooLarge { bytes: self.max_record_bytes, limit: self.max_record_bytes }
            }
            _ => LogError::Unavailable(text),
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    fn reports(&self) -> &Reports {
        self.producer().context()
    }

    fn producer(&self) -> &Arc<BaseProducer<Reports>> {
        // Only `drop` takes it out.
        match &self.producer {
            Some(producer) => producer,
            None => unreachable!("a transactional producer is used after it was dropped"),
        }
    }
}

impl Drop for TxnProducer {
    fn drop(&mut self) {
        if let Some(producer) = self.producer.take() {
            dispose(producer);
        }
    }
}

/// Does `step` until it succeeds, fails for good, or the time is over.
fn repeat(
    producer: &BaseProducer<Reports>,
    deadline: Instant,
    step: impl Fn(&BaseProducer<Reports>, Duration) -> Result<(), KafkaError>,
) -> Result<(), KafkaError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match step(producer, left.max(LEAST_WAIT)) {
            Err(KafkaError::Transaction(error)) if error.is_retriable() && !left.is_zero() => {
                producer.poll(RETRY_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests;
