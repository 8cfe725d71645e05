//! The path contract: one canonical form, decoded once, query split first (design, decision 3).
//!
//! A path that two parties can read in two ways is refused, unless the operator allows its form by name. The contract
//! does not lean on Envoy's normalisation. The vectors are the CVEs listed in docs/threat-model.md: un-normalised
//! paths, escaped slashes, fragments, matrix parameters.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write;

use deserr::Deserr;
use serde::Serialize;

use crate::yaml::Faults;

/// `paths:` of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// Forms of paths that are refused unless they are named here; default: none. An allowed form is passed to policies
    /// as it came: escapes stay escapes, dot segments stay where they are.
    #[deserr(default)]
    pub allow: BTreeSet<Form>,
}

/// The forms in which a path can be read in two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserr, Serialize)]
#[deserr(error = Faults, rename_all = lowercase)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// No path at all. CONNECT has none and is not meant by this.
    #[deserr(rename = "empty_path")]
    EmptyPath,
    /// `//`: some servers merge slashes.
    #[deserr(rename = "double_slash")]
    DoubleSlash,
    /// `/./`, `/../`: some servers resolve them.
    #[deserr(rename = "dot_segments")]
    DotSegments,
    /// `;`: some servers cut matrix parameters off, or resolve `..;`.
    #[deserr(rename = "path_parameters")]
    PathParameters,
    /// `\`, as it is or escaped: some servers take it for a slash.
    #[deserr(rename = "backslash")]
    Backslash,
    /// `%2F`: some servers decode it before they split.
    #[deserr(rename = "encoded_slash")]
    EncodedSlash,
    /// `%2E`: some servers decode it before they resolve dot segments.
    #[deserr(rename = "encoded_dot")]
    EncodedDot,
    /// `%00`: some servers end the path there.
    #[deserr(rename = "encoded_nul")]
    EncodedNul,
    /// `%252F` and other escapes of an escape: some servers decode twice.
    #[deserr(rename = "double_encoding")]
    DoubleEncoding,
    /// `%zz`, `%2`: servers disagree on what it means.
    #[deserr(rename = "malformed_escape")]
    MalformedEscape,
    /// Bytes that are not UTF-8 once decoded.
    #[deserr(rename = "not_utf8")]
    NotUtf8,
    /// `#`: it never belongs on the wire.
    #[deserr(rename = "fragment")]
    Fragment,
}

impl Form {
    /// Its name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EmptyPath => "empty_path",
            Self::DoubleSlash => "double_slash",
            Self::DotSegments => "dot_segments",
            Self::PathParameters => "path_parameters",
            Self::Backslash => "backslash",
            Self::EncodedSlash => "encoded_slash",
            Self::EncodedDot => "encoded_dot",
            Self::EncodedNul => "encoded_nul",
            Self::DoubleEncoding => "double_encoding",
            Self::MalformedEscape => "malformed_escape",
            Self::NotUtf8 => "not_utf8",
            Self::Fragment => "fragment",
        }
    }

    /// Whether an allowed path of this form keeps escapes, so that a literal `%` must stay escaped beside them.
    fn keeps_escapes(self) -> bool {
        use Form::{
            Backslash, DotSegments, DoubleEncoding, DoubleSlash, EmptyPath, EncodedDot, EncodedNul, EncodedSlash,
            Fragment, MalformedEscape, NotUtf8, PathParameters,
        };
        match self {
            EncodedSlash | EncodedDot | EncodedNul | DoubleEncoding | MalformedEscape | NotUtf8 | Backslash => true,
            EmptyPath | DoubleSlash | DotSegments | PathParameters | Fragment => false,
        }
    }
}

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is in a form that is not allowed.
    Form(Form),
    /// It does not begin with `/`.
    Relative,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Form(form) => write!(f, "the path is in a form that is refused: {}", form.as_str()),
            Self::Relative => f.write_str("the path does not begin with `/`"),
        }
    }
}

/// Splits the query off. It is the part after the first `?`, which is not part of it.
pub fn split_query(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match target.iter().position(|byte| *byte == b'?') {
        Some(at) => (target.get(..at).unwrap_or(target), target.get(at + 1..)),
        None => (target, None),
    }
}

/// The canonical form of a path without its query: percent-decoded once, UTF-8.
///
/// Injective: two different paths have the same canonical form only if they differ in how unreserved bytes are escaped.
/// Where allowed forms keep escapes, `%` itself stays `%25`, so that `%252F` and `%2F` remain two things.
///
/// # Errors
/// The first form found that the operator did not allow.
pub fn canonical<'a>(path: &'a [u8], config: &Config) -> Result<Cow<'a, str>, Refused> {
    match plain(path) {
        Some(path) => Ok(path.into()),
        None => rewritten(path, config).map(Cow::Owned),
    }
}

