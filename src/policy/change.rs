//! Changes: the difference between two snapshots, as far as decisions are concerned.
//!
//! A decision that was made under an older snapshot still stands if no Change since can have altered it: neither allow
//! or deny, nor which policies determined it, nor how a denial looks. The rules follow from Cedar's proofs about adding
//! and removing policies (cedar-spec, `Thm/Authorization.lean`), made stricter so that determining policies and errors stay exact:
//!
//! | change | decisions that may differ |
//! |---|---|
//! | policy removed | those that it determined: another one was not satisfied, or a permit under a forbid |
//! | policy added | those in its scope: also where it does not change the outcome, it may determine or err |
//! | policy modified | as removed, and as added |
//! | entity changed | those whose principal, its parents, resource or context name it; its descendants differ themselves |
//! | default denial changed | denials |
//! | `ttl` of a bundle changed | all: they may have been remembered for too long |
//! | schema, or anything not understood | all |
//!
//! Overlays are policies here as any other.
//! Routes need no rule: they lead to the Query, which is made anew for each request.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use cedar_policy_core::ast::EntityUID;

use super::base::Base;
use super::compiled::{Compiled, Side};
use super::core::core;
use super::overlays::OverlaySet;
use crate::model::{Effect, EntityUid, PolicyId, Query, Ruling, Value};

/// How many Changes a snapshot keeps. A decision that is older is made anew.
const KEPT: usize = 64;

/// What differs from one snapshot to the next.
#[derive(Debug)]
pub(super) enum Change {
    /// Anything may.
    Everything,
    /// This.
    Some(Delta),
}

/// What differs, where it can be told.
#[derive(Debug, Default)]
pub(super) struct Delta {
    /// Policies that are gone, or whose content changed.
    removed: BTreeSet<PolicyId>,
    /// Policies that are new, or whose content changed, as the newer snapshot has them.
    added: Vec<Arc<Compiled>>,
    /// Entities that are new, gone, or differ in attributes, tags or ancestors.
    entities: HashSet<EntityUID>,
    /// Whether denials look different that no policy shapes.
    default_denial: bool,
}

/// A query's principal, action and resource, with their entities.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sides<'a> {
    pub(super) principal: Side<'a>,
    pub(super) action: Side<'a>,
    pub(super) resource: Side<'a>,
}

/// The Changes that led to a snapshot, newest first, each with the generation that it led to.
#[derive(Debug, Default, Clone)]
pub(super) struct History(Vec<(u64, Arc<Change>)>);

impl Change {
    /// What differs between two snapshots: what bundles made of each, and its overlays.
    pub(super) fn between(old: (&Arc<Base>, &OverlaySet), new: (&Arc<Base>, &OverlaySet)) -> Self {
        let ((old, old_overlays), (new, new_overlays)) = (old, new);
        // Where only overlays differ, the rest is the same by its address.
        let delta = match Arc::ptr_eq(old, new) {
            true => Some(Delta::default()),
            false => Delta::between(old, new),
        };
        let Some(mut delta) = delta else { return Self::Everything };
        delta.policies(&old_overlays.policies, &new_overlays.policies);
        Self::Some(delta)
    }

    /// Whether it may have altered a decision about a query. `sides` are the query's under the newest snapshot: an entity
    /// change in between that made them differ alters the decision by itself.
    fn may_alter(&self, ruling: &Ruling, query: &Query, sides: &Sides<'_>) -> bool {
        let Self::Some(delta) = self else { return true };
        let touched = |uid: &EntityUid| delta.entities.contains(core(uid));
        if !delta.entities.is_empty()
            && (touched(&query.principal.uid)
                || touched(&query.resource)
                || query.principal.parents.iter().any(touched)
                || query.context.values().any(|value| names(value, &touched)))
        {
            return true;
        }
        if delta.default_denial && ruling.effect == Effect::Deny {
            return true;
        }
        let shadow = ruling.shadow.iter().flat_map(|shadow| &shadow.determining);
        if ruling.determining.iter().chain(shadow).any(|id| delta.removed.contains(id)) {
            return true;
        }
        let in_scope =
            |policy: &Compiled| policy.is_about(sides.action) && policy.meets(sides.principal, sides.resource);
        delta.added.iter().any(|policy| in_scope(policy))
    }
}

impl Delta {
    /// What differs between what bundles made; `None`: anything may.
    fn between(old: &Base, new: &Base) -> Option<Self> {
        let is_other = old.schema_digest != new.schema_digest || old.has_shadow != new.has_shadow;
        // What is remembered already has its expiry from the older bounds.
        if is_other || old.ttl() != new.ttl() {
            return None;
        }
        let mut delta = Self {
            default_denial: old.default_denial != new.default_denial,
            entities: old.entities.differences(&new.entities),
            ..Self::default()
        };
        // Beyond the first level an evaluation reaches entities that the Query does not name.
        let is_level_1 = old.entities.is_level_1() && new.entities.is_level_1();
        if !delta.entities.is_empty() && !is_level_1 {
            return None;
        }
        delta.policies(&old.policies, &new.policies);
        Some(delta)
    }

    /// Adds what differs between two lists of policies, both sorted by id.
    fn policies(&mut self, before: &[Arc<Compiled>], after: &[Arc<Compiled>]) {
        let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
        loop {
            let order = match (before.peek(), after.peek()) {
                (Some(own), Some(other)) => own.id.cmp(&other.id),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return,
            };
            let gone = if order.is_le() { before.next() } else { None };
            let come = if order.is_ge() { after.next() } else { None };
            if gone.zip(come).is_some_and(|(own, other)| own.decides_like(other)) {
                continue;
            }
            self.removed.extend(gone.map(|own| own.id.clone()));
            self.added.extend(come.cloned());
        }
    }
}

/// Whether a value names an entity.
fn names(value: &Value, entity: &impl Fn(&EntityUid) -> bool) -> bool {
    match value {
        Value::Entity(uid) => entity(uid),
        Value::Set(members) => members.iter().any(|member| names(member, entity)),
        Value::Record(fields) => fields.values().any(|field| names(field, entity)),
        Value::Bool(_) | Value::Long(_) | Value::String(_) | Value::Extension(..) => false,
    }
}

impl History {
    /// What led to a snapshot, given what led to the one before and the Change between them.
    pub(super) fn then(&self, generation: u64, change: Change) -> Self {
        let older = self.0.iter().take(KEPT - 1).cloned();
        Self(std::iter::once((generation, Arc::new(change))).chain(older).collect())
    }

    /// Whether a decision made under `since` still stands under `now`, which this is the history of.
    pub(super) fn spares(&self, since: u64, now: u64, ruling: &Ruling, query: &Query, sides: &Sides<'_>) -> bool {
        let mut expected = now;
        for (generation, change) in &self.0 {
            if expected == since {
                return true;
            }
            if *generation != expected || change.may_alter(ruling, query, sides) {
                return false;
            }
            expected -= 1;
        }
        expected == since
    }
}
