//! What a request is decided under: the identity of what is in force, how current it is, and the overlays beside it.

use std::time::{Duration, SystemTime};

use cedar_policy::EntityUid;

use super::effect::Effect;

/// The identity of what is in force: the bundles it was compiled from, by digest, and the store's number for it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Revision {
    /// Short text that names it in headers, records and metadata: the first twelve hex digits of `digest`.
    pub id: String,
    /// SHA-256 over the content of all bundles, in hex.
    pub digest: String,
    /// `EPOCH.GENERATION` of what the store published; `None` if the bundles come from directories.
    pub number: Option<String>,
}

/// What the store says of what it published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its number, as a [`Revision`] has it.
    pub number: String,
    /// When it was published.
    pub at: SystemTime,
}

/// When a snapshot came to be, for ages and lead times. One that differs only by an overlay that began or ended by itself
/// has that of the one before: nothing was published.
#[derive(Debug, Clone, Copy)]
pub struct Timeline {
    /// When it was published by the store; else when the newest file of its bundles was changed, as the file system says.
    pub changed: Option<SystemTime>,
    /// When it was put in force.
    pub enforced: SystemTime,
}

impl Timeline {
    /// From the change to its enforcement; `None` if the clock of the store or the file system says nothing useful.
    pub fn lead_time(&self) -> Option<Duration> {
        self.enforced.duration_since(self.changed?).ok()
    }
}

/// How long ago a beacon of the store proved what is in force to be current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Freshness {
    /// Within `stale_after`.
    Fresh,
    /// Longer ago than that.
    Stale,
    /// Longer ago than `expired_after`, or never.
    Expired,
}

impl Freshness {
    /// All of them, for metrics that exist from the start.
    pub const ALL: [Self; 3] = [Self::Fresh, Self::Stale, Self::Expired];

    /// The word for it in metrics, records and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Expired => "expired",
        }
    }
}

/// An emergency denial or a time-boxed exception, in force beside the bundles until it expires: one policy with a scope and no
/// condition, so that putting it in force costs nothing and it can never err.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Names it in the decision log: its policy is `overlay/<id>`.
    pub id: String,
    /// What it does. A grant is a `permit`, so any `forbid` wins over it.
    pub effect: Effect,
    /// Whom it is about: this principal and all that are in it; `None`: everyone.
    pub principal: Option<EntityUid>,
    /// Which actions: this one and all that are in it; `None`: all.
    pub action: Option<EntityUid>,
    /// Which resources: this one and all that are in it; `None`: all.
    pub resource: Option<EntityUid>,
    /// When it begins.
    pub from: SystemTime,
    /// When it ends: at this instant it is not in force any more.
    pub until: SystemTime,
    /// Why, in words for those who read the log.
    pub reason: String,
}

impl Overlay {
    /// Whether it is in force at an instant.
    pub fn is_in_force(&self, now: SystemTime) -> bool {
        self.from <= now && now < self.until
    }
}
