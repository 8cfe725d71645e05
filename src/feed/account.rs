//! What following a source comes to, in metrics; and its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Status;
use crate::decision::freshness::LastProof;
use crate::observe::Metrics;
use crate::observe::store::StoreState;
use crate::policy::Snapshot;

/// How long the store may take to learn that this sidecar ends.
const GOODBYE: Duration = Duration::from_secs(1);

/// Turns what the feed reports into metrics.
pub async fn count_loads(
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    mut status: watch::Receiver<Status>,
    proof: Arc<LastProof>,
    metrics: Metrics,
) {
    let (mut counted, mut enforced, mut overlays) = (0, None, None);
    while status.changed().await.is_ok() {
        let now = status.borrow_and_update().clone();
        let snapshot = snapshots.borrow().clone();
        following(&metrics, &now, &proof, snapshot.as_deref());
        let Some(snapshot) = snapshot.filter(|snapshot| snapshot.generation > counted) else { continue };
        counted = snapshot.generation;
        // What was there at the start was changed long ago, which says nothing about how fast changes arrive; and an overlay that
        // begins or ends in a snapshot does not bring its bundles anew.
        let is_new =
            enforced.replace(snapshot.timeline.enforced).is_some_and(|last| last != snapshot.timeline.enforced);
        let lead_time = snapshot.timeline.lead_time().filter(|_| is_new);
        let took = now.last_load_duration.filter(|_| is_new || counted == 1);
        metrics.snapshot(snapshot.generation, snapshot.policy_count(), took, lead_time);
        let store = now.store.unwrap_or_default();
        if store.overlays.is_some()
            && overlays.replace(store.overlays) != Some(store.overlays)
            && let Some(lead_time) = store.overlays_lead_time
        {
            metrics.overlay_lead_time(lead_time);
        }
    }
}

/// How following goes, at this moment. Call it before every scrape.
pub fn following(metrics: &Metrics, status: &Status, proof: &LastProof, snapshot: Option<&Snapshot>) {
    metrics.following(status.loads, status.rejections, status.last_read);
    if let Some(store) = &status.store {
        let now = Instant::now();
        let refusals = store.refusals.iter().map(|((kind, reason), count)| (*kind, *reason, *count));
        metrics.store(&StoreState {
            connected: store.connected,
            freshness: proof.freshness(now),
            proof_age: proof.age(now),
            refusals: refusals.collect(),
            from_disk: store.from_disk,
            withheld: store.withheld.is_some(),
            overlays: snapshot.map_or(0, |snapshot| snapshot.overlays().len()),
        });
    }
}

/// Waits until the store knows that this sidecar ends, if one is followed and can be reached. What is not reported is found out all the
/// same: a sidecar that says nothing any more is silent, and not gone.
pub async fn said_goodbye(mut status: watch::Receiver<Status>) {
    let said = status.wait_for(|status| status.store.as_ref().is_none_or(|store| store.left || !store.connected));
    // Best effort: nobody waits longer for it, and nobody can do anything about an error.
    let _ = tokio::time::timeout(GOODBYE, said).await;
}
