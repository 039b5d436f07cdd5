//! When a user is usually active, learned from UTC times alone.
//!
//! A user's hours are counted on a clock of 24 hours; where their day and night lie follows from the counts
//! themselves, so no time zone is needed. The last sessions are kept beside the counts: they say where the
//! user is now.

use std::{f64::consts::TAU, sync::LazyLock};

/// Seconds in an hour, half an hour and a day.
const HOUR: u32 = 3_600;
const HALF_HOUR: u32 = 1_800;
pub(super) const DAY: u32 = 86_400;

/// So many sessions are kept one by one.
const RECENT: usize = 12;
/// After so many active days a day counts half of what the present one does.
const HALF_LIFE: u16 = 400;
/// What a day with activity at a full hour adds to that hour, at most twice this.
const UNIT: f64 = 32.0;

/// What a half hour counts in which a session goes on, beside the one in which it begins.
const FOLLOWING: f64 = 0.5;
/// What an unusual session counts beside a usual one: so that an intruder's nights do not become usual after
/// a few of them, and a new habit does in time.
const UNUSUAL: f64 = 0.25;
/// So many hours apart, activity is no longer near.
const NEAR: f64 = 1.5;
/// The hours of the day in which people rest.
const REST: usize = 10;

/// Where each full hour points on the clock.
static DIRECTIONS: LazyLock<[(f64, f64); 24]> =
    LazyLock::new(|| std::array::from_fn(|hour| (hour as f64 / 24.0 * TAU).sin_cos()));

/// A user's hours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rhythm {
    /// How much activity there was at each full hour of UTC; what lies between two counts for both.
    hours: [u16; 24],
    /// The times of day of the last sessions, in 256ths of a day, the newest first.
    recent: [u8; RECENT],
    /// How many of these there are.
    sessions: u8,
    /// Days with activity.
    days: u16,
    /// The newest of them, since the epoch.
    day: u16,
}

impl Rhythm {
    /// Takes in activity at a time, in seconds since the epoch: the beginning of a session, or what follows
    /// in another half hour; of an unusual session or not.
    pub fn saw(&mut self, at: u32, begins: bool, unusual: bool) {
        let day = u16::try_from(at / DAY).unwrap_or(u16::MAX);
        if day > self.day || self.days == 0 {
            self.day = day;
            self.days = self.days.saturating_add(1);
            if self.days.is_multiple_of(HALF_LIFE) {
                self.hours.iter_mut().for_each(|hour| *hour = hour.div_ceil(2));
            }
        }
        let share = if begins { 1.0 } else { FOLLOWING };
        self.add(at, if unusual { share * UNUSUAL } else { share });
        if begins {
            self.recent.copy_within(..RECENT - 1, 1);
            self.recent[0] = (u64::from(at % DAY) * 256 / u64::from(DAY)) as u8;
            self.sessions = (self.sessions + 1).min(RECENT as u8);
        }
    }

    /// Takes in activity that is older than what was seen already.
    pub fn saw_late(&mut self, at: u32) {
        self.add(at, FOLLOWING);
    }

    /// On how many days there was activity.
    pub const fn days(&self) -> u16 {
        self.days
    }

    /// On how many days before that of `at` there was activity.
    pub fn days_before(&self, at: u32) -> u16 {
        self.days - u16::from(self.days > 0 && at / DAY <= u32::from(self.day))
    }

    /// The shortest stretch of the day that holds most of the activity, in seconds since midnight UTC.
    pub fn usual_hours(&self) -> (i64, i64) {
        let all: u32 = self.hours.iter().map(|count| u32::from(*count)).sum();
        let held = |from: usize, hours: usize| -> u32 {
            (0..=hours).map(|hour| u32::from(self.hours[(from + hour) % 24])).sum()
        };
        let stretches = (0..24).flat_map(|hours| (0..24).map(move |from| (from, hours)));
        let (from, hours) =
            stretches.into_iter().find(|(from, hours)| held(*from, *hours) * 5 >= all * 4).unwrap_or((0, 24));
        ((from * 3_600) as i64, ((from + hours) * 3_600) as i64)
    }

    fn add(&mut self, at: u32, share: f64) {
        let unit = UNIT * share * self.unit_now();
        let (hour, within) = on_clock(hour_of(at));
        for (hour, part) in [(hour, 1.0 - within), ((hour + 1) % 24, within)] {
            self.hours[hour] = self.hours[hour].saturating_add((unit * part).round() as u16);
        }
    }

    /// The weight of the present day: it grows instead of that of the days before shrinking, until all are
    /// halved.
    fn unit_now(&self) -> f64 {
        (f64::from(self.days % HALF_LIFE) / f64::from(HALF_LIFE)).exp2()
    }

