//! When a message is tried again. Pure.
//!
//! Pauses double from the first to the longest, with equal jitter (half of the pause is fixed, half random),
//! so that messages that failed together do not come back together. How often a message was tried lies in
//! the log, not in an iterator, which is why this is arithmetic and not a retry crate's loop.

use std::time::Duration;

use panopticon_core::{config::WebhooksConfig, time::Time};

/// When a message is tried again, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    first: Duration,
    longest: Duration,
    give_up_after: Duration,
}

impl Retry {
    /// As configured.
    pub fn new(config: &WebhooksConfig) -> Self {
        let first = Duration::from_millis(config.retry_first_ms.max(1));
        Self {
            first,
            longest: Duration::from_millis(config.retry_max_ms).max(first),
            give_up_after: Duration::from_secs(config.give_up_after_secs),
        }
    }

    /// The pause after the `attempts`-th failure; `chance` in 0..1 chooses within the jitter.
    pub fn pause(&self, attempts: u32, chance: f64) -> Duration {
        let doublings = attempts.saturating_sub(1).min(31);
        let whole = self.first.saturating_mul(1 << doublings).min(self.longest);
        whole.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }

    /// When to try again a message that was scheduled at `scheduled_at` and failed for the `attempts`-th
    /// time at `now`; `None`: give up. What the receiver asked for counts instead of the pause, but
    /// nothing is put off beyond the end: the last attempt is made when that comes.
    pub fn next(
        &self,
        scheduled_at: Time,
        now: Time,
        attempts: u32,
        asked: Option<Duration>,
        chance: f64,
    ) -> Option<Time> {
        let end = scheduled_at.plus(self.give_up_after);
        if now >= end {
            return None;
        }
        let pause = asked.map_or_else(|| self.pause(attempts, chance), |asked| asked.max(self.first));
        Some(now.plus(pause).min(end))
    }
}

/// Reads `Retry-After` (RFC 9110 §10.2.3): seconds, or a date.
pub fn read_retry_after(text: &str, now: Time) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let since_epoch = date.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Some(Time::EPOCH.plus(since_epoch).since(now))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn retry() -> Retry {
        Retry {
            first: Duration::from_secs(2),
            longest: Duration::from_secs(60),
            give_up_after: Duration::from_secs(3_600),
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let wholes: Vec<u64> = (1..=7).map(|n| retry().pause(n, 1.0).as_secs()).collect();
        assert_eq!(wholes, [2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(retry().pause(1, 0.0), Duration::from_secs(1));
    }

    #[test]
    fn the_last_attempt_is_made_when_the_time_is_up() {
        let (start, end) = (Time::from_secs(100), Time::from_secs(3_700));
        assert_eq!(retry().next(start, Time::from_secs(3_690), 9, None, 0.5), Some(end));
        assert_eq!(retry().next(start, end, 10, None, 0.5), None);
    }

    #[test]
    fn retry_after_is_honoured_and_bounded() {
        let (start, now) = (Time::from_secs(0), Time::from_secs(10));
        let next = |asked| retry().next(start, now, 1, Some(Duration::from_secs(asked)), 0.5);
        assert_eq!(next(120), Some(Time::from_secs(130)));
        assert_eq!(next(0), Some(Time::from_secs(12)), "never at once");
        assert_eq!(next(86_400), Some(Time::from_secs(3_600)), "not beyond the end");
    }

    #[test]
    fn both_forms_of_retry_after_are_read() {
        let now = Time::parse_rfc3339("2015-10-21T07:27:30Z").unwrap();
        assert_eq!(read_retry_after(" 120 ", now), Some(Duration::from_secs(120)));
        assert_eq!(read_retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now), Some(Duration::from_secs(30)));
        assert_eq!(read_retry_after("Wed, 21 Oct 2015 07:00:00 GMT", now), Some(Duration::ZERO));
        assert!(read_retry_after("99999999999999999999999", now).is_some());
        for bad in ["", "soon", "-1", "1.5"] {
            assert_eq!(read_retry_after(bad, now), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn the_next_attempt_is_later_and_never_beyond_the_end(
            age in 0_u64..3_600, attempts: u32, asked: Option<u32>, chance in 0.0..1.0_f64,
        ) {
            let now = Time::from_secs(age as i64);
            let asked = asked.map(|secs| Duration::from_secs(secs.into()));
            let next = retry().next(Time::EPOCH, now, attempts, asked, chance).unwrap();
            prop_assert!(next > now && next <= Time::from_secs(3_600));
        }
    }
}
