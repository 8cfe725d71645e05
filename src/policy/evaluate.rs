//! Decides a Query: Cedar's decision and reasons, from the policies whose scope it meets.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cedar_policy_core::ast::{self, EntityUIDEntry, Literal, ValueKind};
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;

use super::base::Base;
use super::compiled::{Compiled, Side};
use super::core::core;
use super::overlays::OverlaySet;
use super::ruling::{self, Response};
use super::{entities, value};
use crate::model::{EntityUid, Query, Ruling};

/// A ruling, and what else came out of making it.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// What is ruled.
    pub ruling: Arc<Ruling>,
    /// How many policies met the query's scope.
    pub candidates: usize,
    /// The least `@ttl` of them: one that did not decide this time might have, had the clock or the world differed.
    pub ttl: Option<Duration>,
}

/// Decides a Query by the bundles' policies and the overlays in force at an instant; `None`: those in force when the set was made.
pub(super) fn evaluate(
    base: &Base,
    overlays: &OverlaySet,
    query: &Query,
    at: Option<SystemTime>,
) -> Result<Evaluation, String> {
    let no_policy = |ruling: &Arc<Ruling>| Evaluation { ruling: Arc::clone(ruling), candidates: 0, ttl: None };
    let Some(action) = base.routed(query) else { return Ok(no_policy(ruling::unrouted(base))) };
    if !action.applies_to(query.principal.uid.type_name(), query.resource.type_name()) {
        return Ok(no_policy(ruling::not_applicable(base)));
    }
    let admitted = base.admitted(&query.principal);
    let own = base.entities.principal(&admitted)?;
    let found = base.entities.get(core(&query.resource), &query.principal, own.as_deref());
    let principal = Side { uid: core(&query.principal.uid), entity: own.as_deref() };
    let resource = Side { uid: core(&query.resource), entity: found.as_deref() };
    let mut candidates = base.index.candidates(&base.policies, principal, core(&query.action), resource);
    if overlays.changes().is_some() {
        // An emergency denial of a group holds whatever a schema says of groups.
        let whole = match &admitted {
            Cow::Borrowed(_) => own.clone(),
            Cow::Owned(_) => base.entities.principal(&query.principal)?,
        };
        let principal = Side { uid: core(&query.principal.uid), entity: whole.as_deref() };
        let found = base.entities.get(core(&query.action), &query.principal, own.as_deref());
        let action = Side { uid: core(&query.action), entity: found.as_deref() };
        match at {
            None => candidates.extend(overlays.candidates(principal, action, resource)),
            Some(at) => candidates.extend(overlays.candidates_at(at, principal, action, resource)),
        }
        // The first by id shapes a denial. Two sorted lists in a row, which this merges.
        candidates.sort_by(|a, b| a.id.cmp(&b.id));
    }
    let (count, ttl) = (candidates.len(), candidates.iter().filter_map(|policy| policy.ttl).min());
    let response = respond(base, query, own, candidates)?;
    Ok(Evaluation { ruling: response.ruling(base), candidates: count, ttl })
}

/// Evaluates candidates, whose scope is known to hold: what is left is their conditions.
fn respond<'a>(
    base: &Base,
    query: &Query,
    own: Option<Arc<ast::Entity>>,
    candidates: Vec<&'a Compiled>,
) -> Result<Response<'a>, String> {
    let mut response = Response::default();
    if candidates.iter().all(|policy| policy.condition().is_none()) {
        // Nothing looks at context or entities, so they need not be made.
        candidates.into_iter().for_each(|policy| response.satisfied(policy));
        return Ok(response);
    }
    let mut context = BTreeMap::new();
    for (name, own) in &query.context {
        context.insert(name.clone(), value::to_cedar(own)?);
    }
    let mut reached = vec![core(&query.action).clone(), core(&query.resource).clone()];
    context.values().for_each(|own| entities::collect(&own.value, &mut reached));
    let entities = base.entities.slice(&query.principal, own, reached)?;
    let known = |uid: &EntityUid| EntityUIDEntry::known(core(uid).clone(), None);
    let request = ast::Request::new_unchecked(
        known(&query.principal.uid),
        known(&query.action),
        known(&query.resource),
        Some(ast::Context::Value(Arc::new(context))),
    );
    let evaluator = Evaluator::new(request, &entities, Extensions::all_available());
    for policy in candidates {
        let Some((condition, slots)) = policy.condition() else {
            response.satisfied(policy);
            continue;
        };
        match evaluator.interpret(condition, slots).map(|value| value.value) {
            Ok(ValueKind::Lit(Literal::Bool(true))) => response.satisfied(policy),
            Ok(ValueKind::Lit(Literal::Bool(false))) => {}
            // Strict validation has made sure that a condition is a Bool.
            Ok(_) => response.erring(policy, "the condition is not a Bool".to_owned()),
            Err(error) => response.erring(policy, error.to_string()),
        }
    }
    Ok(response)
}
