//! Snapshots: compiled bundles, immutable and validated, swapped in as a whole.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use cedar_policy_core::ast::{self, EntityUID, EntityUIDEntry, Literal, ValueKind};
use cedar_policy_core::evaluator::Evaluator;
use cedar_policy_core::extensions::Extensions;
use sha2::{Digest, Sha256};

use super::change::{Change, History, Sides};
use super::entities::{self, EntityStore};
use super::index::{Compiled, Index, Side};
use super::memory::Memory;
use super::overlay::Overlays;
use super::routes::Routes;
use super::schema::{ActionType, Types};
use super::summary::{BundleSummary, OverlaySummary, PolicySummary, Summary, timestamp};
use super::{Files, FootprintSummary, value};
use crate::model::{
    CacheState, Decision, Denial, Effect, EntityUid, Overlay, PolicyError, PolicyId, Principal, Published, Query,
    Reason, Revision, Ruling, Shadow, Timeline,
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
    /// Warnings of the bundles, and what else is worth knowing: nothing that stops it from being used.
    pub warnings: Arc<[Problem]>,
    /// What the bundles alone make of it.
    pub(super) base: Arc<Base>,
    pub(super) overlays: Overlays,
    pub(super) history: History,
}

/// What bundles alone make of a snapshot, whatever else is in force beside them.
#[derive(Debug)]
pub(super) struct Base {
    /// By id.
    pub(super) policies: Vec<Arc<Compiled>>,
    pub(super) index: Index,
    /// Whether any policy is in shadow mode.
    pub(super) has_shadow: bool,
    /// Over the texts of all schema files.
    pub(super) schema_digest: [u8; 32],
    pub(super) types: Types,
    pub(super) entities: EntityStore,
    pub(super) routes: Routes,
    pub(super) default_denial: Arc<Denial>,
    pub(super) silent: Silent,
    pub(super) bundles: Vec<BundleSummary>,
}

/// The rulings that no policy has a part in, each made once.
#[derive(Debug, Default)]
pub(super) struct Silent {
    default_deny: OnceLock<Arc<Ruling>>,
    not_applicable: OnceLock<Arc<Ruling>>,
    unrouted: OnceLock<Arc<Ruling>>,
    unknown_principal: OnceLock<Arc<Ruling>>,
}

/// A decision, and what else came out of making it.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// The decision.
    pub decision: Decision,
    /// How many policies met the query's scope.
    pub candidates: usize,
    /// The least `@ttl` of them: one that did not decide this time might have, had the clock or the world differed.
    pub ttl: Option<Duration>,
}

/// What became of the candidates of a request: Cedar's Response, for both modes apart.
#[derive(Debug, Default)]
struct Evaluated<'a> {
    enforced: Satisfied<'a>,
    shadow: Satisfied<'a>,
    shadow_errors: Vec<PolicyError>,
    errors: Vec<PolicyError>,
    /// The erring forbids that are in force.
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

impl Snapshot {
    /// Compiles the files of one or several bundles, all or nothing.
    ///
    /// # Errors
    /// Every problem of every bundle; warnings are among them only if there are errors.
    pub fn compile(files: &[Files], generation: u64) -> Result<Self, Vec<Problem>> {
        Self::new(files, generation, &[], None, &mut Memory::default())
    }

    /// Compiles bundles, which follow on nothing yet ([`Self::succeeding`]). What is in memory is not compiled again. `published`
    /// is what the store says, if they come from there.
    ///
    /// # Errors
    /// Every problem of every bundle.
    pub fn remembering(
        memory: &mut Memory,
        files: &[Files],
        published: Option<Published>,
    ) -> Result<Self, Vec<Problem>> {
        Self::new(files, 1, &[], published, memory)
    }

    /// Compiles the successor of a snapshot, which knows what differs from it, so that decisions made under it may stand.
    /// Overlays are not the bundles', so those in force stay.
    ///
    /// # Errors
    /// Every problem of every bundle.
    pub fn succeed(previous: &Self, files: &[Files]) -> Result<Self, Vec<Problem>> {
        Self::assemble(Some(previous), files, &previous.overlays.with_later(), None)
    }

