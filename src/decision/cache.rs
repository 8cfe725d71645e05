//! The decision cache: what was decided, under which snapshot, and until when that may be remembered.
//!
//! Entries outlive nothing that they depend on (design, decision 11): expiry counts from the write and no hit extends it.
//! Nothing is deleted when policies change; an entry carries the generation that it was decided under, and a hit of an
//! older one is held against the Changes since (decision 10). Only this file knows which crate holds the entries.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use deserr::Deserr;
use serde::Serialize;

use crate::model::{Decision, Effect, MissReason};
use crate::units::{Bytes, Span};
use crate::yaml::Faults;

/// `cache:` of the configuration.
#[derive(Debug, Clone, Deserr, Serialize)]
#[deserr(error = Faults, deny_unknown_fields)]
pub struct Config {
    /// Whether decisions are remembered from the start; the admin endpoint can switch it. Default `true`.
    #[deserr(default = Config::default().enabled)]
    pub enabled: bool,
    /// What all entries may take. Clients choose the keys, so there must be a bound. Default `32MiB`.
    #[deserr(default = Config::default().size)]
    pub size: Bytes,
    /// How long an allow may be remembered at most. Default `30s`.
    #[deserr(default = Config::default().allow_ttl)]
    pub allow_ttl: Span,
    /// How long a denial may be remembered at most. Default `5s`.
    #[deserr(default = Config::default().deny_ttl)]
    pub deny_ttl: Span,
    /// The share of hits that are decided again to see whether they still stand. Default `0.001`.
    #[deserr(default = Config::default().self_check)]
    pub self_check: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            size: Bytes(32 << 20),
            allow_ttl: Span::seconds(30),
            deny_ttl: Span::seconds(5),
            self_check: 0.001,
        }
    }
}

/// Remembers decisions.
#[derive(Debug)]
pub struct Cache {
    config: Config,
    enabled: AtomicBool,
    entries: moka::sync::Cache<Box<[u8]>, Arc<Entry>>,
    /// Draws the jitter and the sample.
    draws: AtomicU64,
}

/// A decision that is remembered.
#[derive(Debug)]
pub struct Entry {
    /// The decision, as it was made.
    pub decision: Decision,
    /// The newest generation that it is known to stand under.
    generation: AtomicU64,
    written: Instant,
    expires: Instant,
}

/// What an entry takes beside its key, roughly: the decision, its ids, and what the map keeps for each.
const OVERHEAD: usize = 320;
/// What an id in a decision takes.
const PER_ID: usize = 48;

impl Cache {
    /// An empty one.
    pub fn new(config: Config) -> Self {
        let builder = moka::sync::Cache::<Box<[u8]>, Arc<Entry>>::builder().max_capacity(config.size.0);
        let builder = builder.weigher(|key, entry| {
            let shadow = entry.decision.shadow.as_ref().map_or(0, |shadow| shadow.determining.len());
            let ids = entry.decision.determining.len() + shadow;
            u32::try_from(key.len() + OVERHEAD + ids * PER_ID).unwrap_or(u32::MAX)
        });
        Self { enabled: AtomicBool::new(config.enabled), entries: builder.build(), draws: AtomicU64::new(1), config }
    }

    /// Whether decisions are remembered now.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Switches it on or off. What was remembered is forgotten either way.
    pub fn enable(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
        self.clear();
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.entries.invalidate_all();
    }

    /// How many decisions are remembered, and what they take in bytes. Both lag a little.
    pub fn size(&self) -> (u64, u64) {
        self.entries.run_pending_tasks();
        (self.entries.entry_count(), self.entries.weighted_size())
    }

    /// What is remembered under a key.
    ///
    /// # Errors
    /// [`MissReason::Absent`] or [`MissReason::Expired`].
    pub fn get(&self, key: &[u8], now: Instant) -> Result<Arc<Entry>, MissReason> {
        let entry = self.entries.get(key).ok_or(MissReason::Absent)?;
        if now >= entry.expires { Err(MissReason::Expired) } else { Ok(entry) }
    }

    /// Remembers a decision that was made under a generation: for the least of the operator's bound, what the policies
    /// say, and what the token has left. Decisions with evaluation errors are not remembered: an error may heal without
    /// anything that a Change would show.
    pub fn insert(&self, key: Vec<u8>, decision: &Decision, generation: u64, bounds: Bounds, now: Instant) {
        if !decision.errors.is_empty() || decision.shadow.as_ref().is_some_and(|shadow| !shadow.errors.is_empty()) {
            return;
        }
        let (own, bundle) = match decision.effect {
            Effect::Allow => (self.config.allow_ttl.0, bounds.allow),
            Effect::Deny => (self.config.deny_ttl.0, bounds.deny),
        };
        let ttl = [bundle, bounds.policies, bounds.token].into_iter().flatten().fold(own, Duration::min);
        // Downwards only, by a tenth at most: a TTL is a bound.
        let ttl = ttl.mul_f64(1.0 - self.draw() / 10.0);
        if ttl.is_zero() {
            return;
        }
        let Some(expires) = now.checked_add(ttl) else { return };
        let generation = AtomicU64::new(generation);
        let entry = Entry { decision: decision.clone(), generation, written: now, expires };
        self.entries.insert(key.into_boxed_slice(), Arc::new(entry));
    }

    /// Whether this hit is one of those that are decided again.
    pub fn is_sampled(&self) -> bool {
        self.config.self_check > 0.0 && self.draw() < self.config.self_check
    }

    /// A number from 0 up to 1 (splitmix64, <https://prng.di.unimi.it/splitmix64.c>): spread is all that is asked of it.
    fn draw(&self) -> f64 {
        let mut z = self.draws.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// What else bounds the life of an entry.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bounds {
    /// `ttl.allow` of the bundle.
    pub allow: Option<Duration>,
    /// `ttl.deny` of the bundle.
    pub deny: Option<Duration>,
    /// The least `@ttl` of the policies that were candidates.
    pub policies: Option<Duration>,
    /// What the principal's token has left.
    pub token: Option<Duration>,
}

impl Entry {
    /// The newest generation that it is known to stand under.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// It stands under this generation as well. A racing promotion can only have found the same or more.
    pub fn promote(&self, generation: u64) {
        self.generation.fetch_max(generation, Ordering::AcqRel);
    }

    /// How long ago it was decided.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.written)
    }
}

/// Whether two decisions about one query are the same in everything that anyone can see.
pub fn agree(fresh: &Decision, remembered: &Decision) -> bool {
    fresh.effect == remembered.effect
        && fresh.reason == remembered.reason
        && fresh.determining == remembered.determining
        && fresh.errors == remembered.errors
        && fresh.shadow == remembered.shadow
        && fresh.denial == remembered.denial
}
