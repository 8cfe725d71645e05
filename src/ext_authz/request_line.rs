//! Method, path, query, host and headers: what every request has, in canonical form.

use std::borrow::Cow;

use super::attributes::Place;
use super::body;
use super::headers::{self, Headers};
use super::path;
use crate::model::{Unmapped, UnmappedKind};
use crate::proto::view::HttpRequest;

/// Method, path, query, host and headers: what every request has, in canonical form.
pub(super) struct RequestLine<'a> {
    pub(super) method: &'a str,
    pub(super) path: Cow<'a, str>,
    pub(super) query: Option<&'a [u8]>,
    /// Whether a `!` in the target may be a byte that is not UTF-8.
    pub(super) replaced: bool,
    pub(super) host: Cow<'a, str>,
    pub(super) headers: Headers<'a>,
}

impl<'a> RequestLine<'a> {
    /// Reads what every request has.
    ///
    /// # Errors
    /// If a part is missing, repeated, contradicts another one, or is in a form that is refused.
    pub(super) fn read(http: &'a HttpRequest<'a>, paths: &path::Config) -> Result<Self, Unmapped> {
        let headers = Headers::of(http)?;
        let method = field(http.method, headers, ":method")?;
        let method = std::str::from_utf8(method).ok().filter(|method| {
            // A token, RFC 9110, 9.1; anything else would be a strange entity id.
            body::is_token(method)
        });
        let method = method.ok_or_else(|| incomplete("the method is missing or not a method"))?;
        let target = field(http.path, headers, ":path")?;
        let replaced = target.contains(&b'!') && headers.may_replace(":path");
        let (path, query) = path::split_query(target);
        if replaced && path.contains(&b'!') {
            let detail = format!("the path {}", headers::REPLACED);
            return Err(Unmapped::new(UnmappedKind::Path, detail));
        }
        let path = match (method, path) {
            // CONNECT has no path, and OPTIONS may ask about the server as a whole (RFC 9110, 7.1).
            ("CONNECT", b"") => "".into(),
            ("OPTIONS", b"*") => "*".into(),
            _ => path::canonical(path, paths)
                .map_err(|refused| Unmapped::new(UnmappedKind::Path, refused.to_string()))?,
        };
        let host = canonical_host(field(http.host, headers, ":authority")?)?;
        Ok(Self { method, path, query, replaced, host, headers })
    }

    /// Service and method, if this is a gRPC call.
    pub(super) fn grpc(&self, place: &Place<'_>) -> Result<Option<(&str, &str)>, Unmapped> {
        if self.headers.lines("content-type").nth(1).is_some() {
            let detail = format!("`{place}` cannot be told: `content-type` is repeated");
            return Err(Unmapped::new(UnmappedKind::Attribute, detail));
        }
        Ok(self.headers.starts_with("content-type", "application/grpc").then(|| grpc_method(&self.path)).flatten())
    }
}

/// A request that lacks a part, or says it twice.
pub(super) fn incomplete(detail: impl Into<String>) -> Unmapped {
    Unmapped::new(UnmappedKind::Incomplete, detail)
}

/// A field of the HTTP request, held against the pseudo header that says the same.
fn field<'a>(field: &'a [u8], headers: Headers<'a>, pseudo: &str) -> Result<&'a [u8], Unmapped> {
    let mut lines = headers.lines(pseudo);
    match (lines.next(), lines.next()) {
        (None, _) => Ok(field),
        (Some(header), None) if field.is_empty() || field == header => Ok(header),
        _ => Err(incomplete(format!("`{pseudo}` contradicts the request or is repeated"))),
    }
}

/// `/package.Service/Method`
pub(super) fn grpc_method(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}

/// The host in lower case, without port and trailing dot: Envoy leaves all three as the client chose them.
fn canonical_host(host: &[u8]) -> Result<Cow<'_, str>, Unmapped> {
    let refuse = || Unmapped::new(UnmappedKind::Host, "the host is not a host");
    let host = std::str::from_utf8(host).map_err(|_| refuse())?;
    let (name, port): (Cow<'_, str>, &str) = if let Some(bracketed) = host.strip_prefix('[') {
        let (address, port) = bracketed.split_once(']').ok_or_else(refuse)?;
        // Written anew: `::1` has other spellings.
        let address: std::net::Ipv6Addr = address.parse().map_err(|_| refuse())?;
        (format!("[{address}]").into(), port)
    } else {
        let at = host.find(':').unwrap_or(host.len());
        let (name, port) = host.split_at_checked(at).ok_or_else(refuse)?;
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
            return Err(refuse());
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_lower = !name.bytes().any(|byte| byte.is_ascii_uppercase());
        (if is_lower { name.into() } else { name.to_ascii_lowercase().into() }, port)
    };
    let port_is_good = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_digit()),
        None => port.is_empty(),
    };
    if port_is_good { Ok(name) } else { Err(refuse()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_one_form() {
        for (host, expected) in [
            ("Shop.Example", Some("shop.example")),
            ("shop.example.:8080", Some("shop.example")),
            ("shop.example:443", Some("shop.example")),
            ("[::1]:8080", Some("[::1]")),
            ("[0:0::0001]", Some("[::1]")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("", Some("")),
            ("good,evil", None),
            ("good evil", None),
            ("user@evil", None),
            ("evil/path", None),
            ("shop:80:80", None),
            ("shop:x", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[zz]", None),
            ("[[::1]", None),
            ("shøp", None),
        ] {
            assert_eq!(canonical_host(host.as_bytes()).ok().as_deref(), expected, "{host}");
        }
    }

    #[test]
    fn grpc_paths_have_two_parts() {
        assert_eq!(grpc_method("/svc.Foo/Bar"), Some(("svc.Foo", "Bar")));
        for path in ["/svc.Foo", "/svc.Foo/", "//Bar", "/a/b/c", "svc.Foo/Bar", ""] {
            assert_eq!(grpc_method(path), None, "{path}");
        }
    }
}
