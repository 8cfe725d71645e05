//! Clients choose the keys, so the cache is bounded in bytes, and what is hot stays under keys that never come again.
//! Only this file knows how the cache is filled.

use std::process::Command;
use std::time::{Duration, Instant};

use stockade::decision::cache::Bounds;
use stockade::model::{Effect, Reason, Ruling};
use stockade::units::Bytes;

use super::*;

/// Set in the process that a test starts for itself alone.
const ALONE: &str = "STOCKADE_ALONE";

/// Fills a cache as the engine does.
struct Filled {
    cache: Cache,
    ruling: Arc<Ruling>,
    now: Instant,
}

impl Filled {
    fn new(bytes: u64) -> Self {
        let hour = HumanDuration::seconds(3600);
        let config = cache::Config { size: Bytes(bytes), allow_ttl: hour, deny_ttl: hour, ..cache::Config::default() };
        let ruling = Ruling {
            effect: Effect::Allow,
            reason: Reason::Policy,
            determining: vec!["b/p".parse().unwrap()],
            errors: Vec::new(),
            shadow: None,
            denial: None,
        };
        Self { cache: Cache::new(config), ruling: Arc::new(ruling), now: Instant::now() }
    }

    /// A key of its own for each number: as long as most are, and now and then a long one.
    fn key(number: u64) -> Vec<u8> {
        let mut key = vec![b'k'; if number.is_multiple_of(50) { 1500 } else { 80 + (number % 60) as usize }];
        key[..8].copy_from_slice(&number.to_le_bytes());
        key
    }

    /// Looks a key up, and remembers it if it was not there. Whether it was.
    fn ask(&self, number: u64) -> bool {
        let key = Self::key(number);
        let hit = self.cache.get(&key, self.now).is_ok();
        if !hit {
            self.cache.insert(&key, &self.ruling, 1, Bounds::default(), self.now);
        }
        hit
    }
}

/// What the process has in memory, in bytes; `None` where the system does not say.
fn resident() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(pages.split(' ').nth(1)?.parse::<u64>().ok()? * 4096)
}

/// Runs a test of this name in a process that nothing else fills.
fn alone(name: &str, work: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return work();
    }
    let name = format!("engine::bounds::{name}");
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--include-ignored", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    println!("{}", out.lines().filter(|line| line.starts_with("filled")).collect::<Vec<_>>().join("\n"));
    assert!(run.status.success() && out.contains("1 passed"), "{out}\n{err}");
}

/// So many keys, none of them twice, into so many bytes.
fn fill(keys: u64, bytes: u64) {
    // Code counts once it has run.
    let warm = Filled::new(1 << 16);
    (0..10_000).for_each(|number| _ = warm.ask(number));
    let before = resident();
    let filled = Filled::new(bytes);
    let mut most = 0;
    for number in 0..keys {
        filled.ask(number);
        if number % 1000 == 0 {
            most = most.max(filled.cache.usage().bytes);
            assert!(filled.cache.usage().bytes <= bytes, "after {number} keys: {:?}", filled.cache.usage());
        }
    }
    let usage = filled.cache.usage();
    // Bounded, and not by being empty.
    assert!(most > bytes / 2 && usage.evictions > keys / 2, "{usage:?}");
    let grown = before.and_then(|before| Some(resident()?.saturating_sub(before)));
    println!(
        "filled with {keys} keys: {} entries of {most} bytes at most, of {bytes}; the process grew by {grown:?}",
        usage.entries
    );
    // What an entry takes is estimated, and the allocator has its share.
    assert!(grown.is_none_or(|grown| grown < bytes * 3 / 2 + (1 << 20)), "{grown:?} of {bytes}");
}

#[test]
fn memory_stays_within_its_bound() {
    alone("memory_stays_within_its_bound", || fill(300_000, 4 << 20));
}

/// The long form.
#[test]
#[ignore = "half a minute with optimisation; `make engine` runs it"]
fn memory_stays_within_its_bound_for_ten_million_keys() {
    alone("memory_stays_within_its_bound_for_ten_million_keys", || fill(10_000_000, 32 << 20));
}

/// A thousand keys that come again and again, among twenty times as many that never do: between two visits of one, more
/// others pass than the cache can hold. Whoever evicts by age alone would have none of them.
#[test]
fn what_is_hot_survives_a_scan() {
    const HOT: u64 = 1_000;
    let filled = Filled::new(3 << 20);
    // Known before the scan begins.
    (0..3 * HOT).for_each(|turn| _ = filled.ask(turn % HOT));
    let (mut hits, mut asked, mut next) = (0, 0, HOT);
    for turn in 0..15 * HOT {
        hits += u64::from(filled.ask(turn % HOT));
        asked += 1;
        (0..20).for_each(|_| {
            filled.ask(next);
            next += 1;
        });
    }
    let usage = filled.cache.usage();
    println!("hot: {hits} hits of {asked}, while {} keys passed through {} entries", next - HOT, usage.entries);
    assert!(usage.entries < 20 * HOT, "nothing had to make room: {usage:?}");
    assert!(hits * 10 > asked * 9, "{hits} of {asked}");
}

/// Whoever reads the counters learns whether the cache is too small, and nothing else makes it look so.
#[test]
fn only_what_had_to_make_room_counts_as_evicted() {
    let filled = Filled::new(1 << 20);
    let usage = || {
        let usage = filled.cache.usage();
        (usage.evictions, usage.expirations, usage.replacements)
    };
    let insert = |key: &[u8], ttl: Duration, now: Instant| {
        let bounds = Bounds { policies: Some(ttl), ..Bounds::default() };
        filled.cache.insert(key, &filled.ruling, 1, bounds, now);
    };
    let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
    insert(b"a", second, filled.now);
    assert_eq!(usage(), (0, 0, 0));
    // Twice before it is over, and once after.
    insert(b"a", second, filled.now + Duration::from_millis(1));
    insert(b"a", second, filled.now + Duration::from_millis(2));
    assert_eq!(usage(), (0, 0, 2));
    insert(b"a", hour, filled.now + 5 * second);
    assert_eq!(usage(), (0, 1, 2));
    filled.cache.clear();
    assert_eq!(usage(), (0, 1, 2), "what is cleared made room for nobody");
    // Too large to be remembered at all.
    insert(&vec![0; 2 << 20], hour, filled.now);
    assert_eq!(usage(), (1, 1, 2));
    // What is over makes room, and what is not.
    for number in 0..10_000 {
        insert(&Filled::key(number), second, filled.now);
    }
    let (evicted, expired, _) = usage();
    assert!(evicted > 1_000 && expired == 1, "{evicted}, {expired}");
    for number in 10_000..20_000 {
        insert(&Filled::key(number), hour, filled.now + 5 * second);
    }
    let (again, expired, replaced) = usage();
    assert!(again > evicted && expired > 1 && replaced == 2, "{evicted}, {again}, {expired}");
}
