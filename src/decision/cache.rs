//! The decision cache: what was decided, under which snapshot, and until when that may be remembered.
//!
//! Entries outlive nothing that they depend on (design, decision 11): expiry counts from the write and no hit extends it.
//! Nothing is deleted when policies change; an entry carries the generation that it was decided under, and a hit of an
//! older one is held against the Changes since (decision 10). Only this file knows which crate holds the entries.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use deserr::Deserr;
use quick_cache::sync::Cache as Entries;
use quick_cache::{DefaultHashBuilder, Lifecycle, Weighter};
use serde::Serialize;

use crate::model::{Effect, MissReason, Ruling};
use crate::observe::metrics::CacheUsage;
use crate::units::{Bytes, HumanDuration};
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
    pub allow_ttl: HumanDuration,
    /// How long a denial may be remembered at most. Default `5s`.
    #[deserr(default = Config::default().deny_ttl)]
    pub deny_ttl: HumanDuration,
    /// The share of hits that are decided again to see whether they still stand; fewer, where that would take more of
    /// the time than ten times this share. Default `0.001`, so a hundredth of the time.
    #[deserr(default = Config::default().self_check)]
    pub self_check: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            size: Bytes(32 << 20),
            allow_ttl: HumanDuration::seconds(30),
            deny_ttl: HumanDuration::seconds(5),
            self_check: 0.001,
        }
    }
}

/// Remembers rulings by key.
pub struct Cache {
    config: Config,
    enabled: AtomicBool,
    entries: Entries<Box<[u8]>, Arc<Entry>, Weight, DefaultHashBuilder, Removed>,
    /// How many had to make room for others.
    evicted: AtomicU64,
    /// How many were over already when something took their place.
    expired: AtomicU64,
    /// How many were still good for a while when the same request was decided again.
    replaced: AtomicU64,
    /// What the times of entries count from.
    epoch: Instant,
    /// Draws the jitter and the sample.
    draws: AtomicU64,
    /// Until when no hit is decided again.
    resting: AtomicU64,
}

/// A ruling that is remembered.
#[derive(Debug)]
pub struct Entry {
    /// What was ruled; shared with all entries that say the same.
    pub ruling: Arc<Ruling>,
    /// The newest generation that it is known to stand under.
    generation: AtomicU64,
    /// Since the cache's epoch.
    written: Nanos,
    expires: Nanos,
}

/// Nanoseconds, for half the room of a `Duration`: an entry is kept a hundred thousand times.
type Nanos = u64;

/// What an entry takes: its key, itself, and what the map and the allocator keep for both (measured: 100,000 entries with
/// keys of 100 bytes add 25 MiB to the process). Its ruling is shared, unless several policies determined it.
#[derive(Debug, Clone)]
struct Weight;

const OVERHEAD: usize = 160;
/// What an id takes in a ruling that is an entry's own.
const PER_ID: usize = 48;

impl Weighter<Box<[u8]>, Arc<Entry>> for Weight {
    fn weight(&self, key: &Box<[u8]>, entry: &Arc<Entry>) -> u64 {
        let ruling = &entry.ruling;
        let shadow = ruling.shadow.as_ref().map_or(0, |shadow| shadow.determining.len());
        let own = if ruling.determining.len() > 1 || shadow > 0 { size_of::<Ruling>() } else { 0 };
        let ids = ruling.determining.len().saturating_sub(1) + shadow;
        (key.len() + OVERHEAD + own + ids * PER_ID) as u64
    }
}

/// Hands out what an insertion removed. The crate makes no difference between what had to make room and what the same key had
/// before; and it frees nothing while it holds its lock.
#[derive(Debug, Clone)]
struct Removed;

impl Lifecycle<Box<[u8]>, Arc<Entry>> for Removed {
    type RequestState = Vec<(Box<[u8]>, Arc<Entry>)>;

    fn on_evict(&self, removed: &mut Self::RequestState, key: Box<[u8]>, entry: Arc<Entry>) {
        removed.push((key, entry));
    }
}

impl Cache {
    /// An empty one.
    pub fn new(config: Config) -> Self {
        // How many will fit decides how the crate lays itself out; a key is some hundred bytes.
        let expected = usize::try_from(config.size.0).unwrap_or(usize::MAX) / (OVERHEAD + 128);
        let hash = DefaultHashBuilder::default();
        Self {
            enabled: AtomicBool::new(config.enabled),
            entries: Entries::with(expected, config.size.0, Weight, hash, Removed),
            evicted: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            epoch: Instant::now(),
            draws: AtomicU64::new(1),
            resting: AtomicU64::new(0),
            config,
        }
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
        self.entries.clear();
    }

