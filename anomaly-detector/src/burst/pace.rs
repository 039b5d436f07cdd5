//! How fast an entity calls, beside how fast it ever did: a fixed number of bytes, whatever it calls.
//!
//! Calls are counted in buckets of ten seconds, in aligned blocks of ten minutes and in hours; a minute is
//! any six buckets in a row. For each of these widths the highest count ever is kept, and a window that
//! reaches a multiple of it is over. Beside that, for an entity with a long history, the highest minute at
//! this time of day, on work days and at the weekend, is a bound of its own.
//!
//! Up to a minute of disorder changes nothing: a call goes to its own bucket, and a window is compared
//! with what was known when it began, which is kept until no call can belong to it any more. What a
//! window held becomes known when the one after it is over too.

use super::{level::Level, rhythm::Rhythm};

/// Width of a bucket in seconds.
pub const BUCKET_SECS: i64 = 10;
/// Buckets in a minute, in a spell of two minutes, in a block of ten, in an hour, in a day.
pub const MINUTE: u32 = 6;
const SPELL: u32 = 12;
const BLOCK: u32 = 60;
const HOUR: u32 = 360;
const DAY: u32 = 8_640;
/// A minute, and a minute of disorder before it.
const RING: usize = 12;
/// How many buckets behind the newest a call may come.
const DISORDER: u32 = 6;

/// So long no window must have been over its limit for calm to have returned, but at least as long as the
/// window: a new block or hour has to fill up before it can be over.
const CALM: u32 = 60;

/// The widths of windows, with what makes one a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Width {
    /// In buckets.
    pub buckets: u32,
    /// Tenths of the highest count ever that are a burst.
    tenths: u32,
    /// Fewer calls than this are none.
    least: u32,
}

/// From short to long.
pub const WIDTHS: [Width; 4] = [
    Width { buckets: 1, tenths: 30, least: 4 },
    Width { buckets: MINUTE, tenths: 25, least: 3 },
    Width { buckets: BLOCK, tenths: 30, least: 8 },
    Width { buckets: HOUR, tenths: 30, least: 10 },
];
const SHORT: usize = 0;
const MINUTES: usize = 1;
const BLOCKS: usize = 2;
const HOURS: usize = 3;

impl Width {
    /// How many calls are a burst for an entity that never made more than `highest` before.
    fn limit(self, highest: Level) -> u32 {
        (highest.count().saturating_mul(self.tenths)).div_ceil(10).max(self.least)
    }
}

/// A history is long enough with so many calls since so long ago …
const KNOWN_CALLS: u16 = 10;
const KNOWN_AFTER: u32 = 3 * DAY;
/// … or with so many in a much shorter time.
const KNOWN_MANY_CALLS: u16 = 1_000;
const KNOWN_MANY_AFTER: u32 = 10 * MINUTE;

/// A window is judged by a history at least so many times as long.
const HISTORY_WIDTHS: u32 = 10;

/// The times of day are told apart from so many calls on. They are a bound of their own with so many calls
/// on so many days.
const RHYTHM_FROM: u16 = 500;
const RHYTHM_CALLS: u16 = 2_000;
const RHYTHM_DAYS: u16 = 28;
/// Then a minute is over with so many times the highest at this time, but not with fewer calls than
/// `RHYTHM_LEAST` and half the highest minute ever.
const RHYTHM_TIMES: u32 = 3;
const RHYTHM_LEAST: u32 = 20;

/// What an entity did is forgotten slowly: on every so many days with calls all levels fall by a step.
const FADE_DAYS: u16 = 16;

/// A burst is not learned, or the second would go unseen; but the third within some weeks is, and one
/// that goes on for most of an hour: it has become usual.
const STRIKES_TO_LEARN: u8 = 60;
const STRIKES_OF_A_BURST: u8 = 20;
const STRIKES_OF_MORE: u8 = 2;
/// Spells with a burst within so many spells of each other belong to the same.
const SAME_BURST: u16 = 5;

