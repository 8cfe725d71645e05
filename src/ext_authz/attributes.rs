//! From what is on the wire to typed values. A value that does not fit its declared type is a refusal that names the
//! attribute; nothing is guessed.

use std::fmt;

use smol_str::{SmolStr, ToSmolStr};

use crate::model::{Attributes, Extension, RecordType, Type, Unmapped, UnmappedKind, Value};
use crate::policy;
use crate::proto::view::{Kind, Struct, StructValue};

/// 2^53: below it every integer is a double of its own, and this one may have been 2^53 + 1.
pub(super) const EXACT: i64 = 1 << 53;

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

pub(super) fn misfit(place: &Place<'_>, ty: &Type, found: &str) -> Unmapped {
    Unmapped::new(UnmappedKind::Attribute, format!("`{place}`: expected a `{ty}`, found {found}"))
}

/// What is wrong with a `!` where Envoy writes it for other bytes.
pub(super) fn may_be_replaced(place: &Place<'_>) -> String {
    format!(
        "`{place}` has a `!`, so it may not have been UTF-8; Envoy's `pack_as_bytes: true` or `encode_raw_headers: true` tells"
    )
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
    .ok_or_else(|| misfit(place, ty, "a string that is not one"))
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
        Kind::String(_) => "a string",
        Kind::Bool(_) => "a boolean",
        Kind::Struct(_) => "a struct",
        Kind::List(_) => "a list",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Choices, EntityType};

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
}
