//! Points in time: microseconds since the Unix epoch, UTC.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Microseconds since the Unix epoch, UTC. Reads and prints RFC 3339.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(i64);

impl Time {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self(0);

    /// The time at `micros` microseconds since the epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// The time at `seconds` since the epoch.
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds * 1_000_000)
    }

    /// Microseconds since the epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn secs(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// This time plus `duration`, at most the largest representable time.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// This time minus `duration`, at least the smallest representable time.
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The same time in the type of the calendar library.
    pub fn to_jiff(self) -> Timestamp {
        Timestamp::from_microsecond(self.0).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// Parses RFC 3339 §5.6 strictly: a full date, a full time and an offset.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        if !has_rfc3339_shape(text.as_bytes()) {
            return None;
        }
        text.parse::<Timestamp>().ok().map(|time| Self(time.as_microsecond()))
    }
}

/// The calendar library also reads shorter forms; RFC 3339 wants them all spelled out.
fn has_rfc3339_shape(text: &[u8]) -> bool {
    let digits =
        |from: usize, to: usize| text.get(from..to).is_some_and(|d| d.iter().all(u8::is_ascii_digit));
    let at = |i: usize, wanted: &[u8]| text.get(i).is_some_and(|c| wanted.contains(c));
    let date_and_time = digits(0, 4)
        && at(4, b"-")
        && digits(5, 7)
        && at(7, b"-")
        && digits(8, 10)
        && at(10, b"Tt ")
        && digits(11, 13)
        && at(13, b":")
        && digits(14, 16)
        && at(16, b":")
        && digits(17, 19);
    if !date_and_time {
        return false;
    }
    let mut i = 19;
    if at(i, b".") {
        let fraction = text[i + 1..].iter().take_while(|c| c.is_ascii_digit()).count();
        if fraction == 0 {
            return false;
        }
        i += 1 + fraction;
    }
    match text.get(i) {
        Some(b'Z' | b'z') => i + 1 == text.len(),
        Some(b'+' | b'-') => {
            digits(i + 1, i + 3) && at(i + 3, b":") && digits(i + 4, i + 6) && i + 6 == text.len()
        }
        _ => false,
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Timestamp::from_microsecond(self.0) {
            Ok(time) => write!(f, "{time:.6}"),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Time {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse_rfc3339(text)
            .ok_or_else(|| format!("`{text}` is not an RFC 3339 time such as 2026-06-30T12:00:00Z"))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        String::deserialize(input)?.parse().map_err(D::Error::custom)
    }
}

/// Where the present time comes from, so that tests can shift it.
pub trait Clock: Send + Sync + 'static {
    /// The present time.
    fn now(&self) -> Time;
}

/// The clock of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Time {
        Time(Timestamp::now().as_microsecond())
    }
}

/// A clock shared by the parts of a process.
pub type SharedClock = Arc<dyn Clock>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_full_form_of_rfc_3339_is_read() {
        for good in [
            "2026-06-30T12:00:00Z",
            "2026-06-30t12:00:00.123456789+05:30",
            "2026-06-30 12:00:00-00:00",
            "2016-12-31T23:59:60Z",
        ] {
            assert!(Time::parse_rfc3339(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "2026-06-30",
            "2026-06-30T12:00:00",
            "2026-06-30T12:00Z",
            "20260630T120000Z",
            "2026-13-01T00:00:00Z",
            "2026-06-30T12:00:00.Z",
            "2026-06-30T12:00:00+05",
            "2026-06-30T12:00:00Z[UTC]",
            "1751284800",
            "2026-06-30T25:00:00Z",
        ] {
            assert!(Time::parse_rfc3339(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_printed_time_reads_back_as_the_same() {
        let time = Time::parse_rfc3339("2026-06-30T12:00:00.5+02:00").unwrap();
        assert_eq!(time.to_string(), "2026-06-30T10:00:00.500000Z");
        assert_eq!(time.to_string().parse::<Time>().unwrap(), time);
    }
}
