//! Points in time and spans as people type them.

use std::time::Duration;

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use panopticon_core::time::{Clock as _, SystemClock, Time};

/// What `--since` and `--until` take: an RFC 3339 time, a date, or a span back from now such as `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// A point in time.
    At(Time),
    /// A whole day.
    On(Date),
}

impl When {
    /// Reads a command-line value.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(time) = Time::parse_rfc3339(text) {
            return Ok(Self::At(time));
        }
        if text.len() == 10
            && let Ok(date) = text.parse::<Date>()
        {
            return Ok(Self::On(date));
        }
        if let Ok(span) = parse_span(text) {
            return Ok(Self::At(SystemClock.now().minus(span)));
        }
        Err("must be a time such as 2026-06-30T12:00:00Z, a date such as 2026-06-30, or a span back from now \
             such as 15m, 2h or 7d"
            .to_owned())
    }

    /// Its first instant; days are UTC days.
    pub fn start(self) -> Time {
        match self {
            Self::At(time) => time,
            Self::On(date) => midnight(date),
        }
    }

    /// Its last instant.
    pub fn end(self) -> Time {
        match self {
            Self::At(time) => time,
            Self::On(date) => {
                date.tomorrow().map_or(midnight(date), |next| midnight(next).minus(Duration::from_micros(1)))
            }
        }
    }

    /// The day that it is or falls on, in `zone`.
    pub(crate) fn date(self, zone: &TimeZone) -> Date {
        match self {
            Self::At(time) => zone.to_datetime(time.to_jiff()).date(),
            Self::On(date) => date,
        }
    }
}

fn midnight(date: Date) -> Time {
    let start = date.to_zoned(TimeZone::UTC).map_or(Timestamp::UNIX_EPOCH, |zoned| zoned.timestamp());
    Time::from_micros(start.as_microsecond())
}

/// Reads a span: a whole number and one of s, m, h, d, w.
pub(crate) fn parse_span(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a whole number and a unit: 30s, 15m, 2h, 7d or 1w".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds_each: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        'w' => 604_800,
        _ => return Err(wrong()),
    };
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds_each).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_a_date_and_a_span_back_are_understood() {
        let at = When::parse("2026-06-30T12:00:00+02:00").unwrap();
        assert_eq!(at.start().to_string(), "2026-06-30T10:00:00.000000Z");
        let day = When::parse("2026-06-30").unwrap();
        assert_eq!(day.start().to_string(), "2026-06-30T00:00:00.000000Z");
        assert_eq!(day.end().to_string(), "2026-06-30T23:59:59.999999Z");
        let back = SystemClock.now().since(When::parse("2h").unwrap().start());
        assert!((7_199..7_205).contains(&back.as_secs()), "{back:?}");
        for bad in [
            "",
            "h",
            "2",
            "-2h",
            "2 h",
            "1.5h",
            "yesterday",
            "2026-06",
            "2026-02-30",
            "99999999999999999999d",
        ] {
            assert!(When::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_day_is_a_day_of_the_zone() {
        let late = When::parse("2026-06-30T23:30:00Z").unwrap();
        assert_eq!(late.date(&TimeZone::get("Europe/Berlin").unwrap()).to_string(), "2026-07-01");
    }
}