/// The rate of one entity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pace {
    /// The calls of the newest bucket and those before it, by bucket modulo `RING`.
    pub(super) ring: [u16; RING],
    /// The newest bucket with a call.
    pub(super) newest: u32,
    /// The bucket of the first call.
    pub(super) first: u32,
    /// The calls of the current block and the one before it, at most 65,535: beyond that, shorter windows
    /// and hours tell.
    pub(super) blocks: [u16; 2],
    /// The same of hours.
    pub(super) hours: [u32; 2],
    /// The last spell with a burst that was closed, modulo 2¹⁶.
    pub(super) last_burst: u16,
    /// Calls ever.
    pub(super) calls: u16,
    /// Days with calls.
    pub(super) days: u16,
    /// The highest count per width, as known for the current window and for the one before it.
    pub(super) highest: [[Level; 2]; 4],
    /// The highest count in a bucket and in six, of those that end in the current spell and in the one
    /// before it.
    pub(super) peaks: [[Level; 2]; 2],
    /// Only with a longer history: most entities make do without.
    pub(super) rhythm: Option<Box<Rhythm>>,
    /// How much there was of late that would have been a burst.
    pub(super) strikes: u8,
    /// Whether enough was known when the current spell began, and when the one before it did; and
    /// whether the newest call was late.
    pub(super) flags: u8,
}

const KNOWN_NOW: u8 = 1;
const KNOWN_BEFORE: u8 = 2;
const BACKFILLING: u8 = 4;

/// A window that holds more calls than it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Over {
    /// How wide it is.
    pub width: Width,
    /// Its last bucket.
    pub end: u32,
    /// The calls in it.
    pub calls: u32,
    /// The highest count until then.
    pub highest: u32,
    /// That is the highest at this time of day only.
    pub at_this_hour: bool,
    /// Buckets since the first call.
    pub history: u32,
    /// With so many calls it was over.
    pub limit: u32,
}

impl Over {
    /// Its first bucket.
    pub const fn start(&self) -> u32 {
        match self.width.buckets {
            aligned @ BLOCK.. => self.end / aligned * aligned,
            sliding => (self.end + 1).saturating_sub(sliding),
        }
    }
}

/// The windows over their limits that hold a call: what there is to say of the first, and the last bucket
/// of the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overs {
    /// The one that says most: the shortest that ends first.
    pub first: Over,
    /// The last bucket of the last.
    pub last_end: u32,
    /// The bucket with which calm has returned if there is no further.
    pub until: u32,
}

impl Pace {
    /// Takes in `calls` calls in `bucket`, and looks at the windows that hold them; `Err` when they come
    /// too long after newer ones to be counted.
    pub fn add(&mut self, bucket: u32, calls: u32, late: bool) -> Result<Option<Overs>, TooOld> {
        let is_first = self.calls == 0;
        if is_first {
            (self.newest, self.first) = (bucket, bucket);
        }
        self.calls = self.calls.saturating_add(u16::try_from(calls).unwrap_or(u16::MAX));
        // Late calls teach while no others come: someone sends what happened before. They never share a
        // window with others.
        match (late, self.flags & BACKFILLING != 0) {
            (true, false) if bucket <= self.newest && !is_first => return Err(TooOld),
            (true, false) => self.flags |= BACKFILLING,
            (false, true) => self.settle(),
            _ => {}
        }
        self.first = self.first.min(bucket);
        if bucket > self.newest {
            self.move_to(bucket);
        }
        let behind = self.newest - bucket;
        if behind > DISORDER {
            return Err(TooOld);
        }
        self.count(bucket, calls);
        if late { Ok(None) } else { Ok(self.overs(bucket)) }
    }

    /// Takes in `calls` of the past, in the order of time, as usual even where they make a burst.
    pub fn add_usual(&mut self, bucket: u32, calls: u32) {
        // None is too old.
        let _ = self.add(bucket, calls, true);
        let newest = self.newest;
        let counts = [self.in_bucket(newest), self.in_minute(newest), self.blocks[0].into(), self.hours[0]];
        for (highest, count) in self.highest.iter_mut().zip(counts) {
            *highest = highest.map(|highest| highest.max(Level::of(count)));
        }
    }

    /// The newest bucket with a call.
    pub const fn newest(&self) -> u32 {
        self.newest
    }

    /// How many calls there were, at most 65,535.
    pub const fn calls(&self) -> u16 {
        self.calls
    }

