//! The statements of the store: what is signed, and what of the sidecars' answers is not.
//!
//! They are JSON within their envelopes. Fields that a reader does not know are ignored, so that a newer publisher can say more;
//! `min_sidecar` is how it says what must not be ignored. A bundle on trial (canary) will be such a field, `candidate`, beside `bundle`: who
//! does not know it enforces `bundle`.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use deserr::Deserr;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::keys::Role;
use super::pack::Digest;
use crate::model::{Effect, EntityUid, Overlay};
use crate::yaml::{Faults, Invalid};

/// The kinds of signed statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`Manifest`]
    Manifest,
    /// [`Overlays`]
    Overlays,
    /// [`Beacon`]
    Beacon,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Manifest, Self::Overlays, Self::Beacon];

    /// The word for it, in subjects, metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Overlays => "overlays",
            Self::Beacon => "beacon",
        }
    }

    /// What its envelope calls it.
    pub fn payload_type(self) -> &'static str {
        match self {
            Self::Manifest => "application/vnd.stockade.manifest.v1+json",
            Self::Overlays => "application/vnd.stockade.overlays.v1+json",
            Self::Beacon => "application/vnd.stockade.beacon.v1+json",
        }
    }

    /// Whose keys sign it.
    pub fn role(self) -> Role {
        match self {
            Self::Manifest => Role::Publish,
            Self::Overlays => Role::Overlay,
            Self::Beacon => Role::Beacon,
        }
    }

    /// How large its envelope may be, in bytes. A NATS message holds no more than 1 MiB.
    pub fn max_size(self) -> usize {
        match self {
            Self::Manifest => 64 << 10,
            Self::Overlays => 512 << 10,
            Self::Beacon => 8 << 10,
        }
    }
}

/// The name of a store: lower-case letters, digits, `-`. A statement of another store is not believed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserr, Serialize, Deserialize)]
#[deserr(error = Faults, try_from(String) = StoreName::try_from_text -> Invalid)]
#[serde(transparent)]
pub struct StoreName(String);

impl StoreName {
    /// Reads a name.
    ///
    /// # Errors
    /// If it is none.
    pub fn try_from_text(text: String) -> Result<Self, Invalid> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        match !text.is_empty() && text.len() <= 63 && text.chars().all(good) {
            true => Ok(Self(text)),
            false => Err(Invalid::new(format!("`{text}` is not a name for a store"))
                .hint("1 to 63 lower-case letters, digits or `-`")),
        }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StoreName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which of two statements of a kind is newer. It only grows: the generation by one at every change, the epoch when a store begins
/// anew, after its contents were lost. Written `EPOCH.GENERATION`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// When the store began, in seconds since 1970: whoever begins one anew gets a higher one.
    pub epoch: u64,
    /// The count of changes since, from 1.
    pub generation: u64,
}

impl Version {
    /// The first version of a store that begins now.
    pub fn first(now: SystemTime) -> Self {
        let epoch = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { epoch, generation: 1 }
    }

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self { generation: self.generation.saturating_add(1), ..self }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.generation)
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once('.')
            .and_then(|(epoch, generation)| {
                Some(Self { epoch: epoch.parse().ok()?, generation: generation.parse().ok()? })
            })
            .ok_or_else(|| format!("`{text}` is not a version: EPOCH.GENERATION, as `stockade history` shows it"))
    }
}

/// An instant, in UTC, to the microsecond: RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub SystemTime);

impl Timestamp {
    /// By this machine's clock.
    pub fn now() -> Self {
        Self(SystemTime::now())
    }

    /// How long ago it was; nothing if it is yet to come.
    pub fn age(self, now: SystemTime) -> Duration {
        now.duration_since(self.0).unwrap_or_default()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Before 1970 and after 9999 it has no such form; nobody's clock says that, but a statement may.
        let range = SystemTime::UNIX_EPOCH..SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800);
        match range.contains(&self.0) {
            true => humantime::format_rfc3339_micros(self.0).fmt(f),
            false => f.write_str("never"),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text)
            .map(Self)
            .map_err(|error| serde::de::Error::custom(format_args!("`{text}` is not a time: {error}")))
    }
}

/// A packed bundle, by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Of its bytes.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
}

/// Which bundle is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The store that says so.
    pub store: StoreName,
    /// Which statement of the store it is.
    pub version: Version,
    /// What is in force.
    pub bundle: Blob,
    /// The least version of Stockade that understands all of it. An older sidecar keeps what it has, and says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_sidecar: Option<String>,
    /// When it comes into force, if not at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// When it was signed. Lead times count from here.
    pub published_at: Timestamp,
    /// Who published, as they say.
    pub publisher: String,
    /// Why, in their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Where it comes from: a Git commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The version that this one goes back to, if it is a rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolls_back_to: Option<Version>,
}

