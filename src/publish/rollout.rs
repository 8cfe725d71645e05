//! The rollout of a statement: which sidecars enforce it, how soon, and which do not.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::store::statement::{Kind, Status, Timestamp, Version};

/// A sidecar, by namespace and pod.
pub type Sidecar = (String, String);

/// Which sidecars enforce a statement so far, of those that were there when it was published.
#[derive(Debug)]
pub struct Waiting {
    kind: Kind,
    version: Version,
    published_at: Timestamp,
    sidecars: BTreeMap<Sidecar, PodState>,
    /// How many there should be; those that were not there before are waited for until there are so many.
    expected: usize,
}

/// What a pod has said of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
enum PodState {
    Unheard,
    /// With the lead time in milliseconds, if it reported one.
    Enforces(Option<u64>),
    Rejects(String),
}

/// What came of waiting. Times in milliseconds, from the signing to the enforcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How many sidecars were there.
    pub sidecars: usize,
    /// How many of them enforce it.
    pub enforced: usize,
    /// Half of them were no slower.
    pub p50_ms: Option<u64>,
    /// All but one in a hundred were no slower.
    pub p99_ms: Option<u64>,
    /// The slowest, slowest first.
    pub slowest: Vec<(String, u64)>,
    /// Which refuse it, and why.
    pub rejections: Vec<(String, String)>,
    /// Which have reported nothing.
    pub missing: Vec<String>,
}

/// How many of the slowest are named.
const SLOWEST: usize = 3;

impl Waiting {
    /// For a statement, before anyone has it. `present` is what sidecars reported last, and `expected` how many there should be.
    pub fn new(kind: Kind, version: Version, published_at: Timestamp, present: &[Status], expected: usize) -> Self {
        let sidecars = present.iter().map(|status| (sidecar(status), PodState::Unheard)).collect();
        Self { kind, version, published_at, sidecars, expected }
    }

    /// How many sidecars are waited for.
    pub fn expected(&self) -> usize {
        self.sidecars.len().max(self.expected)
    }

    /// How many of them enforce it.
    pub fn enforced(&self) -> usize {
        self.sidecars.values().filter(|state| matches!(state, PodState::Enforces(_))).count()
    }

    /// Whether any of them refuses it.
    pub fn is_rejected(&self) -> bool {
        self.sidecars.values().any(|state| matches!(state, PodState::Rejects(_)))
    }

    /// Whether every one of them has reported.
    pub fn is_over(&self) -> bool {
        self.sidecars.len() >= self.expected && !self.sidecars.values().any(|state| *state == PodState::Unheard)
    }

    /// Whether at least this share of them, in percent, enforces it.
    pub fn has(&self, percent: f64) -> bool {
        // Counts of sidecars are far below 2^52, where this would lose bits.
        #[expect(clippy::cast_precision_loss, reason = "counts of sidecars")]
        let (enforced, expected) = (self.enforced() as f64, self.expected() as f64);
        enforced * 100.0 >= percent * expected
    }

    /// Takes note of what a sidecar reports. One that was not there before is not waited for, unless more are expected than were there;
    /// one that leaves is not waited for any more.
    pub fn hear(&mut self, status: &Status) {
        if status.leaving {
            self.sidecars.remove(&sidecar(status));
            return;
        }
        if self.sidecars.len() < self.expected {
            self.sidecars.entry(sidecar(status)).or_insert(PodState::Unheard);
        }
        let Some(state) = self.sidecars.get_mut(&sidecar(status)) else { return };
        let (head, lead) = match self.kind {
            Kind::Overlays => (status.overlays, status.overlays_lead_time_ms),
            Kind::Manifest | Kind::Beacon => (status.manifest, status.lead_time_ms),
        };
        match (head, &status.rejection) {
            // Someone may have published after us: a sidecar that is past it had it or has better.
            (Some(head), _) if head.version >= self.version => *state = PodState::Enforces(lead),
            // What it refused before this was published was something else.
            (_, Some(why)) if status.at >= self.published_at => *state = PodState::Rejects(why.clone()),
            _ => {}
        }
    }

