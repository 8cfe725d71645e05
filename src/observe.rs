//! What the sidecar tells about itself: one [`Record`](decision_log::Record) per decision, the [`Metrics`], and the log
//! of the program. Nothing here decides anything, and nothing here may hold a decision up.

use crate::model::Outcome;

mod cache;
pub mod catalogue;
pub mod decision_log;
mod decisions;
mod line_writer;
pub mod log_throttle;
pub mod metrics;
mod record;
pub mod reference;
pub mod store;
pub mod tracing;
pub mod transport;

pub use decision_log::DecisionLog;
pub use metrics::Metrics;

/// How an outcome is called in records and metrics: `(outcome, reason)`.
///
/// `outcome` has the three values that Envoy's own counters tell apart: `allow` is its `ok`, `deny` its `denied`,
/// `undecided` its `error`. The words of `reason` are of bounded number and no two of them are the same.
pub fn words(outcome: &Outcome) -> (&'static str, &'static str) {
    match outcome {
        Outcome::Decided(decision) => (decision.effect.as_str(), decision.reason.as_str()),
        Outcome::Unmapped(unmapped) => ("deny", unmapped.kind.as_str()),
        Outcome::Undecided(undecided) => ("undecided", undecided.as_str()),
    }
}
