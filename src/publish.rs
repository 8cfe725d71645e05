//! The other side of the store: what publishers, issuers of overlays, beacons and those who look on do with it.
//!
//! Truth is what the stream's leader says, not what some replica has: a beacon that named an old manifest would alarm every
//! sidecar. Each change is a compare-and-set on the last message of its subject, so that of two who publish at once one wins
//! and the other is told.

pub mod history;
pub mod leads;
pub mod overlays;
pub mod streams;
pub mod table;

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::time::sleep;

use crate::feed::jetstream::blob_of;
use crate::nats::{self, Connection, Patience, Stored, code};
use crate::store::layout::{Layout, PIECE};
use crate::store::statement::{Blob, Kind, Manifest, Overlays, Status, StoreName};
use crate::store::trusted::Believed;
use crate::store::{Digest, Keyring, Refusal, TrustedStatements};
use streams::{Desired, Settings};
use table::Sidecar;

/// A store on NATS, from the side of those who write it.
#[derive(Debug, Clone)]
pub struct Store {
    connection: Connection,
    layout: Layout,
    name: StoreName,
}

/// Why a statement did not become the newest.
#[derive(Debug, PartialEq, Eq)]
pub enum Advance {
    /// It did, as this sequence.
    Done(u64),
    /// Another one came first. Nothing was changed.
    Overtaken,
}

/// How often, and after how long, what may have happened is looked at again.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

impl Store {
    /// Connects. `name` says what the connection is for: `cli` or `beacon`.
    ///
    /// # Errors
    /// As [`nats::connect`].
    pub async fn connect(
        config: &nats::Config,
        store: StoreName,
        name: &str,
        patience: Patience,
    ) -> Result<(Self, nats::Events), String> {
        let (connection, events) = nats::connect(config, name, patience).await?;
        Ok((Self { connection, layout: Layout::new(store.clone()), name: store }, events))
    }

    /// Its name.
    pub fn name(&self) -> &StoreName {
        &self.name
    }

    /// Whether a server is there.
    pub fn is_up(&self) -> bool {
        self.connection.is_up()
    }

    /// Makes the streams, if they are not there.
    ///
    /// # Errors
    /// If a stream is there with other settings, in what matters, or cannot be made.
    pub async fn ensure(&self, settings: &Settings) -> Result<(), String> {
        self.ensure_stream(&Desired::of_statements(&self.layout, settings)).await?;
        self.ensure_stream(&Desired::of_statuses(&self.layout, settings)).await
    }

    /// Makes the stream of what sidecars say, if it is not there. It is kept in memory, so a server that stands alone loses it with
    /// its process.
    ///
    /// # Errors
    /// As [`Self::ensure`].
    pub async fn ensure_statuses(&self) -> Result<(), String> {
        self.ensure_stream(&Desired::of_statuses(&self.layout, &Settings::default())).await
    }

    async fn ensure_stream(&self, desired: &Desired) -> Result<(), String> {
        let name = desired.name();
        let info = match self.info(name).await {
            Err(error) if error.is(code::NO_STREAM) => {
                let made = self.connection.request(&format!("STREAM.CREATE.{name}"), desired.config()).await;
                match made {
                    // Someone else may be making it at the same time. If it is there after all, what counts is whether it
                    // is as it should be.
                    Err(error @ nats::Error::Refused { .. }) => self.settled(name).await.ok_or(error),
                    made => made,
                }
            }
            info => info,
        };
        let info = info.map_err(|error| {
            let hint = " (the server or its account gives less than the stream asks for: see --max-bytes)";
            format!("stream `{name}`: {error}{}", if error.is(code::NO_ROOM) { hint } else { "" })
        })?;
        desired.check(info.get("config").unwrap_or(&serde_json::Value::Null))
    }

    /// A stream that someone else is making; `None` if it does not come to be.
    async fn settled(&self, stream: &str) -> Option<serde_json::Value> {
        for _ in 0..LOOKS {
            if let Ok(info) = self.info(stream).await {
                return Some(info);
            }
            sleep(PAUSE).await;
        }
        None
    }

