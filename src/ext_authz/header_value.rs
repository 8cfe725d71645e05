//! Values as headers to the upstream, in a form from which the app can tell every one of them apart.
//!
//! An app gets a value back by splitting at `,` and percent-decoding each part. So a comma within a value is escaped, and so
//! is everything that HTTP or Envoy would change on the way: spaces at the edges, which are trimmed (RFC 9110, 5.5), control
//! characters, and what is not ASCII. Not one line for each item: Envoy keeps the last of several, or joins them
//! (contract, 1.3).

use std::borrow::Cow;
use std::fmt;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::attributes;
use crate::proto::view::{Kind, StructValue};

/// A value that can be a header.
#[derive(Debug, Clone)]
pub(super) enum HeaderText<'a> {
    /// One value.
    One(Cow<'a, str>),
    /// The items of a list, each of which is one value; never none.
    Many(&'a [StructValue<'a>]),
}

impl<'a> HeaderText<'a> {
    /// A claim: a string, a boolean, an exact integer, or a list of these; `None` if it is null or an empty list, which is as good as
    /// absent.
    ///
    /// # Errors
    /// What it is, if it has no form as a header from which it could be told.
    pub(super) fn claim(kind: &'a Kind<'a>) -> Result<Option<Self>, &'static str> {
        let Kind::List(list) = kind else {
            return Ok(if matches!(kind, Kind::Null) { None } else { Some(Self::One(scalar(kind)?)) });
        };
        for value in &list.values {
            value.kind.as_ref().map_or(Err(NOT_SCALAR), scalar)?;
        }
        Ok((!list.values.is_empty()).then_some(Self::Many(&list.values)))
    }
}

const NOT_SCALAR: &str = "a list of other things than strings, integers and booleans";

/// One value as a string.
fn scalar<'a>(kind: &Kind<'a>) -> Result<Cow<'a, str>, &'static str> {
    match kind {
        Kind::String(text) => Ok(Cow::Borrowed(text)),
        Kind::Bool(value) => Ok(Cow::Borrowed(if *value { "true" } else { "false" })),
        Kind::Number(number) => match attributes::integral(*number) {
            Some(integer) => Ok(Cow::Owned(integer.to_string())),
            None => Err(
                "a number that is not an exact integer below 2^53, and may have been another one; as a string it can",
            ),
        },
        Kind::Struct(_) => Err("an object"),
        Kind::Null | Kind::List(_) => Err(NOT_SCALAR),
    }
}

impl fmt::Display for HeaderText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(text) => Escaped(text).fmt(f),
            Self::Many(items) => {
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        f.write_str(",")?;
                    }
                    // `claim` has looked at all of them.
                    let text = item.kind.as_ref().and_then(|kind| scalar(kind).ok());
                    Escaped(text.as_deref().unwrap_or_default()).fmt(f)?;
                }
                Ok(())
            }
        }
    }
}

/// One value, percent-encoded where it must be.
struct Escaped<'a>(&'a str);

/// `%` makes room for the rest, and a comma would be taken for the end of the value.
const HIDDEN: &AsciiSet = &CONTROLS.add(b'%').add(b',');

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, rest) = self.0.strip_prefix(' ').map_or(("", self.0), |rest| ("%20", rest));
        let (rest, last) = rest.strip_suffix(' ').map_or((rest, ""), |rest| (rest, "%20"));
        write!(f, "{first}{}{last}", utf8_percent_encode(rest, HIDDEN))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::view::ListValue;

    /// What the documentation tells apps to do.
    fn decode(header: &str) -> Vec<String> {
        let part = |part: &str| percent_encoding::percent_decode_str(part).decode_utf8().expect("UTF-8").into_owned();
        header.split(',').map(part).collect()
    }

    fn list<'a>(items: &'a [String]) -> Kind<'a> {
        let value = |item: &'a String| StructValue { kind: Some(Kind::String(item)) };
        Kind::List(ListValue { values: items.iter().map(value).collect() })
    }

    fn header(kind: &Kind<'_>) -> Result<Option<String>, &'static str> {
        HeaderText::claim(kind).map(|text| text.map(|text| text.to_string()))
    }

    #[test]
    fn values_have_one_form() {
        let long = |n: f64| header(&Kind::Number(n)).map(Option::unwrap_or_default);
        let text = |text: &str| header(&Kind::String(text)).map(Option::unwrap_or_default);
        assert_eq!(text("staff,admin").as_deref(), Ok("staff%2Cadmin"));
        assert_eq!(text(" mallory ").as_deref(), Ok("%20mallory%20"));
        assert_eq!(text(" ").as_deref(), Ok("%20"));
        assert_eq!(text("  ").as_deref(), Ok("%20%20"));
        assert_eq!(text("a b").as_deref(), Ok("a b"));
        assert_eq!(text("\ta\r\n\u{7f}\u{0}").as_deref(), Ok("%09a%0D%0A%7F%00"));
        assert_eq!(text("zo\u{eb} 100%").as_deref(), Ok("zo%C3%AB 100%25"));
        assert_eq!(text("").as_deref(), Ok(""));
        assert_eq!(long(0.0).as_deref(), Ok("0"));
        assert_eq!(long(9_007_199_254_740_991.0).as_deref(), Ok("9007199254740991"));
        for number in [-0.0, 0.5, 9_007_199_254_740_994.0, 12_345_678_901_234_567_680.0, f64::NAN, f64::INFINITY] {
            assert!(long(number).is_err(), "{number}");
        }
        assert_eq!(header(&Kind::Bool(true)), Ok(Some("true".to_owned())));
        assert_eq!(header(&Kind::Null), Ok(None));
        assert_eq!(header(&list(&[])), Ok(None));
        assert_eq!(header(&list(&[String::new()])), Ok(Some(String::new())));
        for kind in
            [None, Some(Kind::Null), Some(Kind::Struct(Default::default())), Some(list(&[])), Some(Kind::Number(0.5))]
        {
            assert!(header(&Kind::List(ListValue { values: vec![StructValue { kind }] })).is_err());
        }
        assert!(header(&Kind::Struct(Default::default())).is_err());
    }

    proptest! {
        #[test]
        fn what_was_sent_is_what_is_read(items in prop::collection::vec("(?s)([ ,%\t\"a]|.){0,6}", 1..5)) {
            let sent = header(&list(&items)).expect("a header").expect("a value");
            prop_assert!(sent.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            prop_assert_eq!(sent.trim(), &sent);
            prop_assert_eq!(decode(&sent), items);
        }
    }
}
