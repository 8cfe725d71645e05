//! Reads JSON that people and programs write, with the place of what is wrong, and refuses what would be lost on the way: of
//! two members with one name, serde_json keeps the last.

use std::fmt;
use std::sync::Arc;

use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::problem::{Problem, SourceFile};

/// Reads any value.
///
/// # Errors
/// A syntax error, or a member that is there twice.
pub fn value(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).map(|Strict(value)| value)
}

/// Reads a file.
///
/// # Errors
/// As [`value`].
pub fn parse(source: &Arc<SourceFile>) -> Result<Value, Problem> {
    value(&source.text).map_err(|error| problem(&error, source))
}

/// Reads a file of a known type.
///
/// # Errors
/// As [`value`], and where the type does not fit.
pub fn typed<T: DeserializeOwned>(source: &Arc<SourceFile>) -> Result<T, Problem> {
    parse(source)?;
    serde_json::from_str(&source.text).map_err(|error| problem(&error, source))
}

/// The place of a member of this name, the first in the file.
pub fn member(source: &SourceFile, name: &str) -> Option<(usize, usize)> {
    let quoted = Value::from(name).to_string();
    let is_name =
        |at: &usize| source.text.get(at + quoted.len()..).is_some_and(|after| after.trim_start().starts_with(':'));
    let at = source.text.match_indices(&quoted).map(|(at, _)| at).find(is_name)?;
    Some((at, quoted.len()))
}

/// The place of the member of this name, if the file has no other one.
pub fn only_member(source: &SourceFile, name: &str) -> Option<(usize, usize)> {
    let is_alone = source.text.matches(&Value::from(name).to_string()).count() == 1;
    member(source, name).filter(|_| is_alone)
}

fn problem(error: &serde_json::Error, source: &Arc<SourceFile>) -> Problem {
    let text = error.to_string();
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    // serde_json counts lines from 1 and columns in bytes; 0 is before the first.
    let line: usize = source.text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let offset = (line + error.column().saturating_sub(1)).min(source.text.len());
    let offset = (0..=offset).rev().find(|at| source.text.is_char_boundary(*at)).unwrap_or(0);
    Problem::error(format!("not valid JSON: {message}")).at(source, Some((offset, 1)))
}

struct Strict(Value);

impl<'de> de::Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values).map(Self)
    }
}

struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if all.contains_key(&name) {
                return Err(de::Error::custom(format!("`{name}` is there twice")));
            }
            let Strict(value) = members.next_value()?;
            all.insert(name, value);
        }
        Ok(all.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_serde_json_reads() {
        let text = r#"{"a": [1, -2, 1.5, true, null, "é\n"], "b": {"c": {}, "d": 18446744073709551615}}"#;
        assert_eq!(value(text).expect("good"), serde_json::from_str::<Value>(text).expect("good"));
    }

    #[test]
    fn what_is_wrong_has_its_place() {
        for (text, expected) in [
            ("{\n \"é\": 1,\n \"é\": 2}", "x.json:3:4: not valid JSON: `é` is there twice"),
            ("{\"a\": [{\"b\": 1, \"b\": 1}]}", "x.json:1:19: not valid JSON: `b` is there twice"),
            ("{\"a\": nil}", "x.json:1:8: not valid JSON: expected ident"),
            ("", "x.json:1:1: not valid JSON: EOF while parsing a value"),
        ] {
            let found = parse(&SourceFile::new("x.json", text)).expect_err(text);
            assert_eq!(found.to_string(), expected);
        }
        let source = SourceFile::new("x.json", "{\"x\": \"key\", \"key\" : 1}");
        assert_eq!(member(&source, "key"), Some((13, 5)));
    }
}
