//! How a statement comes into a store: encoded, sealed, and stored as the newest of its kind, in this one place.

use std::time::SystemTime;

use serde::Serialize;

use super::overlays::{Edit, edited};
use super::{Advance, Error, Session, Store, history};
use crate::policy::Files;
use crate::store::statement::{Blob, Kind, Manifest, Overlays, Timestamp, Version};
use crate::store::{Digest, SecretKey, envelope, pack};

/// How often the list of overlays is read again when someone else was faster. Each of several issuers loses to each other once.
const ATTEMPTS: u32 = 20;

/// Bundles as they are uploaded: the same content has the same digest.
#[derive(Debug, Clone)]
pub struct PackedBundle {
    /// What it is known by.
    pub blob: Blob,
    /// What is uploaded.
    pub bytes: Vec<u8>,
}

impl PackedBundle {
    /// Packs what one or several directories hold.
    ///
    /// # Errors
    /// If a path is too long for an archive.
    pub fn of(files: &[Files]) -> Result<Self, Error> {
        let bytes = pack::pack(files).map_err(Error::Pack)?;
        Ok(Self { blob: Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 }, bytes })
    }
}

/// Where in the history a new manifest belongs.
#[derive(Debug, Clone)]
pub struct Position {
    /// The manifest in force.
    pub current: Option<Manifest>,
    /// The sequence of the newest message, which the new one must follow; 0 if there is none.
    pub after: u64,
    /// The new version.
    pub version: Version,
}

/// The contents of a new manifest, beside what its [`Position`] gives it.
#[derive(Debug, Clone)]
pub struct Draft {
    /// What is to be in force; it must have been uploaded.
    pub bundle: Blob,
    /// Who publishes.
    pub publisher: String,
    /// Why.
    pub message: Option<String>,
    /// The Git commit it comes from.
    pub commit: Option<String>,
    /// When it comes into force, if not at once.
    pub not_before: Option<SystemTime>,
    /// The least version of Stockade that understands it.
    pub min_sidecar: Option<String>,
    /// The version that it goes back to.
    pub rolls_back_to: Option<Version>,
}

impl Draft {
    /// Only what every manifest has.
    pub fn new(bundle: Blob, publisher: impl Into<String>) -> Self {
        Self {
            bundle,
            publisher: publisher.into(),
            message: None,
            commit: None,
            not_before: None,
            min_sidecar: None,
            rolls_back_to: None,
        }
    }
}

impl Session {
    /// Where a new manifest belongs: after the newest one. In a new epoch, that one may be anything.
    ///
    /// # Errors
    /// If the store cannot be read, or its newest manifest is not believed.
    pub async fn position(&self, new_epoch: bool) -> Result<Position, Error> {
        let first = Version::first(SystemTime::now());
        if new_epoch {
            let after = self.store.newest(Kind::Manifest).await?.map_or(0, |stored| stored.sequence);
            return Ok(Position { current: None, after, version: first });
        }
        Ok(match self.newest_manifest().await? {
            None => Position { current: None, after: 0, version: first },
            Some((after, newest)) => {
                let version = newest.says.version.next();
                Position { current: Some(newest.says), after, version }
            }
        })
    }

    /// Signs a manifest and makes it the newest. Lead times count from the instant at which it is signed.
    ///
    /// # Errors
    /// If it did not become the newest: [`Error::Overtaken`] if someone else has published since `position` was found.
    pub async fn publish_manifest(
        &self,
        key: &SecretKey,
        position: &Position,
        draft: Draft,
    ) -> Result<Manifest, Error> {
        let manifest = Manifest {
            store: self.store.name().clone(),
            version: position.version,
            bundle: draft.bundle,
            min_sidecar: draft.min_sidecar,
            not_before: draft.not_before.map(Timestamp),
            published_at: Timestamp::now(),
            publisher: draft.publisher,
            message: draft.message,
            commit: draft.commit,
            rolls_back_to: draft.rolls_back_to,
        };
        match put(&self.store, Kind::Manifest, &manifest, key, position.after).await? {
            Advance::Stored(_) => Ok(manifest),
            Advance::Overtaken => {
                let since = self.entries_from(position.after.saturating_add(1)).await.unwrap_or_default();
                Err(Error::Overtaken(history::meanwhile(&since, position.after)))
            }
        }
    }

    /// Edits the list of overlays, again each time that someone else has edited it in between: nobody's overlays get lost. In a new
    /// epoch the list begins empty, whatever is in the store. Returns the new list, and why the newest one was passed over, if it was.
    ///
    /// # Errors
    /// If nothing was changed, or nobody can tell.
    pub async fn edit_overlays(
        &self,
        key: &SecretKey,
        publisher: &str,
        edit: &Edit,
        new_epoch: bool,
    ) -> Result<(Overlays, Option<String>), Error> {
        for _ in 0..ATTEMPTS {
            let (after, current, doubt) = match new_epoch {
                true => (self.store.newest(Kind::Overlays).await?.map_or(0, |stored| stored.sequence), None, None),
                false => match self.newest_overlays().await? {
                    Some(found) => (found.sequence, Some(found.overlays), found.doubt),
                    None => (0, None, None),
                },
            };
            let next = edited(current.as_ref(), edit, self.store.name(), publisher, SystemTime::now())?;
            if let Advance::Stored(_) = put(&self.store, Kind::Overlays, &next, key, after).await? {
                return Ok((next, doubt));
            }
        }
        Err(Error::Contended(ATTEMPTS))
    }
}

/// Encodes and signs a statement.
pub(super) fn seal(kind: Kind, statement: &impl Serialize, key: &SecretKey) -> Result<Vec<u8>, Error> {
    let payload = serde_json::to_vec(statement)
        .map_err(|error| Error::Seal { kind, refusal: crate::store::Refusal::Malformed(error.to_string()) })?;
    envelope::seal(kind, &payload, key).map_err(|refusal| Error::Seal { kind, refusal })
}

/// Encodes and signs a statement, and makes it the newest of its kind if that is still the one at `after`.
async fn put(
    store: &Store,
    kind: Kind,
    statement: &impl Serialize,
    key: &SecretKey,
    after: u64,
) -> Result<Advance, Error> {
    store.advance(kind, &seal(kind, statement, key)?, after).await
}