    async fn info(&self, stream: &str) -> Result<serde_json::Value, nats::Error> {
        self.connection.request(&format!("STREAM.INFO.{stream}"), &serde_json::Value::Null).await
    }

    /// The newest statement of a kind, as the stream's leader has it; `None` if there is none, or no stream.
    ///
    /// # Errors
    /// If the server gives no answer.
    pub async fn newest(&self, kind: Kind) -> Result<Option<Stored>, nats::Error> {
        match self.connection.leaders_last(&self.layout.stream(), &self.layout.head(kind)).await {
            Err(error) if error.is(code::NO_STREAM) => Ok(None),
            found => found,
        }
    }

    /// All statements of a kind that are kept, from `sequence` on, oldest first.
    ///
    /// # Errors
    /// If the server gives no answer.
    pub async fn history(&self, kind: Kind, sequence: u64) -> Result<Vec<Stored>, nats::Error> {
        match self.connection.walk(&self.layout.stream(), &self.layout.head(kind), sequence).await {
            Err(nats::Error::Nobody(_)) => Ok(Vec::new()),
            found => found,
        }
    }

    /// Uploads what is not there yet, and reads all of it back. How many pieces were missing.
    ///
    /// # Errors
    /// If there is no room, or the server does not keep what it was given.
    pub async fn upload(&self, blob: &Blob, bytes: &[u8]) -> Result<usize, String> {
        let mut missing = Vec::new();
        for (at, piece) in bytes.chunks(PIECE).enumerate() {
            let subject = self.layout.piece(&blob.digest, at);
            let found =
                self.connection.last(&self.layout.stream(), &subject).await.map_err(|error| error.to_string())?;
            if found.is_none_or(|found| found.payload != piece) {
                missing.push((subject, Bytes::copy_from_slice(piece)));
            }
        }
        self.has_room(missing.iter().map(|(_, piece)| piece.len() as u64).sum()).await?;
        let count = missing.len();
        for (subject, piece) in missing {
            self.connection.store(&subject, piece, None).await.map_err(|error| match error.is(code::FULL) {
                true => full(&self.layout.stream()),
                false => format!("a piece of the bundle could not be stored: {error}"),
            })?;
        }
        // A replica may be behind for a moment.
        let mut looks = 0;
        loop {
            match self.blob(blob).await {
                Ok(_) => return Ok(count),
                Err(error) if looks == LOOKS => return Err(error),
                Err(_) => looks += 1,
            }
            sleep(PAUSE).await;
        }
    }

    /// The stream refuses everything when it is full, beacons and denials too, so bundles leave a part of it free.
    async fn has_room(&self, size: u64) -> Result<(), String> {
        let stream = self.layout.stream();
        let info = self.info(&stream).await.map_err(|error| format!("stream `{stream}`: {error}"))?;
        let limit = info.pointer("/config/max_bytes").and_then(serde_json::Value::as_u64);
        let used = info.pointer("/state/bytes").and_then(serde_json::Value::as_u64).unwrap_or(0);
        match limit {
            Some(limit) if used.saturating_add(size) > limit / 10 * 9 => Err(full(&stream)),
            _ => Ok(()),
        }
    }

    /// The bytes of a blob, which are what its digest says.
    ///
    /// # Errors
    /// If it cannot be had, or is something else.
    pub async fn blob(&self, blob: &Blob) -> Result<Bytes, String> {
        let bytes = blob_of(&self.connection, &self.layout, blob).await?;
        match Digest::of(&bytes) == blob.digest && bytes.len() as u64 == blob.size {
            true => Ok(bytes),
            false => Err(format!("blob {} holds something else: it was damaged, or forged", blob.digest)),
        }
    }

