//! Counting calls in a sliding window of event time, exactly, also when they come out of order.
//!
//! A window is half-open, `(t − width, t]`: calls exactly one width apart never share one. It is enough to
//! look at windows that end with a call, since any other holds no more than the last of those.
//!
//! Memory is bounded by the limit, not by the traffic: as long as no window holds more than `limit` calls,
//! the calls of one width and [`MAX_DELAY`] are at most `2 × limit`; beyond that the oldest are dropped,
//! which changes neither whether the newest window is over its limit nor which window is the last that is.

use std::{collections::VecDeque, time::Duration};

use crate::time::Time;

/// How far behind the newest call of its entity a call may come and still be counted exactly. Traces that
/// come later than this after their end are late and are not counted at all.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// A width and how many calls it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The window's width.
    pub width: Duration,
    /// One call more is too many.
    pub limit: u32,
    /// The most calls that are kept for it: at least `2 × (limit + 1)`.
    pub kept: usize,
}

impl Span {
    /// Keeps no more calls than the limit needs.
    pub const fn new(width: Duration, limit: u32) -> Self {
        Self { width, limit, kept: 2 * (limit as usize + 1) }
    }
}

/// A window that holds more calls than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crossing {
    /// Exclusive.
    pub start: Time,
    /// The call with which the window ends; inclusive.
    pub end: Time,
    /// The calls in it, as far as they are kept.
    pub calls: u32,
    /// The end of the last such window that holds the same call.
    pub last_end: Time,
}

/// The calls of one width and a bit more, by event time, each with a note of the rule's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow<T = ()> {
    calls: VecDeque<(Time, T)>,
}

impl<T> Default for SlidingWindow<T> {
    fn default() -> Self {
        Self { calls: VecDeque::new() }
    }
}

impl<T: Copy> SlidingWindow<T> {
    /// Takes in a call and answers its position; `None` when so many newer ones are kept that it cannot
    /// matter.
    pub fn insert(&mut self, at: Time, note: T, span: Span) -> Option<usize> {
        let newest = self.newest().map_or(at, |newest| newest.max(at));
        self.drop_before(newest.minus(span.width + MAX_DELAY));
        let mut position = self.calls.len();
        while position > 0 && self.calls[position - 1].0 > at {
            position -= 1;
        }
        let full = self.calls.len() >= span.kept;
        if full && position == 0 {
            return None;
        }
        if position == self.calls.len() {
            self.calls.push_back((at, note));
        } else {
            self.calls.insert(position, (at, note));
        }
        // More than one too many where the limit has been lowered.
        while self.calls.len() > span.kept {
            self.calls.pop_front();
            position = position.checked_sub(1)?;
        }
        Some(position)
    }

    /// Forgets the calls at `horizon` and before.
    pub fn drop_before(&mut self, horizon: Time) {
        while self.calls.front().is_some_and(|(at, _)| *at <= horizon) {
            self.calls.pop_front();
        }
    }

    /// The windows over the limit that hold the call at `position` and end at `not_before` or later: the
    /// one that ends first, with the end of the last.
    pub fn crossing(&self, position: usize, span: Span, not_before: Time) -> Option<Crossing> {
        self.crossing_where(position, span, not_before, |_| true)
    }

    /// The same, of windows whose notes also satisfy `matters`.
    pub fn crossing_where(
        &self,
        position: usize,
        span: Span,
        not_before: Time,
        mut matters: impl FnMut(&mut dyn Iterator<Item = T>) -> bool,
    ) -> Option<Crossing> {
        let limit = span.limit as usize;
        let until = self.calls.get(position)?.0.plus(span.width);
        let mut found: Option<Crossing> = None;
        for last in position..self.calls.len() {
            let end = self.calls[last].0;
            if end >= until {
                break;
            }
            let start = end.minus(span.width);
            let over = last >= limit && self.calls[last - limit].0 > start;
            // Of calls at the same instant, the last ends the window.
            let another = self.calls.get(last + 1).is_some_and(|(at, _)| *at == end);
            if !over || another || end < not_before {
                continue;
            }
            let first = self.calls.partition_point(|(at, _)| *at <= start);
            if !matters(&mut self.calls.range(first..=last).map(|(_, note)| *note)) {
                continue;
            }
            match &mut found {
                Some(crossing) => crossing.last_end = end,
                None => {
                    let calls = u32::try_from(last + 1 - first).unwrap_or(u32::MAX);
                    found = Some(Crossing { start, end, calls, last_end: end });
                }
            }
        }
        found
    }

    /// The newest call.
    pub fn newest(&self) -> Option<Time> {
        self.calls.back().map(|(at, _)| *at)
    }

