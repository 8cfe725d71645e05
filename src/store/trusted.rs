//! What a sidecar has accepted, and what it accepts after that: only what a trusted key signed, of its own store, and newer. A store
//! that is rolled back, restored from an old copy, split in two or taken over shows here, and changes nothing but an alarm.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;

use super::envelope;
use super::keys::{KeyId, Keyring, Role};
use super::statement::{Beacon, Head, Kind, Manifest, OverlayEntry, Overlays, StoreName, Version};
use crate::model::Overlay;
use crate::terminal::clean_line;

/// Why something from the store is not believed. What was accepted before stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// So many bytes are more than its kind may have.
    Oversized(usize),
    /// It cannot be read.
    Malformed(String),
    /// It carries no signature.
    Unsigned,
    /// No trusted key has this id.
    UnknownKey(KeyId),
    /// The key may not sign this.
    Role(KeyId, Role),
    /// The signature is not the key's.
    Signature(KeyId),
    /// It is of another store.
    OtherStore(String),
    /// A newer one was accepted already.
    Older {
        /// This one.
        offered: Version,
        /// The newest.
        accepted: Version,
    },
    /// Another one of the same version was accepted: the store, or a publisher's key, serves two masters.
    Forked(Version),
    /// It was sent in the future, by more than clocks may differ.
    Future(Duration),
    /// The blob is not what the manifest names.
    Blob(String),
    /// It needs a newer sidecar.
    MinSidecar(String),
}

impl Refusal {
    /// The word for it in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Oversized(_) => "oversized",
            Self::Malformed(_) => "malformed",
            Self::Unsigned => "unsigned",
            Self::UnknownKey(_) => "unknown_key",
            Self::Role(..) => "role",
            Self::Signature(_) => "signature",
            Self::OtherStore(_) => "other_store",
            Self::Older { .. } => "older",
            Self::Forked(_) => "forked",
            Self::Future(_) => "future",
            Self::Blob(_) => "blob",
            Self::MinSidecar(_) => "min_sidecar",
        }
    }

    /// All the words, for metrics that exist from the start.
    pub const WORDS: [&str; 12] = [
        "oversized",
        "malformed",
        "unsigned",
        "unknown_key",
        "role",
        "signature",
        "other_store",
        "older",
        "forked",
        "future",
        "blob",
        "min_sidecar",
    ];
}

/// What is refused was written by anyone, and is quoted here: one line, with nothing hidden in it.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&clean_line(&Quoted(self).to_string()))
    }
}

/// A refusal as it stands.
struct Quoted<'a>(&'a Refusal);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Refusal::{
            Blob, Forked, Future, Malformed, MinSidecar, Older, OtherStore, Oversized, Role, Signature, UnknownKey,
            Unsigned,
        };
        match self.0 {
            Oversized(size) => write!(f, "it is larger than its kind may be ({size} bytes)"),
            Malformed(what) => write!(f, "it cannot be read: {what}"),
            Unsigned => write!(f, "it is not signed"),
            UnknownKey(id) => {
                write!(f, "no trusted key has the id {id} (add it to `store.keys` if it should be)")
            }
            Role(id, role) => write!(f, "the key {id} is not trusted with the role `{}`", role.as_str()),
            Signature(id) => write!(f, "the signature is not of the key {id}: it was forged or damaged"),
            OtherStore(store) => write!(f, "it is of the store `{store}`"),
            Older { offered, accepted } => {
                write!(f, "it is version {offered}, older than {accepted}, which was accepted before")
            }
            Forked(version) => write!(f, "it differs from what was accepted as version {version}"),
            Future(by) => write!(f, "it was sent {by:.1?} in the future: clocks differ"),
            Blob(what) => write!(f, "its bundle: {what}"),
            MinSidecar(version) => write!(f, "it needs Stockade {version} or newer"),
        }
    }
}

/// A statement that is to be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Believed<T> {
    /// What it says.
    pub says: T,
    /// Which it is.
    pub head: Head,
    /// Its envelope, as it was received.
    pub bytes: Vec<u8>,
}

/// The newest statements that were accepted, and the keys by which.
#[derive(Debug)]
pub struct TrustedStatements {
    store: StoreName,
    keyring: Keyring,
    max_clock_skew: Duration,
    /// The newest manifest.
    pub manifest: Option<Believed<Manifest>>,
    /// The newest overlays.
    pub overlays: Option<Believed<Overlays>>,
    /// What they say, read once.
    read: Vec<Overlay>,
}

impl TrustedStatements {
    /// Has accepted nothing yet.
    pub fn new(store: StoreName, keyring: Keyring, max_clock_skew: Duration) -> Self {
        Self { store, keyring, max_clock_skew, manifest: None, overlays: None, read: Vec::new() }
    }

