//! What is shown of following: freshness, the status, and the report to the store.

use std::time::Duration;

use super::super::super::source::SourceError;
use super::super::note::Note;
use super::{ANSWER, Action, Now, Proof, State};
use crate::decision::freshness::OnExpired;
use crate::model::Freshness;
use crate::store::statement::{REPORT_INTERVAL, Status, Timestamp};

/// How many characters of a rejection are reported. A status that is larger than the store takes would be none.
const REJECTION: usize = 2000;

impl<B, S> State<B, S> {
    /// Takes note that what is in force is current, if the newest beacon says so, and of how fresh that makes it.
    pub(super) fn prove(&mut self, now: Now) {
        if let Some(beacon) = &self.beacon
            && self.trusted.holds(&beacon.says) == Ok(true)
            && self.is_current(now)
        {
            let (proof, bytes) = (beacon.proof, beacon.bytes.clone());
            self.prove_by(proof, now);
            self.save_beacon(bytes, now);
        }
        let freshness = Some(self.freshness(now));
        let shown = self.store_status().and_then(|store| store.freshness);
        if freshness != shown && self.enforced.manifest.is_some() {
            self.report.by(now.mono);
            let expired = self.expired(now);
            let store = self.store();
            (store.freshness, store.expired) = (freshness, expired);
            self.log(Note::Freshness(self.freshness(now), self.config.freshness.on_expired));
        }
    }

    /// What is in force was current then. Older proofs than the newest change nothing.
    pub(super) fn prove_by(&mut self, proof: Proof, now: Now) {
        if self.proof.is_none_or(|newest| proof.age(now) < newest.age(now)) {
            self.proof = Some(proof);
            self.actions.push(Action::Prove(proof));
        }
    }

    fn freshness(&self, now: Now) -> Freshness {
        self.config.freshness.after(self.proof.map(|proof| proof.age(now)))
    }

    /// What the operator wants done if that was not proved for too long.
    pub(super) fn expired(&self, now: Now) -> Option<OnExpired> {
        (self.freshness(now) == Freshness::Expired).then_some(self.config.freshness.on_expired)
    }

    /// Reports to the store what is in force, if it is time to.
    pub(super) fn send_report(&mut self, now: Now) {
        if self.enforced.manifest.is_some() && self.report.begins(now.mono, now.mono + REPORT_INTERVAL) {
            let status = Box::new(self.status_report(now));
            self.actions.push(Action::Report(status));
        }
    }

    pub(super) fn reported(&mut self, result: Result<bool, SourceError>, now: Now) {
        self.report.end();
        match result {
            Ok(true) => self.store().left = true,
            Ok(false) => {}
            Err(error) => {
                self.report = super::Recurring::Idle { due: now.mono + ANSWER };
                self.log(Note::ReportFailed(error.to_string()));
            }
        }
    }

    /// From now on reports say that this sidecar is about to end, the first at once if there was ever one before.
    pub(super) fn leave(&mut self, now: Now) {
        self.leaving = true;
        self.report.by(now.mono);
        if self.enforced.manifest.is_none() {
            self.store().left = true;
        }
    }

    fn status_report(&self, now: Now) -> Status {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let rejection = self.status.rejection.as_ref().map(|rejection| rejection.problems.join("; "));
        Status {
            pod: self.config.pod.clone(),
            namespace: self.config.namespace.clone(),
            sidecar: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: self.enforced.head(),
            overlays: self.enforced.overlays,
            revision: self.enforced.revision.clone(),
            enforced_at: self.enforced.since.map(Timestamp),
            lead_time_ms: self.enforced.lead_time.map(millis),
            overlays_lead_time_ms: self.enforced.overlays_lead_time.map(millis),
            freshness: self.freshness(now).as_str().to_owned(),
            rejection: rejection.map(|rejection| rejection.chars().take(REJECTION).collect()),
            leaving: self.leaving,
            at: Timestamp(now.wall),
        }
    }

    /// Brings what the status says of versions up to date.
    pub(super) fn show_heads(&mut self) {
        let newest = self.trusted.manifest.as_ref().map(|newest| newest.head.version);
        let enforced = &self.enforced;
        let store = self.status.store.get_or_insert_default();
        store.newest = newest;
        store.enforced = enforced.head().map(|head| head.version);
        store.overlays = enforced.overlays.map(|head| head.version);
        (store.lead_time, store.overlays_lead_time) = (enforced.lead_time, enforced.overlays_lead_time);
        store.from_disk = enforced.from_disk;
    }

    /// Shows the status, if it has changed.
    pub(super) fn show_status(&mut self) {
        if self.status != self.shown {
            self.shown = self.status.clone();
            self.actions.push(Action::Status(Box::new(self.status.clone())));
        }
    }
}
