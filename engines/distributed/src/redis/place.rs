//! How a place is written as the value of a mark: short, because there are as many as traces.
//!
//! One byte for the log id (its position in the list that a call brings, then its number in the set),
//! followed by partition, offset and index as varints (LEB128): 5 to 9 bytes in practice. A mark that a
//! rebuild has written has its last varint a byte longer than need be (`layers.lua` does that): the same place
//! to whoever reads it.

use std::collections::HashMap;

use panopticon_core::ids::{LogId, Place};

/// Appends the place's value to `out`, with `log` in its first byte.
pub(super) fn encode(log: u8, place: &Place, out: &mut Vec<u8>) {
    out.push(log);
    encode_record(place.partition, place.offset, out);
    varint(place.index.into(), out);
}

/// Appends what the places of all traces of a record have in common behind the log's byte; `mark.lua` adds the index.
pub(super) fn encode_record(partition: u32, offset: u64, out: &mut Vec<u8>) {
    varint(partition.into(), out);
    varint(offset, out);
}

/// Reads what [`encode`] wrote and the set numbered; `None` when it is something else.
pub(super) fn decode(logs: &HashMap<u8, LogId>, mut value: &[u8]) -> Option<Place> {
    let (log, rest) = value.split_first()?;
    value = rest;
    let place = Place {
        log_id: *logs.get(log)?,
        partition: u32::try_from(read_varint(&mut value)?).ok()?,
        offset: read_varint(&mut value)?,
        index: u32::try_from(read_varint(&mut value)?).ok()?,
    };
    value.is_empty().then_some(place)
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_as_it_was_written() {
        let logs = HashMap::from([(3, LogId(u64::MAX))]);
        for (partition, offset, index) in [(0, 0, 0), (127, 128, 299), (u32::MAX, u64::MAX, u32::MAX)] {
            let place = Place { log_id: LogId(u64::MAX), partition, offset, index };
            let mut value = Vec::new();
            encode(3, &place, &mut value);
            assert_eq!(decode(&logs, &value), Some(place));
            assert_eq!(decode(&logs, &value[..value.len() - 1]), None);
            value.push(0);
            assert_eq!(decode(&logs, &value), None);
        }
    }

    #[test]
    fn a_place_that_a_rebuild_has_written_is_the_same_place() {
        let logs = HashMap::from([(3, LogId(9))]);
        for index in [0, 1, 127, 128, u32::MAX] {
            let place = Place { log_id: LogId(9), partition: 11, offset: 70_000, index };
            let mut value = Vec::new();
            encode(3, &place, &mut value);
            *value.last_mut().unwrap() |= 0x80;
            value.push(0);
            assert_eq!(decode(&logs, &value), Some(place));
        }
    }

    #[test]
    fn a_usual_place_takes_few_bytes() {
        let mut value = Vec::new();
        let place = Place { log_id: LogId(1), partition: 11, offset: 4_000_000_000, index: 250 };
        encode(0, &place, &mut value);
        assert!(value.len() <= 9, "{}", value.len());
    }
}
