//! What is counted of the decision cache.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};
use serde::Serialize;

use super::catalogue::{
    CACHE_AGE, CACHE_BYTES, CACHE_CAPACITY, CACHE_CHECKS, CACHE_ENTRIES, CACHE_EVICTIONS, CACHE_EXPIRATIONS,
    CACHE_HITS, CACHE_MISSES, CACHE_PROMOTIONS, CACHE_REPLACEMENTS, Registry,
};
use crate::model::MissReason;

/// How full the decision cache is, and what it lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CacheUsage {
    /// Rulings that are remembered; those that have expired leave when their key is asked for, or room is needed.
    pub entries: u64,
    /// What they take in bytes, by the measure of `cache.size`.
    pub bytes: u64,
    /// What they may take.
    #[serde(rename = "capacity_bytes")]
    pub capacity: u64,
    /// How many had to make room since the start.
    pub evictions: u64,
    /// How many were over when something took their place.
    pub expirations: u64,
    /// How many were decided again before they were over.
    pub replacements: u64,
}

/// What the decision cache has done since the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CacheCounts {
    /// Decisions that were remembered.
    pub hits: u64,
    /// Decisions that were made although the cache was on, by reason.
    pub misses: BTreeMap<&'static str, u64>,
    /// Remembered decisions that stood although the bundles had changed.
    pub promotions: u64,
    /// Hits that were decided again, by result.
    pub self_checks: BTreeMap<&'static str, u64>,
}

/// A count of our own, so that it can be read, and the counter that shows it.
#[derive(Debug)]
struct Count {
    value: AtomicU64,
    shown: Counter,
}

impl Count {
    fn new(shown: Counter) -> Self {
        Self { value: AtomicU64::new(0), shown }
    }

    fn increment(&self) {
        self.value.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    fn show(&self) {
        self.shown.absolute(self.get());
    }
}

#[derive(Debug)]
pub(super) struct CacheHandles {
    hits: Count,
    misses: [(MissReason, Count); MissReason::ALL.len()],
    promotions: Count,
    agreed: Count,
    differed: Count,
    age: Histogram,
    entries: Gauge,
    bytes: Gauge,
    capacity: Gauge,
    evictions: Counter,
    expirations: Counter,
    replacements: Counter,
}

const AGREES: &str = "agrees";
const DIFFERS: &str = "differs";

impl CacheHandles {
    pub(super) fn new(registry: &Registry) -> Self {
        let count = |name, labels: &[(&'static str, &str)]| Count::new(registry.counter(name, labels));
        Self {
            hits: count(CACHE_HITS, &[]),
            misses: MissReason::ALL.map(|reason| (reason, count(CACHE_MISSES, &[("reason", reason.as_str())]))),
            promotions: count(CACHE_PROMOTIONS, &[]),
            agreed: count(CACHE_CHECKS, &[("result", AGREES)]),
            differed: count(CACHE_CHECKS, &[("result", DIFFERS)]),
            age: registry.histogram(CACHE_AGE),
            entries: registry.gauge(CACHE_ENTRIES, &[]),
            bytes: registry.gauge(CACHE_BYTES, &[]),
            capacity: registry.gauge(CACHE_CAPACITY, &[]),
            evictions: registry.counter(CACHE_EVICTIONS, &[]),
            expirations: registry.counter(CACHE_EXPIRATIONS, &[]),
            replacements: registry.counter(CACHE_REPLACEMENTS, &[]),
        }
    }

    pub(super) fn hit(&self, age: Duration) {
        self.hits.increment();
        self.age.record(age);
    }

    pub(super) fn missed(&self, reason: MissReason) {
        if let Some((_, count)) = self.misses.iter().find(|(of, _)| *of == reason) {
            count.increment();
        }
    }

    pub(super) fn promoted(&self) {
        self.promotions.increment();
    }

    pub(super) fn checked(&self, agrees: bool) {
        if agrees { &self.agreed } else { &self.differed }.increment();
    }

    pub(super) fn counts(&self) -> CacheCounts {
        CacheCounts {
            hits: self.hits.get(),
            misses: self.misses.iter().map(|(reason, count)| (reason.as_str(), count.get())).collect(),
            promotions: self.promotions.get(),
            self_checks: [(AGREES, self.agreed.get()), (DIFFERS, self.differed.get())].into(),
        }
    }

    /// Shows the counts, and this.
    pub(super) fn show(&self, usage: &CacheUsage) {
        let counts = [&self.hits, &self.promotions, &self.agreed, &self.differed];
        counts.into_iter().chain(self.misses.iter().map(|(_, count)| count)).for_each(Count::show);
        self.entries.set(usage.entries as f64);
        self.bytes.set(usage.bytes as f64);
        self.capacity.set(usage.capacity as f64);
        self.evictions.absolute(usage.evictions);
        self.expirations.absolute(usage.expirations);
        self.replacements.absolute(usage.replacements);
    }
}
