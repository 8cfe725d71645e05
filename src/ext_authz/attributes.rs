//! From what is on the wire to typed values. A value that does not fit its declared type is a refusal that names the
//! attribute; nothing is guessed.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use smol_str::{SmolStr, ToSmolStr};

use super::body::Content;
use super::names;
use crate::model::{Attributes, Extension, RecordType, Type, Unmapped, UnmappedKind, Value};
use crate::policy;
use crate::proto::view::{Kind, Struct, StructValue};

/// 2^53: below it every integer is a double of its own, and this one may have been 2^53 + 1.
const EXACT: i64 = 1 << 53;

/// A place in a request, such as `context.headers.x-tenant`: only written out for who gets to read it.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    above: Option<&'a Place<'a>>,
    name: &'a str,
}

impl<'a> Place<'a> {
    /// A place at the top.
    pub const fn new(name: &'a str) -> Self {
        Self { above: None, name }
    }

    /// A place below this one.
    pub const fn of(&'a self, name: &'a str) -> Self {
        Self { above: Some(self), name }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(above) = self.above {
            write!(f, "{above}.")?;
        }
        f.write_str(self.name)
    }
}

fn misfit(place: &Place<'_>, ty: &Type, found: &str) -> Unmapped {
    Unmapped::new(UnmappedKind::Attribute, format!("`{place}` is declared as `{ty}`, found {found}"))
}

/// An attribute that the schema requires and the request has not.
pub fn missing(place: &Place<'_>) -> Unmapped {
    Unmapped::new(UnmappedKind::Attribute, format!("`{place}` is required by the schema and missing"))
}

/// A value written as text: a header, a query parameter, a label.
///
/// # Errors
/// If the text is not a value of the type.
pub fn text(ty: &Type, text: &str, place: &Place<'_>) -> Result<Value, Unmapped> {
    match ty {
        Type::String => Some(Value::String(text.into())),
        Type::Bool => text.parse().ok().map(Value::Bool),
        // `+1` and `01` are numbers to some and texts to others.
        Type::Long => text.parse::<i64>().ok().filter(|long| long.to_smolstr() == text).map(Value::Long),
        Type::Entity(ty) => ty.entity(text).map(Value::Entity),
        Type::Extension(extension) => self::extension(*extension, text),
        Type::Set(_) | Type::Record(_) => None,
    }
    .ok_or_else(|| misfit(place, ty, "a text that is not one"))
}

fn extension(extension: Extension, text: &str) -> Option<Value> {
    let text = match extension {
        // A request has an address and no range of them, in the one form that a connection's has.
        Extension::Ipaddr => text.parse::<std::net::IpAddr>().ok()?.to_canonical().to_smolstr(),
        Extension::Decimal | Extension::Datetime | Extension::Duration => SmolStr::new(text),
    };
    policy::check_extension(extension, &text).is_ok().then_some(Value::Extension(extension, text))
}

/// A record whose values come from texts by name, such as headers or parameters. `one` and `list` look a name up.
///
/// # Errors
/// If a value does not fit, or a required one is missing.
pub fn texts<'a>(
    fields: &RecordType,
    place: &Place<'_>,
    one: impl Fn(&str) -> Result<Option<std::borrow::Cow<'a, str>>, Unmapped>,
    list: impl Fn(&str) -> Result<Vec<std::borrow::Cow<'a, str>>, Unmapped>,
) -> Result<Attributes, Unmapped> {
    let mut record = Attributes::new();
    for (name, field) in fields {
        let value = match &field.ty {
            Type::Set(member) => {
                let members = list(name)?;
                let members: Result<Vec<Value>, _> =
                    members.iter().map(|value| text(member, value, &place.of(name))).collect();
                // A set is there also when it is empty, if the schema says that it always is.
                Some(members?).filter(|members| field.required || !members.is_empty()).map(Value::set)
            }
            ty => one(name)?.map(|value| text(ty, &value, &place.of(name))).transpose()?,
        };
        match value {
            Some(value) => {
                record.insert(name.clone(), value);
            }
            None if field.required => return Err(missing(&place.of(name))),
            None => {}
        }
    }
    Ok(record)
}

/// A string in which Envoy writes `!` for bytes that are not UTF-8, whatever the form of the headers.
///
/// # Errors
/// If it may have been another one.
pub fn unreplaced<'a>(bytes: &'a [u8], place: &Place<'_>, kind: UnmappedKind) -> Result<&'a str, Unmapped> {
    let text = std::str::from_utf8(bytes).map_err(|_| Unmapped::new(kind, format!("`{place}` is not UTF-8")))?;
    if text.contains('!') {
        return Err(Unmapped::new(
            kind,
            format!("`{place}` has a `!`, which Envoy writes for bytes that are not UTF-8"),
        ));
    }
    Ok(text)
}

