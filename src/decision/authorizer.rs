//! Decides Queries under the snapshot in force, from memory where that is as good.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use tokio::sync::watch;

use super::cache::{Bounds, Cache, Entry};
use super::freshness::LastProof;
use super::key::{self, Key};
use crate::model::{CacheState, Decision, Freshness, MissReason, Query, Reason, Root, Ruling, Undecided};
use crate::observe::Metrics;
use crate::observe::log_throttle::LogThrottle;
use crate::policy::{ActionType, Evaluation, Snapshot};

/// Decides Queries. All listeners share one.
#[derive(Debug)]
pub struct Authorizer {
    /// The feed holds the sender; `None` until the first snapshot is in force.
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// How current the snapshot is known to be.
    proof: Arc<LastProof>,
    cache: Arc<Cache>,
    metrics: Metrics,
    complaints: LogThrottle,
}

/// How often a policy that cannot be evaluated is complained about, and about how many at a time.
const COMPLAINTS: (Duration, u64) = (Duration::from_secs(60), 1000);

impl Authorizer {
    /// Decides under whatever snapshot the channel holds.
    pub fn new(
        snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
        proof: Arc<LastProof>,
        cache: Arc<Cache>,
        metrics: Metrics,
    ) -> Self {
        let complaints = LogThrottle::new(COMPLAINTS.0, COMPLAINTS.1);
        Self { snapshots, proof, cache, metrics, complaints }
    }

    /// The snapshot in force, whatever its age.
    ///
    /// # Errors
    /// [`Undecided::NotReady`] if there is none yet.
    pub fn current(&self) -> Result<Arc<Snapshot>, Undecided> {
        self.snapshots.borrow().clone().ok_or(Undecided::NotReady)
    }

    /// The snapshot to decide under, and how current it is known to be. A request is mapped and decided under one snapshot, so it is
    /// taken once.
    ///
    /// # Errors
    /// [`Undecided::NotReady`] if there is none yet, [`Undecided::Stale`] if it is too old to decide by.
    pub fn take(&self) -> Result<(Arc<Snapshot>, Option<Freshness>), Undecided> {
        let snapshot = self.current()?;
        self.proof.check().map(|freshness| (snapshot, freshness))
    }

    /// Decides a Query under a snapshot. `token` is when the principal's token expires, if it is one that does.
    ///
    /// # Errors
    /// [`Undecided::Internal`] if the Query is not what mapping promises, which is a fault of ours and is logged.
    pub fn decide(&self, snapshot: &Snapshot, query: &Query, token: Option<SystemTime>) -> Result<Decision, Undecided> {
        let Some(action) = snapshot.routed(query) else { return Ok(snapshot.unrouted()) };
        let overlays_changed = snapshot.overlays_changed();
        if !self.cache.is_enabled() {
            return self.evaluate(snapshot, query, overlays_changed).map(|made| snapshot.stands(&made.ruling));
        }
        // The next snapshot is on its way, and knows what of the remembered stands. Until then nothing does.
        if let Some(now) = overlays_changed {
            return self.made(snapshot, &self.evaluate(snapshot, query, Some(now))?.ruling, MissReason::Changed);
        }
        key::with_room(|key| {
            if !write_key(action, query, key) {
                return self.made(snapshot, &self.evaluate(snapshot, query, None)?.ruling, MissReason::Uncacheable);
            }
            let now = Instant::now();
            match self.remembered(snapshot, query, key, now) {
                Ok(decision) => Ok(decision),
                Err(reason) => {
                    let Evaluation { ruling, ttl, .. } = self.evaluate(snapshot, query, None)?;
                    let (allow, deny) = snapshot.ttl();
                    // Envoy has verified it: one that is over by now was good when the request came, and has nothing left.
                    let token = token.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
                    let bounds = Bounds { allow, deny, policies: ttl, token, overlays: snapshot.overlays_last() };
                    // Under the generation that it was decided under, which was read before the evaluation: a push in
                    // between is held against it at the next hit.
                    self.cache.insert(key, &ruling, snapshot.generation, bounds, now);
                    self.made(snapshot, &ruling, reason)
                }
            }
        })
    }

    /// What the cache remembers of a query, if that still stands.
    fn remembered(&self, snapshot: &Snapshot, query: &Query, key: &[u8], now: Instant) -> Result<Decision, MissReason> {
        let entry = self.cache.get(key, now)?;
        if !stands(&entry, snapshot, query) {
            return Err(MissReason::Changed);
        }
        if entry.generation() != snapshot.generation {
            entry.promote(snapshot.generation);
            self.metrics.cache_promoted();
        }
        let age = self.cache.age(&entry, now);
        let decision = Decision { cache: CacheState::Hit(age), ..snapshot.stands(&entry.ruling) };
        if self.cache.is_sampled(now) {
            self.check(snapshot, query, &decision)?;
        }
        self.metrics.cache_hit(age);
        Ok(decision)
    }