    /// Compiles bundles with the overlays that are in force beside them from the first instant: the successor of a
    /// snapshot, or the first. `published` is what the store says, if they come from there.
    ///
    /// # Errors
    /// Every problem of every bundle; overlays have none.
    pub fn assemble(
        previous: Option<&Self>,
        files: &[Files],
        overlays: &[Overlay],
        published: Option<Published>,
    ) -> Result<Self, Vec<Problem>> {
        Ok(Self::new(files, 1, &[], published, &mut Memory::default())?.succeeding(previous, overlays))
    }

    /// Puts a snapshot that was compiled on its own behind another one, or first, with the overlays that are in force by
    /// now. Compiling may take a second, and an emergency denial must not wait for it: it is put in force with
    /// [`Self::overlaid`], and what is compiled meanwhile succeeds to whatever is in force when it is ready.
    #[must_use]
    pub fn succeeding(self, previous: Option<&Self>, overlays: &[Overlay]) -> Self {
        let generation = previous.map_or(1, |previous| previous.generation + 1);
        let now = SystemTime::now();
        let timeline = Timeline { enforced: now, ..self.timeline };
        let next =
            Self { generation, timeline, overlays: Overlays::new(overlays, now, self.base.types.vocabulary()), ..self };
        match previous {
            Some(previous) => next.after(previous),
            None => next,
        }
    }

    /// The successor with these overlays and no others: those of them that are in force now, and those that will be. It shares what the bundles made, so that it costs some
    /// microseconds, however large they are. `published` is what the store says of its new version; `None` if there is no
    /// new one, and an overlay begins or ends by itself.
    pub fn overlaid(&self, overlays: &[Overlay], published: Option<Published>) -> Self {
        let now = SystemTime::now();
        let (revision, timeline) = match published {
            Some(Published { number, at }) => (
                Arc::new(Revision { number: Some(number), ..(*self.revision).clone() }),
                Timeline { changed: Some(at), enforced: now },
            ),
            None => (Arc::clone(&self.revision), self.timeline),
        };
        let next = Self {
            generation: self.generation + 1,
            revision,
            timeline,
            warnings: Arc::clone(&self.warnings),
            base: Arc::clone(&self.base),
            overlays: Overlays::new(overlays, now, self.base.types.vocabulary()),
            history: History::default(),
        };
        next.after(self)
    }

    fn new(
        files: &[Files],
        generation: u64,
        overlays: &[Overlay],
        published: Option<Published>,
        memory: &mut Memory,
    ) -> Result<Self, Vec<Problem>> {
        let (base, warnings) = super::compile::compile(files, memory)?;
        let (number, at) = published.map(|published| (published.number, published.at)).unzip();
        let now = SystemTime::now();
        Ok(Self {
            generation,
            revision: Arc::new(revision(files, number)),
            timeline: Timeline {
                changed: at.or_else(|| files.iter().filter_map(|files| files.changed).max()),
                enforced: now,
            },
            warnings: warnings.into(),
            overlays: Overlays::new(overlays, now, base.types.vocabulary()),
            base: Arc::new(base),
            history: History::default(),
        })
    }

    /// With what differs from the one before.
    fn after(mut self, previous: &Self) -> Self {
        self.history = previous.history.then(self.generation, Change::between(previous, &self));
        self
    }

    /// The present instant, if other overlays are in force by now than when the snapshot was made: then it decides with
    /// [`Self::evaluation_at`], and nothing that is remembered under it counts.
    pub fn overlays_changed(&self) -> Option<SystemTime> {
        // Mostly there are none, and the clock is not read.
        let changes = self.overlays.changes()?;
        Some(SystemTime::now()).filter(|now| *now >= changes)
    }