    /// Whether it has seen enough to speak: what it knows ends with the last spell but one.
    const fn knows_enough(&self) -> bool {
        let until = (self.newest / SPELL).saturating_sub(1) * SPELL;
        let since = until.saturating_sub(self.first);
        (self.calls >= KNOWN_CALLS && since >= KNOWN_AFTER)
            || (self.calls >= KNOWN_MANY_CALLS && since >= KNOWN_MANY_AFTER)
    }

    /// Takes all that was counted into what is known, and counts anew.
    fn settle(&mut self) {
        for step in 0..3 {
            self.close_spell(self.newest);
            self.close_block();
            self.close_hour(step, self.newest);
        }
        self.ring = [0; RING];
        self.flags &= !BACKFILLING;
    }

    fn count(&mut self, bucket: u32, calls: u32) {
        let slot = &mut self.ring[bucket as usize % RING];
        let most = u16::try_from(calls).unwrap_or(u16::MAX);
        *slot = slot.saturating_add(most);
        let before = |width: u32| (self.newest / width - bucket / width) as usize;
        let (spell, block, hour) = (before(SPELL), before(BLOCK), before(HOUR));
        self.blocks[block] = self.blocks[block].saturating_add(most);
        self.hours[hour] = self.hours[hour].saturating_add(calls);
        self.peaks[SHORT][spell] = self.peaks[SHORT][spell].max(Level::of(self.in_bucket(bucket)));
        for end in bucket..=(bucket + MINUTE - 1).min(self.newest) {
            if self.in_bucket(end) == 0 {
                continue;
            }
            let peak = Level::of(self.in_minute(end));
            let spell = (self.newest / SPELL - end / SPELL) as usize;
            let hour = (self.newest / HOUR - end / HOUR) as usize;
            self.peaks[MINUTES][spell] = self.peaks[MINUTES][spell].max(peak);
            if let Some(rhythm) = &mut self.rhythm {
                rhythm.saw(hour, peak);
            }
        }
    }

    fn in_bucket(&self, bucket: u32) -> u32 {
        u32::from(self.ring[bucket as usize % RING])
    }

    /// The calls in the six buckets that end with `end`.
    fn in_minute(&self, end: u32) -> u32 {
        (end.saturating_sub(MINUTE - 1)..=end).map(|bucket| self.in_bucket(bucket)).sum()
    }

    fn overs(&self, bucket: u32) -> Option<Overs> {
        let mut found: Option<Overs> = None;
        let mut look = |width: usize, end: u32, calls: u32| {
            let Some(over) = self.over(width, end, calls) else { return };
            let until = end + CALM.max(WIDTHS[width].buckets);
            let found = found.get_or_insert(Overs { first: over, last_end: end, until });
            found.last_end = found.last_end.max(end);
            found.until = found.until.max(until);
        };
        look(SHORT, bucket, self.in_bucket(bucket));
        for end in self.ends(bucket) {
            look(MINUTES, end, self.in_minute(end));
        }
        let before = |width: u32| (self.newest / width - bucket / width) as usize;
        look(BLOCKS, self.last_within(BLOCK, bucket), self.blocks[before(BLOCK)].into());
        look(HOURS, self.last_within(HOUR, bucket), self.hours[before(HOUR)]);
        found
    }

    /// The last buckets of the minutes that hold a bucket and end with a call.
    fn ends(&self, bucket: u32) -> impl Iterator<Item = u32> {
        let until = (bucket + MINUTE - 1).min(self.newest);
        (bucket..=until).filter(|end| self.in_bucket(*end) > 0)
    }

    /// The last bucket with a call in the same block or hour.
    fn last_within(&self, width: u32, bucket: u32) -> u32 {
        let until = ((bucket / width + 1) * width - 1).min(self.newest);
        (bucket..=until).rev().find(|end| self.in_bucket(*end) > 0).unwrap_or(bucket)
    }

