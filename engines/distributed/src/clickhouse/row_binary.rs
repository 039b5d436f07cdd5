//! The format RowBinary: columns one after the other, without names, all numbers little-endian.
//! <https://clickhouse.com/docs/interfaces/formats/RowBinary>

use uuid::Uuid;

/// Rows being written.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn i64(&mut self, value: i64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn f64(&mut self, value: f64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(value.into())
    }

    /// A String: its length as a varint (LEB128), then its bytes.
    pub(super) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.length(value.len());
        self.0.extend_from_slice(value);
        self
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.bytes(value.as_bytes())
    }

    /// A UUID: two numbers of 64 bits, the higher first.
    pub(super) fn uuid(&mut self, value: &Uuid) -> &mut Self {
        let (high, low) = value.as_u64_pair();
        self.u64(high).u64(low)
    }

    /// A Nullable(DateTime64(6)), where 0 is absent.
    pub(super) fn optional_time(&mut self, micros: i64) -> &mut Self {
        match micros {
            0 => self.u8(1),
            _ => self.u8(0).i64(micros),
        }
    }

    /// A Map of strings.
    pub(super) fn map<T: AsRef<str>>(&mut self, entries: impl ExactSizeIterator<Item = (T, T)>) -> &mut Self {
        self.length(entries.len());
        for (key, value) in entries {
            self.text(key.as_ref()).text(value.as_ref());
        }
        self
    }

    fn length(&mut self, mut length: usize) {
        while length >= 0x80 {
            self.0.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        self.0.push(length as u8);
    }
}
