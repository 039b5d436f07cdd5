//! Scores a plain series of values, such as counts per five minutes: how surprising each is after those
//! before it, 0 to 1.
//!
//! A value is looked at in four ways: how high it is, how fast it rose, how far the last six are from what
//! they were at this time of day in the last seven days, and how far the series is from being as restless
//! as usual. What each way shows is compared with all that it showed before: the surprise is the negative
//! logarithm of how often so much is to be expected, where what was never seen follows an exponential tail.
//! The four are added up. Until a week was seen, what it holds may still be new, and they count for less. The
//! longer the history, the more it takes, since there were more occasions. After a surprise the next has to be
//! greater for most of a day, so that an episode is told once.
//!
//! The score of a row depends on it and the rows before it alone.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

/// Rows with this score are worth an alarm.
pub const THRESHOLD: f64 = 0.5;

/// The surprise that gets [`THRESHOLD`].
const SURPRISE_AT_THRESHOLD: f64 = 8.4;
/// No way of looking at a value counts for more than this.
const MOST: f64 = 15.0;
/// By so much all four together have to pass the bar that an earlier surprise has set.
const STEP: f64 = 4.0;
/// What a history grown `e`-fold adds to the surprise that it takes; by then it is this many rows long.
const PER_GROWTH: f64 = 6.64;
const GROWTH_FROM_ROWS: f64 = 1_000.0;
/// How long a surprise raises the bar, in days, and within which numbers of rows that has to lie.
const BAR_DAYS: f64 = 0.7;
const BAR_ROWS: (f64, f64) = (30.0, 600.0);
/// The days before that are compared at the same time of day, and how far around it in seconds.
const SEASON_DAYS: usize = 7;
const SEASON_AROUND: f64 = 600.0;
const SEASON_ROWS: usize = 6;
/// The steps between values whose size tells how restless the series is, and the week with which that is
/// compared, in rows.
const RESTLESS_STEPS: usize = 13;
const RESTLESS_BEFORE: usize = 24;
const WEEK_ROWS: (f64, f64) = (200.0, 2_016.0);
/// Fewer values than this say nothing about what is rare.
const LEAST_HISTORY: usize = 50;
/// The most values that are remembered of each way to look at them.
const MOST_HISTORY: usize = 50_000;
/// The share of the values that makes the tail, and how few may.
const TAIL: f64 = 0.05;
const LEAST_TAIL: usize = 10;
/// A tail is taken to be at least so wide, as a share of where it begins: a series that repeats itself
/// exactly would else be surprised by a rounding error.
const LEAST_WIDTH: f64 = 0.05;
/// The first steps in time, from which the interval of the series is taken.
const INTERVAL_STEPS: usize = 200;
const DAY: f64 = 86_400.0;

/// What came before, as sorted values: tells how surprising another is.
#[derive(Debug, Default)]
struct Past {
    sorted: Vec<f64>,
    in_order: VecDeque<f64>,
}

impl Past {
    /// The negative logarithm of how often `value` or more is to be expected; then remembers it.
    fn surprise(&mut self, value: f64) -> f64 {
        let surprise = self.of(value);
        self.sorted.insert(self.sorted.partition_point(|other| *other < value), value);
        self.in_order.push_back(value);
        if self.in_order.len() > MOST_HISTORY
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.sorted.remove(self.sorted.partition_point(|other| *other < oldest));
        }
        surprise
    }

    fn of(&self, value: f64) -> f64 {
        let all = self.sorted.len();
        if all < LEAST_HISTORY {
            return 0.0;
        }
        let rarity = |above: usize| -((above as f64 + 1.0) / (all as f64 + 1.0)).ln();
        let tail = ((all as f64 * TAIL).ceil() as usize).max(LEAST_TAIL);
        let begin = self.sorted[all - tail];
        if value <= begin {
            return rarity(all - self.sorted.partition_point(|other| *other < value));
        }
        let excess = self.sorted[all - tail..].iter().map(|other| other - begin).sum::<f64>() / tail as f64;
        let middle = self.sorted[all - tail / 2 - 1];
        let width = excess.max(LEAST_WIDTH * middle.abs().max(begin.abs())) + 1e-6;
        rarity(tail) + (value - begin) / width
    }
}

/// Mean and spread of the last values.
#[derive(Debug, Default)]
struct Recent {
    values: VecDeque<f64>,
    sum: f64,
    squares: f64,
}

impl Recent {
    fn push(&mut self, value: f64, most: usize) {
        self.values.push_back(value);
        self.sum += value;
        self.squares += value * value;
        while self.values.len() > most {
            let Some(oldest) = self.values.pop_front() else { break };
            self.sum -= oldest;
            self.squares -= oldest * oldest;
        }
    }

    /// How many standard deviations `value` is away from the mean.
    fn away(&self, value: f64) -> f64 {
        let n = self.values.len().max(1) as f64;
        let mean = self.sum / n;
        let variance = (self.squares / n - mean * mean).max(0.0);
        (value - mean).abs() / (variance.sqrt() + 1e-6)
    }
}