    /// Whether it holds no call.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// How many calls it keeps.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// The notes of the calls after `start`, up to and with `end`.
    pub fn notes(&self, start: Time, end: Time) -> impl Iterator<Item = T> + '_ {
        let within = self.calls.iter().filter(move |(at, _)| start < *at && *at <= end);
        within.map(|(_, note)| *note)
    }

    /// The times of its calls for writing down, in microseconds: the first, then each one's distance from
    /// the one before; with the notes.
    pub fn to_steps(&self) -> (Vec<i64>, Vec<T>) {
        let mut before = 0;
        self.calls
            .iter()
            .map(|(at, note)| {
                let step = at.micros() - before;
                before = at.micros();
                (step, *note)
            })
            .unzip()
    }

    /// Reads what [`SlidingWindow::to_steps`] gave.
    pub fn from_steps(steps: &[i64], notes: impl IntoIterator<Item = T>) -> Self {
        let mut at = 0_i64;
        let times = steps.iter().enumerate().map(|(n, step)| {
            // Whatever was written down, the calls are in order.
            at = at.saturating_add(if n == 0 { *step } else { (*step).max(0) });
            Time::from_micros(at)
        });
        Self { calls: times.zip(notes).collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn span(limit: u32) -> Span {
        Span::new(Duration::from_secs(60), limit)
    }

    fn ends_over(calls: &[i64], with: i64, limit: usize) -> Vec<i64> {
        let mut ends: Vec<i64> = calls
            .iter()
            .copied()
            .filter(|end| (*end - 60 < with) && with <= *end)
            .filter(|end| calls.iter().filter(|at| *end - 60 < **at && **at <= *end).count() > limit)
            .collect();
        ends.sort_unstable();
        ends
    }

    proptest! {
        #[test]
        fn windows_over_the_limit_are_those_that_counting_finds(
            steps in proptest::collection::vec((0_i64..12, 0_i64..60), 1..300),
            limit in 0_u32..9,
        ) {
            let (mut clock, mut all, mut window) = (0, Vec::new(), SlidingWindow::default());
            let mut last_over = None;
            for (step, delay) in steps {
                clock += step;
                // Less than a minute behind the newest.
                let at = clock - delay;
                all.push(at);
                let newest = *all.iter().max().unwrap();
                prop_assume!(at > newest - 60);
                let expected = ends_over(&all, at, limit as usize);
                let position = window.insert(Time::from_secs(at), (), span(limit));
                prop_assert!(window.len() <= span(limit).kept);
                let found = position.and_then(|p| window.crossing(p, span(limit), Time::from_secs(i64::MIN / 2_000_000)));
                // Once calls have been dropped, only the last window over the limit has to be exact.
                let over_before = last_over;
                last_over = last_over.max(expected.last().copied());
                let found_last = found.map(|c| c.last_end.secs());
                prop_assert_eq!(found_last.max(over_before), last_over);
                if over_before.is_none() {
                    prop_assert_eq!(found.map(|c| c.end.secs()), expected.first().copied());
                    if let Some(crossing) = found {
                        let (start, end) = (crossing.start.secs(), crossing.end.secs());
                        let count = all.iter().filter(|at| start < **at && **at <= end).count();
                        prop_assert_eq!(crossing.calls as usize, count);
                    }
                }
            }
        }
    }

    #[test]
    fn a_window_written_down_reads_back_as_the_same() {
        let mut window = SlidingWindow::default();
        for (at, note) in [(5_000_000, 'a'), (2, 'b'), (7_000_000, 'c'), (7_000_000, 'd')] {
            window.insert(Time::from_micros(at), note, span(9));
        }
        let (steps, notes) = window.to_steps();
        assert_eq!(steps, [2, 4_999_998, 2_000_000, 0]);
        assert_eq!(SlidingWindow::from_steps(&steps, notes), window);
    }

    #[test]
    fn calls_exactly_one_width_apart_share_no_window() {
        let mut window = SlidingWindow::default();
        window.insert(Time::from_secs(0), (), span(1));
        let position = window.insert(Time::from_secs(60), (), span(1)).unwrap();
        assert_eq!(window.crossing(position, span(1), Time::EPOCH), None);
        let position = window.insert(Time::from_micros(59_999_999), (), span(1)).unwrap();
        let crossing = window.crossing(position, span(1), Time::EPOCH).unwrap();
        assert_eq!((crossing.calls, crossing.end), (2, Time::from_micros(59_999_999)));
        assert_eq!(crossing.last_end, Time::from_secs(60));
    }

    #[test]
    fn a_lowered_limit_counts_what_was_kept_before_it() {
        let mut window = SlidingWindow::default();
        for second in 0..50 {
            window.insert(Time::from_secs(second), (), span(60));
        }
        let position = window.insert(Time::from_secs(50), (), span(30)).unwrap();
        assert_eq!(window.crossing(position, span(30), Time::EPOCH).unwrap().calls, 51);
        let position = window.insert(Time::from_secs(51), (), span(5)).unwrap();
        assert_eq!(window.crossing(position, span(5), Time::EPOCH).unwrap().calls, 12);
    }
}
