//! Where statements and blobs come from. A source carries bytes and promises nothing: it may drop, repeat, reorder, go back, freeze
//! or lie. All that matters for safety is above it, once ([`super::follower`]).

use std::fmt;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::store::statement::{Blob, Kind, Status};

/// A store, from a sidecar's side. Every call may fail, takes as long as the caller waits for it, and may be made again.
pub trait Source: Send + Sync + 'static {
    /// The newest statement of a kind, as an envelope; `None` if there never was any.
    ///
    /// # Errors
    /// If the store cannot be asked.
    fn newest(&self, kind: Kind) -> impl Future<Output = Result<Option<Bytes>, SourceError>> + Send;

    /// The newest statement of a kind before a place in the store, or the newest of all, with its place; `None` if there is none. For
    /// the way back from a newest one that is not believed.
    ///
    /// # Errors
    /// If the store cannot be asked.
    fn before(
        &self,
        kind: Kind,
        place: Option<u64>,
    ) -> impl Future<Output = Result<Option<(u64, Bytes)>, SourceError>> + Send;

    /// The bytes of a blob, no more than its size says. Whether they are the right ones is for the caller to see.
    ///
    /// # Errors
    /// If it cannot be had.
    fn blob(&self, blob: &Blob) -> impl Future<Output = Result<Bytes, SourceError>> + Send;

    /// Reports to the store what this sidecar enforces.
    ///
    /// # Errors
    /// If the store does not take the report.
    fn report(&self, status: &Status) -> impl Future<Output = Result<(), SourceError>> + Send;
}

/// Events of a source, in the order in which they came. Whatever does not fit is dropped, and a [`Event::Gap`] takes its place.
pub type Events = mpsc::Receiver<Event>;

/// What a source says by itself. All of it is a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A statement was made: its envelope, which may be adopted as it is, since it carries its own proof.
    Statement(Kind, Bytes),
    /// Something may have been missed, for this reason: look.
    Gap(String),
    /// The store can be reached, for the first time or again.
    Up,
    /// The store cannot be reached, for this reason.
    Down(String),
    /// The store does not allow us something: a mistake in its permissions, or in our credentials.
    Refused(String),
}

/// Why a source could not do something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceError(pub String);

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SourceError {}
