//! Protobuf as it goes, for answers: what has no owner needs none to be written.
//!
//! Answers are small and there is one per request; building them from prost messages, which own every text and hash
//! every map, costs more than deciding (docs/decisions/0005-hot-path.md). Tests decode what is written with envoy-types.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

use std::fmt;
use std::io::Write;

use crate::proto::varint::Varint;

/// A message that is being written, at the end of a buffer.
pub struct Message<'a>(&'a mut Vec<u8>);

const VARINT: u64 = 0;
const LENGTH_DELIMITED: u64 = 2;

impl<'a> Message<'a> {
    /// A message that begins at the end of a buffer.
    pub fn new(buffer: &'a mut Vec<u8>) -> Self {
        Self(buffer)
    }

    /// A number, also of an enum. Negative ones are not written here.
    pub fn number(&mut self, field: u64, value: u64) {
        self.key(field, VARINT);
        self.0.extend_from_slice(&Varint::of(value));
    }

    /// A text.
    pub fn text(&mut self, field: u64, value: &str) {
        self.key(field, LENGTH_DELIMITED);
        self.0.extend_from_slice(&Varint::of(value.len() as u64));
        self.0.extend_from_slice(value.as_bytes());
    }

    /// Something's text.
    pub fn display(&mut self, field: u64, value: impl fmt::Display) {
        self.delimited(field, |buffer| {
            // Writing to a Vec cannot fail.
            let _ = write!(buffer, "{value}");
        });
    }

    /// A message within.
    pub fn message(&mut self, field: u64, write: impl FnOnce(&mut Message<'_>)) {
        self.delimited(field, |buffer| write(&mut Message(buffer)));
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.0.extend_from_slice(&Varint::of(field << 3 | wire_type));
    }

    /// The length comes first and is known last: one byte is left for it, and what follows moves if it needs more.
    fn delimited(&mut self, field: u64, write: impl FnOnce(&mut Vec<u8>)) {
        self.key(field, LENGTH_DELIMITED);
        let place = self.0.len();
        self.0.push(0);
        write(self.0);
        let length = Varint::of((self.0.len() - place - 1) as u64);
        match (self.0.get_mut(place), &*length) {
            (Some(byte), [digit]) => *byte = *digit,
            (_, digits) => drop(self.0.splice(place..=place, digits.iter().copied())),
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::value::Kind;
    use envoy_types::pb::google::protobuf::{ListValue, Value};
    use prost::Message as _;

    use super::*;

    #[test]
    fn lengths_of_any_size_are_what_prost_reads() {
        for length in [0, 1, 126, 127, 128, 300, 16_383, 16_384, 70_000] {
            let text = "x".repeat(length);
            let mut buffer = b"before".to_vec();
            Message::new(&mut buffer).message(6, |list| {
                list.message(1, |value| value.text(3, &text));
                list.message(1, |value| value.display(3, format_args!("{text}")));
                list.message(1, |value| value.number(1, 0));
            });
            let text = Value { kind: Some(Kind::StringValue(text)) };
            let null = Value { kind: Some(Kind::NullValue(0)) };
            let list = Value { kind: Some(Kind::ListValue(ListValue { values: vec![text.clone(), text, null] })) };
            assert_eq!(Value::decode(&buffer[6..]), Ok(list), "{length}");
        }
    }
}