/// Scores the rows of one series, one after the other.
#[derive(Debug, Default)]
pub struct Series {
    values: Vec<f64>,
    /// The first steps in time, sorted, in seconds.
    steps: Vec<f64>,
    last_at: f64,
    /// How far the last values are from those at their time of day.
    seasonal: VecDeque<f64>,
    restless: Recent,
    high: Past,
    rose: Past,
    unseasonal: Past,
    unlike: Past,
    /// The surprises that still raise the bar: their rows and how great they were.
    told: VecDeque<(usize, f64)>,
}

impl Series {
    /// The score of the next row: `value` at `at`, in seconds.
    pub fn next(&mut self, at: f64, value: f64) -> f64 {
        self.note_step(at);
        let row = self.values.len();
        let level = value.abs().ln_1p() * value.signum();
        let before = self.values.last().map_or(level, |last| last.abs().ln_1p() * last.signum());
        self.values.push(value);
        let unseasonal = self.unseasonal_by(row);
        let unlike = self.unlike_by(row);
        let surprise = [
            self.high.surprise(level),
            self.rose.surprise((level - before).max(0.0)),
            self.unseasonal.surprise(unseasonal),
            self.unlike.surprise(unlike),
        ];
        let all: f64 = surprise.into_iter().map(|one| one.min(MOST)).sum();
        self.told_once(row, all * self.known(row))
    }

    /// Learns how far apart the rows are.
    fn note_step(&mut self, at: f64) {
        if !self.values.is_empty() && self.steps.len() < INTERVAL_STEPS {
            let step = at - self.last_at;
            self.steps.insert(self.steps.partition_point(|other| *other < step), step);
        }
        self.last_at = at;
    }

    fn rows_a_day(&self) -> f64 {
        let interval = self.steps.get(self.steps.len() / 2).copied().unwrap_or(DAY);
        DAY / interval.max(1.0)
    }

    /// What a surprise counts for: all of it once the days before hold a whole season, half of it after the
    /// first of them.
    fn known(&self, row: usize) -> f64 {
        let seasons = row as f64 / self.rows_a_day() / SEASON_DAYS as f64;
        seasons.min(1.0).cbrt()
    }

    /// How far the last values are from those at the same time of day.
    fn unseasonal_by(&mut self, row: usize) -> f64 {
        let day = self.rows_a_day();
        let around = (SEASON_AROUND * day / DAY).round() as usize;
        let (mut sum, mut count) = (0.0, 0_usize);
        for days in 1..=SEASON_DAYS {
            let Some(middle) = row.checked_sub((days as f64 * day).round() as usize) else { break };
            // Of the day before, only what lies before this row.
            let same_time = middle.saturating_sub(around)..(middle + around + 1).min(row);
            count += same_time.len();
            sum += self.values[same_time].iter().sum::<f64>();
        }
        let away = if count == 0 { 0.0 } else { self.values[row] - sum / count as f64 };
        self.seasonal.push_back(away);
        if self.seasonal.len() > SEASON_ROWS {
            self.seasonal.pop_front();
        }
        (self.seasonal.iter().sum::<f64>() / self.seasonal.len() as f64).abs()
    }

    /// How far the size of the last steps is from what it was in a week.
    fn unlike_by(&mut self, row: usize) -> f64 {
        let restless = match row >= RESTLESS_BEFORE {
            true => {
                let last = &self.values[row - RESTLESS_STEPS..];
                let sizes = last.windows(2).map(|pair| (pair[1] - pair[0]).abs());
                (sizes.sum::<f64>() / RESTLESS_STEPS as f64).ln_1p()
            }
            false => 0.0,
        };
        let unlike = if row > LEAST_HISTORY / 2 { self.restless.away(restless) } else { 0.0 };
        let week = (SEASON_DAYS as f64 * self.rows_a_day()).clamp(WEEK_ROWS.0, WEEK_ROWS.1);
        self.restless.push(restless, week as usize + 1);
        unlike
    }

    /// The score of a surprise: none below the bar that earlier ones have set.
    fn told_once(&mut self, row: usize, surprise: f64) -> f64 {
        let lasts = (BAR_DAYS * self.rows_a_day()).clamp(BAR_ROWS.0, BAR_ROWS.1).floor();
        while self.told.front().is_some_and(|(then, _)| (row - then) as f64 >= lasts) {
            self.told.pop_front();
        }
        let fallen = |then: usize| 1.0 - ((row - then) as f64 / lasts).powi(4);
        let bar = self.told.iter().map(|(then, size)| size * fallen(*then)).fold(0.0, f64::max);
        if surprise <= bar + STEP {
            return 0.0;
        }
        self.told.push_back((row, surprise));
        let left = surprise - PER_GROWTH * (1.0 + row as f64 / GROWTH_FROM_ROWS).ln();
        left.max(0.0) / (left.max(0.0) + SURPRISE_AT_THRESHOLD)
    }
}