    /// So many days of full weight the counts stand for, in the unit of now.
    fn weight(&self) -> f64 {
        // A geometric series, all of it halved after each half life.
        let growth = (1.0 / f64::from(HALF_LIFE)).exp2();
        let oldest = (-f64::from(self.days / HALF_LIFE)).exp2();
        (self.unit_now() * growth - oldest) / (growth - 1.0)
    }

    /// The middle of the activity, as an hour of UTC.
    pub(super) fn middle(&self) -> f64 {
        let (mut east, mut north) = (0.0, 0.0);
        for (count, (sin, cos)) in self.hours.iter().zip(DIRECTIONS.iter()) {
            east += f64::from(*count) * sin;
            north += f64::from(*count) * cos;
        }
        east.atan2(north) / TAU * 24.0
    }

    /// What the counts say of the days: how many they stand for, and how much activity there is on each.
    pub(super) fn extent(&self) -> (f64, f64) {
        let days = self.weight();
        let all: f64 = self.hours.iter().map(|count| f64::from(*count)).sum();
        (days, all / UNIT / days)
    }

    /// The share of the activity that lies in the quietest hours: people rest in some, and some people more
    /// regularly than others.
    pub(super) fn at_rest(&self) -> f64 {
        let held =
            |from: usize| -> f64 { (0..REST).map(|hour| f64::from(self.hours[(from + hour) % 24])).sum() };
        let all: f64 = self.hours.iter().map(|count| f64::from(*count)).sum();
        (0..24).map(held).fold(all, f64::min) / all.max(1.0)
    }

    /// Activity near an hour of UTC on all those days, per hour.
    pub(super) fn near(&self, hour: f64) -> f64 {
        let first = (hour - NEAR).ceil() as i64;
        let near = (first..first + 2 * NEAR as i64 + 2).map(|full| {
            let count = f64::from(self.hours[full.rem_euclid(24) as usize]);
            count * tent(hour - full as f64, NEAR)
        });
        near.sum::<f64>() / UNIT
    }

    /// The hours of UTC at which the last sessions began, the newest first.
    pub(super) fn recent(&self) -> impl DoubleEndedIterator<Item = f64> + ExactSizeIterator + '_ {
        self.recent[..usize::from(self.sessions)].iter().map(|time| (f64::from(*time) + 0.5) * 24.0 / 256.0)
    }
}

/// The time of day in hours.
pub(super) fn hour_of(at: u32) -> f64 {
    f64::from(at % DAY) / f64::from(HOUR)
}

/// The half hour since the epoch.
pub const fn half_hour(at: u32) -> u32 {
    at / HALF_HOUR
}

/// The full hour before and how far the next one is near.
pub(super) fn on_clock(hours: f64) -> (usize, f64) {
    let hours = hours.rem_euclid(24.0);
    (hours as usize % 24, hours.fract())
}

/// How near two times of day are: 0 from `width` hours on, with an area of 1.
pub(super) fn tent(apart: f64, width: f64) -> f64 {
    let apart = apart.rem_euclid(24.0);
    let apart = apart.min(24.0 - apart);
    (1.0 - apart / width).max(0.0) / width
}

/// How it is written down.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RhythmState {
    #[prost(uint32, repeated, tag = "1")]
    hours: Vec<u32>,
    #[prost(bytes = "vec", tag = "2")]
    recent: Vec<u8>,
    #[prost(uint32, tag = "3")]
    days: u32,
    #[prost(uint32, tag = "4")]
    day: u32,
}

impl From<Rhythm> for RhythmState {
    fn from(rhythm: Rhythm) -> Self {
        Self {
            hours: rhythm.hours.map(u32::from).to_vec(),
            recent: rhythm.recent[..usize::from(rhythm.sessions)].to_vec(),
            days: rhythm.days.into(),
            day: rhythm.day.into(),
        }
    }
}

impl From<RhythmState> for Rhythm {
    fn from(state: RhythmState) -> Self {
        let small = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        let mut rhythm = Self { days: small(state.days), day: small(state.day), ..Self::default() };
        rhythm.hours.iter_mut().zip(state.hours).for_each(|(hour, count)| *hour = small(count));
        rhythm.recent.iter_mut().zip(&state.recent).for_each(|(time, recent)| *time = *recent);
        rhythm.sessions = state.recent.len().min(RECENT) as u8;
        rhythm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_active_now_and_then_at_midnight_rests_less_than_whoever_never_is() {
        let mut rhythm = Rhythm::default();
        (0..100).for_each(|day| rhythm.saw(day * DAY + 9 * HOUR, true, false));
        (0..100).for_each(|day| rhythm.saw(day * DAY + 17 * HOUR, true, false));
        assert_eq!(rhythm.at_rest(), 0.0);
        (0..50).for_each(|day| rhythm.saw(day * DAY, true, false));
        (0..50).for_each(|day| rhythm.saw(day * DAY + 5 * HOUR, true, false));
        assert!((rhythm.at_rest() - 0.17).abs() < 0.05, "{}", rhythm.at_rest());
    }
}
