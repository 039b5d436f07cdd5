//! A count in one byte: exact up to 16, then in eight steps from each power of two to the next.

/// A count, rounded up to the next that a byte can stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Level(pub u8);

/// The steps from 16 to 32.
const STEPS: [u32; 8] = [16, 17, 19, 21, 23, 25, 27, 29];
/// The largest count there is a level for.
const LARGEST: u32 = STEPS[7] << 26;

impl Level {
    /// The lowest level that is at least `count`.
    pub fn of(count: u32) -> Self {
        if count <= 16 {
            return Self(count as u8);
        }
        let count = count.min(LARGEST);
        let octave = count.ilog2() - 4;
        // Rounded up, so that no level is below its count.
        let step = STEPS.iter().position(|step| (step << octave) >= count);
        let (octave, step) = step.map_or((octave + 1, 0), |step| (octave, step));
        Self((16 + 8 * octave + step as u32).min(255) as u8)
    }

    /// The count that it stands for.
    pub fn count(self) -> u32 {
        match u32::from(self.0) {
            exact @ 0..=16 => exact,
            code => STEPS[(code as usize - 16) % 8] << ((code - 16) / 8),
        }
    }

    /// One step lower; small counts stay as they are.
    pub fn faded(self) -> Self {
        Self(if self.0 > 8 { self.0 - 1 } else { self.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_never_below_its_count_and_at_most_an_eighth_above() {
        for count in (0..100_000).chain((0..31).map(|shift| 1 << shift)).filter(|count| *count <= LARGEST) {
            let read = Level::of(count).count();
            assert!(read >= count, "{count} {read}");
            assert!(f64::from(read) <= 1.13 * f64::from(count), "{count} {read}");
            assert_eq!(Level::of(read), Level::of(count));
        }
        assert_eq!(Level::of(u32::MAX), Level::of(LARGEST));
    }
}
