//! The copy on disk of what is in force: how it comes into force at a start without the store, and how it is kept.

use std::time::Instant;

use bytes::Bytes;

use super::super::super::last_good;
use super::super::note::Note;
use super::statements::{OverlaysKnown, ReceivedBeacon};
use super::{Action, Fetch, Now, Origin, Proof, State};
use crate::store::Refusal;
use crate::store::statement::{Beacon, Kind};

/// The use of the copy on disk at a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskCopy {
    /// There is none, or it is not needed any more.
    Unused,
    /// The store is waited for until then.
    Waiting { until: Instant },
    /// It is being read.
    Reading,
}

impl<B, S> State<B, S> {
    /// Reads the copy if the store cannot be reached or trusted.
    pub(super) fn read_copy(&mut self, now: Now) {
        match self.copy {
            DiskCopy::Waiting { .. } if self.overlays == OverlaysKnown::Known => self.copy = DiskCopy::Unused,
            DiskCopy::Waiting { until } if until <= now.mono => {
                self.copy = DiskCopy::Reading;
                self.actions.push(Action::ReadCopy);
            }
            DiskCopy::Waiting { .. } | DiskCopy::Unused | DiskCopy::Reading => {}
        }
    }

    /// Starts from the copy on disk, which is verified as if it came from the store.
    pub(super) fn copy_read(&mut self, copy: Option<last_good::Copy>, now: Now) {
        self.copy = DiskCopy::Unused;
        let Some(copy) = copy else { return };
        // The store was faster.
        if self.overlays == OverlaysKnown::Known || self.enforced.manifest.is_some() {
            return;
        }
        let blob = copy.blob.clone();
        match self.accept_copy(&copy, now) {
            Ok(beacon) => {
                let proof = Proof { at: now.mono, age: beacon.sent_at.age(now.wall) };
                if self.beacon.as_ref().is_none_or(|newest| newest.says.sent_at < beacon.sent_at) {
                    self.beacon = Some(ReceivedBeacon { says: beacon, bytes: copy.beacon, proof });
                }
                let Some(newest) = &self.trusted.manifest else { return };
                let (head, manifest) = (newest.head, newest.says.clone());
                self.fetch(Fetch { head, manifest, origin: Origin::Copy(blob, proof), urgent: true }, 0, now);
            }
            Err(why) => self.log(Note::CopyUnused(why)),
        }
    }

    /// Accepts what the copy says, or says why not.
    fn accept_copy(&mut self, copy: &last_good::Copy, now: Now) -> Result<Beacon, String> {
        // The store has overlays, even if they are refused: a copy without any is no better.
        if copy.overlays.is_none() && self.overlays == OverlaysKnown::Refused {
            return Err("it holds no overlays, and those of the store are refused".to_owned());
        }
        let refused = |refusal: Refusal| refusal.to_string();
        self.trusted.manifest(&copy.manifest).map_err(refused)?;
        if let Some(overlays) = &copy.overlays {
            self.trusted.overlays(overlays).map_err(refused)?;
        }
        // The age counts from the beacon, which may be as old as it is, but not from the future.
        let beacon = self.trusted.beacon(&copy.beacon, now.wall).map_err(refused)?;
        // The copy may be newer than its beacon, which is written from time to time: what it has was not out of date then. But a beacon
        // that names what the copy lacks says that the copy is old.
        if !matches!(self.trusted.holds(&beacon), Ok(true) | Err(Refusal::Older { .. })) {
            return Err("its parts do not belong together".to_owned());
        }
        let age = beacon.sent_at.age(now.wall);
        match &self.config.last_good {
            Some(config) if age <= config.max_age.0 => Ok(beacon),
            Some(config) => Err(format!("it is too old: {age:.0?}, and `max_age` is {}", config.max_age)),
            None => Err("`last_good` is not configured".to_owned()),
        }
    }

    /// Keeps what is in force on disk, for the next start.
    pub(super) fn save(&mut self, blob: Option<Bytes>, now: Now) {
        let Some(newest) = &self.trusted.manifest else { return };
        if self.config.last_good.is_none() || self.enforced.head() != Some(newest.head) {
            return;
        }
        // Were it to end half way, the digests would not fit, and the copy would not be used.
        let mut files = vec![(Kind::Manifest.as_str(), newest.bytes.clone().into())];
        files.extend(blob.map(|blob| (last_good::BLOB, blob)));
        files.extend(
            self.trusted.overlays.as_ref().map(|newest| (Kind::Overlays.as_str(), newest.bytes.clone().into())),
        );
        self.actions.push(Action::Save(files));
        // A beacon that names what is on disk is to follow soon.
        self.save_beacon_at = now.mono;
    }

    /// Keeps the newest beacon on disk from time to time: the age of the copy counts from it.
    pub(super) fn save_beacon(&mut self, beacon: Bytes, now: Now) {
        if self.config.last_good.is_some() && self.save_beacon_at <= now.mono {
            self.save_beacon_at = now.mono + last_good::BEACON_INTERVAL;
            self.actions.push(Action::Save(vec![(Kind::Beacon.as_str(), beacon)]));
        }
    }
}
