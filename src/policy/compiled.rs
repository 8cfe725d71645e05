//! A compiled policy: its scope, what it reads, and what is left for Cedar to evaluate.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cedar_policy::{ActionConstraint, Effect, Policy, PrincipalConstraint, ResourceConstraint};
use cedar_policy_core::ast::{self, EntityType, EntityUID};

use super::annotations::Annotations;
use super::core::{core, core_policy, core_type};
use super::footprint::Footprint;
use super::header::OVERLAY;
use crate::model::{self, Denial, EntityUid, Overlay, PolicyId, Ruling};

/// A policy, with what is known of it beside what Cedar evaluates.
#[derive(Debug)]
pub(super) struct Compiled {
    /// `bundle/id`, or `overlay/id`.
    pub(super) id: PolicyId,
    pub(super) effect: Effect,
    /// Evaluated and reported, without effect.
    pub(super) shadow: bool,
    /// An upper bound for how long a decision may be remembered that it was a candidate for.
    pub(super) ttl: Option<Duration>,
    /// How a denial looks that it determines.
    pub(super) denial: Option<Arc<Denial>>,
    /// What is ruled where it alone determines, made once.
    pub(super) alone: OnceLock<Arc<Ruling>>,
    /// The file that it stands in.
    pub(super) file: String,
    /// The template that it is linked from.
    pub(super) template: Option<PolicyId>,
    /// What Cedar evaluates once the scope is met; `None` if that is all there is to it.
    condition: Option<ast::Policy>,
    /// What it can read.
    pub(super) footprint: Footprint,
    pub(super) principal: Bound,
    pub(super) resource: Bound,
    action: ActionConstraint,
}

/// One side of a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bound {
    Any,
    Eq(EntityUID),
    In(EntityUID),
    Is(EntityType),
    IsIn(EntityType, EntityUID),
}

/// A principal or resource of a request: its id, and its entity if there is one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) uid: &'a EntityUID,
    pub(super) entity: Option<&'a ast::Entity>,
}

/// The actions that a scope names.
pub(super) fn named(constraint: &ActionConstraint) -> &[EntityUid] {
    match constraint {
        ActionConstraint::Any => &[],
        ActionConstraint::In(actions) => actions,
        ActionConstraint::Eq(action) => std::slice::from_ref(action),
    }
}

impl Compiled {
    pub(super) fn new(policy: &Policy, footprint: Footprint, annotations: Annotations, file: String) -> Self {
        let Annotations { shadow, denial, ttl } = annotations;
        let uid = |uid: EntityUid| core(&uid).clone();
        let principal = match policy.principal_constraint() {
            PrincipalConstraint::Any => Bound::Any,
            PrincipalConstraint::Eq(own) => Bound::Eq(uid(own)),
            PrincipalConstraint::In(own) => Bound::In(uid(own)),
            PrincipalConstraint::Is(own) => Bound::Is(core_type(&own).clone()),
            PrincipalConstraint::IsIn(ty, own) => Bound::IsIn(core_type(&ty).clone(), uid(own)),
        };
        let resource = match policy.resource_constraint() {
            ResourceConstraint::Any => Bound::Any,
            ResourceConstraint::Eq(own) => Bound::Eq(uid(own)),
            ResourceConstraint::In(own) => Bound::In(uid(own)),
            ResourceConstraint::Is(own) => Bound::Is(core_type(&own).clone()),
            ResourceConstraint::IsIn(ty, own) => Bound::IsIn(core_type(&ty).clone(), uid(own)),
        };
        Self {
            id: policy.id().clone(),
            effect: policy.effect(),
            shadow,
            ttl,
            denial: denial.map(Arc::new),
            alone: OnceLock::new(),
            file,
            footprint,
            template: policy.template_id().cloned(),
            condition: policy.has_non_scope_constraint().then(|| core_policy(policy).clone()),
            principal,
            resource,
            action: policy.action_constraint(),
        }
    }

    /// The same policy in another snapshot: what is ruled where it alone determines is made anew, since the rest of a bundle shapes it.
    pub(super) fn renewed(&self, file: String) -> Self {
        Self {
            id: self.id.clone(),
            effect: self.effect,
            shadow: self.shadow,
            ttl: self.ttl,
            denial: self.denial.clone(),
            alone: OnceLock::new(),
            file,
            template: self.template.clone(),
            condition: self.condition.clone(),
            footprint: self.footprint.clone(),
            principal: self.principal.clone(),
            resource: self.resource.clone(),
            action: self.action.clone(),
        }
    }

