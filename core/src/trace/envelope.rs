//! Envelopes: the values of the records of `traces.raw` and `traces` (`panopticon.log.v1.Envelope`).

use std::borrow::Cow;

use bytes::Bytes;
use prost::encoding::encode_varint;

use super::{
    AcceptedTrace, Malformed, TakenRef, TraceRef, WireError,
    wire::{FIXED64, LENGTH, PLACE_BYTES, VARINT, number, piece, put_key, put_number, put_place, skip},
};
use crate::{ids::Place, time::Time};

/// An envelope in the making: the value of a record of `traces.raw` or `traces`.
#[derive(Debug, Default)]
pub struct EnvelopeWriter {
    bytes: Vec<u8>,
}

/// The field `taken` of `panopticon.log.v1.Envelope`, and the older field `traces`.
const TAKEN: u64 = 2;
const TRACES: u64 = 1;

impl EnvelopeWriter {
    /// Room for about `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    /// Adds a trace that the gateway has checked: the bytes of its `panopticon.v1.Trace`.
    pub fn take_in(&mut self, trace: &[u8], received_at: Time, late: bool) {
        let mut added = [0; 11];
        added[0] = (14 << 3 | FIXED64) as u8;
        added[1..9].copy_from_slice(&received_at.micros().to_le_bytes());
        (added[9], added[10]) = ((15 << 3 | VARINT) as u8, u8::from(late));
        self.entry(trace, &added);
    }

    /// Adds a trace of another envelope at the place where it entered the log.
    pub fn keep(&mut self, taken: &[u8], place: Place) {
        let mut added = Vec::with_capacity(PLACE_BYTES);
        put_place(&mut added, place);
        self.entry(taken, &added);
    }

    fn entry(&mut self, front: &[u8], back: &[u8]) {
        put_key(&mut self.bytes, TAKEN, LENGTH);
        encode_varint((front.len() + back.len()) as u64, &mut self.bytes);
        self.bytes.extend_from_slice(front);
        self.bytes.extend_from_slice(back);
    }

    /// The envelope.
    pub fn finish(self) -> Bytes {
        self.bytes.into()
    }
}

/// The traces of an envelope, each as the bytes that [`TakenRef::read`] reads.
pub fn entries(envelope: &[u8]) -> Result<Vec<Cow<'_, [u8]>>, WireError> {
    let mut found = Vec::new();
    let mut rest = envelope;
    while !rest.is_empty() {
        let key = number(&mut rest)?;
        match (key >> 3, key & 7) {
            (TAKEN, LENGTH) => found.push(Cow::Borrowed(piece(&mut rest)?)),
            (TRACES, LENGTH) => {
                let older: panopticon_proto::log::AcceptedTrace = prost::Message::decode(piece(&mut rest)?)?;
                found.push(Cow::Owned(AcceptedTrace::try_from(older)?.to_bytes()));
            }
            (TAKEN | TRACES, _) => return Err(Malformed::Bytes.into()),
            (_, kind) => skip(&mut rest, kind)?,
        }
    }
    Ok(found)
}

impl AcceptedTrace {
    /// The bytes that [`TakenRef::read`] reads.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut id = [0; 36];
        let trace = &self.trace;
        let sent = TraceRef {
            event_id: trace.event_id.0.hyphenated().encode_lower(&mut id),
            client_id: trace.client_id.as_str(),
            user_sub: &trace.user_sub,
            tool: &trace.tool,
            scope_used: &trace.scope_used,
            status: trace.status.code().into(),
            started_at: Some(trace.started_at.into()),
            duration_ms: Some(trace.duration_ms.into()),
            session_id: &trace.session_id,
            agent: &trace.agent,
            source_ip: &trace.source_ip,
            error_code: &trace.error_code,
            attributes: trace.attributes.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
        };
        let mut bytes = Vec::with_capacity(256);
        sent.write(&mut bytes);
        put_key(&mut bytes, 14, FIXED64);
        bytes.extend_from_slice(&self.received_at.micros().to_le_bytes());
        put_number(&mut bytes, 15, self.late.into());
        if let Some(place) = self.place {
            put_place(&mut bytes, place);
        }
        bytes
    }
}

/// Encodes an envelope.
pub fn encode_envelope(traces: impl IntoIterator<Item = AcceptedTrace>) -> Bytes {
    let mut envelope = EnvelopeWriter::default();
    for trace in traces {
        envelope.entry(&trace.to_bytes(), &[]);
    }
    envelope.finish()
}

/// Decodes an envelope.
pub fn decode_envelope(bytes: &[u8]) -> Result<Vec<AcceptedTrace>, WireError> {
    entries(bytes)?.iter().map(|entry| TakenRef::read(entry)?.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use panopticon_proto::log;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::{super::wire::tests::sent, *};
    use crate::ids::LogId;

    proptest! {
        #[test]
        fn what_the_pipeline_appends_is_read_by_the_generated_code(
            sent in sent(), micros in any::<i64>(), late in any::<bool>(), (log, partition, offset, index) in any::<(u64, u32, u64, u32)>(),
        ) {
            let bytes = sent.encode_to_vec();
            let mut first = EnvelopeWriter::default();
            first.take_in(&bytes, Time::from_micros(micros), late);
            let first = first.finish();
            let mut second = EnvelopeWriter::default();
            let place = Place { log_id: LogId(log), partition, offset, index };
            // At another place first: the later one counts.
            let mut elsewhere = entries(&first).unwrap()[0].to_vec();
            put_place(&mut elsewhere, Place { offset: offset / 2, ..place });
            second.keep(&elsewhere, place);
            let second = second.finish();
            let generated = log::Envelope::decode(&second[..]).unwrap().taken.remove(0);
            prop_assert_eq!((generated.received_at, generated.late), (micros, late));
            prop_assert_eq!(generated.place.map(Place::from), Some(place));
            prop_assert_eq!(&generated.tool, &sent.tool);
            let entries = entries(&second).unwrap();
            let taken = TakenRef::read(&entries[0]).unwrap();
            prop_assert_eq!((taken.received_at.micros(), taken.late, taken.place), (micros, late, Some(place)));
            prop_assert_eq!(taken.trace.tool, &sent.tool);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_envelope(&bytes);
        }
    }

    #[test]
    fn records_of_the_older_form_are_read() {
        let older = log::AcceptedTrace {
            event_id: vec![7; 16].into(),
            client_id: "app".to_owned(),
            tool: "search".to_owned(),
            status: 2,
            started_at: 1_780_000_000_000_001,
            duration_ms: 12,
            attributes: [("k".to_owned(), "v".to_owned())].into(),
            received_at: 1_780_000_000_500_000,
            late: true,
            place: Some(log::Place { log_id: 1, partition: 2, offset: 3, index: 4 }),
            ..log::AcceptedTrace::default()
        };
        let envelope = log::Envelope { traces: vec![older.clone()], taken: Vec::new() }.encode_to_vec();
        assert_eq!(decode_envelope(&envelope).unwrap(), [AcceptedTrace::try_from(older).unwrap()]);
    }
}
