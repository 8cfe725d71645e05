//! What a snapshot says of itself, at `/snapshot` and on the human page.

use serde::Serialize;

use super::bundle::Ttl;
use super::report::FootprintSummary;
use crate::model::Revision;

/// A snapshot at a glance.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Identity of the content.
    pub revision: Revision,
    /// The local count of snapshots swapped in, from 1.
    pub generation: u64,
    /// When it was put in force, RFC 3339 in UTC.
    pub enforced_at: String,
    /// When the newest file of its bundles was changed, RFC 3339 in UTC.
    pub changed_at: Option<String>,
    /// From the change to the enforcement, in milliseconds.
    pub lead_time_ms: Option<u64>,
    /// The bundles it was compiled from.
    pub bundles: Vec<BundleSummary>,
    /// Its policies, by id.
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

/// What a bundle says of itself in `bundle.yaml`.
#[derive(Debug, Clone, Serialize)]
pub struct BundleSummary {
    /// Its name, which prefixes the ids of its policies.
    pub name: String,
    /// Its version, if it gives one.
    pub version: Option<String>,
    /// Whom to ask about it.
    pub owner: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// The controls it serves, such as `PCI-7.1`.
    pub controls: Vec<String>,
    /// How long it lets decisions be remembered, if it says so.
    pub ttl: Option<Ttl>,
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
