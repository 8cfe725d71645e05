//! How a sidecar follows the store of its bundles. A feed turns what it receives into snapshots and puts them into the
//! `watch` channel that `app` made; it never sees a request.

pub mod account;
pub mod cedar;
mod compiler;
pub mod directory;
mod files;
pub mod follower;
#[cfg(feature = "nats")]
pub mod jetstream;
mod last_good;
pub mod source;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

pub use files::{Limits, read};

use crate::decision::freshness::OnExpired;
use crate::model::Freshness;
use crate::problem::Problem;
use crate::store::statement::{Kind, Version};

/// How following goes, for `/readyz`, `/snapshot` and the metrics. The snapshot itself travels in a channel of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// When the source was last read completely, whether it had changed or not.
    pub last_read: Option<SystemTime>,
    /// The newest version, if it was refused; the one before it is still in force.
    pub rejection: Option<Rejection>,
    /// How many versions were put in force since the start.
    pub loads: u64,
    /// How many versions were refused since the start.
    pub rejections: u64,
    /// How long the last version put in force took, from the first byte read to the swap.
    pub last_load_duration: Option<Duration>,
    /// How following the central store goes; `None` if directories are followed.
    pub store: Option<StoreStatus>,
}

impl Status {
    /// A version was put in force, which took so long.
    fn loaded(&mut self, took: Duration) {
        self.loads += 1;
        self.last_load_duration = Some(took);
    }

    /// A version was refused.
    fn rejected(&mut self, problems: &[Problem], at: SystemTime) {
        let problems = problems.iter().map(|problem| problem.to_string().replace('\n', " ")).collect();
        self.rejection = Some(Rejection { at, problems });
        self.rejections += 1;
    }
}

/// How following the central store goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreStatus {
    /// Whether it can be reached.
    pub connected: bool,
    /// What went wrong with it; `None` once it is over.
    pub trouble: Option<String>,
    /// Why nothing was put in force yet, though there may be a bundle: its newest overlays are refused.
    pub withheld: Option<String>,
    /// What it does not allow this sidecar, since they were connected.
    pub refused: Option<String>,
    /// The newest manifest that was accepted.
    pub newest: Option<Version>,
    /// The manifest that is in force.
    pub enforced: Option<Version>,
    /// The overlays that are in force.
    pub overlays: Option<Version>,
    /// From the signing of the manifest until it was in force; `None` if that says nothing, after a start.
    pub lead_time: Option<Duration>,
    /// The same for the overlays.
    pub overlays_lead_time: Option<Duration>,
    /// Whether the copy on disk is in force.
    pub from_disk: bool,
    /// Whether it was reported to the store that this sidecar is about to end.
    pub left: bool,
    /// How current what is in force is.
    pub freshness: Option<Freshness>,
    /// What the operator wants done, once that was not proved for too long.
    pub expired: Option<OnExpired>,
    /// Statements that were not believed, by kind and reason.
    pub refusals: BTreeMap<(Kind, &'static str), u64>,
    /// The last of them.
    pub last_refusal: Option<(SystemTime, String)>,
}

/// A version that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// When.
    pub at: SystemTime,
    /// Why: every problem, one line each.
    pub problems: Vec<String>,
}