    /// Accepts a manifest if it is news: `false` if it is the one that is there.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn manifest(&mut self, bytes: &[u8]) -> Result<bool, Refusal> {
        let new = self.read(Kind::Manifest, bytes, |own: &Manifest| (&own.store, own.version))?;
        let news = is_news(self.manifest.as_ref().map(|own| own.head), new.head)?;
        if news {
            self.manifest = Some(new);
        }
        Ok(news)
    }

    /// Accepts overlays if they are news: `false` if they are what is there.
    ///
    /// # Errors
    /// Why they are not believed. One that cannot be read condemns all: it may be a denial.
    pub fn overlays(&mut self, bytes: &[u8]) -> Result<bool, Refusal> {
        let new = self.read(Kind::Overlays, bytes, |own: &Overlays| (&own.store, own.version))?;
        let read = new.says.overlays.iter().map(OverlayEntry::read).collect::<Result<_, _>>();
        let read = read.map_err(Refusal::Malformed)?;
        let news = is_news(self.overlays.as_ref().map(|own| own.head), new.head)?;
        if news {
            (self.overlays, self.read) = (Some(new), read);
        }
        Ok(news)
    }

    /// The overlays that are in force at an instant.
    pub fn active(&self, now: SystemTime) -> impl Iterator<Item = &Overlay> {
        self.read.iter().filter(move |overlay| overlay.is_in_force(now))
    }

    /// The overlays that are not in force yet at an instant.
    pub fn later(&self, now: SystemTime) -> impl Iterator<Item = &Overlay> {
        self.read.iter().filter(move |overlay| now < overlay.from)
    }

    /// Reads a beacon. Whether it proves anything depends on what it names ([`TrustedStatements::holds`]) and when it was sent.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn beacon(&self, bytes: &[u8], now: SystemTime) -> Result<Beacon, Refusal> {
        let none = Version { epoch: 0, generation: 0 };
        let beacon = self.read(Kind::Beacon, bytes, |own: &Beacon| (&own.store, none))?;
        match beacon.says.sent_at.0.duration_since(now) {
            Ok(ahead) if ahead > self.max_clock_skew => Err(Refusal::Future(ahead)),
            _ => Ok(beacon.says),
        }
    }

    /// Whether what a beacon names is what was accepted.
    ///
    /// # Errors
    /// [`Refusal::Older`] or [`Refusal::Forked`] if it names what is older than what was accepted.
    pub fn holds(&self, beacon: &Beacon) -> Result<bool, Refusal> {
        let held = |own: Option<Head>, named: Option<Head>| match (own, named) {
            (_, Some(named)) => is_news(own, named).map(|news| !news),
            (None, None) => Ok(true),
            (Some(own), None) => {
                Err(Refusal::Older { offered: Version { epoch: 0, generation: 0 }, accepted: own.version })
            }
        };
        let manifest = held(self.manifest.as_ref().map(|own| own.head), beacon.manifest)?;
        let overlays = held(self.overlays.as_ref().map(|own| own.head), beacon.overlays)?;
        Ok(manifest && overlays)
    }

    fn read<T: DeserializeOwned>(
        &self,
        kind: Kind,
        bytes: &[u8],
        identity: impl Fn(&T) -> (&StoreName, Version),
    ) -> Result<Believed<T>, Refusal> {
        let payload = envelope::open(kind, bytes, &self.keyring)?;
        let says: T = serde_json::from_slice(&payload).map_err(|error| Refusal::Malformed(error.to_string()))?;
        let (store, version) = identity(&says);
        if *store != self.store {
            return Err(Refusal::OtherStore(store.to_string()));
        }
        let head = Head::of(version, &payload);
        Ok(Believed { says, head, bytes: bytes.to_vec() })
    }
}