    /// How full it is.
    pub fn usage(&self) -> CacheUsage {
        CacheUsage {
            entries: self.entries.len() as u64,
            bytes: self.entries.weight(),
            capacity: self.entries.capacity(),
            evictions: self.evicted.load(Ordering::Relaxed),
            expirations: self.expired.load(Ordering::Relaxed),
            replacements: self.replaced.load(Ordering::Relaxed),
        }
    }

    /// What is remembered under a key.
    ///
    /// # Errors
    /// [`MissReason::Absent`] or [`MissReason::Expired`].
    pub fn get(&self, key: &[u8], now: Instant) -> Result<Arc<Entry>, MissReason> {
        let entry = self.entries.get(key).ok_or(MissReason::Absent)?;
        if self.nanos(now) >= entry.expires { Err(MissReason::Expired) } else { Ok(entry) }
    }

    /// What is remembered under a key, as [`Self::get`], without counting as a use of it.
    pub fn peek(&self, key: &[u8]) -> Option<Arc<Entry>> {
        self.entries.peek(key)
    }

    /// Remembers a ruling that was made under a generation: for the least of the operator's bound, what the policies say,
    /// and what the token has left. A ruling with evaluation errors is not remembered: an error may heal without
    /// anything that a Change would show.
    pub fn insert(&self, key: &[u8], ruling: &Arc<Ruling>, generation: u64, bounds: Bounds, now: Instant) {
        if ruling.erred() {
            return;
        }
        let (own, bundle) = match ruling.effect {
            Effect::Allow => (self.config.allow_ttl.0, bounds.allow),
            Effect::Deny => (self.config.deny_ttl.0, bounds.deny),
        };
        let ttl =
            [bundle, bounds.policies, bounds.token, bounds.overlays].into_iter().flatten().fold(own, Duration::min);
        // Downwards only, by a tenth at most: a TTL is a bound.
        let ttl = ttl.mul_f64(1.0 - self.draw() / 10.0);
        if ttl.is_zero() {
            return;
        }
        let written = self.nanos(now);
        let expires = written.saturating_add(nanos(ttl));
        let entry = Entry { ruling: Arc::clone(ruling), generation: AtomicU64::new(generation), written, expires };
        let mut removed = Vec::new();
        self.entries.insert_with_lifecycle(key.into(), Arc::new(entry), &mut removed);
        for (own, entry) in removed {
            // One that is larger than all the room there is comes back at once, and counts as having made room.
            let counter = match (entry.expires <= written, *own == *key && entry.written != written) {
                (true, _) => &self.expired,
                (false, true) => &self.replaced,
                (false, false) => &self.evicted,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How long ago an entry was decided.
    pub fn age(&self, entry: &Entry, now: Instant) -> Duration {
        Duration::from_nanos(self.nanos(now).saturating_sub(entry.written))
    }

    /// How long an entry may still answer.
    pub fn left(&self, entry: &Entry, now: Instant) -> Duration {
        Duration::from_nanos(entry.expires.saturating_sub(self.nanos(now)))
    }

    fn nanos(&self, at: Instant) -> Nanos {
        nanos(at.saturating_duration_since(self.epoch))
    }

    /// Whether this hit is one of those that are decided again.
    pub fn is_sampled(&self, now: Instant) -> bool {
        let share = self.config.self_check;
        share > 0.0 && self.draw() < share && self.nanos(now) >= self.resting.load(Ordering::Relaxed)
    }

    /// A hit was decided again. None is for so long now that it keeps to its share of the time: with a thousand policies
    /// that are all candidates, a thousandth of the hits would take as long as a third of all of them.
    pub fn checked(&self, begun: Instant, ended: Instant) {
        let times = (0.1 / self.config.self_check - 1.0).clamp(0.0, 1e6);
        let rest = ended.saturating_duration_since(begun).mul_f64(times);
        self.resting.store(self.nanos(ended).saturating_add(nanos(rest)), Ordering::Relaxed);
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
    /// How long the overlays in force stay the same.
    pub overlays: Option<Duration>,
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
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("config", &self.config).field("usage", &self.usage()).finish_non_exhaustive()
    }
}

/// Saturating: five centuries are as good as for ever.
fn nanos(duration: Duration) -> Nanos {
    Nanos::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}
