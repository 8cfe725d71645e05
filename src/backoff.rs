//! Pauses between attempts that fail: they double up to a limit. How they are spread over many sidecars is for each caller to choose.

use std::time::Duration;

/// How the pauses grow. A value without state: the caller counts the attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// Doubled by each attempt.
    pub(crate) base: Duration,
    /// The longest pause.
    pub(crate) longest: Duration,
}

impl Backoff {
    /// The limit of the pause after a failed attempt, counted from 1.
    pub(crate) fn limit(self, attempt: u32) -> Duration {
        self.base.saturating_mul(1 << attempt.min(16)).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let backoff = Backoff { base: Duration::from_millis(100), longest: Duration::from_secs(4) };
        let pauses = [1, 2, 3, 5, 6, 100, u32::MAX].map(|attempt| backoff.limit(attempt).as_millis());
        assert_eq!(pauses, [200, 400, 800, 3200, 4000, 4000, 4000]);
    }
}
