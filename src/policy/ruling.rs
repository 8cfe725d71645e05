//! From Cedar's Response to a ruling: the table of "no"s (design, decision 2), as far as policies have a part in it.

use std::sync::Arc;

use cedar_policy::Effect as PolicyEffect;

use super::base::Base;
use super::compiled::Compiled;
use crate::model::{Effect, PolicyError, PolicyId, Reason, Ruling, Shadow};

/// What became of the candidates of a request: Cedar's Response, with policies that are enforced and those in shadow mode apart.
#[derive(Debug, Default)]
pub(super) struct Response<'a> {
    enforced: Satisfied<'a>,
    shadow: Satisfied<'a>,
    shadow_errors: Vec<PolicyError>,
    errors: Vec<PolicyError>,
    /// The forbids that are enforced and erred.
    erring_forbids: Vec<&'a Compiled>,
    /// Whether a forbid in shadow mode erred.
    shadow_forbid_erred: bool,
}

/// The satisfied policies of one mode.
#[derive(Debug, Default)]
struct Satisfied<'a> {
    permits: Vec<&'a Compiled>,
    forbids: Vec<&'a Compiled>,
}

impl<'a> Response<'a> {
    pub(super) fn satisfied(&mut self, policy: &'a Compiled) {
        let mode = if policy.shadow { &mut self.shadow } else { &mut self.enforced };
        match policy.effect {
            PolicyEffect::Permit => mode.permits.push(policy),
            PolicyEffect::Forbid => mode.forbids.push(policy),
        }
    }

    pub(super) fn erring(&mut self, policy: &'a Compiled, message: String) {
        let error = PolicyError { policy: policy.id.clone(), message };
        if policy.shadow {
            self.shadow_forbid_erred |= policy.effect == PolicyEffect::Forbid;
            self.shadow_errors.push(error);
            return;
        }
        self.errors.push(error);
        if policy.effect == PolicyEffect::Forbid {
            self.erring_forbids.push(policy);
        }
    }

    /// What the policies of both modes together would decide.
    fn with_shadow(&self) -> Shadow {
        let erred = !self.erring_forbids.is_empty() || self.shadow_forbid_erred;
        let forbidden = erred || !self.enforced.forbids.is_empty() || !self.shadow.forbids.is_empty();
        let permitted = !self.enforced.permits.is_empty() || !self.shadow.permits.is_empty();
        // As Cedar gives reasons: those of the side that wins.
        let determining = if self.shadow.forbids.is_empty() { &self.shadow.permits } else { &self.shadow.forbids };
        Shadow {
            effect: if permitted && !forbidden { Effect::Allow } else { Effect::Deny },
            determining: ids(determining),
            errors: self.shadow_errors.clone(),
        }
    }

    /// What is ruled. The rulings of a lone policy and of none are nearly all there are, so they are made once and shared: a cache
    /// full of them holds each once.
    pub(super) fn ruling(&self, base: &Base) -> Arc<Ruling> {
        let Self { enforced: Satisfied { permits, forbids }, errors, erring_forbids, .. } = self;
        let shadow = base.has_shadow.then(|| self.with_shadow());
        let shared = shadow.is_none() && errors.is_empty();
        // A policy that forbids has spoken: what another one could not say changes nothing.
        match (forbids.as_slice(), erring_forbids.as_slice(), permits.as_slice()) {
            ([alone], ..) if shared => {
                Arc::clone(alone.alone.get_or_init(|| deny(base, Reason::Policy, forbids, errors, None)))
            }
            ([_, ..], ..) => deny(base, Reason::Policy, forbids, errors, shadow),
            ([], [_, ..], _) => deny(base, Reason::PolicyError, erring_forbids, errors, shadow),
            ([], [], []) if shared => Arc::clone(default_deny(base)),
            ([], [], []) => deny(base, Reason::DefaultDeny, &[], errors, shadow),
            ([], [], [alone]) if shared => Arc::clone(alone.alone.get_or_init(|| allow(permits, errors, None))),
            ([], [], permits) => allow(permits, errors, shadow),
        }
    }
}

// === The rulings that no policy has a part in, each made once ===

fn default_deny(base: &Base) -> &Arc<Ruling> {
    base.silent.default_deny.get_or_init(|| deny(base, Reason::DefaultDeny, &[], &[], None))
}

pub(super) fn not_applicable(base: &Base) -> &Arc<Ruling> {
    base.silent.not_applicable.get_or_init(|| deny(base, Reason::NotApplicable, &[], &[], None))
}

pub(super) fn unrouted(base: &Base) -> &Arc<Ruling> {
    base.silent.unrouted.get_or_init(|| deny(base, Reason::Unrouted, &[], &[], None))
}

pub(super) fn unknown_principal(base: &Base) -> &Arc<Ruling> {
    base.silent.unknown_principal.get_or_init(|| deny(base, Reason::UnknownPrincipal, &[], &[], None))
}

/// A denial by these policies has the form that the first of them, by id, that shapes it gives it; else the bundle's.
fn deny(
    base: &Base,
    reason: Reason,
    determining: &[&Compiled],
    errors: &[PolicyError],
    shadow: Option<Shadow>,
) -> Arc<Ruling> {
    // A policy that erred has not spoken, so it shapes nothing.
    let shaped = determining.iter().filter(|_| reason == Reason::Policy).find_map(|policy| policy.denial.as_ref());
    Arc::new(Ruling {
        effect: Effect::Deny,
        reason,
        determining: ids(determining),
        errors: errors.to_vec(),
        shadow,
        denial: Some(Arc::clone(shaped.unwrap_or(&base.default_denial))),
    })
}

fn allow(permits: &[&Compiled], errors: &[PolicyError], shadow: Option<Shadow>) -> Arc<Ruling> {
    Arc::new(Ruling {
        effect: Effect::Allow,
        reason: Reason::Policy,
        determining: ids(permits),
        errors: errors.to_vec(),
        shadow,
        denial: None,
    })
}

/// In the order of the list, which is by id.
fn ids(policies: &[&Compiled]) -> Vec<PolicyId> {
    policies.iter().map(|policy| policy.id.clone()).collect()
}
