//! The copy on disk of what is in force: how it comes into force at a start without the store, and how it is kept.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use tracing::warn;

use super::making::{compile, verify};
use super::{Engine, Follower, Heard, Source, last_good};
use crate::store::Refusal;
use crate::store::statement::Kind;

impl<P: Source, E: Engine> Follower<P, E> {
    /// Starts from the copy on disk, which is verified as if it came from the store.
    pub(super) async fn start_from_disk(&mut self) {
        let Some(disk) = &self.last_good else { return };
        let Some(copy) = disk.load().await else { return };
        // The store has overlays, even if they are not to be believed: a copy without any is no better.
        if copy.overlays.is_none() && self.status.borrow().store.as_ref().is_some_and(|store| store.withheld.is_some())
        {
            return warn!("the copy on disk is not used: it holds no overlays, and those of the store are refused");
        }
        let accepted = (|| {
            self.trusted.manifest(&copy.manifest)?;
            if let Some(overlays) = &copy.overlays {
                self.trusted.overlays(overlays)?;
            }
            // An old beacon is what the age counts from, so it may be as old as it is, but not from the future.
            self.trusted.beacon(&copy.beacon, SystemTime::now())
        })();
        let beacon = match accepted {
            Ok(beacon) => beacon,
            Err(refusal) => return warn!(%refusal, "the copy on disk is not used"),
        };
        // The copy may be newer than its beacon, which is written now and then: what it has was not out of date then. But a beacon that
        // names what the copy lacks says that the copy is old.
        if !matches!(self.trusted.holds(&beacon), Ok(true) | Err(Refusal::Older { .. })) {
            return warn!("the copy on disk is not used: its parts do not belong together");
        }
        let age = beacon.sent_at.age(SystemTime::now());
        if age > disk.max_age() {
            return warn!(?age, max_age = ?disk.max_age(), "the copy on disk is too old to be used");
        }
        let Some(own) = &self.trusted.manifest else { return };
        let (head, says) = (own.head, own.says.clone());
        let made = match verify(&says.bundle, copy.blob) {
            Ok(bytes) => {
                let limits = self.config.limits.clone();
                compile(Arc::clone(&self.engine), bytes, (head, &says), limits, true).await
            }
            Err(refusal) => return warn!(%refusal, "the copy on disk is not used"),
        };
        let Ok((base, _)) = made else { return warn!("the copy on disk is not used: it does not compile any more") };
        let (active, later) = self.standing(SystemTime::now());
        let standing = [active.clone(), later.clone()].concat();
        // Said before anybody can see it in force.
        warn!(version = %head.version, ?age, "the store cannot be reached or believed: the copy on disk comes into force");
        self.snapshots.send_replace(Some(Arc::new(self.engine.succeed(None, base, &standing))));
        let overlays = self.trusted.overlays.as_ref().map(|own| own.head);
        self.in_force(Some((head, says)), overlays, active, later);
        self.enforced.from_disk = true;
        self.proof.prove(Instant::now(), age);
        self.beacon = Some(Heard { says: beacon, bytes: copy.beacon, at: Instant::now(), age });
        self.overlays_are_known();
        self.store_heads();
    }

    /// Keeps what is in force on disk, for the next start.
    pub(super) fn save(&mut self, blob: Option<Bytes>) {
        let Some(disk) = &self.last_good else { return };
        let manifest = self
            .trusted
            .manifest
            .as_ref()
            .filter(|own| self.enforced.manifest.as_ref().is_some_and(|(head, _)| *head == own.head));
        let overlays = self.trusted.overlays.as_ref().map(|own| own.bytes.clone().into());
        let Some(manifest) = manifest else { return };
        // Were it to end half way, the digests would not fit, and the copy would not be used.
        let mut files = vec![(Kind::Manifest.as_str(), manifest.bytes.clone().into())];
        files.extend(blob.map(|blob| (last_good::BLOB, blob)));
        files.extend(overlays.map(|overlays| (Kind::Overlays.as_str(), overlays)));
        disk.save(files);
        // A beacon that names what is on disk is to follow soon.
        self.save_beacon_at = Instant::now();
    }
}
