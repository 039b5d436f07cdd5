//! Single reads: a range of a partition, the latest records of a compacted one.
//!
//! Everything here blocks. A client costs threads, so a few are kept and lent.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use panopticon_core::{
    log::{LogError, Stored},
    topic::Topic,
};
use parking_lot::{Condvar, Mutex};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode as Code},
};

use super::{
    client::{Clients, QUESTION_TIMEOUT},
    context::Voice,
    error::{failed, is_missing, is_refusal},
    keeper::{Idle, drain},
    offsets::Offsets,
    record::{incoming, partition_number, raw_offset},
};

/// Reads that may be under way at once; further ones wait.
const MAX_READERS: usize = 4;
/// How long a look for the next record lasts.
const QUIET: Duration = Duration::from_millis(250);

/// A client whose assignment belongs to the read under way.
struct Reader {
    consumer: BaseConsumer<Voice>,
    /// Held by the read under way.
    busy: Mutex<()>,
}

impl Idle for Reader {
    fn drain(&self) {
        if let Some(_free) = self.busy.try_lock() {
            drain(|time| drop(self.consumer.poll(time)));
        }
    }
}

#[derive(Default)]
struct Pool {
    idle: Vec<Arc<Reader>>,
    lent: usize,
}

/// Lends clients to reads.
pub(super) struct Readers {
    clients: Arc<Clients>,
    offsets: Arc<Offsets>,
    pool: Mutex<Pool>,
    returned: Condvar,
}

/// What a read takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) topic: Topic,
    pub(super) partition: u32,
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Readers {
    pub(super) fn new(clients: &Arc<Clients>, offsets: &Arc<Offsets>) -> Self {
        Self {
            clients: Arc::clone(clients),
            offsets: Arc::clone(offsets),
            pool: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    /// The records of `range`, at most `max_bytes` of them but at least one if there is one.
    pub(super) fn read(&self, range: Range, max_bytes: usize) -> Result<Vec<Stored>, LogError> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        self.visit(range, |record| {
            bytes += record.record.size();
            let fits = records.is_empty() || bytes <= max_bytes;
            if fits {
                records.push(record);
            }
            fits && bytes < max_bytes
        })?;
        Ok(records)
    }

    /// The latest record of each key, in the order of their offsets; tombstones and replayed records left
    /// out.
    pub(super) fn table(&self, topic: Topic, partition: u32) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        let from = self.offsets.bounds(topic, partition)?.low;
        let range = Range { topic, partition, from, to: u64::MAX };
        let mut latest: HashMap<Bytes, (u64, Bytes)> = HashMap::new();
        self.visit(range, |stored| {
            if stored.record.replay.is_some() {
                return true;
            }
            match stored.record.payload {
                Some(payload) => latest.insert(stored.record.key, (stored.offset, payload)),
                None => latest.remove(&stored.record.key),
            };
            true
        })?;
        let mut rows: Vec<(u64, Bytes, Bytes)> =
            latest.into_iter().map(|(key, (offset, payload))| (offset, key, payload)).collect();
        rows.sort_unstable_by_key(|(offset, ..)| *offset);
        Ok(rows.into_iter().map(|(_, key, payload)| (key, payload)).collect())
    }

    /// Shows the records of `range` to `take` until it has had enough.
    fn visit(&self, mut range: Range, mut take: impl FnMut(Stored) -> bool) -> Result<(), LogError> {
        let Range { topic, partition, from, to } = range;
        if from >= to {
            return Ok(());
        }
        // From the end on the driver would not say that the end is reached.
        let bounds = self.offsets.settled_bounds(topic, partition)?;
        range.to = to.min(bounds.high);
        if from < bounds.low {
            return Err(LogError::Hole { topic, partition, wanted: from, low: bounds.low });
        }
        if from >= range.to {
            return Ok(());
        }
        let reader = self.lend()?;
        let outcome = {
            let _busy = reader.busy.lock();
            let outcome = self.walk(&reader.consumer, range, &mut take);
            // What was fetched ahead is dropped, and nothing more is fetched.
            outcome.and(reader.consumer.unassign().map_err(|error| failed("end a read", &error)))
        };
        let mut pool = self.pool.lock();
        pool.lent -= 1;
        if outcome.is_ok() {
            pool.idle.push(reader);
        }
        self.returned.notify_one();
        outcome
    }

    fn walk(
        &self,
        consumer: &BaseConsumer<Voice>,
        range: Range,
        take: &mut impl FnMut(Stored) -> bool,
    ) -> Result<(), LogError> {
        let Range { topic, partition, mut from, to } = range;
        let name = self.clients.topic(topic);
        let what = format!("read {topic}-{partition} from {from}");
        // Otherwise the driver finds the leader of a topic that is new to it up to a second later.
        consumer.fetch_metadata(Some(&name), QUESTION_TIMEOUT).map_err(|error| failed(&what, &error))?;
        let mut assignment = TopicPartitionList::with_capacity(1);
        assignment
            .add_partition_offset(&name, partition_number(partition), Offset::Offset(raw_offset(from)))
            .and_then(|()| consumer.assign(&assignment))
            .map_err(|error| failed(&what, &error))?;
        let mut heard = Instant::now();
        loop {
            match consumer.poll(QUIET) {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    let record = incoming(&message);
                    let ours = message.partition() == partition_number(partition) && message.topic() == name;
                    if !ours || record.offset < from {
                        continue;
                    }
                    if record.offset >= to {
                        return Ok(());
                    }
                    from = record.offset + 1;
                    if !take(record) || from >= to {
                        return Ok(());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(Code::AutoOffsetReset) => {
                        // Retention was quicker than the read.
                        let low = self.offsets.bounds(topic, partition)?.low;
                        return Err(LogError::Hole { topic, partition, wanted: from, low });
                    }
                    Some(code) if is_missing(code) => return Err(LogError::NoTopic(topic)),
                    Some(code) if is_refusal(code) => return Err(failed(&what, &error)),
                    // The driver goes on by itself.
                    _ => {}
                },
                None if heard.elapsed() > QUESTION_TIMEOUT => {
                    return Err(LogError::Unavailable(format!("{what}: nothing came")));
                }
                None => {}
            }
        }
    }

    fn lend(&self) -> Result<Arc<Reader>, LogError> {
        {
            let mut pool = self.pool.lock();
            while pool.lent >= MAX_READERS {
                self.returned.wait(&mut pool);
            }
            pool.lent += 1;
            if let Some(reader) = pool.idle.pop() {
                return Ok(reader);
            }
        }
        let made = self.clients.create(self.clients.reader("read"), self.clients.voice("read"));
        match made {
            Ok(consumer) => {
                let reader = Arc::new(Reader { consumer, busy: Mutex::new(()) });
                // Nobody else can while it is busy, and it may need a token first.
                reader.drain();
                let as_idle: Arc<dyn Idle> = Arc::<Reader>::clone(&reader);
                self.clients.keeper.keep(Arc::downgrade(&as_idle));
                Ok(reader)
            }
            Err(error) => {
                self.pool.lock().lent -= 1;
                self.returned.notify_one();
                Err(error.into())
            }
        }
    }
}
