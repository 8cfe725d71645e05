//! The body of a request, as the upstream would read it.
//!
//! A body that is there and cannot be read so is not an absent one: whoever sends it chooses its form, and a `forbid` that
//! looks into it would not hold for who names another media type or pads it. So what is here is read, absent or
//! unreadable, and the last is refused unless the operator says otherwise.

use deserr::Deserr;
use serde::Serialize;

use super::headers::Headers;
use crate::proto::view::HttpRequest;
use crate::yaml::Faults;

/// `bodies:` of the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// What becomes of a request whose body policies read, and which is there but cannot be read: of another media type,
    /// charset or encoding, partial, or not sent to Stockade; default: refuse.
    #[deserr(default)]
    pub unreadable: Unreadable,
}

/// What an unreadable body is taken for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserr, Serialize)]
#[deserr(error = Faults, rename_all = lowercase)]
#[serde(rename_all = "lowercase")]
pub enum Unreadable {
    /// Nothing: the request is denied with 400.
    #[default]
    Refuse,
    /// An absent one: policies that ask for it must fail closed by themselves.
    Absent,
}

/// The body of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// There is none.
    Absent,
    /// A JSON document.
    Json(Content<'a>),
    /// An `application/x-www-form-urlencoded` form.
    Form(Content<'a>),
    /// It is there, in a form that Stockade does not read; why, in words.
    Unreadable(&'static str),
    /// What is said of it contradicts itself, so that two parties may read two bodies; why, in words.
    Contradictory(&'static str),
}

/// What a body holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content<'a> {
    /// All of it.
    pub bytes: &'a [u8],
    /// Whether it comes from a protobuf string, where Envoy writes `!` for each byte that is not UTF-8.
    pub replaced: bool,
}

impl<'a> Body<'a> {
    /// Reads what a request says of its body, short of the fields.
    pub fn of(http: &'a HttpRequest<'a>, headers: Headers<'a>) -> Self {
        let bytes = match (http.body, http.raw_body) {
            (b"", raw) => raw,
            (text, b"") => text,
            (text, raw) if text == raw => raw,
            _ => return Self::Contradictory("`body` and `raw_body` hold different ones"),
        };
        let length = match declared_length(headers) {
            Ok(length) => length,
            Err(why) => return Self::Contradictory(why),
        };
        let coded = headers.lines("transfer-encoding").next().is_some();
        if coded && length.is_some() {
            return Self::Contradictory("both `content-length` and `transfer-encoding` are there");
        }
        if headers.lines("transfer-encoding").any(|coding| !coding.eq_ignore_ascii_case(b"chunked")) {
            return Self::Contradictory("`transfer-encoding` is something else than `chunked`");
        }
        if bytes.is_empty() {
            // Over HTTP/2, and of a chunked body, the headers that are left say nothing but that it has a type.
            let typed = headers.lines("content-type").next().is_some();
            return match length {
                Some(0) => Self::Absent,
                None if !coded && !typed && http.size <= 0 && !said_to_be_partial(headers) => Self::Absent,
                _ => Self::Unreadable("Envoy has not sent it along; it does with `with_request_body`"),
            };
        }
        if is_cut(http, headers) {
            return Self::Unreadable("only its beginning is here; it is larger than Envoy's `max_request_bytes`");
        }
        if length.is_some_and(|length| usize::try_from(length) != Ok(bytes.len())) {
            return Self::Contradictory("it is not as long as `content-length` says");
        }
        if headers.lines("content-encoding").any(|coding| !coding.trim_ascii().eq_ignore_ascii_case(b"identity")) {
            return Self::Unreadable("it has a `content-encoding`");
        }
        if bytes.starts_with(b"\xef\xbb\xbf") {
            return Self::Unreadable("it begins with a byte order mark, which some take for a part of it");
        }
        let content = Content { bytes, replaced: http.raw_body.is_empty() };
        match media(headers) {
            Ok(Media::Json) => Self::Json(content),
            Ok(Media::Form) => Self::Form(content),
            Err(why) => Self::Unreadable(why),
        }
    }
}

/// Whether there is more of the body than is here: Envoy sent its beginning, or nothing of it.
pub fn is_partial(http: &HttpRequest<'_>, headers: Headers<'_>) -> bool {
    let unsent = || here(http) == 0 && matches!(Body::of(http, headers), Body::Unreadable(_));
    is_cut(http, headers) || unsent()
}

/// The size of the whole body in bytes; `None` where it cannot be known yet. What Envoy says (`size`) is what it had received
/// when it asked, which is all of it only where all of it is here.
pub fn size(http: &HttpRequest<'_>, headers: Headers<'_>) -> Option<i64> {
    let body = Body::of(http, headers);
    if let Body::Contradictory(_) = body {
        return None;
    }
    let declared = declared_length(headers).ok().flatten();
    let known = declared.or_else(|| match (here(http), body) {
        (0, Body::Absent) => (http.size == 0).then_some(0),
        (0, _) => None,
        (here, _) => (!is_cut(http, headers)).then_some(here as u64),
    });
    known.and_then(|size| i64::try_from(size).ok())
}

fn here(http: &HttpRequest<'_>) -> usize {
    http.body.len().max(http.raw_body.len())
}

/// Whether Envoy sent only the beginning of the body: it says so, or less is here than it has received.
fn is_cut(http: &HttpRequest<'_>, headers: Headers<'_>) -> bool {
    let here = here(http);
    let short = here > 0 && usize::try_from(http.size).is_ok_and(|size| size > here);
    said_to_be_partial(headers) || short
}

fn said_to_be_partial(headers: Headers<'_>) -> bool {
    headers.lines("x-envoy-auth-partial-body").any(|value| value == b"true")
}

/// What `content-length` says, if it is there.
fn declared_length(headers: Headers<'_>) -> Result<Option<u64>, &'static str> {
    let mut lines = headers.lines("content-length");
    let Some(line) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err("`content-length` is repeated");
    }
    let digits = Some(line).filter(|line| line.iter().all(u8::is_ascii_digit));
    let length = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    length.map(Some).ok_or("`content-length` is not a number")
}

// === media types ===

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Media {
    Json,
    Form,
}

/// The media type, if it is one that has fields and everybody reads it alike (RFC 9110, 8.3).
fn media(headers: Headers<'_>) -> Result<Media, &'static str> {
    let mut lines = headers.lines("content-type");
    let line = lines.next().ok_or("it has no `content-type`")?;
    if lines.next().is_some() {
        return Err("`content-type` is repeated");
    }
    let line = std::str::from_utf8(line).map_err(|_| "its `content-type` is not UTF-8")?;
    let (essence, parameters) = line.split_once(';').map_or((line, None), |(essence, rest)| (essence, Some(rest)));
    parameters.map_or(Ok(()), read_parameters)?;
    let essence = essence.trim_matches([' ', '\t']).to_ascii_lowercase();
    let (top, sub) = essence.split_once('/').filter(|(top, sub)| is_token(top) && is_token(sub)).ok_or(MALFORMED)?;
    match (top, sub) {
        ("application", "json") => Ok(Media::Json),
        ("application", sub) if sub.ends_with("+json") => Ok(Media::Json),
        ("application", "x-www-form-urlencoded") => Ok(Media::Form),
        _ => Err("its `content-type` is neither `application/json` nor `application/x-www-form-urlencoded`"),
    }
}

const MALFORMED: &str = "its `content-type` is malformed";

/// Parameters of a media type: well-formed, each once, and no charset but UTF-8.
fn read_parameters(mut rest: &str) -> Result<(), &'static str> {
    let mut seen: Vec<String> = Vec::new();
    loop {
        let (name, after) = rest.trim_start_matches([' ', '\t']).split_once('=').ok_or(MALFORMED)?;
        let (value, after) = parameter_value(after).ok_or(MALFORMED)?;
        let name = name.to_ascii_lowercase();
        // `charset*` and `charset*0` are other ways to write `charset` (RFC 2231).
        if !is_token(&name) || name.contains('*') || seen.contains(&name) {
            return Err(MALFORMED);
        }
        if name == "charset" && !value.eq_ignore_ascii_case("utf-8") {
            return Err("its charset is not UTF-8");
        }
        seen.push(name);
        rest = match after.trim_matches([' ', '\t']).strip_prefix(';') {
            Some(more) => more,
            None if after.trim_matches([' ', '\t']).is_empty() => return Ok(()),
            None => return Err(MALFORMED),
        };
    }
}

/// A value and what comes after it. A quoted one has no escapes: they are where parsers begin to differ.
fn parameter_value(text: &str) -> Option<(&str, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let (value, after) = quoted.split_once('"')?;
        return (!value.contains('\\')).then_some((value, after));
    }
    let end = text.find([';', ' ', '\t']).unwrap_or(text.len());
    text.split_at_checked(end).filter(|(value, _)| is_token(value))
}

/// Whether this is a token, RFC 9110, 5.6.2.
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::view::{HeaderMap, HeaderValue};

    fn of<'a>(http: &'a HttpRequest<'a>) -> Body<'a> {
        Body::of(http, Headers::of(http).expect("one form"))
    }

    /// The kind of a body of `{}` under these headers.
    fn kind(headers: &[(&str, &str)], body: &str) -> &'static str {
        let line = |(key, value): &(&'static str, &'static str)| HeaderValue {
            key: key.as_bytes(),
            value: b"",
            raw_value: value.as_bytes(),
        };
        // The borrow of a test's literals is as long as needed.
        let headers: Vec<(&'static str, &'static str)> =
            headers.iter().map(|(key, value)| (leak(key), leak(value))).collect();
        let http = HttpRequest {
            raw_body: leak(body).as_bytes(),
            header_map: Some(HeaderMap { headers: headers.iter().map(line).collect() }),
            ..HttpRequest::default()
        };
        match of(&http) {
            Body::Absent => "absent",
            Body::Json(_) => "json",
            Body::Form(_) => "form",
            Body::Unreadable(_) => "unreadable",
            Body::Contradictory(_) => "contradictory",
        }
    }

    fn leak(text: &str) -> &'static str {
        Box::leak(text.to_owned().into_boxed_str())
    }

    #[test]
    fn media_types_are_those_that_everybody_reads_alike() {
        for (content_type, expected) in [
            ("application/json", "json"),
            ("Application/JSON", "json"),
            ("application/json;charset=utf-8", "json"),
            ("application/json ; charset=\"UTF-8\" ; v=1", "json"),
            ("application/vnd.order+json; charset=utf-8", "json"),
            ("application/x-www-form-urlencoded; charset=utf-8", "form"),
            ("text/json", "unreadable"),
            ("text/plain", "unreadable"),
            ("text/x+json", "unreadable"),
            ("application/jsonp", "unreadable"),
            ("application/json5", "unreadable"),
            ("application/x-json", "unreadable"),
            ("application/+", "unreadable"),
            ("application/grpc", "unreadable"),
            ("multipart/form-data; boundary=x", "unreadable"),
            ("", "unreadable"),
            ("json", "unreadable"),
            ("application/json, text/plain", "unreadable"),
            ("application/json/x", "unreadable"),
            ("application /json", "unreadable"),
            ("application/json;", "unreadable"),
            ("application/json;;charset=utf-8", "unreadable"),
            ("application/json; charset", "unreadable"),
            ("application/json; charset=", "unreadable"),
            ("application/json; charset =utf-8", "unreadable"),
            ("application/json; charset= utf-8", "unreadable"),
            ("application/json; charset=utf-7", "unreadable"),
            ("application/json; charset=utf-16", "unreadable"),
            ("application/json; charset=\"utf-7\"", "unreadable"),
            ("application/json; charset='utf-8'", "unreadable"),
            ("application/json; charset=\"utf\\-8\"", "unreadable"),
            ("application/json; charset=\"utf-8", "unreadable"),
            ("application/json; charset=\"utf-8\"x", "unreadable"),
            ("application/json; charset=utf-8; charset=utf-7", "unreadable"),
            ("application/json; charset=utf-8; CHARSET=utf-8", "unreadable"),
            ("application/json; charset*=utf-7''x", "unreadable"),
            ("application/json; charset*0=utf-; charset*1=7", "unreadable"),
            ("application/json; charset=utf-8 x", "unreadable"),
            ("application/json charset=utf-7", "unreadable"),
            ("application/json; x=\"a;charset=utf-7\"", "json"),
        ] {
            assert_eq!(kind(&[("content-type", content_type)], "{}"), expected, "{content_type}");
        }
    }

    #[test]
    fn what_headers_say_of_a_body_must_be_true() {
        let json = ("content-type", "application/json");
        for (headers, body, expected) in [
            (&[][..], "", "absent"),
            (&[("content-length", "0")], "", "absent"),
            (&[json, ("content-length", "0")], "", "absent"),
            // It is somewhere, and not here.
            (&[json], "", "unreadable"),
            (&[("content-length", "2")], "", "unreadable"),
            (&[("transfer-encoding", "chunked")], "", "unreadable"),
            (&[("x-envoy-auth-partial-body", "true")], "", "unreadable"),
            (&[("x-envoy-auth-partial-body", "false")], "", "absent"),
            (&[], "{}", "unreadable"),
            (&[json, ("content-type", "application/json")], "{}", "unreadable"),
            (&[json, ("Content-Type", "text/plain")], "{}", "unreadable"),
            (&[json, ("x-envoy-auth-partial-body", "true")], "{}", "unreadable"),
            (&[json, ("x-envoy-auth-partial-body", "false")], "{}", "json"),
            (&[json, ("content-length", "2")], "{}", "json"),
            (&[json, ("transfer-encoding", "chunked")], "{}", "json"),
            (&[json, ("transfer-encoding", "Chunked")], "{}", "json"),
            (&[json, ("content-encoding", "identity")], "{}", "json"),
            (&[json, ("content-encoding", "gzip")], "{}", "unreadable"),
            (&[json, ("content-encoding", "")], "{}", "unreadable"),
            (&[json, ("content-encoding", "identity, gzip")], "{}", "unreadable"),
            (&[json, ("content-encoding", "identity"), ("content-encoding", "br")], "{}", "unreadable"),
            (&[json], "\u{feff}{}", "unreadable"),
            (&[json, ("content-length", "3")], "{}", "contradictory"),
            (&[json, ("content-length", "0")], "{}", "contradictory"),
            (&[json, ("content-length", "+2")], "{}", "contradictory"),
            (&[json, ("content-length", "2,2")], "{}", "contradictory"),
            (&[json, ("content-length", "2"), ("content-length", "2")], "{}", "contradictory"),
            (&[json, ("content-length", "99999999999999999999")], "{}", "contradictory"),
            (&[json, ("transfer-encoding", "gzip, chunked")], "{}", "contradictory"),
            (&[json, ("transfer-encoding", "xchunked")], "{}", "contradictory"),
            (&[json, ("transfer-encoding", "chunked"), ("content-length", "2")], "{}", "contradictory"),
        ] {
            assert_eq!(kind(headers, body), expected, "{headers:?} {body:?}");
        }
    }

    #[test]
    fn of_two_bodies_neither_counts() {
        let mut http = HttpRequest { body: b"{}", raw_body: b"{}", ..HttpRequest::default() };
        assert!(matches!(of(&http), Body::Unreadable(_)), "no content-type");
        http.raw_body = b"[]";
        assert!(matches!(of(&http), Body::Contradictory(_)));
    }
}
