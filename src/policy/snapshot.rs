//! Snapshots: compiled bundles, immutable and validated, swapped in as a whole.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use cedar_policy::{AuthorizationError, Authorizer, Context, PolicySet, Request, Response};
use cedar_policy_core::ast::{self, EntityUID};

use super::entities::{self, EntityStore};
use super::routes::Routes;
use super::schema::Types;
use super::summary::{BundleSummary, PolicySummary, Summary};
use super::{Files, value};
use crate::model::{
    Decision, Denial, Effect, EntityUid, PolicyError, PolicyId, Query, Reason, Revision, Shadow, Timeline,
};
use crate::problem::Problem;

/// Compiled bundles: immutable, validated, swapped in as a whole.
#[derive(Debug)]
pub struct Snapshot {
    /// The local count of snapshots, from 1.
    pub generation: u64,
    /// The identity of its content.
    pub revision: Arc<Revision>,
    /// When it came to be.
    pub timeline: Timeline,
    /// Warnings of the bundles, which do not stop it from being used.
    pub warnings: Vec<Problem>,
    pub(super) enforced: PolicySet,
    pub(super) shadow: PolicySet,
    pub(super) policies: HashMap<PolicyId, PolicyFacts>,
    pub(super) types: Types,
    pub(super) entities: EntityStore,
    pub(super) routes: Routes,
    pub(super) default_denial: Arc<Denial>,
    pub(super) bundles: Vec<BundleSummary>,
    pub(super) authorizer: Authorizer,
}

/// What is known of a policy beside what Cedar evaluates.
#[derive(Debug)]
pub(super) struct PolicyFacts {
    pub(super) effect: cedar_policy::Effect,
    pub(super) shadow: bool,
    pub(super) denial: Option<Arc<Denial>>,
    pub(super) file: String,
    pub(super) template: Option<PolicyId>,
}

impl Snapshot {
    /// Compiles the files of one or several bundles, all or nothing.
    ///
    /// # Errors
    /// Every problem of every bundle; warnings are among them only if there are errors.
    pub fn compile(files: &[Files], generation: u64) -> Result<Self, Vec<Problem>> {
        super::compile::compile(files, generation)
    }

    /// What the schema says of actions and entity types.
    pub fn types(&self) -> &Types {
        &self.types
    }

    /// The routes of all bundles.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Whether the bundles hold this entity.
    pub fn knows(&self, uid: &EntityUid) -> bool {
        self.entities.contains(uid)
    }

    /// Whether a policy is a `forbid`.
    pub fn is_forbid(&self, id: &PolicyId) -> bool {
        self.policies.get(id).is_some_and(|facts| facts.effect == cedar_policy::Effect::Forbid)
    }

    /// Decides a Query by plain Cedar.
    ///
    /// # Errors
    /// A fault of ours, in words for the log: the Query did not fit what mapping promises.
    pub fn decide(&self, query: &Query) -> Result<Decision, String> {
        let applies = self
            .types
            .action(&query.action)
            .is_some_and(|action| action.applies_to(query.principal.uid.type_name(), query.resource.type_name()));
        if !applies {
            return Ok(self.deny(Reason::NotApplicable, Vec::new(), Vec::new(), None, None));
        }
        let mut context = BTreeMap::new();
        for (name, own) in &query.context {
            context.insert(name.clone(), value::to_cedar(own)?);
        }
        let mut reached: Vec<EntityUID> = vec![
            AsRef::<EntityUID>::as_ref(&query.principal.uid).clone(),
            AsRef::<EntityUID>::as_ref(&query.action).clone(),
            AsRef::<EntityUID>::as_ref(&query.resource).clone(),
        ];
        context.values().for_each(|own| entities::collect(&own.value, &mut reached));
        let entities = self.entities.slice(&query.principal, reached.iter())?;
        let request = Request::new(
            query.principal.uid.clone(),
            query.action.clone(),
            query.resource.clone(),
            Context::from(ast::Context::Value(Arc::new(context))),
            None,
        )
        .map_err(|error| error.to_string())?;
        let response = self.authorizer.is_authorized(&request, &self.enforced, &entities);
        let shadow = (self.shadow.num_of_policies() > 0)
            .then(|| self.authorizer.is_authorized(&request, &self.shadow, &entities))
            .map(|shadow| self.with_shadow(&response, &shadow));
        Ok(self.decision(&response, shadow))
    }