/// A path that is canonical as it stands, as nearly all are: absolute, no segment empty or beginning with a dot, and
/// nothing in it but what never needs an escape and means nothing to anyone (RFC 3986, 3.3, without `%` and `;`).
fn plain(path: &[u8]) -> Option<&str> {
    let mut before = b'/';
    for (at, byte) in path.iter().copied().enumerate() {
        match byte {
            b'/' if at > 0 && before == b'/' => return None,
            b'.' if before == b'/' => return None,
            b'/' | b'.' | b'-' | b'_' | b'~' | b'!' | b'$' | b'&'..=b',' | b'=' | b':' | b'@' => {}
            _ if byte.is_ascii_alphanumeric() => {}
            _ => return None,
        }
        before = byte;
    }
    let path = if path.first() == Some(&b'/') { path } else { return None };
    std::str::from_utf8(path).ok()
}

fn rewritten(path: &[u8], config: &Config) -> Result<String, Refused> {
    let allow = |form: Form| if config.allow.contains(&form) { Ok(()) } else { Err(Refused::Form(form)) };
    if path.is_empty() {
        return allow(Form::EmptyPath).map(|()| String::new());
    }
    if path.first() != Some(&b'/') {
        return Err(Refused::Relative);
    }
    let keep_percent = config.allow.iter().any(|form| form.keeps_escapes());
    let mut decoded = Vec::with_capacity(path.len());
    // Where in `decoded` each `%` ends that is no escape of its own.
    let mut percents = Vec::new();
    let mut at = 0;
    while let Some(byte) = path.get(at).copied() {
        at += 1;
        match byte {
            b'#' => allow(Form::Fragment)?,
            b';' => allow(Form::PathParameters)?,
            b'\\' => allow(Form::Backslash)?,
            b'/' if decoded.last() == Some(&b'/') => allow(Form::DoubleSlash)?,
            _ => {}
        }
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let Some(value) = escape(path.get(at..at + 2)) else {
            allow(Form::MalformedEscape)?;
            decoded.push(byte);
            percents.push(decoded.len());
            continue;
        };
        at += 2;
        let kept = match value {
            b'/' => Some(Form::EncodedSlash),
            b'\\' => Some(Form::Backslash),
            b'.' => Some(Form::EncodedDot),
            0 => Some(Form::EncodedNul),
            _ => None,
        };
        if let Some(form) = kept {
            allow(form)?;
        }
        // `;` and `#` that were escaped are plain text for whoever decodes, and separators for nobody.
        if kept.is_some() || (value == b'%' && keep_percent) {
            push_escaped(&mut decoded, value);
        } else {
            decoded.push(value);
        }
        if value == b'%' {
            percents.push(decoded.len());
        }
    }
    // The digits after a `%` may be escaped as well: %25%36%31 is %61 to whoever decodes once.
    if percents.iter().any(|after| escape(decoded.get(*after..after + 2)).is_some()) {
        allow(Form::DoubleEncoding)?;
    }
    let canonical = match String::from_utf8(decoded) {
        Ok(text) => text,
        Err(error) => {
            allow(Form::NotUtf8)?;
            keep_non_utf8(error.as_bytes())
        }
    };
    if has_dot_segment(&canonical) {
        allow(Form::DotSegments)?;
    }
    Ok(canonical)
}

/// Whether anyone could see a dot segment in a canonical path, also through forms that were allowed for their own sake.
fn has_dot_segment(canonical: &str) -> bool {
    let lenient = canonical.replace("%2F", "/").replace("%5C", "/").replace('\\', "/").replace("%2E", ".");
    let mut segments = lenient.split('/').map(|segment| segment.split(';').next().unwrap_or(segment));
    segments.any(|segment| segment == "." || segment == "..")
}

