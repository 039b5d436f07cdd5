//! Many measurements of one thing.

use std::time::Duration;

use serde::Serialize;

/// What repeated measurements say together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
    /// How many there are.
    pub samples: usize,
}

impl Spread {
    /// Of at least one value; none at all is not a number.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let samples = values.len();
        let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
        let middle = samples / 2;
        let median = if samples.is_multiple_of(2) {
            f64::midpoint(at(middle.wrapping_sub(1)), at(middle))
        } else {
            at(middle)
        };
        Self { median, least: at(0), most: at(samples.wrapping_sub(1)), samples }
    }
}

/// How long something took, many times.
#[derive(Debug, Clone, Default)]
pub struct Times {
    sorted: Vec<Duration>,
}

impl Times {
    /// In any order.
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self { sorted: times }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The time within which this share of all was done, in milliseconds; not a number where there is none.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        // The nearest rank: never a time that was not measured.
        let rank = (share * self.sorted.len() as f64).ceil() as usize;
        let time = self.sorted.get(rank.max(1) - 1);
        time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }

    /// `p50 … p95 … p99 … max …`.
    pub fn summary(&self) -> String {
        let [p50, p95, p99, max] = [0.5, 0.95, 0.99, 1.0].map(|share| self.quantile_ms(share));
        format!("p50 {p50:.1}, p95 {p95:.1}, p99 {p99:.1}, max {max:.1} ms of {}", self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.median, spread.least, spread.most), (2.5, 1.0, 4.0));
        assert_eq!(Spread::of([7.0]).median, 7.0);
        assert!(Spread::of([]).median.is_nan());
    }

    #[test]
    fn a_quantile_is_a_time_that_was_measured() {
        let times = Times::of((1..=100).rev().map(Duration::from_millis).collect());
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| times.quantile_ms(share)), [1.0, 50.0, 99.0, 100.0]);
        assert!(Times::default().quantile_ms(0.5).is_nan());
    }
}