    /// The table of "no"s (design, decision 2), as far as policies have a say in it.
    fn decision(&self, response: &Response, shadow: Option<Shadow>) -> Decision {
        let determining = sorted(response.diagnostics().reason().cloned());
        let errors = errors(response);
        match response.decision() {
            // A policy that forbids has spoken: what another one could not say changes nothing.
            cedar_policy::Decision::Deny if !determining.is_empty() => {
                self.deny(Reason::Policy, determining, errors, shadow, None)
            }
            _ if errors.iter().any(|error| self.is_forbid(&error.policy)) => {
                let erring = sorted(errors.iter().map(|e| e.policy.clone()).filter(|id| self.is_forbid(id)));
                let denial = self.denial(&[]);
                self.deny(Reason::PolicyError, erring, errors, shadow, Some(denial))
            }
            cedar_policy::Decision::Deny => self.deny(Reason::DefaultDeny, determining, errors, shadow, None),
            cedar_policy::Decision::Allow => Decision {
                effect: Effect::Allow,
                reason: Reason::Policy,
                determining,
                errors,
                shadow,
                denial: None,
                revision: Arc::clone(&self.revision),
            },
        }
    }

    /// What both sets together would decide. Merging Responses of disjoint sets is exact (cedar-facts, 3.2): a satisfied
    /// forbid in either denies, and so does an erring one, else a satisfied permit in either allows.
    fn with_shadow(&self, enforced: &Response, shadow: &Response) -> Shadow {
        let both = [enforced, shadow];
        let forbids = |response: &&Response| {
            response.decision() == cedar_policy::Decision::Deny && response.diagnostics().reason().next().is_some()
        };
        let errs = |response: &&Response| errors(response).iter().any(|error| self.is_forbid(&error.policy));
        let allows = |response: &&Response| response.decision() == cedar_policy::Decision::Allow;
        let denied = both.iter().any(|response| forbids(response) || errs(response));
        let effect = if both.iter().any(allows) && !denied { Effect::Allow } else { Effect::Deny };
        Shadow { effect, determining: sorted(shadow.diagnostics().reason().cloned()), errors: errors(shadow) }
    }

    fn deny(
        &self,
        reason: Reason,
        determining: Vec<PolicyId>,
        errors: Vec<PolicyError>,
        shadow: Option<Shadow>,
        denial: Option<Arc<Denial>>,
    ) -> Decision {
        let denial = denial.unwrap_or_else(|| self.denial(&determining));
        let revision = Arc::clone(&self.revision);
        Decision { effect: Effect::Deny, reason, determining, errors, shadow, denial: Some(denial), revision }
    }

    /// How a denial by these policies looks: as the first of them, by id, that shapes it says; else as the bundle says.
    fn denial(&self, determining: &[PolicyId]) -> Arc<Denial> {
        determining
            .iter()
            .filter_map(|id| self.policies.get(id)?.denial.as_ref())
            .next()
            .map_or_else(|| Arc::clone(&self.default_denial), Arc::clone)
    }

    /// The snapshot at a glance.
    pub fn summary(&self) -> Summary {
        let time = |at: SystemTime| humantime::format_rfc3339_millis(at).to_string();
        let mut policies: Vec<PolicySummary> = self
            .policies
            .iter()
            .map(|(id, facts)| PolicySummary {
                id: id.to_string(),
                effect: if facts.effect == cedar_policy::Effect::Permit { "permit" } else { "forbid" },
                mode: if facts.shadow { "shadow" } else { "enforce" },
                file: facts.file.clone(),
                template: facts.template.as_ref().map(ToString::to_string),
            })
            .collect();
        policies.sort_by(|a, b| a.id.cmp(&b.id));
        Summary {
            revision: (*self.revision).clone(),
            generation: self.generation,
            enforced_at: time(self.timeline.enforced),
            changed_at: self.timeline.changed.map(time),
            lead_time_ms: self.timeline.lead_time().and_then(|lead| u64::try_from(lead.as_millis()).ok()),
            bundles: self.bundles.clone(),
            policies,
            routes: self.routes.len(),
            entities: self.entities.len(),
            warnings: self.warnings.iter().map(ToString::to_string).collect(),
        }
    }

    /// How many policies are in it.
    pub fn policy_count(&self) -> usize {
        self.policies.len()
    }
}

fn sorted(ids: impl Iterator<Item = PolicyId>) -> Vec<PolicyId> {
    let mut ids: Vec<PolicyId> = ids.collect();
    ids.sort_unstable();
    ids
}

fn errors(response: &Response) -> Vec<PolicyError> {
    let mut errors: Vec<PolicyError> = response
        .diagnostics()
        .errors()
        .map(|AuthorizationError::PolicyEvaluationError(error)| PolicyError {
            policy: error.policy_id().clone(),
            message: error.inner().to_string(),
        })
        .collect();
    errors.sort_by(|a, b| a.policy.cmp(&b.policy));
    errors
}
