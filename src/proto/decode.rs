//! The fields of a protobuf message, read where they lie. Where prost and the protobuf of C++ differ on broken messages, the message is
//! refused: a field of the wrong wire type, a group, nesting without end.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

use std::fmt;

/// Why bytes are no CheckRequest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// They end in the middle of a field.
    Truncated,
    /// A number is longer than ten bytes, or a field has a number that none can have.
    Number,
    /// A field that is known has another type, or one has a type that protobuf 3 does not have.
    Type,
    /// A name or a string of the metadata is not UTF-8.
    Utf8,
    /// Structs lie in structs, a hundred deep.
    Depth,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "it ends in the middle of a field",
            Self::Number => "a number is not one",
            Self::Type => "a field has a type that it cannot have",
            Self::Utf8 => "a name or a string in the metadata is not UTF-8",
            Self::Depth => "it is nested too deeply",
        })
    }
}

impl std::error::Error for Malformed {}

/// As many messages may lie in each other as prost allows.
const DEPTH: u8 = 100;

/// An encoded message that is not read yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Encoded<'a> {
    pub(super) bytes: &'a [u8],
    depth: u8,
}

/// The value of a field.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    /// Of all integers and booleans.
    Number(u64),
    /// Of a double.
    Double(f64),
    /// Of strings, bytes and messages.
    Bytes(Encoded<'a>),
    /// Of a kind that no field here has.
    Other,
}

impl<'a> Encoded<'a> {
    #[inline]
    fn varint(&mut self) -> Result<u64, Malformed> {
        // Nearly all are short.
        if let Some((byte @ ..0x80, rest)) = self.bytes.split_first() {
            self.bytes = rest;
            return Ok(u64::from(*byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for (at, byte) in self.bytes.iter().copied().enumerate().take(10) {
            // The tenth byte has one bit to give.
            if at == 9 && byte > 1 {
                return Err(Malformed::Number);
            }
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                self.bytes = self.bytes.get(at + 1..).unwrap_or_default();
                return Ok(value);
            }
        }
        Err(if self.bytes.len() < 10 { Malformed::Truncated } else { Malformed::Number })
    }

    #[inline]
    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed::Truncated)?;
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or(Malformed::Truncated)?;
        self.bytes = rest;
        Ok(taken)
    }

    #[inline]
    fn field(&mut self) -> Result<(u64, Value<'a>), Malformed> {
        let key = self.varint()?;
        let number = key >> 3;
        if number == 0 || key > u64::from(u32::MAX) {
            return Err(Malformed::Number);
        }
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => {
                let bytes = self.take(8)?.try_into().map_err(|_| Malformed::Truncated)?;
                Value::Double(f64::from_le_bytes(bytes))
            }
            2 => {
                let length = self.varint()?;
                Value::Bytes(Encoded { bytes: self.take(length)?, depth: self.depth })
            }
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return Err(Malformed::Type),
        };
        Ok((number, value))
    }
}

impl<'a> Value<'a> {
    /// A message at the top.
    pub(super) fn message(bytes: &'a [u8]) -> Self {
        Self::Bytes(Encoded { bytes, depth: DEPTH })
    }

    pub(super) fn number(self) -> Result<u64, Malformed> {
        if let Self::Number(number) = self { Ok(number) } else { Err(Malformed::Type) }
    }

    #[inline]
    pub(super) fn bytes(self) -> Result<&'a [u8], Malformed> {
        if let Self::Bytes(encoded) = self { Ok(encoded.bytes) } else { Err(Malformed::Type) }
    }

    pub(super) fn text(self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed::Utf8)
    }

    #[inline]
    pub(super) fn read<M: Message<'a>>(self) -> Result<M, Malformed> {
        let mut message = M::default();
        self.merge_into(&mut message)?;
        Ok(message)
    }

    /// A message that comes in several pieces is all of them.
    #[inline]
    pub(super) fn merge<M: Message<'a>>(self, message: &mut Option<M>) -> Result<(), Malformed> {
        self.merge_into(message.get_or_insert_with(M::default))
    }

    #[inline]
    pub(super) fn merge_into<M: Message<'a>>(self, message: &mut M) -> Result<(), Malformed> {
        let Self::Bytes(Encoded { bytes, depth }) = self else { return Err(Malformed::Type) };
        message.merge(Encoded { bytes, depth: depth.checked_sub(1).ok_or(Malformed::Depth)? })
    }
}

/// A message, field by field.
pub(super) trait Message<'a>: Default {
    /// Takes in one field; those that are not known are skipped.
    fn field(&mut self, number: u64, value: Value<'a>) -> Result<(), Malformed>;

    fn merge(&mut self, mut encoded: Encoded<'a>) -> Result<(), Malformed> {
        while !encoded.bytes.is_empty() {
            let (number, value) = encoded.field()?;
            self.field(number, value)?;
        }
        Ok(())
    }
}
