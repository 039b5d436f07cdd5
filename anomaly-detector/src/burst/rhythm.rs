//! An entity's highest minutes by time of day.

use super::level::Level;

/// The highest minute in each three hours of a work day and of a day of the weekend. Up to a minute of
/// disorder changes nothing here either: what an hour held becomes known when the next is over too.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rhythm {
    /// Of work days, then of days of the weekend.
    pub(super) highest: [Level; 16],
    /// The highest minute in the current hour and in the one before it.
    pub(super) peaks: [Level; 2],
    /// The highest minute at this time, as known for the current hour and for the one before it.
    pub(super) usual: [Level; 2],
}

impl Rhythm {
    /// Takes in a minute of the current hour (0) or the one before it (1).
    pub fn saw(&mut self, hours_ago: usize, minute: Level) {
        self.peaks[hours_ago] = self.peaks[hours_ago].max(minute);
    }

    /// The highest minute at this time of day, for the current hour (0) or the one before it (1).
    pub const fn usual(&self, hours_ago: usize) -> Level {
        self.usual[hours_ago]
    }

    /// The hour `current` is over, and time goes on to `next`.
    pub fn close(&mut self, current: u32, next: u32) {
        let before = std::mem::take(&mut self.peaks[0]);
        let closed = std::mem::replace(&mut self.peaks[1], before);
        if let Some(hour) = current.checked_sub(1) {
            let highest = &mut self.highest[time_of_day(hour)];
            *highest = (*highest).max(closed);
        }
        // An hour earlier or later is about the same time: so clocks may change.
        let around = [next.saturating_sub(1), next, next + 1].map(|hour| self.highest[time_of_day(hour)]);
        self.usual = [around.into_iter().max().unwrap_or_default(), self.usual[0]];
    }

    /// All levels fall by a step.
    pub fn fade(&mut self) {
        for highest in &mut self.highest {
            *highest = highest.faded();
        }
    }
}

/// Three hours of a work day (0 to 7) or of a day of the weekend (8 to 15).
fn time_of_day(hour: u32) -> usize {
    // The epoch began on a Thursday.
    let weekday = (hour / 24 + 3) % 7;
    let weekend = if weekday >= 5 { 8 } else { 0 };
    (hour % 24 / 3 + weekend) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weekend_is_saturday_and_sunday() {
        // 2026-06-27 was a Saturday.
        let saturday = 20_631 * 24;
        let weekend: Vec<bool> = (0..7).map(|day| time_of_day(saturday + day * 24 + 13) >= 8).collect();
        assert_eq!(weekend, [true, true, false, false, false, false, false]);
        assert_eq!(time_of_day(saturday + 13), 8 + 4);
    }
}
