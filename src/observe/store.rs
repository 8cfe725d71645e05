//! What is counted of following the central store.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use super::catalogue::{
    OVERLAY_LEAD_TIME, OVERLAYS, Registry, STORE_CONNECTED, STORE_FRESHNESS, STORE_FROM_DISK, STORE_PROOF_AGE,
    STORE_REFUSALS, STORE_WITHHELD,
};
use crate::model::Freshness;
use crate::store::Refusal;
use crate::store::statement::Kind;

/// How following the central store goes, as it is counted.
#[derive(Debug, Clone, Default)]
pub struct StoreState {
    /// Whether it can be reached.
    pub connected: bool,
    /// How current what is in force is; `None` if directories are followed.
    pub freshness: Option<Freshness>,
    /// How long ago that was proved.
    pub proof_age: Option<Duration>,
    /// Statements that were not believed since the start, by kind and reason.
    pub refusals: Vec<(Kind, &'static str, u64)>,
    /// Whether the copy on disk is in force.
    pub from_disk: bool,
    /// Whether nothing was put in force, because the newest overlays are refused.
    pub withheld: bool,
    /// How many overlays are in force.
    pub overlays: usize,
}

#[derive(Debug)]
pub(super) struct StoreHandles {
    pub(super) overlay_lead_time: Histogram,
    overlays: Gauge,
    connected: Gauge,
    freshness: [(Freshness, Gauge); Freshness::ALL.len()],
    proof_age: Gauge,
    refusals: Vec<(Kind, &'static str, Counter)>,
    from_disk: Gauge,
    withheld: Gauge,
}

impl StoreHandles {
    /// All of them are there from the start: an alarm on a counter that is not there yet never fires.
    pub(super) fn new(registry: &Registry) -> Self {
        let state = |state: Freshness| (state, registry.gauge(STORE_FRESHNESS, &[("state", state.as_str())]));
        let refusal = |kind: Kind, reason| {
            let labels = [("statement", kind.as_str()), ("reason", reason)];
            (kind, reason, registry.counter(STORE_REFUSALS, &labels))
        };
        Self {
            overlay_lead_time: registry.histogram(OVERLAY_LEAD_TIME),
            overlays: registry.gauge(OVERLAYS, &[]),
            connected: registry.gauge(STORE_CONNECTED, &[]),
            freshness: Freshness::ALL.map(state),
            proof_age: registry.gauge(STORE_PROOF_AGE, &[]),
            refusals: Kind::ALL
                .into_iter()
                .flat_map(|kind| Refusal::WORDS.map(|reason| refusal(kind, reason)))
                .collect(),
            from_disk: registry.gauge(STORE_FROM_DISK, &[]),
            withheld: registry.gauge(STORE_WITHHELD, &[]),
        }
    }

    pub(super) fn set(&self, now: &StoreState) {
        let truth = |is_so: bool| f64::from(u8::from(is_so));
        self.overlays.set(now.overlays as f64);
        self.connected.set(truth(now.connected));
        for (state, gauge) in &self.freshness {
            gauge.set(truth(now.freshness == Some(*state)));
        }
        self.proof_age.set(now.proof_age.map_or(f64::NAN, |age| age.as_secs_f64()));
        self.from_disk.set(truth(now.from_disk));
        self.withheld.set(truth(now.withheld));
        for (kind, reason, count) in &now.refusals {
            let found = self.refusals.iter().find(|(own, word, _)| own == kind && word == reason);
            if let Some((.., counter)) = found {
                counter.absolute(*count);
            }
        }
    }
}
