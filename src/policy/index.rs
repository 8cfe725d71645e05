//! The scope index: which policies a request can be decided by, without looking at the others.
//!
//! Dropping a policy whose principal, resource or action scope the request does not meet leaves the whole Response
//! equal: decision, determining policies and erring policies. That is a theorem of Cedar's Lean model for principal and
//! resource (`isAuthorized_eq_for_scope_based_policy_slice`), and the same argument for actions: scopes cannot err and
//! come first. So a policy stands in one bucket, by its most selective bound, under each action that it is about; a request
//! looks into the buckets of its principal, its resource, their ancestors and types, and then holds each policy found
//! against its whole scope.

use std::sync::Arc;

use cedar_policy_core::ast::{EntityType, EntityUID};

use super::HashMap;
use super::compiled::{Bound, Compiled, Side};
use super::footprint::Footprint;

/// Policies by scope. The numbers are indices of the list that it was made from.
#[derive(Debug, Default)]
pub(super) struct Index(HashMap<EntityUID, About>);

/// The policies about one action.
#[derive(Debug, Default)]
struct About {
    /// What all of them together can read.
    footprint: Footprint,
    buckets: Buckets,
}

/// Policies by their principals and resources.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    principal: HashMap<EntityUID, Vec<usize>>,
    resource: HashMap<EntityUID, Vec<usize>>,
    principal_type: HashMap<EntityType, Vec<usize>>,
    resource_type: HashMap<EntityType, Vec<usize>>,
    any: Vec<usize>,
}

impl Index {
    /// Puts each policy into its bucket under each of these actions that it is about.
    pub(super) fn new<'a>(policies: &[Arc<Compiled>], actions: impl Iterator<Item = Side<'a>>) -> Self {
        // What is about all actions is merged once, and not for each of them.
        let mut all = Footprint::default();
        policies.iter().filter(|policy| policy.is_about_all_actions()).for_each(|policy| all.merge(&policy.footprint));
        let buckets = actions.map(|action| {
            let mut own = About { footprint: all.clone(), ..About::default() };
            for (at, policy) in policies.iter().enumerate().filter(|(_, policy)| policy.is_about(action)) {
                own.buckets.insert(policy, at);
                if !policy.is_about_all_actions() {
                    own.footprint.merge(&policy.footprint);
                }
            }
            (action.uid.clone(), own)
        });
        Self(buckets.collect())
    }

    /// What the policies about an action can read.
    pub(super) fn footprint(&self, action: &EntityUID) -> Footprint {
        self.0.get(action).map(|about| about.footprint.clone()).unwrap_or_default()
    }

    /// The policies whose scope a request meets, in the order of the list.
    pub(super) fn candidates<'p>(
        &self,
        policies: &'p [Arc<Compiled>],
        principal: Side<'_>,
        action: &EntityUID,
        resource: Side<'_>,
    ) -> Vec<&'p Compiled> {
        self.0.get(action).map_or_else(Vec::new, |about| about.buckets.find(policies, principal, resource))
    }
}

impl Buckets {
    /// Those of the list whose principal and resource a request meets, in its order.
    pub(super) fn find<'p>(
        &self,
        policies: &'p [Arc<Compiled>],
        principal: Side<'_>,
        resource: Side<'_>,
    ) -> Vec<&'p Compiled> {
        let mut found: Vec<usize> = Vec::new();
        for uid in std::iter::once(principal.uid).chain(principal.ancestors()) {
            found.extend(self.principal.get(uid).into_iter().flatten());
        }
        for uid in std::iter::once(resource.uid).chain(resource.ancestors()) {
            found.extend(self.resource.get(uid).into_iter().flatten());
        }
        found.extend(self.principal_type.get(principal.uid.entity_type()).into_iter().flatten());
        found.extend(self.resource_type.get(resource.uid.entity_type()).into_iter().flatten());
        found.extend(&self.any);
        found.sort_unstable();
        let policies = found.into_iter().filter_map(|at| policies.get(at)).map(Arc::as_ref);
        policies.filter(|policy| policy.meets(principal, resource)).collect()
    }

    /// By the most selective bound: an entity is one of many, a type one of few.
    pub(super) fn insert(&mut self, policy: &Compiled, at: usize) {
        let bucket = match (policy.principal.entity(), policy.resource.entity(), &policy.principal, &policy.resource) {
            (Some(uid), ..) => self.principal.entry(uid.clone()).or_default(),
            (None, Some(uid), ..) => self.resource.entry(uid.clone()).or_default(),
            (None, None, Bound::Is(ty), _) => self.principal_type.entry(ty.clone()).or_default(),
            (None, None, _, Bound::Is(ty)) => self.resource_type.entry(ty.clone()).or_default(),
            (None, None, ..) => &mut self.any,
        };
        bucket.push(at);
    }
}