    /// What the cache has for a query, and what a check would find. Asking changes nothing and counts as nothing.
    pub fn explain(&self, snapshot: &Snapshot, query: &Query) -> Explanation {
        let none = |finds| Explanation { finds, key_bytes: None, entry: None };
        let Some(action) = snapshot.routed(query) else { return none(Reason::Unrouted.as_str()) };
        if !self.cache.is_enabled() {
            return none("off");
        }
        let mut key = Key::new();
        if !write_key(action, query, &mut key) {
            return none(MissReason::Uncacheable.as_str());
        }
        let now = Instant::now();
        let entry = self.cache.peek(&key);
        let left = entry.as_ref().map(|entry| self.cache.left(entry, now));
        let finds = match (&entry, left) {
            (None, _) => MissReason::Absent.as_str(),
            (_, Some(Duration::ZERO)) => MissReason::Expired.as_str(),
            (Some(_), _) if snapshot.overlays_changed().is_some() => MissReason::Changed.as_str(),
            (Some(entry), _) if !stands(entry, snapshot, query) => MissReason::Changed.as_str(),
            _ => CacheState::Hit(Duration::ZERO).as_str(),
        };
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let entry = entry.map(|entry| Remembered {
            decision: entry.ruling.effect.as_str(),
            reason: entry.ruling.reason.as_str(),
            determining: entry.ruling.determining.iter().map(ToString::to_string).collect(),
            generation: entry.generation(),
            age_ms: millis(self.cache.age(&entry, now)),
            left_ms: left.map_or(0, millis),
        });
        Explanation { finds, key_bytes: Some(key.len()), entry }
    }

    /// Decides a hit again. A difference is a bug of ours and a breach at worst: everything is forgotten.
    fn check(&self, snapshot: &Snapshot, query: &Query, remembered: &Ruling) -> Result<(), MissReason> {
        let begun = Instant::now();
        let same = snapshot.decide(query).is_ok_and(|fresh| *fresh.ruling == *remembered);
        self.cache.checked(begun, Instant::now());
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

    fn evaluate(&self, snapshot: &Snapshot, query: &Query, at: Option<SystemTime>) -> Result<Evaluation, Undecided> {
        let begun = Instant::now();
        let evaluation = snapshot.evaluate(query, at).map_err(|fault| {
            tracing::error!(fault, action = %query.action, "a query could not be evaluated; this is a bug in stockade");
            Undecided::Internal
        })?;
        self.metrics.evaluated(evaluation.candidates, begun.elapsed());
        for error in evaluation.ruling.errors.iter().filter(|error| self.complaints.lets_pass(&error.policy)) {
            // What Cedar says may quote the request; that is for the decision log.
            tracing::warn!(
                policy = %error.policy, action = %query.action,
                "a policy could not be evaluated; a `forbid` denies then, a `permit` is skipped; the decision log says \
                 why (told once a minute for each policy)"
            );
        }
        Ok(evaluation)
    }

    fn made(&self, snapshot: &Snapshot, ruling: &Arc<Ruling>, reason: MissReason) -> Result<Decision, Undecided> {
        self.metrics.cache_missed(reason);
        Ok(Decision { cache: CacheState::Miss(reason), ..snapshot.stands(ruling) })
    }
}

/// Writes the key of a query; `false` if it has none: the policies of its action read the clock, which makes every Query another
/// one.
fn write_key(action: &ActionType, query: &Query, key: &mut Key) -> bool {
    if action.context.iter().any(|(root, _)| *root == Root::Time) {
        return false;
    }
    key::encode(query, &action.fingerprint, key);
    true
}

/// Whether an entry answers under a snapshot. One that is newer does not: a push came while the request was mapped, which
/// answers by its own.
fn stands(entry: &Entry, snapshot: &Snapshot, query: &Query) -> bool {
    let generation = entry.generation();
    generation == snapshot.generation
        || (generation < snapshot.generation && snapshot.spares(generation, &entry.ruling, query))
}

/// What the cache has for a query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// What a check would find: `hit`, the reason of a miss as metrics have it, `off`, or `unrouted` for a request that is denied
    /// before the cache is asked.
    pub finds: &'static str,
    /// How long the key is, in bytes; `None` if the query has none.
    pub key_bytes: Option<usize>,
    /// What is there, whether it still answers or not.
    pub entry: Option<Remembered>,
}

/// An entry of the cache, to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remembered {
    /// `allow` or `deny`.
    pub decision: &'static str,
    /// The reason, as metrics have it.
    pub reason: &'static str,
    /// The policies that determined it.
    pub determining: Vec<String>,
    /// The newest generation that it is known to stand under.
    pub generation: u64,
    /// Milliseconds since it was decided.
    pub age_ms: u64,
    /// Milliseconds that it may still answer.
    pub left_ms: u64,
}
