//! Following a topic without being a member of a group: one client and one thread a tail.

use std::{sync::Arc, thread, time::Duration};

use futures::{StreamExt, stream};
use panopticon_core::{
    log::{LogError, Stored, Tail, TailFrom},
    topic::Topic,
};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::RDKafkaErrorCode as Code,
};
use tokio::sync::mpsc::{self, Sender};

use super::{
    client::Clients,
    context::Voice,
    error::{failed, is_missing, is_refusal},
    offsets::Offsets,
    record::{incoming, partition_number, raw_offset},
};

/// Records that may wait for whoever reads the stream; the thread waits then.
const QUEUE_RECORDS: usize = 256;
/// How often the thread looks whether the stream was dropped.
const LOOK: Duration = Duration::from_millis(100);

type Item = Result<(u32, Stored), LogError>;

/// Starts a tail. Blocks until it is known where it begins: what is appended afterwards is in it.
pub(super) fn follow(
    clients: &Arc<Clients>,
    offsets: &Arc<Offsets>,
    topic: Topic,
    partitions: u32,
    from: &TailFrom,
) -> Result<Tail, LogError> {
    let starts: Vec<Offset> = match from {
        // The driver resolves it, so retention cannot get ahead of it.
        TailFrom::Start => vec![Offset::Beginning; partitions as usize],
        TailFrom::End => (0..partitions)
            .map(|partition| Ok(Offset::Offset(raw_offset(offsets.settled_bounds(topic, partition)?.high))))
            .collect::<Result<_, LogError>>()?,
        TailFrom::Offsets(offsets) if offsets.len() == partitions as usize => {
            offsets.iter().map(|offset| Offset::Offset(raw_offset(*offset))).collect()
        }
        TailFrom::Offsets(offsets) => {
            return Err(LogError::Broken(format!(
                "a tail of {topic} was given {} offsets for {partitions} partitions",
                offsets.len()
            )));
        }
    };
    let what = format!("follow {topic}");
    let name = clients.topic(topic);
    let consumer: BaseConsumer<Voice> =
        clients.create(clients.consumer("tail", &clients.id("reader")), clients.voice("tail"))?;
    let mut assignment = TopicPartitionList::with_capacity(starts.len());
    for (partition, start) in (0..partitions).zip(&starts) {
        assignment
            .add_partition_offset(&name, partition_number(partition), *start)
            .map_err(|error| failed(&what, &error))?;
    }
    consumer.assign(&assignment).map_err(|error| failed(&what, &error))?;
    let (items, stream) = mpsc::channel::<Item>(QUEUE_RECORDS);
    let follower = Follower { offsets: Arc::clone(offsets), consumer, topic, positions: starts };
    thread::Builder::new()
        .name("kafka-tail".to_owned())
        .spawn(move || follower.run(&items))
        .map_err(|error| LogError::Unavailable(format!("{what}: {error}")))?;
    Ok(stream::unfold(stream, |mut stream| async move { Some((stream.recv().await?, stream)) }).boxed())
}

struct Follower {
    offsets: Arc<Offsets>,
    consumer: BaseConsumer<Voice>,
    topic: Topic,
    /// What comes next in each partition.
    positions: Vec<Offset>,
}

impl Follower {
    /// Until the stream is dropped, or cannot go on.
    fn run(mut self, items: &Sender<Item>) {
        while !items.is_closed() {
            let item = match self.consumer.poll(LOOK) {
                None => continue,
                Some(Ok(message)) => {
                    let (partition, record) = (message.partition(), incoming(&message));
                    let Some(position) =
                        usize::try_from(partition).ok().and_then(|index| self.positions.get_mut(index))
                    else {
                        continue;
                    };
                    *position = Offset::Offset(raw_offset(record.offset + 1));
                    Ok((u32::try_from(partition).unwrap_or(0), record))
                }
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(Code::AutoOffsetReset) => Err(self.hole()),
                    Some(code) if is_missing(code) => Err(LogError::NoTopic(self.topic)),
                    Some(code) if is_refusal(code) => Err(failed(&format!("follow {}", self.topic), &error)),
                    // A broker that is away: the driver connects again and goes on.
                    _ => continue,
                },
            };
            let over = item.is_err();
            if items.blocking_send(item).is_err() || over {
                return;
            }
        }
    }

    /// Which partition no longer has what comes next.
    fn hole(&self) -> LogError {
        for (partition, position) in (0..).zip(&self.positions) {
            let Offset::Offset(position) = *position else { continue };
            let wanted = u64::try_from(position).unwrap_or(0);
            match self.offsets.bounds(self.topic, partition) {
                Ok(bounds) if wanted < bounds.low => {
                    return LogError::Hole { topic: self.topic, partition, wanted, low: bounds.low };
                }
                Ok(_) => {}
                Err(error) => return error,
            }
        }
        LogError::Broken(format!("{} does not reach as far as it was to be followed from", self.topic))
    }
}
