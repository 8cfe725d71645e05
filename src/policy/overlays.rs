//! Overlays: emergency denials and time-boxed exceptions, in force beside the policies of the bundles.
//!
//! An overlay is a policy with a scope and no condition. It reads nothing that is not in every cache key, and cannot err. So
//! nothing has to be parsed, validated or indexed for it: a snapshot with other overlays shares all else with the one
//! before, and takes as long as there are overlays, not policies. An entity or an action that the bundles do not know is
//! one that no request has, so an overlay that names it meets none, and is in force all the same: the next version of
//! the bundles may know it.

use std::sync::Arc;
use std::time::SystemTime;

use super::compiled::{Compiled, Side};
use super::index::Buckets;
use super::vocabulary::Vocabulary;
use crate::model::{Effect, EntityUid, Overlay};

/// The overlays in force, by id. The store keeps ids unique; should two overlays share one, both are in force.
///
/// Which ones are in force changes by itself, and the feed may be late to notice: it looks a few times a second, and not at all
/// while the process is paused. So they know when they change next, and decisions after that are made from those in force then.
#[derive(Debug, Default)]
pub struct OverlaySet {
    all: Vec<Overlay>,
    /// The policy of each.
    pub(super) policies: Vec<Arc<Compiled>>,
    buckets: Buckets,
    /// Those that have not begun yet, with their policies.
    later: Vec<(Overlay, Arc<Compiled>)>,
    /// When the first of all of them begins or ends.
    changes: Option<SystemTime>,
}

/// An overlay whose entities have the types that their names mean.
fn meant(overlay: &Overlay, vocabulary: &Vocabulary) -> Overlay {
    let entity = |uid: &Option<EntityUid>| {
        let resolve = |uid: &EntityUid| {
            EntityUid::from_type_name_and_id(vocabulary.resolve(uid.type_name()).clone(), uid.id().clone())
        };
        uid.as_ref().map(resolve)
    };
    // A grant of HEAD must not allow GET; a denial that no request met would be none.
    let action = overlay.action.as_ref().map(|action| match overlay.effect {
        Effect::Deny => vocabulary.denied(action).clone(),
        Effect::Allow => action.clone(),
    });
    Overlay { principal: entity(&overlay.principal), resource: entity(&overlay.resource), action, ..overlay.clone() }
}

impl OverlaySet {
    /// Those of `overlays` that are in force at an instant, and those that will be.
    ///
    /// Entities of types that mean others of the bundles' are those: `User::"mallory"` is who a token makes of her, also where that is
    /// `PetShop::User::"mallory"`.
    pub fn new(overlays: &[Overlay], now: SystemTime, vocabulary: &Vocabulary) -> Self {
        let (mut all, later): (Vec<Overlay>, Vec<Overlay>) =
            overlays.iter().filter(|own| now < own.until).cloned().partition(|own| own.is_in_force(now));
        all.sort_by(|a, b| a.id.cmp(&b.id));
        let changes = all.iter().map(|own| own.until).chain(later.iter().map(|own| own.from)).min();
        // For each snapshot its own, since they hold rulings that show its default denial.
        let compiled = |overlay: &Overlay| Arc::new(Compiled::overlay(&meant(overlay, vocabulary)));
        let policies: Vec<_> = all.iter().map(compiled).collect();
        let mut buckets = Buckets::default();
        policies.iter().enumerate().for_each(|(at, policy)| buckets.insert(policy, at));
        let later = later.into_iter().map(|own| (own.clone(), compiled(&own))).collect();
        Self { all, policies, buckets, later, changes }
    }

    /// Those in force, sorted by id.
    pub fn all(&self) -> &[Overlay] {
        &self.all
    }

    /// When the first of them begins or ends.
    pub(super) fn changes(&self) -> Option<SystemTime> {
        self.changes
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

    /// Those in force at a later instant whose scope a request meets. This looks at each of them: it is for the moment between
    /// the end of one and the snapshot without it.
    pub(super) fn candidates_at<'a>(
        &'a self,
        at: SystemTime,
        principal: Side<'_>,
        action: Side<'_>,
        resource: Side<'_>,
    ) -> impl Iterator<Item = &'a Compiled> {
        let later = self.later.iter().map(|(own, policy)| (own, policy));
        let in_force = self.all.iter().zip(&self.policies).chain(later).filter(move |(own, _)| own.is_in_force(at));
        let policies = in_force.map(|(_, policy)| policy.as_ref());
        policies.filter(move |policy| policy.is_about(action) && policy.meets(principal, resource))
    }
}
