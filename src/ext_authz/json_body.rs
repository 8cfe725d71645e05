//! JSON bodies, cut down to what is declared.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use smol_str::SmolStr;

use super::attributes::{EXACT, Place, may_be_replaced, text};
use super::body::Content;
use super::names;
use crate::model::{Attributes, RecordType, Type, Unmapped, UnmappedKind, Value};

/// A JSON body, cut down to what is declared, without building a tree of the rest.
///
/// # Errors
/// If it is not JSON, if a key that is declared comes twice (parsers disagree on which of them counts), or under a name that
/// some take for it ([`names::same_key`]), if a value does not fit its type.
pub fn read(fields: &RecordType, content: Content<'_>, place: &Place<'_>) -> Result<Attributes, Unmapped> {
    let Content { bytes: body, replaced } = content;
    // serde would repeat what it finds instead, and refusals are logged.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Unmapped::new(UnmappedKind::Attribute, format!("`{place}`: expected an object")));
    }
    // As a whole, since what is skipped below would not be looked at.
    let body = std::str::from_utf8(body)
        .map_err(|_| Unmapped::new(UnmappedKind::Attribute, format!("`{place}` is not UTF-8")))?;
    let mut deserializer = serde_json::Deserializer::from_str(body);
    let seed = RecordSeed { fields, place, replaced };
    seed.deserialize(&mut deserializer)
        .and_then(|record| deserializer.end().map(|()| record))
        .map_err(|error| Unmapped::new(UnmappedKind::Attribute, format!("`{place}`: {error}")))
}

struct RecordSeed<'a> {
    fields: &'a RecordType,
    place: &'a Place<'a>,
    /// As [`Content`] has it.
    replaced: bool,
}

impl RecordSeed<'_> {
    /// Refuses a key that is not declared, if somebody may take it for one that is.
    fn undeclared<E: Error>(&self, key: &str) -> Result<(), E> {
        for declared in self.fields.keys() {
            if names::same_key(declared, key) {
                let place = self.place.of(declared);
                return Err(E::custom(format!("`{place}` comes under a name that some take for it")));
            }
            if self.replaced && key.contains('!') && names::same_key(declared, &key.replace('!', "")) {
                return Err(E::custom(may_be_replaced(&self.place.of(declared))));
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for RecordSeed<'_> {
    type Value = Attributes;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Attributes, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RecordSeed<'_> {
    type Value = Attributes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Attributes, A::Error> {
        let mut record = Attributes::new();
        let mut seen: Vec<SmolStr> = Vec::new();
        while let Some(key) = map.next_key::<SmolStr>()? {
            let Some(field) = self.fields.get(&key) else {
                self.undeclared(&key)?;
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if seen.contains(&key) {
                return Err(A::Error::custom(format!("`{}.{key}` comes twice", self.place)));
            }
            let place = self.place.of(&key);
            let value = map.next_value_seed(ValueSeed { ty: &field.ty, place: &place, replaced: self.replaced })?;
            seen.push(key.clone());
            if let Some(value) = value {
                record.insert(key, value);
            }
        }
        for (name, field) in self.fields {
            if field.required && !record.contains_key(name) {
                return Err(A::Error::custom(format!("`{}.{name}` is required by the schema and missing", self.place)));
            }
        }
        Ok(record)
    }
}

struct ValueSeed<'a> {
    ty: &'a Type,
    place: &'a Place<'a>,
    replaced: bool,
}

impl ValueSeed<'_> {
    fn misfit<T, E: Error>(&self, found: &str) -> Result<T, E> {
        Err(E::custom(format!("`{}`: expected a `{}`, found {found}", self.place, self.ty)))
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.ty)
    }

    fn visit_unit<E: Error>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Option<Value>, E> {
        if *self.ty == Type::Bool { Ok(Some(Value::Bool(value))) } else { self.misfit("a boolean") }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Option<Value>, E> {
        if *self.ty != Type::Long {
            return self.misfit("a number");
        }
        // Whoever reads numbers as doubles reads another one.
        if value.unsigned_abs() >= EXACT.unsigned_abs() {
            return self.misfit("a number beyond 2^53");
        }
        Ok(Some(Value::Long(value)))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Option<Value>, E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) if *self.ty == Type::Long => self.misfit("a number beyond 2^53"),
            Err(_) => self.misfit("a number"),
        }
    }

    /// `1.5`, and also `1.0`, `1e3` and `-0`: to some they are integers, to others errors, and one value has one form.
    fn visit_f64<E: Error>(self, _: f64) -> Result<Option<Value>, E> {
        self.misfit("a number that is not written as an integer")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Option<Value>, E> {
        match self.ty {
            Type::String | Type::Entity(_) | Type::Extension(_) if self.replaced && value.contains('!') => {
                Err(E::custom(may_be_replaced(self.place)))
            }
            Type::String | Type::Entity(_) | Type::Extension(_) => {
                text(self.ty, value, self.place).map(Some).map_err(|unmapped| E::custom(unmapped.detail))
            }
            _ => self.misfit("a string"),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<Value>, A::Error> {
        let Type::Set(member) = self.ty else { return self.misfit("a list") };
        let mut members = Vec::new();
        while let Some(value) =
            seq.next_element_seed(ValueSeed { ty: member, place: self.place, replaced: self.replaced })?
        {
            members.extend(value);
        }
        Ok(Some(Value::set(members)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<Value>, A::Error> {
        let Type::Record(fields) = self.ty else { return self.misfit("an object") };
        RecordSeed { fields, place: self.place, replaced: self.replaced }
            .visit_map(map)
            .map(|record| Some(Value::Record(record)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::AttributeType;

    fn field(ty: Type, required: bool) -> AttributeType {
        AttributeType { ty, required }
    }

    fn read_bytes(fields: &RecordType, bytes: &[u8]) -> Result<Attributes, Unmapped> {
        read(fields, Content { bytes, replaced: false }, &Place::new("body"))
    }

    #[test]
    fn json_bodies_are_cut_down_and_repetitions_refused() {
        let inner = RecordType::from([("b".into(), field(Type::Bool, true))]);
        let fields = RecordType::from([
            ("n".into(), field(Type::Long, true)),
            ("tags".into(), field(Type::Set(Box::new(Type::String)), false)),
            ("o".into(), field(Type::Record(inner), false)),
        ]);
        let good = read_bytes(&fields, br#"{"n":1,"x":{"n":2},"tags":["b","a","b"],"o":{"b":true,"c":1}}"#);
        let good = good.expect("fits");
        assert_eq!(good.get("tags"), Some(&Value::Set(vec![Value::String("a".into()), Value::String("b".into())])));
        assert_eq!(good.len(), 3);
        assert!(read_bytes(&fields, b"{\"n\":1,\"x\":\"\xff\"}").is_err());
        for (body, why) in [
            (r#"{"n":1,"n":2}"#, "`body.n` comes twice"),
            (r#"{"n":"1"}"#, "`body.n`: expected a `Long`, found a string"),
            (r#"{"n":1.5}"#, "not written as an integer"),
            (r#"{"n":99999999999999999999}"#, "not written as an integer"),
            ("{}", "`body.n` is required"),
            (r#"{"n":null}"#, "`body.n` is required"),
            (r#"{"n":1,"o":{}}"#, "`body.o.b` is required"),
            (r#"{"n":1} {}"#, "trailing characters"),
            (r#"{"n":1"#, "EOF"),
            ("[]", "expected an object"),
        ] {
            let refused = read_bytes(&fields, body.as_bytes()).expect_err(body);
            assert!(refused.detail.contains(why), "{body}: {refused}");
        }
    }
}
