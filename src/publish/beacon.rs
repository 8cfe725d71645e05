//! Sending beacons: what is the newest in the store, as of an instant.

use super::session::{read_manifest, read_overlays};
use super::statement::seal;
use super::{Advance, Error, Store, history};
use crate::store::statement::{Beacon, Head, Kind, Timestamp};
use crate::store::{Keyring, SecretKey};

/// How often in a row it looks again, before it gives up this turn.
const LOOKS: u32 = 5;

/// Sends beacons.
#[derive(Debug)]
pub struct BeaconSender {
    /// The store that they are of.
    pub store: Store,
    /// The key that signs them.
    pub key: SecretKey,
    /// Whose statements they name; `None`: anyone's.
    pub keyring: Option<Keyring>,
}

impl BeaconSender {
    /// One beacon: what is the newest, as of when it looked. If a statement was made in between, it looks again.
    ///
    /// # Errors
    /// If no beacon was stored.
    pub async fn send_beacon(&self) -> Result<(), Error> {
        for _ in 0..LOOKS {
            let after = self.store.newest_sequence().await?;
            let sent_at = Timestamp::now();
            let (manifest, overlays) = tokio::try_join!(self.newest(Kind::Manifest), self.newest(Kind::Overlays))?;
            let beacon = Beacon { store: self.store.name().clone(), manifest, overlays, sent_at };
            let sealed = seal(Kind::Beacon, &beacon, &self.key)?;
            if let Advance::Stored(_) = self.store.beacon(sealed, after).await? {
                return Ok(());
            }
        }
        Err(Error::Contended(LOOKS))
    }

    async fn newest(&self, kind: Kind) -> Result<Option<Head>, Error> {
        let Some(stored) = self.store.newest(kind).await? else { return Ok(None) };
        let name = self.store.name();
        let head = match &self.keyring {
            Some(keyring) if kind == Kind::Manifest => read_manifest(name, keyring, &stored.payload)?.head,
            Some(keyring) => read_overlays(name, keyring, &stored.payload)?.head,
            None => history::head(&stored.payload).ok_or(Error::Unreadable(kind))?,
        };
        Ok(Some(head))
    }
}
