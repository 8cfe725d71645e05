//! Request headers, in both forms that Envoy sends them (design, decision 4).

use crate::model::{Unmapped, UnmappedKind};
use crate::proto::view::HttpRequest;

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
        // HTTP/1 has none there (RFC 9110, 5.5); over HTTP/2 they come, and the app behind an HTTP/1 hop does not see them.
        if let (Some(b' ' | b'\t'), _) | (_, Some(b' ' | b'\t')) = (first.first(), first.last()) {
            return refuse("begins or ends with a space, which is not part of a value to others");
        }
        match std::str::from_utf8(first) {
            Ok(_) if self.may_be_replaced(first) => refuse(REPLACED),
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
            let refuse = |why: &str| {
                let detail = format!("the header `{}` {why}", name.to_ascii_lowercase());
                Unmapped::new(UnmappedKind::Attribute, detail)
            };
            let text = std::str::from_utf8(line).map_err(|_| refuse("is not UTF-8"))?;
            if self.may_be_replaced(line) {
                return Err(refuse(REPLACED));
            }
            all.extend(text.split(',').map(|value| value.trim_matches([' ', '\t'])).filter(|value| !value.is_empty()));
        }
        Ok(all)
    }

    /// Whether Envoy may have written `!` for bytes that are not UTF-8 in a field of the request that this header says as
    /// well: only a raw line has what the client sent, and `allowed_headers` may leave it out.
    pub fn may_replace(self, name: &str) -> bool {
        self.joined || self.lines(name).next().is_none()
    }

    /// Whether a value may be another one, with bytes that are not UTF-8: Envoy writes `!` for each of them when it joins.
    fn may_be_replaced(self, value: &[u8]) -> bool {
        self.joined && value.contains(&b'!')
    }

    /// Refuses headers that the app may take for one that matters: many make `X_TENANT` of both `x-tenant` and `x_tenant`,
    /// and the last or the first of them counts. `matters` is asked about names in lower case, with `-`.
    ///
    /// # Errors
    /// If there is such a header.
    pub fn without_doubles(self, matters: impl Fn(&str) -> bool) -> Result<(), Unmapped> {
        let joined = self.http.headers.iter().map(|pair| pair.key);
        let raw = self.http.header_map.iter().flat_map(|map| &map.headers).map(|header| header.key);
        for key in joined.chain(raw).filter(|key| has_underscore(key)) {
            let name = String::from_utf8_lossy(key).to_ascii_lowercase().replace('_', "-");
            if matters(&name) {
                let detail =
                    format!("a header differs from `{name}` by `_` for `-` only, and apps take one for the other");
                return Err(Unmapped::new(UnmappedKind::Attribute, detail));
            }
        }
        Ok(())
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

/// What is wrong with a `!` where Envoy writes it for other bytes.
pub const REPLACED: &str = "has a `!`, so it may not have been UTF-8; Envoy's `encode_raw_headers: true` tells";

/// Whether a header matters to everybody: what a body is read by, and what proxies say of a request.
pub fn is_read_by_all(name: &str) -> bool {
    const NAMES: [&str; 4] = ["content-type", "content-length", "content-encoding", "transfer-encoding"];
    const PREFIXES: [&str; 3] = ["x-envoy-", "x-forwarded-", "x-stockade-"];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a name has a `_`, eight bytes at a time: every header of every request is asked, and next to none has one.
fn has_underscore(name: &[u8]) -> bool {
    const LOW: u64 = u64::MAX / 255;
    const HIGH: u64 = LOW << 7;
    // A byte is zero where the name has a `_`; the trick finds zero bytes, and takes no other for one
    // (https://graphics.stanford.edu/~seander/bithacks.html#ZeroInWord).
    let in_word = |word: [u8; 8]| {
        let word = u64::from_ne_bytes(word) ^ (LOW * u64::from(b'_'));
        word.wrapping_sub(LOW) & !word & HIGH != 0
    };
    let (words, rest) = name.as_chunks::<8>();
    match name.last_chunk::<8>() {
        // The last eight bytes hold the rest.
        Some(last) => words.iter().any(|word| in_word(*word)) || in_word(*last),
        None => rest.contains(&b'_'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn underscores_are_found_at_every_place() {
        for length in 0..40 {
            let mut name = vec![b'`'; length];
            assert!(!has_underscore(&name));
            for at in 0..length {
                name[at] = b'_';
                assert!(has_underscore(&name), "{at} of {length}");
                // Its neighbours in ASCII, and what differs from it by a bit.
                for other in (0..=u8::MAX).filter(|other| *other != b'_') {
                    name[at] = other;
                    assert!(!has_underscore(&name), "{other} at {at} of {length}");
                }
                name[at] = b'`';
            }
        }
    }
}