/// A value of Envoy's dynamic metadata; `None` for `null`, which is as good as absent.
///
/// # Errors
/// If it does not fit its type.
pub fn metadata(
    ty: &Type,
    name: Option<&str>,
    value: &StructValue<'_>,
    place: &Place<'_>,
) -> Result<Option<Value>, Unmapped> {
    let Some(kind) = &value.kind else { return Ok(None) };
    Ok(Some(match (ty, kind) {
        (_, Kind::Null) => return Ok(None),
        (Type::Bool, Kind::Bool(value)) => Value::Bool(*value),
        (Type::Long, Kind::Number(number)) => {
            Value::Long(integral(*number).ok_or_else(|| misfit(place, ty, "a number that is not an exact integer"))?)
        }
        (Type::String | Type::Entity(_) | Type::Extension(_), Kind::String(value)) => text(ty, value, place)?,
        (Type::Record(fields), Kind::Struct(value)) => Value::Record(metadata_record(fields, value, place)?),
        (Type::Set(member), Kind::List(list)) => {
            let members = list.values.iter().filter_map(|value| metadata(member, None, value, place).transpose());
            Value::set(members.collect::<Result<_, _>>()?)
        }
        (Type::Set(member), Kind::String(scope)) if name.is_some_and(is_words) => {
            Value::set(words(scope).map(|word| text(member, word, place)).collect::<Result<_, _>>()?)
        }
        // A claim that is a list for some tokens is a lone text for others: `aud` is both by RFC 7519, 4.1.3.
        (Type::Set(member), Kind::String(value)) => Value::set(vec![text(member, value, place)?]),
        (_, kind) => return Err(misfit(place, ty, kind_name(kind))),
    }))
}

/// A record of Envoy's dynamic metadata, cut down to what is declared.
///
/// # Errors
/// If a field does not fit its type, or a required one is missing.
pub fn metadata_record(fields: &RecordType, value: &Struct<'_>, place: &Place<'_>) -> Result<Attributes, Unmapped> {
    let mut record = Attributes::new();
    for (name, field) in fields {
        let place = place.of(name);
        let found = value.fields.get(name);
        match found.map(|value| metadata(&field.ty, Some(name), value, &place)).transpose()?.flatten() {
            Some(value) => {
                record.insert(name.clone(), value);
            }
            None if field.required => return Err(missing(&place)),
            None => {}
        }
    }
    Ok(record)
}

/// The claims that are a list of words in one string: `scope` by RFC 8693, 4.2, and `scp`, as some issuers call it.
pub fn is_words(name: &str) -> bool {
    matches!(name, "scope" | "scp")
}

/// The words of such a claim.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(' ').filter(|word| !word.is_empty())
}

/// A double as an integer, if it is exactly one: no other integer is the same double, and it is no negative zero.
pub fn integral(number: f64) -> Option<i64> {
    #[expect(clippy::cast_precision_loss, reason = "2^53 is a double")]
    let exact = number.fract() == 0.0 && number.abs() < EXACT as f64 && (number != 0.0 || number.is_sign_positive());
    #[expect(clippy::cast_possible_truncation, reason = "integral and below 2^53, so nothing is cut off")]
    exact.then_some(number as i64)
}

