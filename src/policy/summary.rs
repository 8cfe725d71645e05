//! What a snapshot says of itself, at `/snapshot` and on the human page.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::header::BundleSummary;
use super::report::FootprintSummary;
use crate::model::{Effect, EntityUid, Overlay, Revision};

/// A snapshot at a glance.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Identity of the content.
    pub revision: Revision,
    /// The local count of snapshots swapped in, from 1.
    pub generation: u64,
    /// When it was put in force, RFC 3339 in UTC. An overlay that begins or ends by itself does not move it.
    pub enforced_at: String,
    /// When the store published it, or when the newest file of its bundles was changed, RFC 3339 in UTC.
    pub changed_at: Option<String>,
    /// From the change to the enforcement, in milliseconds.
    pub lead_time_ms: Option<u64>,
    /// The overlays in force beside the policies, by id.
    pub overlays: Vec<OverlaySummary>,
    /// The bundles it was compiled from.
    pub bundles: Vec<BundleSummary>,
    /// The policies of its bundles, by id.
    pub policies: Vec<PolicySummary>,
    /// How many routes map requests to actions.
    pub routes: usize,
    /// How many entities the bundles hold.
    pub entities: usize,
    /// What the cache keys of its actions hold, and what that does to the cache's hits.
    pub footprints: Vec<FootprintSummary>,
    /// Warnings of the bundles, one line each.
    pub warnings: Vec<String>,
}

/// An overlay: an emergency denial or a time-boxed exception.
#[derive(Debug, Clone, Serialize)]
pub struct OverlaySummary {
    /// Without the `overlay/` that its policy has in front.
    pub id: String,
    /// `deny` or `grant`
    pub effect: &'static str,
    /// Whom it is about, with all that are in it; `None`: everyone.
    pub principal: Option<String>,
    /// Which action, or group of them; `None`: all.
    pub action: Option<String>,
    /// Which resource, with all that are in it; `None`: all.
    pub resource: Option<String>,
    /// When it ends, RFC 3339 in UTC.
    pub until: String,
    /// Why there is one.
    pub reason: String,
}

impl From<&Overlay> for OverlaySummary {
    fn from(overlay: &Overlay) -> Self {
        let text = |uid: &Option<EntityUid>| uid.as_ref().map(ToString::to_string);
        Self {
            id: overlay.id.clone(),
            effect: match overlay.effect {
                Effect::Allow => "grant",
                Effect::Deny => "deny",
            },
            principal: text(&overlay.principal),
            action: text(&overlay.action),
            resource: text(&overlay.resource),
            until: timestamp(overlay.until),
            reason: overlay.reason.clone(),
        }
    }
}

/// One policy.
#[derive(Debug, Clone, Serialize)]
pub struct PolicySummary {
    /// `bundle/id`
    pub id: String,
    /// `permit` or `forbid`
    pub effect: &'static str,
    /// `enforce` or `shadow`
    pub mode: &'static str,
    /// The file it stands in, relative to its bundle.
    pub file: String,
    /// The template it is linked from.
    pub template: Option<String>,
}

/// RFC 3339 in UTC. What lies beyond the years that it has is shown as the nearest that it has: humantime panics there, and
/// the time of an overlay is one that somebody chose.
pub(super) fn timestamp(at: SystemTime) -> String {
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default().min(LAST);
    humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string()
}
