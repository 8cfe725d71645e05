//! A bundle as the feed delivers it: texts under relative paths. Nothing here has been parsed.

use std::collections::BTreeMap;
use std::time::SystemTime;

use sha2::{Digest, Sha256};

/// The files of one bundle, read at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Where they come from, for messages.
    pub root: String,
    /// Their texts by path relative to the root, with `/` between the parts.
    pub files: BTreeMap<String, String>,
    /// When the newest of them was changed, as the file system says.
    pub changed: Option<SystemTime>,
}

impl Files {
    /// SHA-256 over paths and contents: the same content has the same digest, whatever its root or its age.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in self.files.iter().flat_map(|(path, text)| [path, text]) {
            // The length in front keeps the encoding injective: no byte can move from a name to a content.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, &str)]) -> Files {
        let files = entries.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        Files { root: "test".to_owned(), files, changed: None }
    }

    #[test]
    fn the_digest_tells_contents_apart_and_nothing_else() {
        let one = files(&[("a.cedar", "x"), ("b.cedar", "y")]);
        let same = Files {
            root: "elsewhere".to_owned(),
            changed: Some(SystemTime::UNIX_EPOCH),
            ..files(&[("b.cedar", "y"), ("a.cedar", "x")])
        };
        assert_eq!(one.digest(), same.digest());
        for other in [
            files(&[]),
            files(&[("a.cedar", "x")]),
            files(&[("a.cedar", "y"), ("b.cedar", "x")]),
            files(&[("a.ceda", "rx"), ("b.cedar", "y")]),
            files(&[("a.cedar", "xb.cedary")]),
        ] {
            assert_ne!(one.digest(), other.digest(), "{other:?}");
        }
    }
}