    /// The policy that an overlay is. It is built without Cedar's syntax, which ids of people might break.
    pub(super) fn overlay(overlay: &Overlay) -> Self {
        let bound = |uid: &Option<EntityUid>| match uid {
            Some(uid) => Bound::In(core(uid).clone()),
            None => Bound::Any,
        };
        Self {
            id: PolicyId::new(format!("{}/{}", OVERLAY, overlay.id)),
            effect: match overlay.effect {
                model::Effect::Allow => Effect::Permit,
                model::Effect::Deny => Effect::Forbid,
            },
            shadow: false,
            ttl: None,
            denial: None,
            alone: OnceLock::new(),
            file: String::new(),
            template: None,
            condition: None,
            footprint: Footprint::default(),
            principal: bound(&overlay.principal),
            resource: bound(&overlay.resource),
            action: overlay.action.clone().map_or(ActionConstraint::Any, |action| ActionConstraint::In(vec![action])),
        }
    }

    /// Whether every decision that one determines looks as if the other did: same content, whatever its formatting and
    /// its other annotations.
    pub(super) fn decides_like(&self, other: &Self) -> bool {
        self.effect == other.effect
            && self.shadow == other.shadow
            && self.denial == other.denial
            && self.ttl == other.ttl
            && self.principal == other.principal
            && self.action == other.action
            && self.resource == other.resource
            && self.condition() == other.condition()
    }

    /// What is left to evaluate once the scope is met, and what its slots stand for.
    pub(super) fn condition(&self) -> Option<(&ast::Expr, &ast::SlotEnv)> {
        let policy = self.condition.as_ref()?;
        Some((policy.non_scope_constraints()?, policy.env()))
    }

    /// The policy, whose conditions have a syntax tree; `None` if it has no conditions.
    pub(super) fn tree(&self) -> Option<Policy> {
        self.condition.clone().map(Policy::from)
    }

    /// Whether the scope holds for every request.
    pub(super) fn is_unscoped(&self) -> bool {
        matches!((&self.principal, &self.action, &self.resource), (Bound::Any, ActionConstraint::Any, Bound::Any))
    }

    /// What the scope says of actions.
    pub(super) fn actions(&self) -> &ActionConstraint {
        &self.action
    }

    /// Whether the scope names no action.
    pub(super) fn is_about_all_actions(&self) -> bool {
        matches!(self.action, ActionConstraint::Any)
    }

    pub(super) fn is_about(&self, action: Side<'_>) -> bool {
        let within = |group: &EntityUid| action.is_in(core(group));
        match &self.action {
            ActionConstraint::Any => true,
            ActionConstraint::Eq(own) => core(own) == action.uid,
            ActionConstraint::In(groups) => groups.iter().any(within),
        }
    }

    /// Whether a request meets its scope, save the action.
    pub(super) fn meets(&self, principal: Side<'_>, resource: Side<'_>) -> bool {
        self.principal.holds(principal) && self.resource.holds(resource)
    }
}

impl Bound {
    fn holds(&self, side: Side<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Eq(uid) => side.uid == uid,
            Self::In(uid) => side.is_in(uid),
            Self::Is(ty) => side.uid.entity_type() == ty,
            Self::IsIn(ty, uid) => side.uid.entity_type() == ty && side.is_in(uid),
        }
    }

    /// The entity that it names.
    pub(super) fn entity(&self) -> Option<&EntityUID> {
        match self {
            Self::Eq(uid) | Self::In(uid) | Self::IsIn(_, uid) => Some(uid),
            Self::Any | Self::Is(_) => None,
        }
    }
}

impl<'a> Side<'a> {
    /// The side that an entity is.
    pub(super) fn of(entity: &'a ast::Entity) -> Self {
        Self { uid: entity.uid(), entity: Some(entity) }
    }

    /// Cedar's `in`: itself, or one of its ancestors.
    fn is_in(self, uid: &EntityUID) -> bool {
        self.uid == uid || self.entity.is_some_and(|entity| entity.is_descendant_of(uid))
    }

    /// What its entity is in.
    pub(super) fn ancestors(&self) -> impl Iterator<Item = &EntityUID> {
        self.entity.into_iter().flat_map(ast::Entity::ancestors)
    }
}
