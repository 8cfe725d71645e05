//! Numbers in as few bytes as they need: seven bits to a byte, the lowest first, the eighth set on all but the last. Each
//! number has one form. Protobuf's varints (<https://protobuf.dev/programming-guides/encoding/#varints>).

use std::ops::Deref;

/// An encoded number; its bytes are what it dereferences to.
#[derive(Debug, Clone, Copy)]
pub struct Varint {
    bytes: [u8; 10],
    length: usize,
}

impl Varint {
    /// Encodes a number.
    #[inline]
    pub fn of(value: u64) -> Self {
        // Nearly all are short.
        if let Ok(byte @ ..0x80) = u8::try_from(value) {
            return Self { bytes: [byte, 0, 0, 0, 0, 0, 0, 0, 0, 0], length: 1 };
        }
        Self::long(value)
    }

    fn long(value: u64) -> Self {
        let (mut bytes, mut length, mut rest) = ([0; 10], 0, value);
        for byte in &mut bytes {
            *byte = (rest & 0x7f) as u8 | if rest > 0x7f { 0x80 } else { 0 };
            length += 1;
            rest >>= 7;
            if rest == 0 {
                break;
            }
        }
        Self { bytes, length }
    }
}

impl Deref for Varint {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_prost_writes_and_reads_them() {
        for value in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::from(u32::MAX), u64::MAX >> 1, u64::MAX] {
            let encoded = Varint::of(value);
            assert_eq!(prost::decode_length_delimiter(&*encoded).ok(), usize::try_from(value).ok(), "{value}");
            assert_eq!(Some(encoded.len()), usize::try_from(value).ok().map(prost::length_delimiter_len), "{value}");
        }
    }
}
