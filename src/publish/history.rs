//! The manifests that a store keeps: who published what, and which of them a person means.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::Error;
use super::session::read_manifest;
use crate::nats::Stored;
use crate::store::Keyring;
use crate::store::statement::{Head, Manifest, StoreName, Version};
use crate::terminal::clean_excerpt;

/// A manifest of the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where in the stream it stands.
    pub sequence: u64,
    /// What it says.
    pub manifest: Manifest,
    /// Which it is.
    pub head: Head,
    /// Why it is not to be believed; `None` if a trusted key signed it.
    pub doubt: Option<String>,
}

impl Entry {
    /// What it says, if a trusted key signed it.
    ///
    /// # Errors
    /// Why it is not to be acted upon.
    pub fn believed(&self) -> Result<&Manifest, String> {
        self.doubt.clone().map_or(Ok(&self.manifest), Err)
    }
}

/// Reads a history, oldest first. What cannot be read at all is left out.
pub fn read(stored: &[Stored], store: &StoreName, keyring: &Keyring) -> Vec<Entry> {
    let entry = |stored: &Stored| {
        let sequence = stored.sequence;
        match read_manifest(store, keyring, &stored.payload) {
            Ok(own) => Some(Entry { sequence, manifest: own.says, head: own.head, doubt: None }),
            Err(why) => {
                let (manifest, payload): (Manifest, _) = unverified(&stored.payload)?;
                let head = Head::of(manifest.version, &payload);
                Some(Entry { sequence, manifest, head, doubt: Some(why.to_string()) })
            }
        }
    };
    stored.iter().filter_map(entry).collect()
}

/// Which manifest or statement of overlays it is, no matter who signed it.
pub fn head(envelope: &[u8]) -> Option<Head> {
    #[derive(Deserialize)]
    struct Versioned {
        version: Version,
    }
    let (says, payload): (Versioned, _) = unverified(envelope)?;
    Some(Head::of(says.version, &payload))
}

/// What a statement says, no matter who signed it: to be shown, never to be acted upon.
fn unverified<T: DeserializeOwned>(envelope: &[u8]) -> Option<(T, Vec<u8>)> {
    let envelope: Json = serde_json::from_slice(envelope).ok()?;
    let payload = BASE64.decode(envelope.get("payload")?.as_str()?).ok()?;
    Some((serde_json::from_slice(&payload).ok()?, payload))
}

/// The one that a person means: `EPOCH.GENERATION`, a generation of the newest epoch, or `newest`.
///
/// # Errors
/// If there is none.
pub fn find<'a>(entries: &'a [Entry], text: &str) -> Result<&'a Entry, Error> {
    let newest = entries.last().ok_or(Error::NothingPublished)?;
    let version = match (text, text.parse::<u64>()) {
        ("newest", _) => return Ok(newest),
        (_, Ok(generation)) => Version { generation, ..newest.head.version },
        _ => text.parse::<Version>().map_err(Error::NotAVersion)?,
    };
    let found = entries.iter().rev().find(|entry| entry.head.version == version);
    found.ok_or(Error::NoVersion(version))
}

/// The one to go back to by default: the last that named another bundle than the newest.
///
/// # Errors
/// If there is none.
pub fn previous(entries: &[Entry]) -> Result<&Entry, Error> {
    let newest = entries.last().ok_or(Error::NothingPublished)?;
    let other = entries.iter().rev().find(|entry| entry.manifest.bundle != newest.manifest.bundle);
    other.ok_or(Error::NothingBefore)
}

/// What happened since the sequence `after`, for one who was overtaken.
pub fn meanwhile(entries: &[Entry], after: u64) -> String {
    let lines: Vec<String> = entries
        .iter()
        .filter(|entry| entry.sequence > after)
        .map(|entry| {
            let Manifest { publisher, message, published_at, version, .. } = &entry.manifest;
            let message = message.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
            format!("`{publisher}` published {version} at {published_at}{message}")
        })
        .collect();
    match lines.is_empty() {
        true => "someone else has published".to_owned(),
        false => clean_excerpt(&lines.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::store::keys::Trusted;
    use crate::store::statement::{Blob, Kind, Timestamp};
    use crate::store::{Digest, Role, SecretKey, envelope};

    fn store() -> StoreName {
        StoreName::try_from_text("prod".to_owned()).expect("a name")
    }

    fn stored(key: &SecretKey, sequence: u64, content: &str) -> Stored {
        let manifest = Manifest {
            store: store(),
            version: Version { epoch: 5, generation: sequence },
            bundle: Blob { digest: Digest::of(content.as_bytes()), size: 1 },
            min_sidecar: None,
            not_before: None,
            published_at: Timestamp(UNIX_EPOCH),
            publisher: "bob".to_owned(),
            message: Some("why".to_owned()),
            commit: None,
            rolls_back_to: None,
        };
        let payload = serde_json::to_vec(&manifest).expect("json");
        let payload = envelope::seal(Kind::Manifest, &payload, key).expect("sealed").into();
        Stored { sequence, subject: String::new(), at: None, payload }
    }

    #[test]
    fn versions_are_found_as_people_name_them() {
        let key = || SecretKey::parse(&SecretKey::generate().expect("a key")).expect("a key");
        let (own, other) = (key(), key());
        let keyring = Keyring::new([Trusted { key: own.public(), roles: vec![Role::Publish] }]);
        let mut all = vec![stored(&own, 1, "a"), stored(&other, 2, "b"), stored(&own, 3, "c"), stored(&own, 4, "c")];
        all.push(Stored { payload: "junk".into(), ..all[0].clone() });
        let entries = read(&all, &store(), &keyring);
        assert_eq!(entries.iter().map(|entry| entry.doubt.is_none()).collect::<Vec<_>>(), [true, false, true, true]);
        let sequence = |text| find(&entries, text).ok().map(|entry| entry.sequence);
        assert_eq!((sequence("2"), sequence("5.3"), sequence("newest")), (Some(2), Some(3), Some(4)));
        assert!(sequence("9").is_none() && sequence("x").is_none() && sequence("4.1").is_none());
        assert_eq!(previous(&entries).expect("one").sequence, 2);
        assert!(previous(&entries[..1]).is_err() && find(&[], "newest").is_err());
        assert_eq!(meanwhile(&entries, 3), "`bob` published 5.4 at 1970-01-01T00:00:00.000000Z: why");
        assert_eq!(meanwhile(&entries, 4), "someone else has published");
    }
}
