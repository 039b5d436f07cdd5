//! How far a viewer has come, as the `id` of an event.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use panopticon_core::ids::LogId;
use prost::encoding::{decode_varint, encode_varint};

/// The first byte; another form gets another.
const FORM: u8 = 1;
/// More partitions than a topic ever has.
const MAX_PARTITIONS: u64 = 4_096;

/// Everything before `next` has been shown, and in `partition` the first `index` traces of the envelope
/// at `next` too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Which creation of the topic.
    pub log_id: LogId,
    /// The next offset of each partition.
    pub next: Vec<u64>,
    /// Where an envelope was shown in part.
    pub partition: usize,
    /// How many of its traces were shown.
    pub index: u64,
}

impl Position {
    /// Before the records at `next`.
    pub fn before(log_id: LogId, next: Vec<u64>) -> Self {
        Self { log_id, next, partition: 0, index: 0 }
    }

    /// How many traces of the envelope at `next[partition]` were shown.
    pub fn shown_of(&self, partition: usize) -> u64 {
        if partition == self.partition { self.index } else { 0 }
    }

    /// The whole envelope at `offset` of `partition` has been shown or passed.
    pub fn pass(&mut self, partition: usize, offset: u64) {
        if let Some(next) = self.next.get_mut(partition) {
            *next = (*next).max(offset + 1);
        }
        if partition == self.partition {
            self.index = 0;
        }
    }

    /// This position within the envelope at `offset`, of which `shown` traces have been shown.
    pub fn within(&self, partition: usize, offset: u64, shown: u64) -> Self {
        let mut next = self.next.clone();
        if let Some(next) = next.get_mut(partition) {
            *next = offset;
        }
        Self { log_id: self.log_id, next, partition, index: shown }
    }

    /// As an event id: form, log id, partition, index, number of partitions and their offsets, as varints
    /// in base64url.
    pub fn encode(&self) -> String {
        let mut bytes = vec![FORM];
        bytes.extend(self.log_id.0.to_be_bytes());
        let numbers = [self.partition as u64, self.index, self.next.len() as u64];
        for number in numbers.into_iter().chain(self.next.iter().copied()) {
            encode_varint(number, &mut bytes);
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads an event id.
    pub fn decode(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (&form, rest) = bytes.split_first()?;
        let (log_id, mut rest) = rest.split_first_chunk::<8>()?;
        let mut number = || decode_varint(&mut rest).ok();
        let (partition, index, partitions) = (number()?, number()?, number()?);
        if form != FORM || partitions > MAX_PARTITIONS || partition >= partitions {
            return None;
        }
        let next = (0..partitions).map(|_| number()).collect::<Option<Vec<u64>>>()?;
        let partition = usize::try_from(partition).ok()?;
        rest.is_empty().then_some(Self { log_id: LogId(u64::from_be_bytes(*log_id)), next, partition, index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_back_as_it_was_written() {
        let position =
            Position { log_id: LogId(u64::MAX), next: vec![0, 5, u64::MAX], partition: 1, index: 300 };
        assert_eq!(Position::decode(&position.encode()), Some(position));
    }

    #[test]
    fn what_is_no_position_is_not_read() {
        let good = Position::before(LogId(7), vec![1, 2]).encode();
        for bad in ["", "0", "not base64!", &good[..good.len() - 1], &format!("{good}AA")] {
            assert_eq!(Position::decode(bad), None, "{bad}");
        }
    }
}
