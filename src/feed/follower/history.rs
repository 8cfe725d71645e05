//! The way back from a newest statement that is refused to the newest one that is trusted.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::super::source::{Source, SourceError};
use super::{ANSWER, no_answer};
use crate::store::statement::Kind;
use crate::store::{Keyring, StoreName, TrustedStatements};

/// The newest statement that is trusted, from the newest on, within so many.
pub(super) async fn newest_trusted(
    source: &impl Source,
    kind: Kind,
    name: &StoreName,
    keyring: &Keyring,
    steps: usize,
) -> Result<Option<Bytes>, SourceError> {
    let mut place = None;
    for _ in 0..steps {
        let found = timeout(ANSWER, source.before(kind, place)).await;
        let Some((at, bytes)) = found.unwrap_or_else(|_| Err(no_answer()))? else { return Ok(None) };
        // By itself: whether it is newer than what was accepted is for the follower to say.
        let mut trusted = TrustedStatements::new(name.clone(), keyring.clone(), Duration::ZERO);
        let is_good = match kind {
            Kind::Manifest => trusted.manifest(&bytes).is_ok(),
            Kind::Overlays => trusted.overlays(&bytes).is_ok(),
            Kind::Beacon => false,
        };
        if is_good {
            return Ok(Some(bytes));
        }
        place = Some(at);
    }
    Ok(None)
}
