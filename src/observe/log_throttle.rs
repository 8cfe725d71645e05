//! Reporting a thing once in a while: what a request can provoke, a client could fill the log with.

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::Duration;

use moka::sync::Cache;

/// Lets the first report of each thing pass, and the next one after a while.
///
/// Things are kept as their hashes, so that one kind of cache serves all of them: two that share one, which nobody can
/// choose, are reported as one for a while.
pub struct LogThrottle {
    reported: Cache<u64, ()>,
    hashes: RandomState,
}

impl fmt::Debug for LogThrottle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogThrottle").finish_non_exhaustive()
    }
}

impl LogThrottle {
    /// Each thing once in this time, for so many things at once; beyond that, some are let pass again early.
    pub fn new(every: Duration, things: u64) -> Self {
        Self { reported: Cache::builder().max_capacity(things).time_to_live(every).build(), hashes: RandomState::new() }
    }

    /// Whether this is the first report of it in a while.
    pub fn lets_pass(&self, thing: &impl Hash) -> bool {
        self.reported.entry(self.hashes.hash_one(thing)).or_insert(()).is_fresh()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_passes_once() {
        let throttle = LogThrottle::new(Duration::from_secs(3600), 100);
        assert!(throttle.lets_pass(&"a") && throttle.lets_pass(&"b"));
        assert!(!throttle.lets_pass(&"a") && !throttle.lets_pass(&"b"));
    }
}
