//! Saying a thing once in a while: what a request can provoke, a client could fill the log with.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets the first word about each thing pass, and the next one after a while.
#[derive(Debug)]
pub struct Sparingly<K> {
    every: Duration,
    limit: usize,
    /// When each thing was last let pass.
    passed: Mutex<HashMap<K, Instant>>,
}

impl<K: Hash + Eq + Clone> Sparingly<K> {
    /// Each thing once in this time, for so many things at once; beyond that, some are let pass again early.
    pub fn new(every: Duration, limit: usize) -> Self {
        Self { every, limit, passed: Mutex::default() }
    }

    /// Whether this is the first word about it in a while.
    pub fn lets_pass(&self, thing: &K) -> bool {
        self.lets_pass_at(thing, Instant::now())
    }

    fn lets_pass_at(&self, thing: &K, now: Instant) -> bool {
        let is_recent = |passed: &Instant| now.saturating_duration_since(*passed) < self.every;
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        if passed.get(thing).is_some_and(is_recent) {
            return false;
        }
        if passed.len() >= self.limit {
            passed.retain(|_, at| is_recent(at));
        }
        if passed.len() >= self.limit {
            passed.clear();
        }
        passed.insert(thing.clone(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_passes_once_in_a_while() {
        let (a, b, c) = ("a", "b", "c");
        let sparingly = Sparingly::new(Duration::from_secs(60), 2);
        let start = Instant::now();
        let passes = |thing, second| sparingly.lets_pass_at(thing, start + Duration::from_secs(second));
        assert!(passes(&a, 0) && passes(&b, 1));
        assert!(!passes(&a, 59) && !passes(&b, 60));
        assert!(passes(&a, 60));
        // There is room for two: the one whose time is over is forgotten.
        assert!(passes(&c, 61) && !passes(&a, 62));
        // And where nobody's is, everything.
        assert!(passes(&b, 63) && passes(&a, 64));
    }
}
