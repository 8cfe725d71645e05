//! Cedar's side, as the follower of a store needs it.

use std::sync::{Mutex, TryLockError};

use super::follower::Engine;
use crate::model::{Overlay, Published};
use crate::policy::{Files, Memory, Snapshot};
use crate::problem::Problem;

/// Bundles of Cedar policies, and what was compiled last: a publish is enforced the sooner, the less it changes.
#[derive(Debug, Default)]
pub struct Cedar(Mutex<Memory>);

impl Engine for Cedar {
    type Base = Snapshot;
    type Snapshot = Snapshot;

    fn compile(&self, files: &[Files], published: Published) -> Result<Snapshot, Vec<Problem>> {
        match self.0.try_lock() {
            Ok(mut memory) => Snapshot::remembering(&mut memory, files, published),
            // It is replaced as a whole, so a compiler that fell over has left it as it was.
            Err(TryLockError::Poisoned(memory)) => Snapshot::remembering(&mut memory.into_inner(), files, published),
            // An older version, which nobody waits for any more, is still being compiled.
            Err(TryLockError::WouldBlock) => Snapshot::remembering(&mut Memory::default(), files, published),
        }
    }

    fn first(&self, base: Snapshot, overlays: &[Overlay]) -> Snapshot {
        base.succeeding(None, overlays)
    }

    fn next(
        &self,
        previous: &Snapshot,
        base: Option<Snapshot>,
        overlays: &[Overlay],
        published: Option<Published>,
    ) -> Snapshot {
        match base {
            Some(base) => base.succeeding(Some(previous), overlays),
            None => previous.overlaid(overlays, published),
        }
    }

    fn revision(&self, snapshot: &Snapshot) -> String {
        snapshot.revision.id.clone()
    }
}
