//! Overlays: emergency denials and time-boxed exceptions, in force beside the policies of the bundles.
//!
//! An overlay is a policy with a scope and no condition. It reads nothing that is not in every cache key, and cannot err. So
//! nothing has to be parsed, validated or indexed for it: a snapshot with other overlays shares all else with the one
//! before, and takes as long as there are overlays, not policies. An entity or an action that the bundles do not know is
//! one that no request has, so an overlay that names it meets none, and is in force all the same: the next version of
//! the bundles may know it.

use std::sync::Arc;

use super::index::{Buckets, Compiled, Side};
use crate::model::Overlay;

/// What the ids of overlays begin with, before the `/`; no bundle may be called that.
pub const NAME: &str = "overlay";

/// The overlays in force, by id. The store keeps ids unique; should two overlays share one, both are in force.
#[derive(Debug, Default)]
pub struct Overlays {
    all: Vec<Overlay>,
    /// The policy of each.
    pub(super) policies: Vec<Arc<Compiled>>,
    buckets: Buckets,
}

impl Overlays {
    pub fn new(overlays: &[Overlay]) -> Self {
        let mut all = overlays.to_vec();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        // Anew for each snapshot, since they hold rulings that show its default denial.
        let policies: Vec<_> = all.iter().map(|overlay| Arc::new(Compiled::overlay(overlay))).collect();
        let mut buckets = Buckets::default();
        policies.iter().enumerate().for_each(|(at, policy)| buckets.insert(policy, at));
        Self { all, policies, buckets }
    }

    /// As they were given, sorted by id.
    pub fn all(&self) -> &[Overlay] {
        &self.all
    }

    /// Those whose scope a request meets.
    pub(super) fn candidates<'a>(
        &'a self,
        principal: Side<'_>,
        action: Side<'_>,
        resource: Side<'_>,
    ) -> impl Iterator<Item = &'a Compiled> {
        let found = self.buckets.find(&self.policies, principal, resource).into_iter();
        found.filter(move |policy| policy.is_about(action))
    }
}