/// Why a series could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum SeriesError {
    /// It cannot be read, or the scores cannot be written.
    #[error("the series cannot be scored: {0}")]
    Csv(#[from] csv::Error),
    /// The scores cannot be written.
    #[error("the scores cannot be written: {0}")]
    Write(#[from] io::Error),
    /// A column is missing.
    #[error("the first line must name the columns `timestamp` and `value`")]
    Columns,
    /// A row holds no time or no number.
    #[error("line {line}: `{text}` is no {wanted}")]
    Row {
        /// From 1.
        line: u64,
        /// What stands there.
        text: String,
        /// What should.
        wanted: &'static str,
    },
}

/// Reads `timestamp,value` and writes `timestamp,value,score`; answers how many rows there were and how
/// many are worth an alarm.
pub fn score_csv(input: impl Read, output: impl Write) -> Result<(u64, u64), SeriesError> {
    let mut reader = csv::Reader::from_reader(input);
    let columns = reader.headers()?;
    let column = |name| columns.iter().position(|column| column.trim() == name).ok_or(SeriesError::Columns);
    let (at, value) = (column("timestamp")?, column("value")?);
    let mut writer = csv::Writer::from_writer(output);
    writer.write_record(["timestamp", "value", "score"])?;
    let (mut series, mut rows, mut alarms) = (Series::default(), 0, 0);
    for record in reader.records() {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let (at, value) = (record.get(at).unwrap_or_default(), record.get(value).unwrap_or_default());
        let wrong = |text: &str, wanted| SeriesError::Row { line, text: text.to_owned(), wanted };
        let time = seconds(at.trim()).ok_or_else(|| wrong(at, "time"))?;
        let number = value.trim().parse::<f64>().ok().filter(|number| number.is_finite());
        let score = series.next(time, number.ok_or_else(|| wrong(value, "number"))?);
        writer.write_record([at, value, &format!("{score:.6}")])?;
        rows += 1;
        alarms += u64::from(score >= THRESHOLD);
    }
    writer.flush()?;
    Ok((rows, alarms))
}

/// A time with or without an offset, or seconds since 1970.
fn seconds(text: &str) -> Option<f64> {
    let timestamp = text.parse::<Timestamp>().ok().or_else(|| {
        text.parse::<DateTime>().ok()?.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    });
    timestamp
        .map(|time| time.as_microsecond() as f64 / 1e6)
        .or_else(|| text.parse::<f64>().ok().filter(|seconds| seconds.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(row: usize) -> f64 {
        let of_day = (row % 288) as f64 / 288.0;
        // A rhythm of the day, with a little that looks like chance.
        100.0 + 50.0 * (of_day * std::f64::consts::TAU).sin() + (row * 7_919 % 13) as f64
    }

    fn scores(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
        let mut series = Series::default();
        values.into_iter().enumerate().map(|(row, value)| series.next(row as f64 * 300.0, value)).collect()
    }

    #[test]
    fn a_burst_gets_one_high_score_at_its_beginning_and_an_even_series_none() {
        let calm = scores((0..4_000).map(wave));
        assert!(calm[600..].iter().all(|score| *score < THRESHOLD));
        let burst =
            scores((0..4_000).map(|row| wave(row) * if (3_000..3_030).contains(&row) { 5.0 } else { 1.0 }));
        let high: Vec<usize> = (600..4_000).filter(|row| burst[*row] >= THRESHOLD).collect();
        assert_eq!(high, [3_000]);
    }

    #[test]
    fn a_surprise_counts_in_full_only_once_a_week_was_seen() {
        let mut series = Series::default();
        (0..2_016).for_each(|row| _ = series.next(f64::from(row) * 300.0, 0.0));
        assert!((series.known(288) - 0.523).abs() < 1e-3, "{}", series.known(288));
        assert!(series.known(2_015) < 1.0);
        assert_eq!((series.known(2_016), series.known(20_160)), (1.0, 1.0));
    }

    #[test]
    fn a_score_does_not_depend_on_what_comes_later() {
        let whole = scores((0..2_000).map(|row| wave(row) + (row * row % 101) as f64));
        let half = scores((0..1_000).map(|row| wave(row) + (row * row % 101) as f64));
        assert_eq!(whole[..1_000], half[..]);
        assert!(whole.iter().all(|score| (0.0..=1.0).contains(score)));
    }

    #[test]
    fn a_file_is_copied_with_scores_and_a_bad_row_is_named() {
        let mut out = Vec::new();
        let text = "timestamp,value\n2015-02-26 21:42:53,104\n2015-02-26T21:47:53Z,1e2\n1424987573,3\n";
        assert_eq!(score_csv(text.as_bytes(), &mut out).unwrap(), (3, 0));
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out.lines().nth(2), Some("2015-02-26T21:47:53Z,1e2,0.000000"));
        for bad in
            ["timestamp,value\n2015-02-26 21:42:53,many\n", "timestamp,value\nnoon,1\n", "time,count\n"]
        {
            assert!(score_csv(bad.as_bytes(), Vec::new()).is_err());
        }
    }
}