    fn over(&self, width: usize, end: u32, calls: u32) -> Option<Over> {
        let before = |width: u32| (self.newest / width - end / width) as usize;
        let known = if before(SPELL) == 0 { KNOWN_NOW } else { KNOWN_BEFORE };
        let history = end.saturating_sub(self.first);
        if self.flags & known == 0 || history < WIDTHS[width].buckets * HISTORY_WIDTHS {
            return None;
        }
        let epoch = WIDTHS[width].buckets.max(SPELL);
        let highest = self.highest[width][before(epoch)];
        let over = |highest: Level, limit: u32, at_this_hour| Over {
            width: WIDTHS[width],
            limit,
            end,
            calls,
            highest: highest.count(),
            at_this_hour,
            history,
        };
        let limit = WIDTHS[width].limit(highest);
        if calls >= limit {
            return Some(over(highest, limit, false));
        }
        let known = width == MINUTES && self.calls >= RHYTHM_CALLS && self.days >= RHYTHM_DAYS;
        let usual = self.rhythm.as_ref().filter(|_| known)?.usual(before(HOUR));
        let limit = RHYTHM_LEAST.max(usual.count() * RHYTHM_TIMES).max(highest.count().div_ceil(2));
        (calls >= limit).then(|| over(usual, limit, true))
    }

    /// Time goes on to `bucket`: what can no longer change becomes known.
    fn move_to(&mut self, bucket: u32) {
        let steps = |width: u32| (bucket / width - self.newest / width) as usize;
        let (spells, blocks, hours, days) = (steps(SPELL), steps(BLOCK), steps(HOUR), steps(DAY));
        for _ in 0..spells.min(3) {
            self.close_spell(bucket);
        }
        for _ in 0..blocks.min(3) {
            self.close_block();
        }
        for step in 0..hours.min(3) {
            self.close_hour(step as u32, bucket);
        }
        if days > 0 {
            self.days = self.days.saturating_add(1);
            self.strikes = self.strikes.saturating_sub(u8::try_from(days).unwrap_or(u8::MAX));
            if self.days.is_multiple_of(FADE_DAYS) {
                self.fade();
            }
        }
        let gone = (bucket - self.newest).min(RING as u32);
        for new in (bucket + 1 - gone)..=bucket {
            self.ring[new as usize % RING] = 0;
        }
        self.newest = bucket;
    }

    fn close_spell(&mut self, bucket: u32) {
        let known = if self.knows_enough() { KNOWN_NOW } else { 0 };
        let before = if self.flags & KNOWN_NOW != 0 { KNOWN_BEFORE } else { 0 };
        self.flags = self.flags & BACKFILLING | known | before;
        let spell = (bucket / SPELL) as u16;
        let is_burst = |width: usize| {
            let peak = self.peaks[width][1];
            known != 0 && peak.count() >= WIDTHS[width].limit(self.highest[width][0])
        };
        if is_burst(SHORT) || is_burst(MINUTES) {
            let same = spell.wrapping_sub(self.last_burst) <= SAME_BURST;
            self.strikes =
                self.strikes.saturating_add(if same { STRIKES_OF_MORE } else { STRIKES_OF_A_BURST });
            self.last_burst = spell;
        }
        for width in [SHORT, MINUTES] {
            let peaks = std::mem::take(&mut self.peaks[width]);
            self.peaks[width][1] = peaks[0];
            self.learn(width, peaks[1]);
        }
    }

    fn close_block(&mut self) {
        let calls = std::mem::take(&mut self.blocks);
        self.blocks[1] = calls[0];
        self.learn(BLOCKS, Level::of(calls[1].into()));
    }

    fn close_hour(&mut self, step: u32, bucket: u32) {
        let calls = std::mem::take(&mut self.hours);
        self.hours[1] = calls[0];
        self.learn(HOURS, Level::of(calls[1]));
        if self.rhythm.is_none() && self.calls >= RHYTHM_FROM {
            self.rhythm = Some(Box::default());
        }
        if let Some(rhythm) = &mut self.rhythm {
            rhythm.close(self.newest / HOUR + step, bucket / HOUR);
        }
    }

    /// A window that is closed held so many calls.
    fn learn(&mut self, width: usize, calls: Level) {
        let highest = self.highest[width][0];
        let burst = self.knows_enough() && calls.count() >= WIDTHS[width].limit(highest);
        let learned = if burst && self.strikes < STRIKES_TO_LEARN { highest } else { highest.max(calls) };
        self.highest[width] = [learned, highest];
    }

    fn fade(&mut self) {
        for highest in &mut self.highest {
            highest[0] = highest[0].faded();
        }
        if let Some(rhythm) = &mut self.rhythm {
            rhythm.fade();
        }
    }
}

/// The calls come too long after newer ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooOld;
