//! Cedar's side, as the follower of a store needs it.

use super::follower::Engine;
use crate::model::{Overlay, Published};
use crate::policy::{Files, Snapshot};
use crate::problem::Problem;

/// Bundles of Cedar policies.
#[derive(Debug, Clone, Copy)]
pub struct Cedar;

impl Engine for Cedar {
    type Base = Snapshot;
    type Snapshot = Snapshot;

    fn compile(&self, files: &[Files], published: Published) -> Result<Snapshot, Vec<Problem>> {
        Snapshot::assemble(None, files, &[], Some(published))
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
