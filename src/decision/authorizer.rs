//! Decides Queries under the snapshot in force.
//!
//! Plain Cedar, for now: what a decision costs is one evaluation. The decision cache has its place between
//! [`Authorizer::current`] and [`Authorizer::decide`], in a file of its own.

use std::sync::Arc;

use tokio::sync::watch;

use crate::model::{Decision, Query, Undecided};
use crate::policy::Snapshot;

/// Decides Queries. Cheap to clone: all clones see the same snapshot.
#[derive(Debug, Clone)]
pub struct Authorizer {
    /// The feed holds the sender; `None` until the first snapshot is in force.
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
}

impl Authorizer {
    /// Decides under whatever snapshot the channel holds.
    pub fn new(snapshots: watch::Receiver<Option<Arc<Snapshot>>>) -> Self {
        Self { snapshots }
    }

    /// The snapshot in force. A request is mapped and decided under one snapshot, so it is taken once.
    ///
    /// # Errors
    /// [`Undecided::NotReady`] if there is none yet.
    pub fn current(&self) -> Result<Arc<Snapshot>, Undecided> {
        self.snapshots.borrow().clone().ok_or(Undecided::NotReady)
    }

    /// Decides a Query under a snapshot.
    ///
    /// # Errors
    /// [`Undecided::Internal`] if the Query is not what mapping promises, which is a fault of ours and is logged.
    pub fn decide(&self, snapshot: &Snapshot, query: &Query) -> Result<Decision, Undecided> {
        snapshot.decide(query).map_err(|fault| {
            tracing::error!(fault, action = %query.action, "a query could not be evaluated; this is a bug in stockade");
            Undecided::Internal
        })
    }
}
