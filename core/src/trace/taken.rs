//! A trace as it lies in a record: bytes that were checked once, and are read where they are needed.

use std::borrow::Cow;

use bytes::Bytes;

use super::{AcceptedTrace, Facts, TakenRef, WireError, entries};
use crate::time::Time;

/// A trace of an envelope, as its bytes: a piece of its record, in a tenth of what its texts would take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenBytes {
    bytes: Bytes,
    received_at: Time,
}

impl TakenBytes {
    /// The traces of an envelope; an error where one of them cannot be [read](Self::read).
    pub fn of_envelope(envelope: &Bytes) -> Result<Vec<Self>, WireError> {
        let whole = |entry: Cow<'_, [u8]>| {
            let taken = TakenRef::read(&entry)?;
            taken.facts()?;
            let received_at = taken.received_at;
            let bytes = match entry {
                Cow::Borrowed(piece) => envelope.slice_ref(piece),
                Cow::Owned(older) => older.into(),
            };
            Ok(Self { bytes, received_at })
        };
        entries(envelope)?.into_iter().map(whole).collect()
    }

    /// When the gateway had it.
    pub const fn received_at(&self) -> Time {
        self.received_at
    }

    /// What is in it; no error for what an envelope or a trace was made of.
    pub fn read(&self) -> Result<(TakenRef<'_>, Facts), WireError> {
        let taken = TakenRef::read(&self.bytes)?;
        let facts = taken.facts()?;
        Ok((taken, facts))
    }

    /// The trace with texts of its own.
    pub fn to_owned(&self) -> Result<AcceptedTrace, WireError> {
        TakenRef::read(&self.bytes)?.to_owned()
    }
}

impl From<&AcceptedTrace> for TakenBytes {
    fn from(trace: &AcceptedTrace) -> Self {
        Self { bytes: trace.to_bytes().into(), received_at: trace.received_at }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::{super::wire::tests::sent, *};
    use crate::trace::{EnvelopeWriter, decode_envelope};

    proptest! {
        #[test]
        fn traces_that_stay_bytes_are_those_of_their_envelope(
            sent in prop::collection::vec(sent(), 0..4), micros in any::<i64>(), late in any::<bool>(),
        ) {
            let mut writer = EnvelopeWriter::default();
            for sent in &sent {
                writer.take_in(&sent.encode_to_vec(), Time::from_micros(micros), late);
            }
            let envelope = writer.finish();
            let owned = decode_envelope(&envelope);
            let kept = TakenBytes::of_envelope(&envelope);
            prop_assert_eq!(owned.is_ok(), kept.is_ok());
            for (owned, kept) in owned.into_iter().flatten().zip(kept.into_iter().flatten()) {
                prop_assert_eq!(kept.received_at(), owned.received_at);
                prop_assert_eq!(&kept.to_owned().unwrap(), &owned);
                let again = TakenBytes::from(&owned);
                prop_assert_eq!(again.to_owned().unwrap(), owned);
            }
        }
    }
}
