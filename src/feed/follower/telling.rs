//! What is told of how following goes: to the store, and in the status.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::super::StoreStatus;
use super::super::source::{Source, SourceError};
use super::{ANSWER, Engine, Follower, Job};
use crate::model::Freshness;
use crate::store::statement::{REPORT_INTERVAL, Status, Timestamp};

/// What is in force is told within this, not at once: a hundred sidecars on a node would otherwise tell while others of them still
/// compile what was published.
const TELL_WITHIN: Duration = Duration::from_millis(100);

/// How many characters of a rejection are told. A status that were larger than the store takes would be none.
const REJECTION: usize = 2000;

impl<P: Source, E: Engine> Follower<P, E> {
    /// Tells the store what is in force, if it is time to.
    pub(super) fn tell(&mut self) {
        let now = Instant::now();
        if self.telling || now < self.tell_at || self.snapshots.borrow().is_none() {
            return;
        }
        (self.telling, self.tell_at) = (true, now + REPORT_INTERVAL);
        let (source, status) = (Arc::clone(&self.source), self.report());
        // Whoever leaves may not have the time.
        let within = if status.leaving { Duration::ZERO } else { TELL_WITHIN };
        self.jobs.spawn(async move {
            sleep(within.mul_f64(fastrand::f64())).await;
            let told = timeout(ANSWER, source.tell(&status)).await;
            let told = told.unwrap_or_else(|_| Err(SourceError("no answer in time".to_owned())));
            Job::Told(told.map(|()| status.leaving))
        });
    }

    /// From now on the store is told that this sidecar is about to end, at once if it was ever told anything.
    pub(super) fn leave(&mut self) {
        (self.leaving, self.tell_at) = (true, Instant::now());
        if self.snapshots.borrow().is_none() {
            self.store(|store| store.left = true);
        }
    }

    fn report(&self) -> Status {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let rejection = self.status.borrow().rejection.as_ref().map(|own| own.problems.join("; "));
        let rejection = rejection.map(|text| text.chars().take(REJECTION).collect());
        Status {
            pod: self.config.pod.clone(),
            namespace: self.config.namespace.clone(),
            sidecar: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: self.enforced.manifest.as_ref().map(|(head, _)| *head),
            overlays: self.enforced.overlays,
            revision: self.snapshots.borrow().as_ref().map(|snapshot| self.engine.revision(snapshot)),
            enforced_at: self.enforced.since.map(Timestamp),
            lead_time_ms: self.enforced.lead_time.map(millis),
            overlays_lead_time_ms: self.enforced.overlays_lead_time.map(millis),
            freshness: self.proof.freshness(Instant::now()).map_or("", Freshness::as_str).to_owned(),
            rejection,
            leaving: self.leaving,
            at: Timestamp::now(),
        }
    }

    /// Changes what the status says of the store.
    pub(super) fn store(&self, change: impl FnOnce(&mut StoreStatus)) {
        self.status.send_modify(|status| change(status.store.get_or_insert_default()));
    }

    /// Brings what the status says of versions up to date.
    pub(super) fn store_heads(&self) {
        let newest = self.trusted.manifest.as_ref().map(|own| own.head.version);
        let enforced = &self.enforced;
        self.store(|store| {
            store.newest = newest;
            store.enforced = enforced.manifest.as_ref().map(|(head, _)| head.version);
            store.overlays = enforced.overlays.map(|head| head.version);
            (store.lead_time, store.overlays_lead_time) = (enforced.lead_time, enforced.overlays_lead_time);
            store.from_disk = enforced.from_disk;
        });
    }
}
