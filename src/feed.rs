//! How a sidecar follows the store of its bundles. A feed turns what it receives into snapshots and puts them into the
//! `watch` channel that `app` made; it never sees a request.

pub mod directory;
mod files;
#[cfg(feature = "nats")]
pub mod jetstream;
pub mod source;

use std::time::{Duration, SystemTime};

pub use files::{Limits, read};

/// How following goes, for `/readyz`, `/snapshot` and the metrics. The snapshot itself travels in a channel of its own.
#[derive(Debug, Clone, Default)]
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
}

/// A version that was refused.
#[derive(Debug, Clone)]
pub struct Rejection {
    /// When.
    pub at: SystemTime,
    /// Why: every problem, one line each.
    pub problems: Vec<String>,
}