    /// How long the overlays in force stay the same; `None`: for as long as the snapshot is in force.
    pub fn overlays_last(&self) -> Option<Duration> {
        let changes = self.overlays.changes()?;
        Some(changes.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// The overlays in force, by id.
    pub fn overlays(&self) -> &[Overlay] {
        self.overlays.all()
    }

    /// Whether a decision that was made under an older generation about an equal query still stands under this one.
    pub fn spares(&self, generation: u64, ruling: &Ruling, query: &Query) -> bool {
        let Ok(own) = self.base.entities.principal(&query.principal) else { return false };
        let find = |uid: &EntityUid| self.base.entities.get(uid.as_ref(), &query.principal, own.as_deref());
        let (action, resource) = (find(&query.action), find(&query.resource));
        let sides = Sides {
            principal: Side { uid: query.principal.uid.as_ref(), entity: own.as_deref() },
            action: Side { uid: query.action.as_ref(), entity: action.as_deref() },
            resource: Side { uid: query.resource.as_ref(), entity: resource.as_deref() },
        };
        self.history.spares(generation, self.generation, ruling, query, &sides)
    }

    /// What the schema says of actions and entity types.
    pub fn types(&self) -> &Types {
        &self.base.types
    }

    /// The routes of all bundles.
    pub fn routes(&self) -> &Routes {
        &self.base.routes
    }

    /// How long allows and denials may be remembered, as far as a bundle says so.
    pub fn ttl(&self) -> (Option<Duration>, Option<Duration>) {
        self.base.ttl()
    }

    /// Whether the bundles hold this entity.
    pub fn knows(&self, uid: &EntityUid) -> bool {
        self.base.entities.contains(uid)
    }

    /// The denial of a principal whose type requires attributes that nobody says of it. Policies were validated as if they
    /// were there, so none is evaluated.
    pub fn unknown_principal(&self) -> Decision {
        let ruling =
            self.base.silent.unknown_principal.get_or_init(|| self.deny(Reason::UnknownPrincipal, &[], &[], None));
        self.stands(ruling)
    }

    /// The action of a query; `None` if no route names the request, which is then [`Self::unrouted`]: its action applies to nothing.
    pub fn routed(&self, query: &Query) -> Option<&ActionType> {
        self.types().action(&query.action).filter(|action| action.applies())
    }

    /// The denial of a request that no route names. It comes from no policy, so it is neither evaluated nor remembered.
    pub fn unrouted(&self) -> Decision {
        self.stands(self.base.silent.unrouted.get_or_init(|| self.deny(Reason::Unrouted, &[], &[], None)))
    }

    /// Decides a Query: Cedar's decision and reasons, from the policies whose scope it meets.
    ///
    /// # Errors
    /// A fault of ours, in words for the log: the Query did not fit what mapping promises.
    pub fn decide(&self, query: &Query) -> Result<Decision, String> {
        self.evaluation(query).map(|evaluation| evaluation.decision)
    }

    /// Decides a Query, and says what the decision cost and how long it may be remembered.
    ///
    /// # Errors
    /// As [`Self::decide`].
    pub fn evaluation(&self, query: &Query) -> Result<Evaluation, String> {
        self.evaluation_at(query, None)
    }

    /// As [`Self::evaluation`], with the overlays in force at an instant; `None`: with those in force when the snapshot was made.
    ///
    /// # Errors
    /// As [`Self::decide`].
    pub fn evaluation_at(&self, query: &Query, at: Option<SystemTime>) -> Result<Evaluation, String> {
        let Some(action) = self.routed(query) else {
            return Ok(Evaluation { decision: self.unrouted(), candidates: 0, ttl: None });
        };
        if !action.applies_to(query.principal.uid.type_name(), query.resource.type_name()) {
            let ruling =
                self.base.silent.not_applicable.get_or_init(|| self.deny(Reason::NotApplicable, &[], &[], None));
            return Ok(Evaluation { decision: self.stands(ruling), candidates: 0, ttl: None });
        }
        let admitted = self.base.admitted(&query.principal);
        let own = self.base.entities.principal(&admitted)?;
        let resource: &EntityUID = query.resource.as_ref();
        let found = self.base.entities.get(resource, &query.principal, own.as_deref());
        let principal = Side { uid: query.principal.uid.as_ref(), entity: own.as_deref() };
        let resource = Side { uid: resource, entity: found.as_deref() };
        let mut candidates =
            self.base.index.candidates(&self.base.policies, principal, query.action.as_ref(), resource);
        if self.overlays.changes().is_some() {
            let found = self.base.entities.get(query.action.as_ref(), &query.principal, own.as_deref());
            let action = Side { uid: query.action.as_ref(), entity: found.as_deref() };
            // An emergency denial of a group holds whatever a schema says of groups.
            let whole = match &admitted {
                Cow::Borrowed(_) => own.clone(),
                Cow::Owned(_) => self.base.entities.principal(&query.principal)?,
            };
            let principal = Side { uid: query.principal.uid.as_ref(), entity: whole.as_deref() };
            match at {
                None => candidates.extend(self.overlays.candidates(principal, action, resource)),
                Some(at) => candidates.extend(self.overlays.candidates_at(at, principal, action, resource)),
            }
            // The first by id shapes a denial. Two sorted lists in a row, which this merges.
            candidates.sort_by(|a, b| a.id.cmp(&b.id));
        }
        let (count, ttl) = (candidates.len(), candidates.iter().filter_map(|policy| policy.ttl).min());
        let evaluated = self.evaluate(query, own, candidates)?;
        Ok(Evaluation { decision: self.stands(&self.ruling(&evaluated)), candidates: count, ttl })
    }

    /// Evaluates candidates, whose scope is known to hold: what is left is their conditions.
    fn evaluate<'a>(
        &self,
        query: &Query,
        own: Option<Arc<ast::Entity>>,
        candidates: Vec<&'a Compiled>,
    ) -> Result<Evaluated<'a>, String> {
        let mut evaluated = Evaluated::default();
        if candidates.iter().all(|policy| policy.condition().is_none()) {
            // Nothing looks at context or entities, so they need not be made.
            candidates.into_iter().for_each(|policy| evaluated.satisfied(policy));
            return Ok(evaluated);
        }
        let mut context = BTreeMap::new();
        for (name, own) in &query.context {
            context.insert(name.clone(), value::to_cedar(own)?);
        }
        let mut reached: Vec<EntityUID> = vec![
            AsRef::<EntityUID>::as_ref(&query.action).clone(),
            AsRef::<EntityUID>::as_ref(&query.resource).clone(),
        ];
        context.values().for_each(|own| entities::collect(&own.value, &mut reached));
        let entities = self.base.entities.slice(&query.principal, own, reached)?;
        let known = |uid: &EntityUid| EntityUIDEntry::known(AsRef::<EntityUID>::as_ref(uid).clone(), None);
        let request = ast::Request::new_unchecked(
            known(&query.principal.uid),
            known(&query.action),
            known(&query.resource),
            Some(ast::Context::Value(Arc::new(context))),
        );
        let evaluator = Evaluator::new(request, &entities, Extensions::all_available());
        for policy in candidates {
            let Some((condition, slots)) = policy.condition() else {
                evaluated.satisfied(policy);
                continue;
            };
            match evaluator.interpret(condition, slots).map(|value| value.value) {
                Ok(ValueKind::Lit(Literal::Bool(true))) => evaluated.satisfied(policy),
                Ok(ValueKind::Lit(Literal::Bool(false))) => {}
                // Strict validation has made sure that a condition is a Bool.
                Ok(_) => evaluated.erring(policy, "the condition is not a Bool".to_owned()),
                Err(error) => evaluated.erring(policy, error.to_string()),
            }
        }
        Ok(evaluated)
    }