/// Which overlays are in force beside the bundle: all of them, those that are not listed are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlays {
    /// The store that says so.
    pub store: StoreName,
    /// Which statement of the store it is. It counts for itself, beside the manifests'.
    pub version: Version,
    /// When it was signed.
    pub published_at: Timestamp,
    /// Who issued it, as they say.
    pub publisher: String,
    /// Those that were not over when it was signed.
    pub overlays: Vec<OverlayEntry>,
}

/// An [`Overlay`] as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayEntry {
    /// Names it.
    pub id: String,
    /// What it does.
    pub effect: OverlayEffect,
    /// As [`Overlay::principal`], in Cedar's writing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// As [`Overlay::action`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// As [`Overlay::resource`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// When it begins.
    pub from: Timestamp,
    /// When it ends.
    pub until: Timestamp,
    /// Why.
    pub reason: String,
    /// Who issued it, as they say.
    pub issuer: String,
    /// Who approved of it, as the issuer says; grants have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
}

/// What an overlay does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverlayEffect {
    /// An emergency denial.
    Deny,
    /// A time-boxed exception. Any `forbid` wins over it.
    Grant,
}

impl OverlayEntry {
    /// Reads what is written down.
    ///
    /// # Errors
    /// The first field that is not what it should be.
    pub fn read(&self) -> Result<Overlay, String> {
        let id = &self.id;
        let entity = |what: &str, text: &Option<String>| {
            let parsed = text.as_ref().map(|text| text.parse::<EntityUid>().map_err(|_| text)).transpose();
            parsed
                .map_err(|text| format!("overlay `{id}`: its {what} `{text}` is not an entity, like `User::\"alice\"`"))
        };
        if id.is_empty() || !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(format!("`{id}` does not name an overlay: letters, digits and `-`"));
        }
        if self.until <= self.from {
            return Err(format!("overlay `{id}` ends before it begins"));
        }
        Ok(Overlay {
            id: id.clone(),
            effect: match self.effect {
                OverlayEffect::Deny => Effect::Deny,
                OverlayEffect::Grant => Effect::Allow,
            },
            principal: entity("principal", &self.principal)?,
            action: entity("action", &self.action)?,
            resource: entity("resource", &self.resource)?,
            from: self.from.0,
            until: self.until.0,
            reason: self.reason.clone(),
        })
    }
}

/// A statement by its version and the digest of its payload: who holds the same has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Which statement.
    pub version: Version,
    /// SHA-256 of its payload.
    pub digest: Digest,
}

impl Head {
    /// That of a statement with this payload.
    pub fn of(version: Version, payload: &[u8]) -> Self {
        Self { version, digest: Digest::of(payload) }
    }
}

/// What the newest statements were at an instant: who holds them was not out of date then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beacon {
    /// The store that says so.
    pub store: StoreName,
    /// The newest manifest.
    pub manifest: Option<Head>,
    /// The newest overlays; `None` if there never were any.
    pub overlays: Option<Head>,
    /// By the clock of the one who sent it, when it looked.
    pub sent_at: Timestamp,
}

/// How often a sidecar says what it enforces, if nothing changes.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(30);

/// What a sidecar enforces, as it says. Not signed: who may write it is the server's to enforce, and only people and `--wait` read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its pod's name.
    pub pod: String,
    /// Its pod's namespace.
    pub namespace: String,
    /// Its version of Stockade.
    pub sidecar: String,
    /// The manifest that it enforces.
    pub manifest: Option<Head>,
    /// The overlays that it enforces.
    pub overlays: Option<Head>,
    /// The identity of what is in force.
    pub revision: Option<String>,
    /// Since when it enforces the manifest.
    pub enforced_at: Option<Timestamp>,
    /// From the signing of the manifest until it was enforced, in milliseconds.
    pub lead_time_ms: Option<u64>,
    /// From the signing of the overlays until they were enforced, in milliseconds.
    pub overlays_lead_time_ms: Option<u64>,
    /// `fresh`, `stale` or `expired`.
    pub freshness: String,
    /// Why it does not enforce the newest, one line.
    pub rejection: Option<String>,
    /// Whether it is about to end: what it says last.
    #[serde(default)]
    pub leaving: bool,
    /// When it said so.
    pub at: Timestamp,
}

impl Digest {
    /// SHA-256.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }
}
