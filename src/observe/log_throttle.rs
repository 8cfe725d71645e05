//! Saying a thing once in a while: what a request can provoke, a client could fill the log with.

use std::fmt;
use std::hash::Hash;
use std::time::Duration;

use moka::sync::Cache;

/// Lets the first word about each thing pass, and the next one after a while.
pub struct Sparingly<K>(Cache<K, ()>);

impl<K> fmt::Debug for Sparingly<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sparingly").finish_non_exhaustive()
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Sparingly<K> {
    /// Each thing once in this time, for so many things at once; beyond that, some are let pass again early.
    pub fn new(every: Duration, things: u64) -> Self {
        Self(Cache::builder().max_capacity(things).time_to_live(every).build())
    }

    /// Whether this is the first word about it in a while.
    pub fn lets_pass(&self, thing: &K) -> bool {
        self.0.entry_by_ref(thing).or_insert(()).is_fresh()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_passes_once() {
        let (a, b) = ("a", "b");
        let sparingly = Sparingly::new(Duration::from_secs(3600), 100);
        assert!(sparingly.lets_pass(&a) && sparingly.lets_pass(&b));
        assert!(!sparingly.lets_pass(&a) && !sparingly.lets_pass(&b));
    }
}
