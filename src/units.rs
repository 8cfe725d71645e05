//! Quantities as people write them in a configuration: `30s`, `250ms`, `64MiB`.

use std::fmt;
use std::time::Duration;

use deserr::Deserr;
use serde::{Serialize, Serializer};

use crate::yaml::{Faults, Invalid};

/// A length of time, written as `250ms`, `30s`, `5m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserr)]
#[deserr(error = Faults, try_from(String) = HumanDuration::try_from_text -> Invalid)]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    /// So many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Reads the written form.
    ///
    /// # Errors
    /// If the text is not a number with a unit.
    pub fn try_from_text(text: String) -> Result<Self, Invalid> {
        humantime::parse_duration(&text).map(Self).map_err(|error| {
            Invalid::new(format!("`{text}` is not a length of time: {error}")).hint("like `250ms` or `30s`")
        })
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&humantime::format_duration(self.0), f)
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A number of bytes, written as `512`, `64KiB`, `1MiB`, `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl Bytes {
    /// As the size of something in memory; `usize::MAX` if it does not fit.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Reads the written form; `None` if it is not a number of bytes.
    pub fn try_from_text(text: &str) -> Option<Self> {
        let (number, unit) = UNITS
            .iter()
            .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|number| (number, *unit)))
            .unwrap_or((text, 1));
        number.trim().parse::<u64>().ok()?.checked_mul(unit).map(Self)
    }
}

impl Deserr<Faults> for Bytes {
    fn deserialize_from_value<V: deserr::IntoValue>(
        value: deserr::Value<V>,
        location: deserr::ValuePointerRef<'_>,
    ) -> Result<Self, Faults> {
        let text = match value {
            deserr::Value::Integer(bytes) => return Ok(Self(bytes)),
            deserr::Value::String(text) => text,
            other => format!("{}", other.kind()),
        };
        Self::try_from_text(&text).ok_or_else(|| {
            Faults::new(
                format!("`{text}` is not a number of bytes"),
                Some("like `64KiB` or `1MiB`".to_owned()),
                location,
            )
        })
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((suffix, unit)) => write!(f, "{}{suffix}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_what_they_write() {
        for (text, bytes) in [("512", 512), ("1KiB", 1024), ("64 MiB", 64 << 20), ("2GiB", 2 << 30)] {
            let parsed = Bytes::try_from_text(text).expect(text);
            assert_eq!(parsed.0, bytes);
            assert_eq!(Bytes::try_from_text(&parsed.to_string()), Some(parsed));
        }
        for text in ["", "MiB", "1MB", "-1", "99999999999GiB"] {
            assert_eq!(Bytes::try_from_text(text), None, "{text}");
        }
    }
}
