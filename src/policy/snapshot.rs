//! Snapshots: compiled bundles, immutable and validated, swapped in as a whole.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::base::Base;
use super::change::{Change, History, Sides};
use super::compiled::Side;
use super::evaluate::{Evaluation, evaluate};
use super::memory::Memory;
use super::overlays::OverlaySet;
use super::report::FootprintSummary;
use super::routes::Routes;
use super::schema::{ActionType, Types};
use super::summary::{OverlaySummary, PolicySummary, Summary, timestamp};
use super::{Files, compile, open, ruling};
use crate::model::{CacheState, Decision, EntityUid, Overlay, PolicyId, Published, Query, Revision, Ruling, Timeline};
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
    pub(super) overlays: OverlaySet,
    pub(super) history: History,
}

impl Snapshot {
    /// Compiles the files of one or several bundles, all or nothing: the first snapshot, without overlays, until it is put behind
    /// another one ([`Self::succeeding`]). What is in memory is not compiled again. `published` is what the store says of the
    /// bundles, if they come from there.
    ///
    /// # Errors
    /// Every problem of every bundle; warnings are among them only if there are errors.
    pub fn compile(files: &[Files], published: Option<Published>, memory: &mut Memory) -> Result<Self, Vec<Problem>> {
        let (base, warnings) = compile::compile(files, memory)?;
        let (number, at) = published.map(|published| (published.number, published.at)).unzip();
        Ok(Self {
            generation: 1,
            revision: Arc::new(revision(files, number)),
            timeline: Timeline {
                changed: at.or_else(|| files.iter().filter_map(|files| files.changed).max()),
                enforced: SystemTime::now(),
            },
            warnings: warnings.into(),
            overlays: OverlaySet::default(),
            base: Arc::new(base),
            history: History::default(),
        })
    }

    /// Puts a snapshot that was compiled on its own behind another one, or first, with the overlays that are in force by
    /// now. Compiling may take a second, and an emergency denial must not wait for it: it is put in force with
    /// [`Self::overlaid`], and what is compiled meanwhile succeeds to whatever is in force when it is ready.
    #[must_use]
    pub fn succeeding(self, previous: Option<&Self>, overlays: &[Overlay]) -> Self {
        let generation = previous.map_or(1, |previous| previous.generation + 1);
        let now = SystemTime::now();
        let timeline = Timeline { enforced: now, ..self.timeline };
        let next = Self {
            generation,
            timeline,
            overlays: OverlaySet::new(overlays, now, self.base.types.vocabulary()),
            ..self
        };
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
            overlays: OverlaySet::new(overlays, now, self.base.types.vocabulary()),
            history: History::default(),
        };
        next.after(self)
    }

    /// With what differs from the one before.
    fn after(mut self, previous: &Self) -> Self {
        let change = Change::between((&previous.base, &previous.overlays), (&self.base, &self.overlays));
        self.history = previous.history.then(self.generation, change);
        self
    }

    /// The present instant, if other overlays are in force by now than when the snapshot was made: then it decides with
    /// [`Self::evaluate`], and nothing that is remembered under it counts.
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
        self.stands(ruling::unknown_principal(&self.base))
    }

    /// The action of a query; `None` if no route names the request, which is then [`Self::unrouted`]: its action applies to nothing.
    pub fn routed(&self, query: &Query) -> Option<&ActionType> {
        self.base.routed(query)
    }

    /// The denial of a request that no route names. It comes from no policy, so it is neither evaluated nor remembered.
    pub fn unrouted(&self) -> Decision {
        self.stands(ruling::unrouted(&self.base))
    }

    /// Decides a Query: Cedar's decision and reasons, from the policies whose scope it meets.
    ///
    /// # Errors
    /// A fault of ours, in words for the log: the Query did not fit what mapping promises.
    pub fn decide(&self, query: &Query) -> Result<Decision, String> {
        self.evaluate(query, None).map(|evaluation| self.stands(&evaluation.ruling))
    }

    /// What is ruled about a Query with the overlays in force at an instant, what that cost and how long it may be remembered.
    /// `None`: with the overlays in force when the snapshot was made.
    ///
    /// # Errors
    /// As [`Self::decide`].
    pub fn evaluate(&self, query: &Query, at: Option<SystemTime>) -> Result<Evaluation, String> {
        evaluate(&self.base, &self.overlays, query, at)
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

    /// The policies in force that permit everything to everybody, unless something forbids it.
    pub fn open_policies(&self) -> Vec<&PolicyId> {
        self.base.policies.iter().filter(|policy| open::is_open(policy)).map(|policy| &policy.id).collect()
    }

    /// How many policies the bundles have; overlays come on top.
    pub fn policy_count(&self) -> usize {
        self.base.policies.len()
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
