//! Why something could not be done with a store.

use crate::nats::{self, ConnectError, PiecesError};
use crate::store::keys::KeyId;
use crate::store::statement::{Kind, Version};
use crate::store::{Digest, Refusal};

/// What can happen to someone who reads or writes a store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server did not do what was asked for.
    #[error(transparent)]
    Nats(#[from] nats::Error),
    /// A stream cannot be had.
    #[error("stream `{stream}`: {error}{}", room(.error))]
    Stream {
        /// Its name.
        stream: String,
        /// Why not.
        error: nats::Error,
    },
    /// A stream of that name is there, but would break a promise.
    #[error("the stream `{stream}` is not as it must be: {differences} (edit it, or remove it and publish again)")]
    StreamDiffers {
        /// Its name.
        stream: String,
        /// What is not as it must be.
        differences: String,
    },
    /// There is no room for a bundle.
    #[error(
        "the store is full: remove bundles that nobody needs with `stockade prune`, or raise `max_bytes` of the stream `{0}`"
    )]
    Full(String),
    /// A part of a bundle was not stored.
    #[error("a piece of the bundle could not be stored: {0}")]
    Upload(nats::Error),
    /// A bundle cannot be had.
    #[error("blob {digest}: {error}")]
    Blob {
        /// Which.
        digest: Digest,
        /// Why not.
        error: PiecesError,
    },
    /// The bytes of a bundle are not what its digest says.
    #[error("blob {0} holds something else: it was damaged, or forged")]
    Damaged(Digest),
    /// A bundle cannot be packed.
    #[error("the bundle cannot be packed: {0}")]
    Pack(String),
    /// A bundle cannot be unpacked.
    #[error("the bundle cannot be unpacked: {0}")]
    Unpack(String),
    /// A statement cannot be signed.
    #[error("the {} cannot be signed: {refusal}", .kind.as_str())]
    Seal {
        /// Its kind.
        kind: Kind,
        /// Why not.
        refusal: Refusal,
    },
    /// A statement was not stored.
    #[error("{0}; nothing was changed")]
    NotStored(nats::Error),
    /// Nobody can tell whether a statement was stored.
    #[error("{0}; whether anything was changed is not known: see `stockade history`")]
    Unknown(nats::Error),
    /// Someone else was faster.
    #[error("{0} in between, so nothing was changed (look at `stockade history`, and publish again)")]
    Overtaken(String),
    /// Others were faster, again and again.
    #[error("others have changed the store {0} times in between; nothing was changed (try again)")]
    Contended(u32),
    /// A statement is signed by a key that was not named.
    #[error(
        "the store's {} is signed by the key {id}, which you do not trust (name its public key with --trust, if it is right)",
        named(*.kind)
    )]
    UnknownKey {
        /// The kind of the statement.
        kind: Kind,
        /// The key.
        id: KeyId,
    },
    /// A statement is not believed for another reason.
    #[error("the store's {} is not believed: {refusal}", named(*.kind))]
    Unbelieved {
        /// Its kind.
        kind: Kind,
        /// Why not.
        refusal: Refusal,
    },
    /// A statement is not one at all.
    #[error("the newest {} cannot be read", named(*.0))]
    Unreadable(Kind),
    /// No statement of overlays is believed.
    #[error("{0}, nor is any before it (`--new-epoch` with `deny` or `grant` begins a new list)")]
    NoneBelieved(Box<Error>),
    /// There is no such overlay.
    #[error("no overlay `{0}` is in force (`stockade overlays` lists those that are)")]
    NoOverlay(String),
    /// The store is empty.
    #[error("nothing was ever published")]
    NothingPublished,
    /// There is no such version.
    #[error("there is no version {0} (`stockade history` lists those that are kept)")]
    NoVersion(Version),
    /// A version cannot be read.
    #[error("{0}")]
    NotAVersion(String),
    /// There is nothing to go back to.
    #[error("there is nothing to go back to: no other bundle was ever published")]
    NothingBefore,
}

fn room(error: &nats::Error) -> &'static str {
    match error.is(nats::code::NO_ROOM) {
        true => " (the server or its account gives less than the stream asks for: see --max-bytes)",
        false => "",
    }
}

/// A statement by its kind, in words.
fn named(kind: Kind) -> &'static str {
    match kind {
        Kind::Manifest => "manifest",
        Kind::Overlays => "statement of overlays",
        Kind::Beacon => "beacon",
    }
}
