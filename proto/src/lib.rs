//! The messages that travel between clients, stages and topics, generated from `panopticon/v1/*.proto`.
//!
//! Knows no rule and no engine: what a message means is said in the `.proto` files and decided elsewhere.

/// The public gRPC interface.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("panopticon.v1");
}

/// What stages write to topics for each other.
#[allow(missing_docs, clippy::all)]
pub mod log {
    tonic::include_proto!("panopticon.log.v1");
}

/// The values of the compacted topic `control`.
#[allow(missing_docs, clippy::all)]
pub mod control {
    tonic::include_proto!("panopticon.control.v1");
}

pub mod raw;

/// Descriptors of every message and service, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Times in JSON: microseconds since the Unix epoch as RFC 3339 in UTC, 0 as null.
pub mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    /// Writes microseconds as an RFC 3339 string; 0 means absent.
    pub fn serialize<S: Serializer>(micros: &i64, out: S) -> Result<S::Ok, S::Error> {
        match (*micros, Timestamp::from_microsecond(*micros)) {
            (0, _) | (_, Err(_)) => out.serialize_none(),
            (_, Ok(time)) => out.collect_str(&format_args!("{time:.6}")),
        }
    }

    /// Reads an RFC 3339 string as microseconds; null is 0.
    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<i64, D::Error> {
        match Option::<String>::deserialize(input)? {
            None => Ok(0),
            Some(text) => {
                let time: Timestamp = text.parse().map_err(D::Error::custom)?;
                Ok(time.as_microsecond())
            }
        }
    }
}