    /// Makes a statement the newest of its kind, if the last message is still the one with the sequence `after` (0: none).
    ///
    /// # Errors
    /// If it was not, or if nobody can tell.
    pub async fn advance(&self, kind: Kind, envelope: &[u8], after: u64) -> Result<Advance, String> {
        let payload = Bytes::copy_from_slice(envelope);
        let failed = match self.connection.store(&self.layout.head(kind), payload, Some(after)).await {
            Ok(sequence) => return Ok(Advance::Done(sequence)),
            Err(error) if error.is(code::WRONG_LAST_SEQUENCE) => return Ok(Advance::Overtaken),
            Err(error) if error.is(code::FULL) => return Err(full(&self.layout.stream())),
            Err(error @ (nats::Error::TimedOut(_) | nats::Error::Other(_) | nats::Error::Malformed(_))) => error,
            Err(error) => return Err(error.to_string()),
        };
        // It may have been stored all the same.
        for _ in 0..LOOKS {
            sleep(PAUSE).await;
            match self.newest(kind).await {
                Ok(Some(stored)) if stored.payload == envelope => return Ok(Advance::Done(stored.sequence)),
                Ok(Some(stored)) if stored.sequence > after => return Ok(Advance::Overtaken),
                Ok(_) => return Err(format!("{failed}; nothing was changed")),
                Err(_) => {}
            }
        }
        Err(format!("{failed}; whether anything was changed is not known: see `stockade history`"))
    }

    /// The sequence of the newest statement of any kind; 0 if there is none.
    ///
    /// # Errors
    /// If the server gives no answer.
    pub async fn newest_sequence(&self) -> Result<u64, nats::Error> {
        let newest = self.connection.leaders_last(&self.layout.stream(), &self.layout.heads()).await?;
        Ok(newest.map_or(0, |stored| stored.sequence))
    }

    /// Says a beacon, if no statement was made since the sequence `after`. So what it names is the newest wherever it stands
    /// in the stream, and no sidecar hears a statement and then a beacon that does not know of it.
    ///
    /// # Errors
    /// If it was not stored.
    pub async fn beacon(&self, envelope: Vec<u8>, after: u64) -> Result<Advance, nats::Error> {
        let (subject, all) = (self.layout.head(Kind::Beacon), self.layout.heads());
        match self.connection.store_after(&subject, envelope.into(), after, &all).await {
            Err(error) if error.is(code::WRONG_LAST_SEQUENCE) => Ok(Advance::Overtaken),
            stored => stored.map(Advance::Done),
        }
    }

    /// What all sidecars said last, those whose statements have not expired.
    ///
    /// # Errors
    /// If the server gives no answer.
    pub async fn statuses(&self) -> Result<Vec<Status>, nats::Error> {
        Ok(self.sidecars().await?.into_iter().map(|sidecar| sidecar.status).collect())
    }

    /// The same, with when the server heard it.
    ///
    /// # Errors
    /// As [`Self::statuses`].
    pub async fn sidecars(&self) -> Result<Vec<Sidecar>, nats::Error> {
        let found = match self.connection.walk(&self.layout.status_stream(), &self.layout.statuses(), 1).await {
            Err(nats::Error::Nobody(_)) => Vec::new(),
            found => found?,
        };
        // Whoever may write there may write anything.
        let read = |stored: &Stored| {
            let status: Status = serde_json::from_slice(&stored.payload).ok()?;
            let heard = stored.at.unwrap_or(status.at.0);
            Some(Sidecar { status, heard })
        };
        Ok(found.iter().filter_map(read).collect())
    }

    /// What sidecars say from now on.
    ///
    /// # Errors
    /// If the server does not confirm that it will tell.
    pub async fn hear_statuses(&self) -> Result<async_nats::Subscriber, String> {
        let heard = self.connection.subscribe(self.layout.statuses()).await?;
        self.connection.flush().await.map_err(|error| error.to_string())?;
        Ok(heard)
    }

