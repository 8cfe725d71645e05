//! Cedar's side, as feeds need it.

use std::sync::{Mutex, TryLockError};

use super::follower::Engine;
use crate::model::{Overlay, Published};
use crate::policy::{Files, Memory, Snapshot};
use crate::problem::Problem;

/// Bundles of Cedar policies, and what was compiled last: a publish is enforced the sooner, the less it changes.
#[derive(Debug, Default)]
pub struct Cedar(Mutex<Memory>);

impl Cedar {
    /// Compiles bundles, which follow on nothing yet. `published` is what the store says, if they come from there.
    ///
    /// # Errors
    /// Every problem of every bundle.
    pub fn compile(&self, files: &[Files], published: Option<Published>) -> Result<Snapshot, Vec<Problem>> {
        match self.0.try_lock() {
            Ok(mut memory) => Snapshot::compile(files, published, &mut memory),
            // It is replaced as a whole, so a compiler that fell over has left it as it was.
            Err(TryLockError::Poisoned(memory)) => Snapshot::compile(files, published, &mut memory.into_inner()),
            // Another compiler has it, which nobody may be waiting for any more.
            Err(TryLockError::WouldBlock) => Snapshot::compile(files, published, &mut Memory::default()),
        }
    }
}

impl Engine for Cedar {
    type Base = Snapshot;
    type Snapshot = Snapshot;

    fn compile(&self, files: &[Files], published: Published) -> Result<Snapshot, Vec<Problem>> {
        self.compile(files, Some(published))
    }

    fn succeed(&self, previous: Option<&Snapshot>, base: Snapshot, overlays: &[Overlay]) -> Snapshot {
        base.succeeding(previous, overlays)
    }

    fn overlay(&self, previous: &Snapshot, overlays: &[Overlay], published: Option<Published>) -> Snapshot {
        previous.overlaid(overlays, published)
    }

    fn revision(&self, snapshot: &Snapshot) -> String {
        snapshot.revision.id.clone()
    }
}