    /// A ruling as a decision under this snapshot.
    pub fn stands(&self, ruling: &Arc<Ruling>) -> Decision {
        Decision {
            ruling: Arc::clone(ruling),
            revision: Arc::clone(&self.revision),
            generation: self.generation,
            cache: CacheState::Off,
            freshness: None,
        }
    }

    /// The table of "no"s (design, decision 2), as far as policies have a say in it. The rulings of a lone policy and of
    /// none are nearly all there are, so they are made once and shared: a cache full of them holds each once.
    fn ruling(&self, evaluated: &Evaluated<'_>) -> Arc<Ruling> {
        let Evaluated { enforced: Satisfied { permits, forbids }, errors, erring_forbids, .. } = evaluated;
        let shadow = self.base.has_shadow.then(|| evaluated.with_shadow());
        let shared = shadow.is_none() && errors.is_empty();
        // A policy that forbids has spoken: what another one could not say changes nothing.
        match (forbids.as_slice(), erring_forbids.as_slice(), permits.as_slice()) {
            ([alone], ..) if shared => {
                Arc::clone(alone.alone.get_or_init(|| self.deny(Reason::Policy, forbids, errors, None)))
            }
            ([_, ..], ..) => self.deny(Reason::Policy, forbids, errors, shadow),
            ([], [_, ..], _) => self.deny(Reason::PolicyError, erring_forbids, errors, shadow),
            ([], [], []) if shared => Arc::clone(
                self.base.silent.default_deny.get_or_init(|| self.deny(Reason::DefaultDeny, &[], errors, None)),
            ),
            ([], [], []) => self.deny(Reason::DefaultDeny, &[], errors, shadow),
            ([], [], [alone]) if shared => Arc::clone(alone.alone.get_or_init(|| allow(permits, errors, None))),
            ([], [], permits) => allow(permits, errors, shadow),
        }
    }