/// Whether a statement is newer than the newest.
fn is_news(accepted: Option<Head>, offered: Head) -> Result<bool, Refusal> {
    match accepted {
        None => Ok(true),
        Some(accepted) if offered.version > accepted.version => Ok(true),
        Some(accepted) if offered.version < accepted.version => {
            Err(Refusal::Older { offered: offered.version, accepted: accepted.version })
        }
        Some(accepted) if offered.digest != accepted.digest => Err(Refusal::Forked(accepted.version)),
        Some(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::super::keys::{SecretKey, Trusted};
    use super::super::pack::Digest;
    use super::super::statement::{Blob, OverlayEffect, Timestamp};
    use super::*;

    const NOW: SystemTime = UNIX_EPOCH;

    fn store() -> StoreName {
        StoreName::try_from_text("prod".to_owned()).expect("a name")
    }

    /// A key that may sign everything, and statements that are checked against it.
    fn setting() -> (SecretKey, TrustedStatements) {
        let key = SecretKey::parse(&SecretKey::generate().expect("a key")).expect("a key");
        let roles = vec![Role::Publish, Role::Overlay, Role::Beacon];
        let keyring = Keyring::new([Trusted { key: key.public(), roles }]);
        (key, TrustedStatements::new(store(), keyring, Duration::from_secs(1)))
    }

    fn manifest(key: &SecretKey, epoch: u64, generation: u64, content: &str) -> Vec<u8> {
        let manifest = Manifest {
            store: store(),
            version: Version { epoch, generation },
            bundle: Blob { digest: Digest::of(content.as_bytes()), size: 1 },
            min_sidecar: None,
            not_before: None,
            published_at: Timestamp(NOW),
            publisher: "test".to_owned(),
            message: None,
            commit: None,
            rolls_back_to: None,
        };
        sealed(key, Kind::Manifest, &manifest)
    }

    fn overlays(key: &SecretKey, generation: u64, principal: &str) -> Vec<u8> {
        let entry = OverlayEntry {
            id: "deny-1".to_owned(),
            effect: OverlayEffect::Deny,
            principal: Some(principal.to_owned()),
            action: None,
            resource: None,
            from: Timestamp(NOW),
            until: Timestamp(NOW + Duration::from_secs(1)),
            reason: "test".to_owned(),
            issuer: "test".to_owned(),
            approved_by: None,
        };
        let overlays = Overlays {
            store: store(),
            version: Version { epoch: 1, generation },
            published_at: Timestamp(NOW),
            publisher: "test".to_owned(),
            overlays: vec![entry],
        };
        sealed(key, Kind::Overlays, &overlays)
    }

    fn beacon(key: &SecretKey, trusted: &TrustedStatements, ahead: Duration) -> Vec<u8> {
        let manifest = trusted.manifest.as_ref().map(|own| own.head);
        let overlays = trusted.overlays.as_ref().map(|own| own.head);
        sealed(key, Kind::Beacon, &Beacon { store: store(), manifest, overlays, sent_at: Timestamp(NOW + ahead) })
    }

    fn sealed(key: &SecretKey, kind: Kind, says: &impl serde::Serialize) -> Vec<u8> {
        envelope::seal(kind, &serde_json::to_vec(says).expect("json"), key).expect("sealed")
    }

    #[test]
    fn only_what_is_newer_is_news() {
        let (key, mut trusted) = setting();
        let mut offer = |epoch, generation, content| {
            trusted.manifest(&manifest(&key, epoch, generation, content)).map_err(|refusal| refusal.as_str())
        };
        assert_eq!(offer(5, 3, "a"), Ok(true));
        assert_eq!(offer(5, 3, "a"), Ok(false));
        assert_eq!(offer(5, 3, "b"), Err("forked"));
        assert_eq!(offer(5, 2, "a"), Err("older"));
        assert_eq!(offer(4, 9, "a"), Err("older"));
        assert_eq!(offer(5, 9, "a"), Ok(true));
        assert_eq!(offer(6, 1, "a"), Ok(true));
        assert_eq!(offer(5, 10, "a"), Err("older"));
        assert_eq!(trusted.manifest.expect("one").head.version, Version { epoch: 6, generation: 1 });
    }

    #[test]
    fn another_stores_statements_are_not_believed() {
        let (key, trusted) = setting();
        let mut other =
            TrustedStatements { store: StoreName::try_from_text("test".to_owned()).expect("a name"), ..trusted };
        assert_eq!(other.manifest(&manifest(&key, 1, 1, "a")).expect_err("refused").as_str(), "other_store");
        assert!(other.manifest.is_none());
    }

    #[test]
    fn overlays_count_for_themselves_and_one_that_cannot_be_read_condemns_all() {
        let (key, mut trusted) = setting();
        assert_eq!(trusted.manifest(&manifest(&key, 1, 7, "a")), Ok(true));
        assert_eq!(trusted.overlays(&overlays(&key, 1, "User::\"mallory\"")), Ok(true));
        assert_eq!(trusted.overlays(&overlays(&key, 2, "mallory")).expect_err("refused").as_str(), "malformed");
        assert_eq!(trusted.overlays.expect("the first").head.version.generation, 1);
    }

    #[test]
    fn a_beacon_proves_something_if_it_names_what_is_held() {
        let (key, mut trusted) = setting();
        let at = |trusted: &TrustedStatements, bytes: &[u8]| {
            let beacon = trusted.beacon(bytes, NOW).map_err(|refusal| refusal.as_str())?;
            trusted.holds(&beacon).map_err(|refusal| refusal.as_str())
        };
        let first = beacon(&key, &trusted, Duration::ZERO);
        assert_eq!(at(&trusted, &first), Ok(true), "nothing is there, and nothing is held");
        trusted.manifest(&manifest(&key, 1, 1, "a")).expect("accepted");
        let second = beacon(&key, &trusted, Duration::from_millis(900));
        assert_eq!(at(&trusted, &second), Ok(true));
        assert_eq!(at(&trusted, &first), Err("older"), "the store has lost what was accepted");
        assert_eq!(at(&trusted, &beacon(&key, &trusted, Duration::from_secs(2))), Err("future"));
        let (_, mut behind) = setting();
        behind.keyring = trusted.keyring.clone();
        assert_eq!(at(&behind, &second), Ok(false), "there is something newer");
        behind.manifest(&manifest(&key, 1, 1, "b")).expect("accepted");
        assert_eq!(at(&behind, &second), Err("forked"));
    }
}