    /// The blobs that are there: the digits of their digests.
    ///
    /// # Errors
    /// If the server gives no answer.
    pub async fn blobs(&self) -> Result<Vec<String>, nats::Error> {
        let body = json!({"subjects_filter": self.layout.blobs()});
        let info = self.connection.request(&format!("STREAM.INFO.{}", self.layout.stream()), &body).await?;
        let subjects = info.pointer("/state/subjects").and_then(serde_json::Value::as_object);
        let digits = |subject: &String| subject.rsplit('.').nth(1).map(ToOwned::to_owned);
        let mut blobs: Vec<String> =
            subjects.into_iter().flatten().filter_map(|(subject, _)| digits(subject)).collect();
        blobs.dedup();
        Ok(blobs)
    }

    /// How long ago a blob was uploaded, by the server's clock and ours; nothing if that cannot be told.
    ///
    /// # Errors
    /// If the server gives no answer.
    pub async fn blob_age(&self, digits: &str) -> Result<Duration, nats::Error> {
        let first = format!("{}{digits}.0", self.layout.blobs().trim_end_matches('>'));
        let stored = self.connection.last(&self.layout.stream(), &first).await?;
        let at = stored.and_then(|stored| stored.at);
        Ok(at.and_then(|at| at.elapsed().ok()).unwrap_or_default())
    }

    /// Removes a blob.
    ///
    /// # Errors
    /// If the server does not allow it.
    pub async fn remove_blob(&self, digits: &str) -> Result<(), nats::Error> {
        let prefix = self.layout.blobs();
        let filter = format!("{}{digits}.*", prefix.trim_end_matches('>'));
        let endpoint = format!("STREAM.PURGE.{}", self.layout.stream());
        self.connection.request(&endpoint, &json!({"filter": filter})).await.map(|_| ())
    }
}

fn full(stream: &str) -> String {
    format!(
        "the store is full: remove bundles that nobody needs with `stockade prune`, or raise `max_bytes` of the stream `{stream}`"
    )
}

/// Reads a manifest, if one of these keys has signed it.
///
/// # Errors
/// Why it is not believed, and what to do about it.
pub fn read_manifest(store: &StoreName, keyring: &Keyring, bytes: &[u8]) -> Result<Believed<Manifest>, String> {
    let mut trusted = TrustedStatements::new(store.clone(), keyring.clone(), Duration::ZERO);
    trusted.manifest(bytes).map_err(|refusal| unbelieved("manifest", &refusal))?;
    trusted.manifest.ok_or_else(|| "no manifest".to_owned())
}

/// Reads overlays, if one of these keys has signed them.
///
/// # Errors
/// Why they are not believed, and what to do about it.
pub fn read_overlays(store: &StoreName, keyring: &Keyring, bytes: &[u8]) -> Result<Believed<Overlays>, String> {
    let mut trusted = TrustedStatements::new(store.clone(), keyring.clone(), Duration::ZERO);
    trusted.overlays(bytes).map_err(|refusal| unbelieved("statement of overlays", &refusal))?;
    trusted.overlays.ok_or_else(|| "no overlays".to_owned())
}

/// Whether a statement of overlays is not believed for its key alone: others may trust that.
pub fn is_anothers(store: &StoreName, keyring: &Keyring, bytes: &[u8]) -> bool {
    let mut trusted = TrustedStatements::new(store.clone(), keyring.clone(), Duration::ZERO);
    matches!(trusted.overlays(bytes), Err(Refusal::UnknownKey(_) | Refusal::Role(..)))
}

fn unbelieved(what: &str, refusal: &Refusal) -> String {
    use crate::store::Refusal::{Role, UnknownKey};
    match refusal {
        UnknownKey(id) => format!(
            "the store's {what} is signed by the key {id}, which you do not trust (name its public key with --trust, if it is right)"
        ),
        Role(..) => format!("the store's {what} is not believed: {refusal}"),
        _ => format!("the store's {what} is not believed: {refusal}"),
    }
}
