//! Something that is larger than a message, stored in pieces on subjects of their own.

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Connection, Error};

/// How many pieces are asked for at a time.
const AT_ONCE: usize = 4;

/// Why pieces did not come together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PiecesError {
    /// One of them cannot be had.
    #[error("piece {at}: {error}")]
    Failed {
        /// Which, from 0.
        at: usize,
        /// Why not.
        error: Error,
    },
    /// One of them is not there.
    #[error("piece {0} is missing")]
    Missing(usize),
    /// They hold more than they should.
    #[error("it is larger than {0} bytes")]
    TooLarge(usize),
}

impl Connection {
    /// The last messages on these subjects, joined in their order, from any replica and a few at a time. No more than `limit` bytes are
    /// kept, whatever the stream holds.
    ///
    /// # Errors
    /// If a piece is missing or cannot be had, or there is more than there should be.
    pub async fn joined(
        &self,
        stream: &str,
        subjects: impl IntoIterator<Item = String, IntoIter: Send>,
        limit: u64,
    ) -> Result<Bytes, PiecesError> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let piece = |(at, subject): (usize, String)| async move {
            let found = self.last(stream, &subject).await.map_err(|error| PiecesError::Failed { at, error })?;
            found.map(|stored| stored.payload).ok_or(PiecesError::Missing(at))
        };
        // Subjects are made as room for them comes free: a manifest may name any size.
        let pieces = stream::iter(subjects.into_iter().enumerate().map(piece)).buffered(AT_ONCE);
        let whole = pieces.try_fold(BytesMut::new(), |mut whole, piece| {
            let fits = whole.len().saturating_add(piece.len()) <= limit;
            whole.extend_from_slice(if fits { &piece } else { &[] });
            std::future::ready(if fits { Ok(whole) } else { Err(PiecesError::TooLarge(limit)) })
        });
        whole.await.map(BytesMut::freeze)
    }
}
