//! Decides Queries under the snapshot in force, from memory where that is as good.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::cache::{Bounds, Cache};
use super::key::{self, Key};
use crate::model::{CacheState, Decision, MissReason, Query, Root, Ruling, Undecided};
use crate::observe::Metrics;
use crate::policy::{Evaluation, Snapshot};

/// Decides Queries. All listeners share one.
#[derive(Debug)]
pub struct Authorizer {
    /// The feed holds the sender; `None` until the first snapshot is in force.
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    cache: Arc<Cache>,
    metrics: Metrics,
}

impl Authorizer {
    /// Decides under whatever snapshot the channel holds.
    pub fn new(snapshots: watch::Receiver<Option<Arc<Snapshot>>>, cache: Arc<Cache>, metrics: Metrics) -> Self {
        Self { snapshots, cache, metrics }
    }

    /// The snapshot in force. A request is mapped and decided under one snapshot, so it is taken once.
    ///
    /// # Errors
    /// [`Undecided::NotReady`] if there is none yet.
    pub fn current(&self) -> Result<Arc<Snapshot>, Undecided> {
        self.snapshots.borrow().clone().ok_or(Undecided::NotReady)
    }

    /// Decides a Query under a snapshot. `token` is what the principal's token has left, if it is one that expires.
    ///
    /// # Errors
    /// [`Undecided::Internal`] if the Query is not what mapping promises, which is a fault of ours and is logged.
    pub fn decide(&self, snapshot: &Snapshot, query: &Query, token: Option<Duration>) -> Result<Decision, Undecided> {
        if !self.cache.is_enabled() {
            return self.evaluate(snapshot, query).map(|evaluation| evaluation.decision);
        }
        let action = snapshot.types().action(&query.action);
        let Some(action) = action.filter(|action| !action.context.iter().any(|(root, _)| *root == Root::Time)) else {
            // A clock that policies read makes every Query another one.
            return self.made(self.evaluate(snapshot, query)?.decision, MissReason::Uncacheable);
        };
        let now = Instant::now();
        let mut key = Key::new();
        key::encode(query, &action.fingerprint, &mut key);
        match self.remembered(snapshot, query, &key, now) {
            Ok(decision) => Ok(decision),
            Err(reason) => {
                let Evaluation { decision, ttl, .. } = self.evaluate(snapshot, query)?;
                let (allow, deny) = snapshot.ttl();
                let bounds = Bounds { allow, deny, policies: ttl, token };
                // Under the generation that it was decided under, which was read before the evaluation: a push in between
                // is held against it at the next hit.
                self.cache.insert(&key, &decision.ruling, snapshot.generation, bounds, now);
                self.made(decision, reason)
            }
        }
    }

    /// What the cache remembers of a query, if that still stands.
    fn remembered(&self, snapshot: &Snapshot, query: &Query, key: &[u8], now: Instant) -> Result<Decision, MissReason> {
        let entry = self.cache.get(key, now)?;
        let generation = entry.generation();
        if generation != snapshot.generation {
            // Newer than this check's snapshot: a push came while it was mapped. It answers by its own.
            if generation > snapshot.generation || !snapshot.spares(generation, &entry.ruling, query) {
                return Err(MissReason::Changed);
            }
            entry.promote(snapshot.generation);
            self.metrics.cache_promoted();
        }
        let age = self.cache.age(&entry, now);
        let decision = Decision { cache: CacheState::Hit(age), ..snapshot.stands(&entry.ruling) };
        if self.cache.is_sampled() {
            self.check(snapshot, query, &decision)?;
        }
        self.metrics.cache_hit(age);
        Ok(decision)
    }

    /// Decides a hit again. A difference is a bug of ours and a breach at worst: everything is forgotten.
    fn check(&self, snapshot: &Snapshot, query: &Query, remembered: &Ruling) -> Result<(), MissReason> {
        let same = snapshot.decide(query).is_ok_and(|fresh| *fresh.ruling == *remembered);
        self.metrics.cache_checked(same);
        if same {
            return Ok(());
        }
        tracing::error!(
            principal = %query.principal.uid, action = %query.action, resource = %query.resource,
            generation = snapshot.generation,
            "a remembered decision differs from a fresh one; the cache was emptied; this is a bug in stockade"
        );
        self.cache.clear();
        Err(MissReason::Changed)
    }

    fn evaluate(&self, snapshot: &Snapshot, query: &Query) -> Result<Evaluation, Undecided> {
        let begun = Instant::now();
        let evaluation = snapshot.evaluation(query).map_err(|fault| {
            tracing::error!(fault, action = %query.action, "a query could not be evaluated; this is a bug in stockade");
            Undecided::Internal
        })?;
        self.metrics.evaluated(evaluation.candidates, begun.elapsed());
        Ok(evaluation)
    }

    fn made(&self, decision: Decision, reason: MissReason) -> Result<Decision, Undecided> {
        self.metrics.cache_missed(reason);
        Ok(Decision { cache: CacheState::Miss(reason), ..decision })
    }
}
