//! `name=value` pairs of a query or a form.

use std::fmt;

use super::attributes::{self, Place, may_be_replaced};
use super::body::Content;
use super::names;
use crate::model::{Attributes, RecordType, Unmapped, UnmappedKind};

/// Strictly decoded `name=value` pairs, for query parameters and form bodies.
#[derive(Debug)]
pub struct Pairs<'a>(Content<'a>);

impl<'a> Pairs<'a> {
    /// The pairs of an `application/x-www-form-urlencoded` text.
    pub fn new(content: Content<'a>) -> Self {
        Self(content)
    }

    /// The record of these fields.
    ///
    /// # Errors
    /// If a value does not fit its type, is repeated where one is declared, or a required one is missing.
    pub fn record(&self, fields: &RecordType, place: &Place<'_>) -> Result<Attributes, Unmapped> {
        attributes::texts(fields, place, |name| self.one(name, place), |name| self.values(name, place))
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
