//! The keys of many entities, one after the other in one piece of memory: an allocation of its own for each
//! would take more than most keys do.

/// Where a key lies.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct KeyAt {
    start: u32,
    len: u16,
}

/// Keys, with gaps where keys were released.
#[derive(Debug, Default)]
pub(super) struct Keys {
    bytes: Vec<u8>,
    released: usize,
}

/// Gaps of less than this are not worth moving the keys.
const LEAST_GAPS: usize = 64 << 10;

impl Keys {
    /// Adds the key that is made of `parts`; `None` where there is no more room.
    pub(super) fn add(&mut self, parts: &[&[u8]]) -> Option<KeyAt> {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        let at = KeyAt { start: u32::try_from(self.bytes.len()).ok()?, len: u16::try_from(len).ok()? };
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        Some(at)
    }

    pub(super) fn get(&self, at: KeyAt) -> &[u8] {
        &self.bytes[at.start as usize..][..usize::from(at.len)]
    }

    pub(super) fn release(&mut self, at: KeyAt) {
        self.released += usize::from(at.len);
    }

    /// Moves the keys `in_use` together, if more than half of the memory is gaps.
    pub(super) fn close_gaps<'a>(&mut self, in_use: impl Iterator<Item = &'a mut KeyAt>) {
        if self.released < LEAST_GAPS.max(self.bytes.len() / 2) {
            return;
        }
        let mut bytes = Vec::with_capacity(self.bytes.len() - self.released);
        for at in in_use {
            let start = bytes.len();
            bytes.extend_from_slice(self.get(*at));
            // No further than before.
            at.start = start as u32;
        }
        *self = Self { bytes, released: 0 };
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}
