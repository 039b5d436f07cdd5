//! Names of things: apps, events, logs, places.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// An OAuth client identifier (RFC 6749 appendix A.1): 1–255 visible ASCII characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientId(Arc<str>);

impl ClientId {
    /// The most characters that a client id has.
    pub const MAX_LEN: usize = 255;

    /// Takes `text` if it is one; the error says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, &'static str> {
        Self::check(text).map(|()| Self(text.into()))
    }

    /// Whether `text` is one; the error says what is wrong with it.
    pub fn check(text: &str) -> Result<(), &'static str> {
        match text.len() {
            0 => Err("must not be empty"),
            n if n > Self::MAX_LEN => Err("must be at most 255 characters"),
            _ if !text.bytes().all(|c| (0x20..=0x7e).contains(&c)) => {
                Err("must consist of visible ASCII characters (RFC 6749, appendix A.1)")
            }
            _ => Ok(()),
        }
    }

    /// The identifier as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl FromStr for ClientId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text).map_err(|why| format!("client_id {why}"))
    }
}

impl TryFrom<String> for ClientId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ClientId> for String {
    fn from(id: ClientId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl Borrow<str> for ClientId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for ClientId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The identity of a trace within its app.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(pub Uuid);

impl EventId {
    /// Reads the hyphenated form only, in either case.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 36 {
            return None;
        }
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.hyphenated(), f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The identity of one creation of a topic; printed as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogId(pub u64);

impl LogId {
    /// A new identity that no topic had before.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a trace first entered `traces.raw`; never the same for two traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Which creation of the topic.
    pub log_id: LogId,
    /// Partition of `traces.raw`.
    pub partition: u32,
    /// Offset of the envelope.
    pub offset: u64,
    /// Position in the envelope.
    pub index: u32,
}

impl From<Place> for panopticon_proto::log::Place {
    fn from(place: Place) -> Self {
        Self { log_id: place.log_id.0, partition: place.partition, offset: place.offset, index: place.index }
    }
}

impl From<panopticon_proto::log::Place> for Place {
    fn from(place: panopticon_proto::log::Place) -> Self {
        Self {
            log_id: LogId(place.log_id),
            partition: place.partition,
            offset: place.offset,
            index: place.index,
        }
    }
}

/// What the seen set remembers a trace by: the first 16 bytes of
/// SHA-256(client_id, 0x00, event_id), so that no app can choose to collide with another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeenKey(pub [u8; 16]);

impl SeenKey {
    /// The key of `event_id` in app `client_id`.
    pub fn of(client_id: &str, event_id: EventId) -> Self {
        let mut hash = Sha256::new();
        hash.update(client_id.as_bytes());
        hash.update([0]);
        hash.update(event_id.0.as_bytes());
        let digest = hash.finalize();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        Self(key)
    }
}

/// The partition, of `partitions`, for a message about `parts`: xxh3-64 of the parts, each followed by a
/// zero byte, modulo the partition count. `traces.raw` and `traces` use (client_id, user_sub), or the
/// client_id alone where there is no user.
pub fn partition_of(parts: &[&str], partitions: u32) -> u32 {
    partition_of_hash(partition_hash(parts), partitions)
}

/// The hash of [`partition_of`].
pub fn partition_hash(parts: &[&str]) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for part in parts.iter().filter(|part| !part.is_empty()) {
        hash.update(part.as_bytes());
        hash.update(&[0]);
    }
    hash.digest()
}

/// The partition, of `partitions`, that a hash stands for.
pub fn partition_of_hash(hash: u64, partitions: u32) -> u32 {
    u32::try_from(hash % u64::from(partitions.max(1))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_is_any_visible_ascii_even_a_url() {
        assert!(ClientId::new("https://rp.example/client?x=1#y").is_ok());
        for bad in ["", "caf\u{e9}", "tab\there", &"x".repeat(256)] {
            assert!(ClientId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_event_id_is_hyphenated_and_answered_in_lower_case() {
        let id = EventId::parse("6F9619FF-8B86-D011-B42D-00C04FC964FF").unwrap();
        assert_eq!(id.to_string(), "6f9619ff-8b86-d011-b42d-00c04fc964ff");
        for bad in ["6F9619FF8B86D011B42D00C04FC964FF", "{6F9619FF-8B86-D011-B42D-00C04FC964FF}", "x"] {
            assert!(EventId::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn traces_of_one_user_share_a_partition_and_users_spread() {
        let spread: std::collections::HashSet<u32> =
            (0..200).map(|user| partition_of(&["app", &format!("user_{user}")], 8)).collect();
        assert_eq!(spread.len(), 8);
        assert_eq!(partition_of(&["app", ""], 8), partition_of(&["app"], 8));
    }
}
