//! A Bloom filter in blocks of a cache line (Putze, Sanders, Singler: Cache-, Hash- and Space-Efficient
//! Bloom Filters, 2007). It spares a look into every run of marks for a key that none of them has.

use panopticon_core::ids::SeenKey;

/// Bits per key; about one key in a thousand is asked for in vain.
const BITS_PER_KEY: usize = 16;
const BLOCK_WORDS: usize = 8;
const BLOCK_BITS: usize = BLOCK_WORDS * 64;
/// Bits that a key sets in its block, of nine bits of hash each.
const PROBES: u32 = 6;

/// Which keys may be in a run.
pub(super) struct Filter {
    words: Box<[u64]>,
}

impl Filter {
    /// An empty filter for `keys` keys.
    pub(super) fn for_keys(keys: usize) -> Self {
        let blocks = (keys * BITS_PER_KEY).div_ceil(BLOCK_BITS).max(1);
        Self { words: vec![0; blocks * BLOCK_WORDS].into() }
    }

    /// Reads what [`Filter::to_bytes`] wrote.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let words: Box<[u64]> = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        (!words.is_empty() && words.len().is_multiple_of(BLOCK_WORDS)).then_some(Self { words })
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    pub(super) fn insert(&mut self, key: SeenKey) {
        let (block, bits) = self.place(key);
        for bit in bits {
            self.words[block + bit / 64] |= 1 << (bit % 64);
        }
    }

    /// False for a key that was not inserted, mostly; true for every key that was.
    pub(super) fn may_have(&self, key: SeenKey) -> bool {
        let (block, mut bits) = self.place(key);
        bits.all(|bit| self.words[block + bit / 64] & (1 << (bit % 64)) != 0)
    }

    /// The key is a hash already: its halves choose the block and the bits.
    fn place(&self, SeenKey(key): SeenKey) -> (usize, impl Iterator<Item = usize> + use<>) {
        let hash = u128::from_le_bytes(key);
        let (block, bits) = ((hash >> 64) as u64, hash as u64);
        let blocks = (self.words.len() / BLOCK_WORDS) as u64;
        let block = (block % blocks) as usize * BLOCK_WORDS;
        (block, (0..PROBES).map(move |probe| (bits >> (9 * probe)) as usize % BLOCK_BITS))
    }
}

#[cfg(test)]
mod tests {
    use panopticon_core::ids::EventId;

    use super::*;

    fn key(n: u128) -> SeenKey {
        SeenKey::of("app", EventId(uuid::Uuid::from_u128(n)))
    }

    #[test]
    fn a_filter_knows_every_key_it_was_given_and_few_others() {
        let mut filter = Filter::for_keys(10_000);
        (0..10_000).for_each(|n| filter.insert(key(n)));
        let read_back = Filter::from_bytes(&filter.to_bytes()).unwrap();
        assert!((0..10_000).all(|n| read_back.may_have(key(n))));
        let wrong = (10_000..110_000).filter(|&n| read_back.may_have(key(n))).count();
        assert!(wrong < 500, "{wrong} of 100,000");
    }
}