/// The value of two hex digits.
fn escape(digits: Option<&[u8]>) -> Option<u8> {
    let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn push_escaped(decoded: &mut Vec<u8>, byte: u8) {
    decoded.extend(format!("%{byte:02X}").into_bytes());
}

/// Text with those bytes escaped that are not UTF-8.
fn keep_non_utf8(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strict(path: &str) -> Result<String, String> {
        canonical(path.as_bytes(), &Config::default()).map(Cow::into_owned).map_err(|refused| match refused {
            Refused::Form(form) => form.as_str().to_owned(),
            Refused::Relative => "relative".to_owned(),
        })
    }

    #[test]
    fn one_canonical_form_or_a_named_refusal() {
        let table: [(&str, Result<&str, &str>); 39] = [
            ("/", Ok("/")),
            ("/a/b", Ok("/a/b")),
            ("/a/", Ok("/a/")),
            ("/caf%C3%A9", Ok("/café")),
            ("/%61dmin", Ok("/admin")),
            ("/a%20b", Ok("/a b")),
            ("/a+b", Ok("/a+b")),
            ("/100%25", Ok("/100%")),
            ("/100%25zz", Ok("/100%zz")),
            ("/a%3Bb", Ok("/a;b")),
            ("/a%23b", Ok("/a#b")),
            ("/a%3Fb", Ok("/a?b")),
            ("/.well-known/x", Ok("/.well-known/x")),
            ("/...", Ok("/...")),
            ("", Err("empty_path")),
            ("*", Err("relative")),
            ("admin", Err("relative")),
            ("//admin", Err("double_slash")),
            ("/a//b", Err("double_slash")),
            ("/a/../b", Err("dot_segments")),
            ("/a/..", Err("dot_segments")),
            ("/./a", Err("dot_segments")),
            ("/a;v=1", Err("path_parameters")),
            ("/public/..;/secret", Err("path_parameters")),
            ("/a\\b", Err("backslash")),
            ("/a%5cb", Err("backslash")),
            ("/a%2Fb", Err("encoded_slash")),
            ("/a%2f..%2fb", Err("encoded_slash")),
            ("/public/%2e%2e/secret", Err("encoded_dot")),
            ("/a%00.png", Err("encoded_nul")),
            ("/a%252Fb", Err("double_encoding")),
            ("/a%25%32%46b", Err("double_encoding")),
            ("/a%252%46b", Err("double_encoding")),
            ("/a%25%2561", Err("double_encoding")),
            ("/a%zz", Err("malformed_escape")),
            ("/a%2", Err("malformed_escape")),
            ("/a%", Err("malformed_escape")),
            ("/caf%E9", Err("not_utf8")),
            ("/a#b", Err("fragment")),
        ];
        for (path, expected) in table {
            assert_eq!(strict(path), expected.map(str::to_owned).map_err(str::to_owned), "{path}");
        }
        assert_eq!(canonical(b"/caf\xe9", &Config::default()), Err(Refused::Form(Form::NotUtf8)));
    }

    proptest! {
        /// The short way is a short way, whatever the operator allows.
        #[test]
        fn plain_paths_are_their_own_canonical_form(path in "(/?[a-zA-Z0-9._~!$&'()*+,=:@%;#\\\\ é-]{0,4}){0,4}") {
            if let Some(plain) = plain(path.as_bytes()) {
                let all = Config { allow: [Form::DotSegments, Form::DoubleSlash, Form::EncodedSlash].into() };
                for config in [Config::default(), all] {
                    prop_assert_eq!(rewritten(plain.as_bytes(), &config), Ok(plain.to_owned()));
                }
            }
        }
    }

    #[test]
    fn allowed_forms_reach_policies_as_they_came() {
        use Form::{Backslash, DotSegments, DoubleEncoding, DoubleSlash, EncodedSlash, MalformedEscape, NotUtf8};
        let table: [(&[Form], &[u8], &str); 10] = [
            (&[DoubleSlash], b"//a///b", "//a///b"),
            (&[DotSegments], b"/a/../b", "/a/../b"),
            (&[EncodedSlash], b"/a%2fb", "/a%2Fb"),
            (&[EncodedSlash], b"/100%25", "/100%25"),
            (&[EncodedSlash, DoubleEncoding], b"/a%252fb", "/a%252fb"),
            (&[Backslash], b"/a%5cb", "/a%5Cb"),
            (&[MalformedEscape], b"/a%zz", "/a%zz"),
            (&[MalformedEscape], b"/a%25zz", "/a%25zz"),
            (&[NotUtf8], b"/caf%E9", "/caf%E9"),
            (&[NotUtf8], b"/caf\xe9", "/caf%E9"),
        ];
        for (allow, path, expected) in table {
            let config = Config { allow: allow.iter().copied().collect() };
            assert_eq!(canonical(path, &config).as_deref(), Ok(expected), "{allow:?}");
        }
    }

    #[test]
    fn allowing_one_form_does_not_open_dot_segments() {
        use Form::{Backslash, EncodedDot, EncodedSlash, PathParameters};
        let table: [(Form, &[u8]); 5] = [
            (EncodedSlash, b"/a%2F../b"),
            (EncodedSlash, b"/a/..%2Fb"),
            (Backslash, b"/a\\..\\b"),
            (EncodedDot, b"/a/%2e%2e/b"),
            (PathParameters, b"/a/..;x/b"),
        ];
        for (form, path) in table {
            let config = Config { allow: [form].into() };
            assert_eq!(canonical(path, &config), Err(Refused::Form(Form::DotSegments)), "{form:?}");
        }
    }

    #[test]
    fn the_query_is_split_first() {
        assert_eq!(split_query(b"/a?b=/../c"), (b"/a".as_slice(), Some(b"b=/../c".as_slice())));
        assert_eq!(split_query(b"/a?"), (b"/a".as_slice(), Some(b"".as_slice())));
        assert_eq!(split_query(b"/a"), (b"/a".as_slice(), None));
        assert_eq!(split_query(b"?x?y"), (b"".as_slice(), Some(b"x?y".as_slice())));
    }
}
