//! Someone who publishes, issues overlays and sends beacons, for the tests.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;

use super::Config;
use crate::decision::freshness::{self, OnExpired};
use crate::feed::Limits;
use crate::store::keys::Trusted;
use crate::store::statement::{
    Beacon, Blob, Manifest, OverlayEffect, OverlayEntry, Overlays, StoreName, Timestamp, Version,
};
use crate::store::{Digest, Head, Kind, Role, SecretKey, envelope};
use crate::units::HumanDuration;

/// The epoch of all that is signed.
pub(super) const EPOCH: u64 = 7;

/// A key that may sign everything.
pub(super) struct Signer {
    key: SecretKey,
    pub(super) store: StoreName,
}

impl Signer {
    pub(super) fn new() -> Self {
        let key = SecretKey::parse(&SecretKey::generate().expect("a key")).expect("a key");
        Self { key, store: StoreName::try_from_text("prod".to_owned()).expect("a name") }
    }

    /// How its store is followed.
    pub(super) fn config(&self) -> Config {
        Config {
            name: self.store.clone(),
            keys: vec![Trusted { key: self.key.public(), roles: vec![Role::Publish, Role::Overlay, Role::Beacon] }],
            freshness: freshness::Config {
                stale_after: HumanDuration::seconds(3),
                expired_after: HumanDuration::seconds(10),
                on_expired: OnExpired::Undecided,
            },
            max_clock_skew: HumanDuration::seconds(1),
            refresh: HumanDuration::seconds(3600),
            pod: "pod".to_owned(),
            namespace: "default".to_owned(),
            last_good: None,
            limits: Limits::default(),
        }
    }

    /// A manifest of a bundle with these bytes.
    pub(super) fn manifest(&self, generation: u64, bundle: &[u8], at: SystemTime) -> Manifest {
        Manifest {
            store: self.store.clone(),
            version: version(generation),
            bundle: Blob { digest: Digest::of(bundle), size: bundle.len() as u64 },
            min_sidecar: None,
            not_before: None,
            published_at: Timestamp(at),
            publisher: "test".to_owned(),
            message: None,
            commit: None,
            rolls_back_to: None,
        }
    }

    /// Denials, each by its name and how long it lasts.
    pub(super) fn overlays(&self, generation: u64, denials: &[(&str, Duration)], at: SystemTime) -> Overlays {
        let entry = |(id, lasting): &(&str, Duration)| OverlayEntry {
            id: (*id).to_owned(),
            effect: OverlayEffect::Deny,
            principal: Some("User::\"mallory\"".to_owned()),
            action: None,
            resource: None,
            from: Timestamp(at),
            until: Timestamp(at + *lasting),
            reason: "test".to_owned(),
            issuer: "test".to_owned(),
            approved_by: None,
        };
        Overlays {
            store: self.store.clone(),
            version: version(generation),
            published_at: Timestamp(at),
            publisher: "test".to_owned(),
            overlays: denials.iter().map(entry).collect(),
        }
    }

    /// A beacon that names these.
    pub(super) fn beacon(&self, manifest: Option<Head>, overlays: Option<Head>, at: SystemTime) -> Beacon {
        Beacon { store: self.store.clone(), manifest, overlays, sent_at: Timestamp(at) }
    }

    /// Signs a statement, and says which it is.
    pub(super) fn seal(&self, kind: Kind, generation: u64, says: &impl Serialize) -> (Head, Bytes) {
        let payload = serde_json::to_vec(says).expect("json");
        let bytes = envelope::seal(kind, &payload, &self.key).expect("sealed");
        (Head::of(version(generation), &payload), bytes.into())
    }
}

/// A version of the tests' epoch.
pub(super) fn version(generation: u64) -> Version {
    Version { epoch: EPOCH, generation }
}
