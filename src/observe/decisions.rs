//! What is counted of decisions: what became of them, and which policies determined them.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use metrics::Counter;

use super::catalogue::{DECISIONS, DETERMINING, Registry};
use crate::model::{Effect, Outcome, PolicyId, Reason, Undecided, UnmappedKind};

/// One counter for each thing that can become of a request.
#[derive(Debug)]
pub(super) struct Decisions {
    allow: Counter,
    policy: Counter,
    default_deny: Counter,
    not_applicable: Counter,
    unrouted: Counter,
    unknown_principal: Counter,
    policy_error: Counter,
    unmapped: Vec<(UnmappedKind, Counter)>,
    undecided: Vec<(Undecided, Counter)>,
}

impl Decisions {
    pub(super) fn new(registry: &Registry) -> Self {
        let decision = |kind, outcome, reason| {
            registry.counter(DECISIONS, &[("kind", kind), ("outcome", outcome), ("reason", reason)])
        };
        let deny = |reason: Reason| decision("decided", "deny", reason.as_str());
        let unmapped = |kind: UnmappedKind| (kind, decision("unmapped", "deny", kind.as_str()));
        let undecided = |reason: Undecided| (reason, decision("undecided", "undecided", reason.as_str()));
        Self {
            allow: decision("decided", "allow", Reason::Policy.as_str()),
            policy: deny(Reason::Policy),
            default_deny: deny(Reason::DefaultDeny),
            not_applicable: deny(Reason::NotApplicable),
            unrouted: deny(Reason::Unrouted),
            unknown_principal: deny(Reason::UnknownPrincipal),
            policy_error: deny(Reason::PolicyError),
            unmapped: UnmappedKind::ALL.into_iter().map(unmapped).collect(),
            undecided: Undecided::ALL.into_iter().map(undecided).collect(),
        }
    }

    pub(super) fn of(&self, outcome: &Outcome) -> Option<&Counter> {
        match outcome {
            Outcome::Decided(decision) => Some(match (decision.effect, decision.reason) {
                // Only a policy allows.
                (Effect::Allow, _) => &self.allow,
                (Effect::Deny, Reason::Policy) => &self.policy,
                (Effect::Deny, Reason::DefaultDeny) => &self.default_deny,
                (Effect::Deny, Reason::NotApplicable) => &self.not_applicable,
                (Effect::Deny, Reason::Unrouted) => &self.unrouted,
                (Effect::Deny, Reason::UnknownPrincipal) => &self.unknown_principal,
                (Effect::Deny, Reason::PolicyError) => &self.policy_error,
            }),
            Outcome::Unmapped(unmapped) => {
                self.unmapped.iter().find(|(kind, _)| *kind == unmapped.kind).map(|(_, counter)| counter)
            }
            Outcome::Undecided(undecided) => {
                self.undecided.iter().find(|(reason, _)| reason == undecided).map(|(_, counter)| counter)
            }
        }
    }
}

/// The labels of all decisions, for the reference.
pub(super) fn labels() -> Vec<(&'static str, &'static str, &'static str)> {
    let mut labels = vec![("decided", "allow", Reason::Policy.as_str())];
    labels.extend(Reason::DENIALS.map(|reason| ("decided", "deny", reason.as_str())));
    labels.extend(UnmappedKind::ALL.map(|kind| ("unmapped", "deny", kind.as_str())));
    labels.extend(Undecided::ALL.map(|reason| ("undecided", "undecided", reason.as_str())));
    labels
}

// === impl Determining ===

/// Decisions by policy. Policies come and go for as long as the process lives, series never go: hence the limit.
#[derive(Debug)]
pub(super) struct Determining {
    registry: Registry,
    limit: usize,
    known: RwLock<HashMap<PolicyId, Counter>>,
    other: Counter,
}

impl Determining {
    pub(super) fn new(registry: &Registry, limit: usize) -> Self {
        let other = registry.counter(DETERMINING, &[("policy", "other")]);
        Self { registry: registry.clone(), limit, known: RwLock::default(), other }
    }

    pub(super) fn count(&self, policy: &PolicyId) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = known.get(policy) {
            return counter.increment(1);
        }
        let full = known.len() >= self.limit;
        drop(known);
        if full {
            return self.other.increment(1);
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() < self.limit || known.contains_key(policy) {
            let register = || self.registry.counter(DETERMINING, &[("policy", policy.as_ref())]);
            known.entry(policy.clone()).or_insert_with(register).increment(1);
        } else {
            self.other.increment(1);
        }
    }
}
