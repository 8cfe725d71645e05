//! Saying a thing once in a while: what a request can provoke, a client could fill the log with.

use std::time::Duration;

use moka::sync::Cache;

use crate::model::PolicyId;

/// Lets the first word about each policy pass, and the next one after a while.
#[derive(Debug)]
pub struct Sparingly(Cache<PolicyId, ()>);

impl Sparingly {
    /// Each policy once in this time, for so many policies at once; beyond that, some are let pass again early.
    pub fn new(every: Duration, policies: u64) -> Self {
        Self(Cache::builder().max_capacity(policies).time_to_live(every).build())
    }

    /// Whether this is the first word about it in a while.
    pub fn lets_pass(&self, policy: &PolicyId) -> bool {
        self.0.entry_by_ref(policy).or_insert(()).is_fresh()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_passes_once() {
        let (a, b) = (PolicyId::new("a"), PolicyId::new("b"));
        let sparingly = Sparingly::new(Duration::from_secs(3600), 100);
        assert!(sparingly.lets_pass(&a) && sparingly.lets_pass(&b));
        assert!(!sparingly.lets_pass(&a) && !sparingly.lets_pass(&b));
    }
}
