//! Request headers, in both forms that Envoy sends them (design, decision 4).

use super::view::HttpRequest;
use crate::model::{Unmapped, UnmappedKind};

/// The headers of a request.
#[derive(Debug, Clone, Copy)]
pub struct Headers<'a> {
    http: &'a HttpRequest<'a>,
    /// Whether Envoy joined repeated headers with `,`, so that one value cannot be told from several.
    joined: bool,
}

impl<'a> Headers<'a> {
    /// The headers of this request.
    ///
    /// # Errors
    /// If they are there in both forms: nothing says which of them the upstream gets.
    pub fn of(http: &'a HttpRequest<'a>) -> Result<Self, Unmapped> {
        let raw = http.header_map.as_ref().is_some_and(|map| !map.headers.is_empty());
        if raw && !http.headers.is_empty() {
            return Err(Unmapped::new(UnmappedKind::Incomplete, "both `headers` and `header_map` are filled"));
        }
        Ok(Self { http, joined: !raw })
    }

    /// Every line with this name, as bytes.
    pub fn lines(self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let joined = self.http.headers.iter().map(|pair| (pair.key, pair.value));
        let raw = self.http.header_map.iter().flat_map(|map| &map.headers).map(|header| {
            let value = if header.raw_value.is_empty() { header.value } else { header.raw_value };
            (header.key, value)
        });
        let wanted = move |key: &[u8]| key.eq_ignore_ascii_case(name.as_bytes());
        joined.chain(raw).filter(move |(key, _)| wanted(key)).map(|(_, value)| value)
    }

    /// The one value of a header that may come once; `None` if it does not come.
    ///
    /// # Errors
    /// If it comes several times, or may have: "user,admin" is neither of its halves. If it is not UTF-8.
    pub fn one(self, name: &str) -> Result<Option<&'a str>, Unmapped> {
        let mut lines = self.lines(name);
        let Some(first) = lines.next() else { return Ok(None) };
        let refuse = |why: &str| {
            Err(Unmapped::new(UnmappedKind::Attribute, format!("the header `{}` {why}", name.to_ascii_lowercase())))
        };
        if lines.next().is_some() {
            return refuse("is repeated, but declared as one value");
        }
        // Pseudo headers are never joined.
        if self.joined && !name.starts_with(':') && first.contains(&b',') {
            return refuse("has a comma, so it may have been repeated; Envoy's `encode_raw_headers: true` tells");
        }
        match std::str::from_utf8(first) {
            Ok(text) => Ok(Some(text)),
            Err(_) => refuse("is not UTF-8"),
        }
    }

    /// Every value of a header whose value is a list: lines are split at commas, since a list means the same on one line
    /// and on several (RFC 9110, 5.3), and so that both forms give the same set.
    ///
    /// # Errors
    /// If one is not UTF-8.
    pub fn list(self, name: &str) -> Result<Vec<&'a str>, Unmapped> {
        let mut all = Vec::new();
        for line in self.lines(name) {
            let text = std::str::from_utf8(line).map_err(|_| {
                Unmapped::new(
                    UnmappedKind::Attribute,
                    format!("the header `{}` is not UTF-8", name.to_ascii_lowercase()),
                )
            })?;
            all.extend(text.split(',').map(str::trim).filter(|value| !value.is_empty()));
        }
        Ok(all)
    }

    /// The start of a header that decides how others are read, such as `content-type`; never an error, since a strange
    /// one just is not the one looked for.
    pub fn starts_with(self, name: &str, prefix: &str) -> bool {
        self.lines(name)
            .next()
            .and_then(|line| line.get(..prefix.len()))
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
    }
}
