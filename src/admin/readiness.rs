//! Whether Envoy may ask this sidecar.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;
use tracing::info;

use crate::decision::freshness::OnExpired;
use crate::feed::Status;
use crate::model::Freshness;
use crate::observe::Metrics;
use crate::policy::Snapshot;
use crate::shutdown::Phase;

/// Whether this sidecar can decide, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Whether it can.
    pub ready: bool,
    /// Why not: one line each.
    pub reasons: Vec<String>,
    /// `fresh`, `stale` or `expired`: how current what is in force is known to be; not there if it comes from directories.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freshness: Option<&'static str>,
}

/// Whether a sidecar in this phase can decide. A rejection alone takes nobody out of service: what was in force before it
/// still is. That it was not proved to be current for too long does, unless the operator chose otherwise.
pub fn readiness(phase: Phase, has_snapshot: bool, status: &Status) -> Readiness {
    let expired = status.store.as_ref().and_then(|store| store.expired);
    let reasons = match (phase, has_snapshot) {
        (Phase::Leaving | Phase::Draining, _) => vec!["shutting down".to_owned()],
        (_, false) => {
            let problems = status.rejection.iter().flat_map(|rejection| rejection.problems.iter().cloned());
            let trouble = status
                .store
                .iter()
                .flat_map(|store| [&store.trouble, &store.refused, &store.withheld])
                .flatten()
                .cloned();
            std::iter::once("no snapshot is in force yet".to_owned()).chain(problems).chain(trouble).collect()
        }
        (_, true) if matches!(expired, Some(OnExpired::Undecided | OnExpired::NotReady)) => {
            vec!["what is in force was not proved to be current for too long".to_owned()]
        }
        (Phase::Starting, true) => vec!["starting".to_owned()],
        (Phase::Running, true) => Vec::new(),
    };
    let freshness = status.store.as_ref().and_then(|store| store.freshness).map(Freshness::as_str);
    Readiness { ready: reasons.is_empty(), reasons, freshness }
}

impl Readiness {
    /// Not ready if there is something else that keeps it from deciding, in words.
    #[must_use]
    pub fn unless(mut self, trouble: Option<String>) -> Self {
        self.reasons.extend(trouble);
        Self { ready: self.reasons.is_empty(), ..self }
    }
}

/// Keeps `/readyz`, gRPC health and the gauge on what phase, snapshot, feed and decision log amount to.
pub async fn watch_readiness(
    mut phase: watch::Receiver<Phase>,
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    mut status: watch::Receiver<Status>,
    mut log: watch::Receiver<Option<String>>,
    readiness: watch::Sender<Readiness>,
    metrics: Metrics,
    health: impl AsyncFn(bool),
) {
    let mut last = None;
    loop {
        let now = {
            let (phase, snapshot) = (*phase.borrow_and_update(), snapshots.borrow_and_update().is_some());
            self::readiness(phase, snapshot, &status.borrow_and_update()).unless(log.borrow_and_update().clone())
        };
        let ready = now.ready;
        readiness.send_replace(now);
        if last != Some(ready) {
            metrics.ready(ready);
            health(ready).await;
            info!("{}", if ready { "ready" } else { "not ready" });
            last = Some(ready);
        }
        let changed = tokio::select! {
            changed = phase.changed() => changed,
            changed = snapshots.changed() => changed,
            changed = status.changed() => changed,
            changed = log.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}