    /// How it stands.
    pub fn report(&self) -> Report {
        let name = |(namespace, pod): &Sidecar| format!("{namespace}/{pod}");
        let mut leads: Vec<(String, u64)> = Vec::new();
        let (mut rejections, mut missing) = (Vec::new(), Vec::new());
        for (sidecar, state) in &self.sidecars {
            match state {
                PodState::Enforces(Some(lead)) => leads.push((name(sidecar), *lead)),
                PodState::Enforces(None) => {}
                PodState::Rejects(why) => rejections.push((name(sidecar), why.clone())),
                PodState::Unheard => missing.push(name(sidecar)),
            }
        }
        leads.sort_by_key(|(_, lead)| std::cmp::Reverse(*lead));
        let mut times: Vec<u64> = leads.iter().map(|(_, lead)| *lead).collect();
        times.reverse();
        leads.truncate(SLOWEST);
        Report {
            sidecars: self.expected(),
            enforced: self.enforced(),
            p50_ms: percentile(&times, 50),
            p99_ms: percentile(&times, 99),
            slowest: leads,
            rejections,
            missing,
        }
    }
}

fn sidecar(status: &Status) -> Sidecar {
    (status.namespace.clone(), status.pod.clone())
}

/// The least of the sorted values that so many percent of them do not exceed (nearest rank).
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::store::statement::Head;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(UNIX_EPOCH + Duration::from_secs(seconds))
    }

    fn version(generation: u64) -> Version {
        Version { epoch: 1, generation }
    }

    fn status(pod: &str, generation: u64, seconds: u64) -> Status {
        Status {
            pod: pod.to_owned(),
            namespace: "shop".to_owned(),
            sidecar: "0.1.0".to_owned(),
            manifest: Some(Head::of(version(generation), b"")),
            overlays: None,
            revision: None,
            enforced_at: None,
            lead_time_ms: Some(generation * 10),
            overlays_lead_time_ms: None,
            freshness: "fresh".to_owned(),
            rejection: None,
            leaving: false,
            at: at(seconds),
        }
    }

    #[test]
    fn those_who_were_there_are_waited_for() {
        let present = ["a", "b", "c", "d"].map(|pod| status(pod, 1, 5));
        let mut waiting = Waiting::new(Kind::Manifest, version(2), at(10), &present, 0);
        assert_eq!((waiting.expected(), waiting.enforced(), waiting.is_over()), (4, 0, false));
        waiting.hear(&status("a", 2, 11));
        waiting.hear(&status("late", 2, 11));
        waiting.hear(&status("b", 3, 11));
        waiting.hear(&status("c", 1, 12));
        // What it refused before, and what it refuses now.
        waiting.hear(&Status { rejection: Some("old".to_owned()), ..status("c", 1, 9) });
        assert!(!waiting.is_rejected());
        waiting.hear(&Status { rejection: Some("new".to_owned()), ..status("d", 1, 12) });
        assert!(waiting.has(50.0) && !waiting.has(50.1) && waiting.is_rejected() && !waiting.is_over());
        let report = waiting.report();
        assert_eq!((report.p50_ms, report.p99_ms), (Some(20), Some(30)));
        assert_eq!(report.slowest, [("shop/b".to_owned(), 30), ("shop/a".to_owned(), 20)]);
        assert_eq!(report.rejections, [("shop/d".to_owned(), "new".to_owned())]);
        assert_eq!(report.missing, ["shop/c"]);
        // One that refused it may take it in the end.
        waiting.hear(&status("d", 2, 13));
        waiting.hear(&status("c", 2, 13));
        assert!(waiting.has(100.0) && waiting.is_over() && !waiting.is_rejected());
    }

    #[test]
    fn as_many_as_expected_are_waited_for() {
        let mut waiting = Waiting::new(Kind::Manifest, version(2), at(10), &[status("a", 1, 5), status("b", 1, 5)], 3);
        waiting.hear(&status("a", 2, 11));
        waiting.hear(&Status { leaving: true, ..status("b", 1, 11) });
        assert_eq!((waiting.expected(), waiting.enforced(), waiting.is_over()), (3, 1, false));
        waiting.hear(&status("c", 2, 11));
        assert!(!waiting.has(100.0) && !waiting.is_over());
        waiting.hear(&status("d", 2, 11));
        waiting.hear(&status("e", 1, 11));
        assert!(waiting.has(100.0) && waiting.is_over());
        assert_eq!(waiting.report().sidecars, 3);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred: Vec<u64> = (1..=100).collect();
        for (percent, expected) in [(50, 50), (99, 99), (100, 100), (1, 1)] {
            assert_eq!(percentile(&hundred, percent), Some(expected));
        }
        assert_eq!(percentile(&[7], 50), Some(7));
        assert_eq!(percentile(&[7, 8], 99), Some(8));
        assert_eq!(percentile(&[], 99), None);
    }
}
