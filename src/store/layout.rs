//! Where things lie on NATS: two streams, and the subjects in them. Both sides and the permissions of `k8s/nats/` go by this file.
//!
//! | subject | stream | what |
//! |---|---|---|
//! | `stockade.<store>.head.<kind>` | `STOCKADE_<store>` | statements; the last one of each kind is the newest, those before are its history |
//! | `stockade.<store>.blob.<sha256>.<n>` | the same | packed bundles, in pieces |
//! | `stockade.<store>.event.<kind>` | none | statements again, sent by the server to all who listen, as it stores them |
//! | `stockade.<store>.status.<namespace>.<pod>` | `STOCKADE_<store>_STATUS` | what a sidecar enforces; gone when it is not said again |

use super::pack::Digest;
use super::statement::{Blob, Kind, StoreName};

/// The size of a piece of a blob, in bytes. A NATS message holds 1 MiB by default.
pub const PIECE: usize = 256 << 10;

/// The subjects and streams of a store.
#[derive(Debug, Clone)]
pub struct Layout {
    store: StoreName,
}

impl Layout {
    /// Those of this store.
    pub fn new(store: StoreName) -> Self {
        Self { store }
    }

    /// The stream of statements and blobs.
    pub fn stream(&self) -> String {
        format!("STOCKADE_{}", self.store)
    }

    /// The stream of what sidecars say.
    pub fn status_stream(&self) -> String {
        format!("STOCKADE_{}_STATUS", self.store)
    }

    /// Where statements of a kind are written.
    pub fn head(&self, kind: Kind) -> String {
        format!("stockade.{}.head.{}", self.store, kind.as_str())
    }

    /// All statements.
    pub fn heads(&self) -> String {
        format!("stockade.{}.head.>", self.store)
    }

    /// Where statements are heard.
    pub fn events(&self) -> String {
        format!("stockade.{}.event.>", self.store)
    }

    /// Which kind of statement is heard on a subject; `None` if none is.
    pub fn kind_of_event(&self, subject: &str) -> Option<Kind> {
        let word = subject.strip_prefix("stockade.")?.strip_prefix(self.store.as_str())?.strip_prefix(".event.")?;
        Kind::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// Where the piece of a blob lies, from 0.
    pub fn piece(&self, blob: &Digest, piece: usize) -> String {
        format!("stockade.{}.blob.{}.{piece}", self.store, blob.hex())
    }

    /// Where all pieces of a blob lie, in their order.
    pub fn pieces(&self, blob: &Blob) -> impl Iterator<Item = String> {
        let (layout, digest) = (self.clone(), blob.digest);
        (0..pieces(blob.size)).map(move |at| layout.piece(&digest, at))
    }

    /// All blobs.
    pub fn blobs(&self) -> String {
        format!("stockade.{}.blob.>", self.store)
    }

    /// Where a sidecar says what it enforces. A pod's name may hold a dot, which divides subjects, but never a `_`.
    pub fn status(&self, namespace: &str, pod: &str) -> String {
        let token = |text: &str| text.replace('.', "_");
        format!("stockade.{}.status.{}.{}", self.store, token(namespace), token(pod))
    }

    /// What all sidecars say.
    pub fn statuses(&self) -> String {
        format!("stockade.{}.status.>", self.store)
    }
}

/// How many pieces a blob of this size has.
fn pieces(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX).div_ceil(PIECE)
}