fn kind_name(kind: &Kind<'_>) -> &'static str {
    match kind {
        Kind::Null => "null",
        Kind::Number(_) => "a number",
        Kind::String(_) => "a text",
        Kind::Bool(_) => "a truth value",
        Kind::Struct(_) => "a struct",
        Kind::List(_) => "a list",
    }
}

// === JSON bodies ===

/// A JSON body, cut down to what is declared, without building a tree of the rest.
///
/// # Errors
/// If it is not JSON, if a key that is declared comes twice (parsers disagree on which of them counts), or under a name that
/// some take for it ([`names::same_key`]), if a value does not fit its type.
pub fn json(fields: &RecordType, content: Content<'_>, place: &Place<'_>) -> Result<Attributes, Unmapped> {
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

/// What is wrong with a `!` where Envoy writes it for other bytes.
fn may_be_replaced(place: &Place<'_>) -> String {
    format!(
        "`{place}` has a `!`, so it may not have been UTF-8; Envoy's `pack_as_bytes: true` or `encode_raw_headers: true` tells"
    )
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
        Err(E::custom(format!("`{}` is declared as `{}`, found {found}", self.place, self.ty)))
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
        if *self.ty == Type::Bool { Ok(Some(Value::Bool(value))) } else { self.misfit("a truth value") }
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
            _ => self.misfit("a text"),
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

// === Query parameters and form bodies ===

/// Strictly decoded `name=value` pairs, for query parameters and form bodies.
#[derive(Debug)]
pub struct Pairs<'a>(Content<'a>);

impl<'a> Pairs<'a> {
    /// The pairs of an `application/x-www-form-urlencoded` text.
    pub fn new(content: Content<'a>) -> Self {
        Self(content)
    }

    /// Every value of a name, in order.
    ///
    /// # Errors
    /// If one has a malformed escape or is not UTF-8. Pairs with other names are nobody's business, unless somebody may take
    /// one for this name ([`names::same_parameter`]), or splits pairs at `;` as well.
    pub fn values(&self, name: &str, place: &Place<'_>) -> Result<Vec<std::borrow::Cow<'static, str>>, Unmapped> {
        let mut all = Vec::new();
        let refuse = |what: fmt::Arguments<'_>| Err(Unmapped::new(UnmappedKind::Attribute, what.to_string()));
        for pair in self.0.bytes.split(|byte| *byte == b'&') {
            let (key, value) = name_and_value(pair);
            let Some(key) = decode(key) else {
                return refuse(format_args!("a name in `{place}` is not validly encoded"));
            };
            if key != name {
                if self.hides(name, pair) {
                    return refuse(format_args!("`{place}.{name}` comes under a name that some take for it"));
                }
                continue;
            }
            if value.contains(&b';') {
                return refuse(format_args!("`{place}.{name}` has a `;`, at which some parsers end it"));
            }
            if self.0.replaced && value.contains(&b'!') {
                return Err(Unmapped::new(UnmappedKind::Attribute, may_be_replaced(&place.of(name))));
            }
            match decode(value) {
                Some(value) => all.push(std::borrow::Cow::Owned(value)),
                None => return refuse(format_args!("`{place}.{name}` is not validly encoded")),
            }
        }
        Ok(all)
    }

    /// Whether somebody may find this name in a pair of another one.
    fn hides(&self, name: &str, pair: &[u8]) -> bool {
        pair.split(|byte| *byte == b';').filter_map(|part| decode(name_and_value(part).0)).any(|found| {
            names::same_parameter(name, &found)
                || (self.0.replaced && found.contains('!') && names::same_parameter(name, &found.replace('!', "")))
        })
    }

    /// The one value of a name that may come once.
    ///
    /// # Errors
    /// If it comes several times, or is not validly encoded.
    pub fn one(&self, name: &str, place: &Place<'_>) -> Result<Option<std::borrow::Cow<'static, str>>, Unmapped> {
        let mut values = self.values(name, place)?;
        if values.len() > 1 {
            let detail = format!("`{place}.{name}` is repeated, but declared as one value");
            return Err(Unmapped::new(UnmappedKind::Attribute, detail));
        }
        Ok(values.pop())
    }
}

fn name_and_value(pair: &[u8]) -> (&[u8], &[u8]) {
    match pair.iter().position(|byte| *byte == b'=') {
        Some(at) => (pair.get(..at).unwrap_or(pair), pair.get(at + 1..).unwrap_or(b"")),
        None => (pair, b""),
    }
}

/// Decodes `%XX` and `+`; `None` where another decoder could see something else.
fn decode(bytes: &[u8]) -> Option<String> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'+' => decoded.push(b' '),
            b'%' => {
                let digits = rest.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
                decoded.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = rest.get(2..)?;
            }
            byte => decoded.push(*byte),
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AttributeType, Choices, EntityType};

    fn field(ty: Type, required: bool) -> AttributeType {
        AttributeType { ty, required }
    }

    #[test]
    fn texts_fit_their_types_or_are_refused() {
        let of = |name: &str, choices| Type::Entity(EntityType { name: name.parse().expect("a name"), choices });
        let user = of("User", None);
        let env = of("Env", Some(Choices::new(["dev", "prod"].map(SmolStr::new).into())));
        let ip = Type::Extension(Extension::Ipaddr);
        let table = [
            (&Type::Bool, "true", true),
            (&Type::Bool, "True", false),
            (&Type::Bool, "1", false),
            (&Type::Long, "-42", true),
            (&Type::Long, "+42", false),
            (&Type::Long, "042", false),
            (&Type::Long, "9223372036854775808", false),
            (&Type::Long, "1.0", false),
            (&Type::String, "", true),
            (&user, "alice", true),
            (&env, "prod", true),
            (&env, "Prod", false),
            (&env, "prod ", false),
            (&env, "", false),
            (&ip, "10.0.0.0/8", false),
            (&ip, "10.0.0", false),
            (&Type::Extension(Extension::Decimal), "1.2345", true),
            (&Type::Extension(Extension::Decimal), "1.23456", false),
            (&Type::Extension(Extension::Datetime), "2026-11-22T05:44:45.840Z", true),
            (&Type::Extension(Extension::Datetime), "yesterday", false),
            (&Type::Extension(Extension::Duration), "1d2h", true),
            (&Type::Extension(Extension::Duration), "2 hours", false),
        ];
        for (ty, value, fits) in table {
            assert_eq!(text(ty, value, &Place::new("context.x")).is_ok(), fits, "{ty} {value}");
        }
    }

    #[test]
    fn numbers_in_metadata_are_longs_only_if_they_are_exact() {
        let number = |number: f64| StructValue { kind: Some(Kind::Number(number)) };
        for (value, fits) in [
            (3.0, true),
            (-3.0, true),
            (0.0, true),
            (-0.0, false),
            (3.5, false),
            (9_007_199_254_740_991.0, true),
            (-9_007_199_254_740_991.0, true),
            // 2^53, which 2^53 + 1 becomes as well.
            (9_007_199_254_740_992.0, false),
            (-9_007_199_254_740_992.0, false),
            (9.1e15, false),
            (1e300, false),
            (5e-324, false),
            (f64::NAN, false),
            (f64::INFINITY, false),
        ] {
            assert_eq!(metadata(&Type::Long, None, &number(value), &Place::new("x")).is_ok(), fits, "{value}");
        }
        assert_eq!(metadata(&Type::String, None, &StructValue { kind: Some(Kind::Null) }, &Place::new("x")), Ok(None));
    }

    fn read(fields: &RecordType, bytes: &[u8]) -> Result<Attributes, Unmapped> {
        json(fields, Content { bytes, replaced: false }, &Place::new("body"))
    }

    #[test]
    fn json_bodies_are_cut_down_and_repetitions_refused() {
        let inner = RecordType::from([("b".into(), field(Type::Bool, true))]);
        let fields = RecordType::from([
            ("n".into(), field(Type::Long, true)),
            ("tags".into(), field(Type::Set(Box::new(Type::String)), false)),
            ("o".into(), field(Type::Record(inner), false)),
        ]);
        let good = read(&fields, br#"{"n":1,"x":{"n":2},"tags":["b","a","b"],"o":{"b":true,"c":1}}"#);
        let good = good.expect("fits");
        assert_eq!(good.get("tags"), Some(&Value::Set(vec![Value::String("a".into()), Value::String("b".into())])));
        assert_eq!(good.len(), 3);
        assert!(read(&fields, b"{\"n\":1,\"x\":\"\xff\"}").is_err());
        for (body, why) in [
            (r#"{"n":1,"n":2}"#, "`body.n` comes twice"),
            (r#"{"n":"1"}"#, "`body.n` is declared as `Long`, found a text"),
            (r#"{"n":1.5}"#, "not written as an integer"),
            (r#"{"n":99999999999999999999}"#, "not written as an integer"),
            ("{}", "`body.n` is required"),
            (r#"{"n":null}"#, "`body.n` is required"),
            (r#"{"n":1,"o":{}}"#, "`body.o.b` is required"),
            (r#"{"n":1} {}"#, "trailing characters"),
            (r#"{"n":1"#, "EOF"),
            ("[]", "expected an object"),
        ] {
            let refused = read(&fields, body.as_bytes()).expect_err(body);
            assert!(refused.detail.contains(why), "{body}: {refused}");
        }
    }

    #[test]
    fn pairs_decode_strictly() {
        let pairs = Pairs::new(Content { bytes: b"a=1&b=x+y&%61=2&c=%zz&d&e=%E9", replaced: false });
        assert_eq!(pairs.values("a", &Place::new("q")).expect("good"), ["1", "2"]);
        assert!(pairs.one("a", &Place::new("q")).is_err());
        assert_eq!(pairs.one("b", &Place::new("q")), Ok(Some("x y".into())));
        assert_eq!(pairs.one("d", &Place::new("q")), Ok(Some("".into())));
        assert_eq!(pairs.one("z", &Place::new("q")), Ok(None));
        assert!(pairs.one("c", &Place::new("q")).is_err());
        assert!(pairs.one("e", &Place::new("q")).is_err());
    }
}
