//! What is in a store, as far as it is believed.

use std::time::Duration;

use super::history::{self, Entry};
use super::{Error, Store};
use crate::policy::Files;
use crate::store::statement::{Head, Kind, Manifest, Overlays, StoreName};
use crate::store::trusted::Believed;
use crate::store::{Keyring, Refusal, TrustedStatements, pack};

/// A store, and whose statements are believed.
#[derive(Debug, Clone)]
pub struct Session {
    /// The store.
    pub store: Store,
    /// Whose statements are believed.
    pub keyring: Keyring,
}

/// The overlays in force, which the next statement is made from.
#[derive(Debug, Clone)]
pub struct CurrentOverlays {
    /// The sequence of the newest statement, believed or not.
    pub sequence: u64,
    /// The newest that are believed.
    pub overlays: Overlays,
    /// Why the newest statement was passed over, if it was.
    pub doubt: Option<String>,
}

impl Session {
    /// The manifest in force and its sequence, if there is one.
    ///
    /// # Errors
    /// If the store cannot be read, or its newest manifest is not believed.
    pub async fn newest_manifest(&self) -> Result<Option<(u64, Believed<Manifest>)>, Error> {
        let Some(stored) = self.store.newest(Kind::Manifest).await? else { return Ok(None) };
        let believed = read_manifest(self.store.name(), &self.keyring, &stored.payload)?;
        Ok(Some((stored.sequence, believed)))
    }

    /// Which manifest is the newest, no matter who signed it: to be shown, not to be acted upon.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn newest_head(&self) -> Result<Option<Head>, Error> {
        Ok(self.store.newest(Kind::Manifest).await?.and_then(|stored| history::head(&stored.payload)))
    }

    /// All manifests that are kept, oldest first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn entries(&self) -> Result<Vec<Entry>, Error> {
        self.entries_from(1).await
    }

    /// The manifests from a sequence on.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn entries_from(&self, sequence: u64) -> Result<Vec<Entry>, Error> {
        let stored = self.store.history(Kind::Manifest, sequence).await?;
        Ok(history::read(&stored, self.store.name(), &self.keyring))
    }

    /// The bundle that a manifest names: its files, as they were published.
    ///
    /// # Errors
    /// If it cannot be had, or is something else.
    pub async fn files(&self, manifest: &Manifest) -> Result<Vec<Files>, Error> {
        let bytes = self.store.blob(&manifest.bundle).await?;
        pack::unpack(&bytes, &format!("{}@{}", manifest.store, manifest.version)).map_err(Error::Unpack)
    }

    /// The overlays in force, if any were ever issued. They are signed again with each change, so those of someone who is not trusted
    /// must not get our signature, nor be left out: sidecars may trust them. Where the newest are rubbish, the ones before them are in
    /// force, as on sidecars: rubbish must not keep anyone from denying.
    ///
    /// # Errors
    /// If the store cannot be read, or its overlays are someone else's or not believed.
    pub async fn newest_overlays(&self) -> Result<Option<CurrentOverlays>, Error> {
        let Some(newest) = self.store.newest(Kind::Overlays).await? else { return Ok(None) };
        let sequence = newest.sequence;
        let first = match self.believed_overlays(&newest.payload) {
            Ok(believed) => return Ok(Some(CurrentOverlays { sequence, overlays: believed.says, doubt: None })),
            Err(why) => why,
        };
        for stored in self.store.history(Kind::Overlays, 1).await?.iter().rev() {
            match self.believed_overlays(&stored.payload) {
                Ok(believed) => {
                    let version = believed.head.version;
                    let doubt = Some(format!("{first}; the newest that is believed is version {version}"));
                    return Ok(Some(CurrentOverlays { sequence, overlays: believed.says, doubt }));
                }
                // Not believed for its key alone: others may trust that.
                Err(why @ (Error::UnknownKey { .. } | Error::Unbelieved { refusal: Refusal::Role(..), .. })) => {
                    return Err(why);
                }
                Err(_) => {}
            }
        }
        Err(Error::NoneBelieved(Box::new(first)))
    }

    fn believed_overlays(&self, bytes: &[u8]) -> Result<Believed<Overlays>, Error> {
        read_overlays(self.store.name(), &self.keyring, bytes)
    }
}

/// Reads a manifest, if one of these keys has signed it.
///
/// # Errors
/// Why it is not believed, and what to do about it.
pub(super) fn read_manifest(store: &StoreName, keyring: &Keyring, bytes: &[u8]) -> Result<Believed<Manifest>, Error> {
    let mut ledger = TrustedStatements::new(store.clone(), keyring.clone(), Duration::ZERO);
    ledger.manifest(bytes).map_err(|refusal| unbelieved(Kind::Manifest, refusal))?;
    ledger.manifest.ok_or(Error::Unreadable(Kind::Manifest))
}

/// Reads overlays, if one of these keys has signed them.
///
/// # Errors
/// Why they are not believed, and what to do about it.
pub(super) fn read_overlays(store: &StoreName, keyring: &Keyring, bytes: &[u8]) -> Result<Believed<Overlays>, Error> {
    let mut ledger = TrustedStatements::new(store.clone(), keyring.clone(), Duration::ZERO);
    ledger.overlays(bytes).map_err(|refusal| unbelieved(Kind::Overlays, refusal))?;
    ledger.overlays.ok_or(Error::Unreadable(Kind::Overlays))
}

fn unbelieved(kind: Kind, refusal: Refusal) -> Error {
    match refusal {
        Refusal::UnknownKey(id) => Error::UnknownKey { kind, id },
        refusal => Error::Unbelieved { kind, refusal },
    }
}