    /// A denial by these policies looks as the first of them, by id, that shapes it says; else as the bundle says.
    fn deny(
        &self,
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
            denial: Some(Arc::clone(shaped.unwrap_or(&self.base.default_denial))),
        })
    }

    /// What the cache keys of each action hold, which policy put it there, and what that does to the hits. Actions with
    /// the same places stand together; those that the cache can do least for come first. Actions that apply to nothing,
    /// which are groups of others, are left out.
    pub fn footprints(&self) -> Vec<FootprintSummary> {
        self.base.footprints()
    }

    /// The snapshot at a glance.
    pub fn summary(&self) -> Summary {
        let policies = self.base.policies.iter().map(|policy| PolicySummary {
            id: policy.id.to_string(),
            effect: if policy.effect == cedar_policy::Effect::Permit { "permit" } else { "forbid" },
            mode: if policy.shadow { "shadow" } else { "enforce" },
            file: policy.file.clone(),
            template: policy.template.as_ref().map(ToString::to_string),
        });
        Summary {
            revision: (*self.revision).clone(),
            generation: self.generation,
            enforced_at: timestamp(self.timeline.enforced),
            changed_at: self.timeline.changed.map(timestamp),
            lead_time_ms: self.timeline.lead_time().and_then(|lead| u64::try_from(lead.as_millis()).ok()),
            overlays: self.overlays().iter().map(OverlaySummary::from).collect(),
            bundles: self.base.bundles.clone(),
            policies: policies.collect(),
            routes: self.base.routes.len(),
            entities: self.base.entities.len(),
            footprints: self.footprints(),
            warnings: self.warnings.iter().filter(|own| own.is_warning()).map(ToString::to_string).collect(),
        }
    }

    /// How many policies the bundles have; overlays come on top.
    pub fn policy_count(&self) -> usize {
        self.base.policies.len()
    }
}

impl Base {
    /// A principal with those of its parents that the schema lets it be in: no policy speaks of the others.
    fn admitted<'a>(&self, principal: &'a Principal) -> Cow<'a, Principal> {
        let Some(ancestors) = self.types.ancestors(principal.uid.type_name()) else { return Cow::Borrowed(principal) };
        let is_admitted = |parent: &&EntityUid| ancestors.contains(parent.type_name());
        if principal.parents.iter().all(|parent| is_admitted(&parent)) {
            return Cow::Borrowed(principal);
        }
        let parents = principal.parents.iter().filter(is_admitted).cloned().collect();
        Cow::Owned(Principal { parents, ..principal.clone() })
    }

    /// How long allows and denials may be remembered, as far as a bundle says so.
    pub(super) fn ttl(&self) -> (Option<Duration>, Option<Duration>) {
        let ttl = self.bundles.iter().find_map(|bundle| bundle.ttl);
        (ttl.and_then(|ttl| ttl.allow).map(|span| span.0), ttl.and_then(|ttl| ttl.deny).map(|span| span.0))
    }
}

/// Identity by content: the digests of the bundles, in the order in which they are followed; and the store's number.
fn revision(files: &[Files], number: Option<String>) -> Revision {
    let mut hasher = Sha256::new();
    for files in files {
        hasher.update(files.digest());
    }
    let digest = hex::encode(hasher.finalize());
    Revision { id: digest.chars().take(12).collect(), digest, number }
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

impl<'a> Evaluated<'a> {
    fn satisfied(&mut self, policy: &'a Compiled) {
        let mode = if policy.shadow { &mut self.shadow } else { &mut self.enforced };
        match policy.effect {
            cedar_policy::Effect::Permit => mode.permits.push(policy),
            cedar_policy::Effect::Forbid => mode.forbids.push(policy),
        }
    }

    fn erring(&mut self, policy: &'a Compiled, message: String) {
        let error = PolicyError { policy: policy.id.clone(), message };
        if policy.shadow {
            self.shadow_forbid_erred |= policy.effect == cedar_policy::Effect::Forbid;
            self.shadow_errors.push(error);
            return;
        }
        self.errors.push(error);
        if policy.effect == cedar_policy::Effect::Forbid {
            self.erring_forbids.push(policy);
        }
    }

    /// What both modes together would decide.
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
}
