//! Bundles as one blob: a plain tar archive, the same bytes for the same content. Not compressed: its size, which the manifest
//! names, is then what it takes, and nothing can swell while it is read.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::policy::Files;

/// A SHA-256, written as `sha256:` and 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digits alone, for subjects and file names.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not a digest: `sha256:` and 64 hex digits");
        let digits = text.strip_prefix("sha256:").ok_or_else(bad)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| bad())?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Packs bundles, in their order. What is packed is what a directory feed would read, and nothing else: neither times nor owners.
///
/// # Errors
/// If a path is too strange for an archive.
pub fn pack(bundles: &[Files]) -> Result<Vec<u8>, String> {
    let mut archive = tar::Builder::new(Vec::new());
    for (at, bundle) in bundles.iter().enumerate() {
        for (path, text) in &bundle.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            let path = format!("{at}/{path}");
            archive.append_data(&mut header, &path, text.as_bytes()).map_err(|error| format!("`{path}`: {error}"))?;
        }
    }
    archive.into_inner().map_err(|error| error.to_string())
}

/// Unpacks what [`pack`] made. `root` is how messages call it.
///
/// # Errors
/// What is wrong with it: anything that [`pack`] would not write.
pub fn unpack(bytes: &[u8], root: &str) -> Result<Vec<Files>, String> {
    let mut bundles: Vec<BTreeMap<String, String>> = Vec::new();
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries().map_err(|error| error.to_string())? {
        let mut entry = entry.map_err(|error| error.to_string())?;
        let path = String::from_utf8(entry.path_bytes().into_owned()).map_err(|_| "a path is not UTF-8".to_owned())?;
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(format!("`{path}` is not a file"));
        }
        let (at, inner) = path
            .split_once('/')
            .and_then(|(at, inner)| Some((at.parse::<usize>().ok()?, inner)))
            .filter(|(_, inner)| is_plain(inner))
            .ok_or_else(|| format!("`{path}` is not a path within a bundle"))?;
        let mut text = String::new();
        entry.read_to_string(&mut text).map_err(|error| format!("`{path}`: {error}"))?;
        if at == bundles.len() {
            bundles.push(BTreeMap::new());
        }
        let own = bundles.get_mut(at).filter(|own| !own.contains_key(inner));
        own.ok_or_else(|| format!("`{path}` is out of order, or there twice"))?.insert(inner.to_owned(), text);
    }
    if bundles.is_empty() {
        return Err("it is empty".to_owned());
    }
    let one = bundles.len() == 1;
    let name = |at| if one { root.to_owned() } else { format!("{root}/{at}") };
    Ok(bundles.into_iter().enumerate().map(|(at, files)| Files { root: name(at), files, changed: None }).collect())
}

/// Whether a path leads to a place below where it starts: `pull` writes files by these names.
fn is_plain(path: &str) -> bool {
    !path.contains(['\\', '\0']) && path.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bundle(entries: &[(&str, &str)]) -> Files {
        let files = entries.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        Files { root: "test".to_owned(), files, changed: None }
    }

    /// An archive with one entry, as someone else would write it.
    fn archive(path: &str, kind: tar::EntryType) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().expect("gnu").name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_size(1);
        header.set_cksum();
        let mut archive = tar::Builder::new(Vec::new());
        archive.append(&header, &b"x"[..]).expect("appended");
        archive.into_inner().expect("an archive")
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            bundles in prop::collection::vec(
                prop::collection::btree_map("[a-z]{1,8}(/[a-zé]{1,90}){0,3}", ".{0,600}", 1..5), 1..4)
        ) {
            let bundles: Vec<Files> =
                bundles.into_iter().map(|files| Files { root: "r".to_owned(), files, changed: None }).collect();
            let bytes = pack(&bundles).expect("packed");
            prop_assert_eq!(&bytes, &pack(&bundles).expect("packed"));
            let unpacked = unpack(&bytes, "r").expect("unpacked");
            let contents = |all: &[Files]| all.iter().map(|own| own.files.clone()).collect::<Vec<_>>();
            prop_assert_eq!(contents(&unpacked), contents(&bundles));
        }

        #[test]
        fn bytes_of_any_kind_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
            let _ = unpack(&bytes, "r");
        }

        #[test]
        fn a_damaged_archive_does_no_harm(at in 0_usize..2048, byte in any::<u8>(), cut in 0_usize..4096) {
            let mut bytes = pack(&[bundle(&[("bundle.yaml", "name: x"), ("a.cedar", "permit")])]).expect("packed");
            if let Some(own) = bytes.get_mut(at) { *own = byte; }
            bytes.truncate(cut);
            let _ = unpack(&bytes, "r");
        }
    }

    #[test]
    fn neither_time_nor_place_shows() {
        let one = bundle(&[("bundle.yaml", "name: x")]);
        let changed = Some(std::time::SystemTime::now());
        let same = Files { root: "elsewhere".to_owned(), changed, ..one.clone() };
        assert_eq!(pack(&[one]), pack(&[same]));
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        for (path, kind) in [
            ("/etc/passwd", Regular),
            ("0/../../x", Regular),
            ("0//x", Regular),
            ("0/", Regular),
            ("x", Regular),
            ("1/x", Regular),
            ("0/a\\b", Regular),
            ("0/.ssh/x", Regular),
            ("0/x", Symlink),
            ("0/x", Link),
            ("0/x", Directory),
        ] {
            assert!(unpack(&archive(path, kind), "r").is_err(), "{path} {kind:?}");
        }
        assert!(unpack(&archive("0/x", Regular), "r").is_ok());
        assert!(unpack(b"", "r").is_err());
    }

    #[test]
    fn digests_are_read_as_they_are_written() {
        let digest = Digest::of(b"x");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for text in ["", "sha256:", "sha256:00", &"0".repeat(64), &format!("sha256:{}", "+1".repeat(32))] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
