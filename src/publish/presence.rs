//! Which sidecars are there, and which of them need attention first.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::store::statement::{Head, REPORT_INTERVAL, Status};

/// What a sidecar said last, and when the server heard it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// What it said.
    pub status: Status,
    /// When, by the server's clock.
    pub heard: SystemTime,
}

/// Whether a sidecar keeps reporting what it enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// It does.
    Reporting,
    /// It has missed two reports, and said no goodbye: what it enforces now, if anything, is not known.
    Silent,
    /// It said that it was about to end.
    Left,
}

/// How late a report may be: sidecars report within a tenth of a second, and try again after five.
const SLACK: Duration = Duration::from_secs(6);

impl Sidecar {
    /// Whether it keeps reporting what it enforces.
    pub fn presence(&self, now: SystemTime) -> Presence {
        let age = now.duration_since(self.heard).unwrap_or_default();
        match self.status.leaving {
            true => Presence::Left,
            false if age > REPORT_INTERVAL * 2 + SLACK => Presence::Silent,
            false => Presence::Reporting,
        }
    }

    /// Whether it enforces this, as far as is known.
    pub fn enforces(&self, newest: Option<&Head>, now: SystemTime) -> bool {
        self.presence(now) == Presence::Reporting && self.status.manifest.as_ref() == newest
    }
}

/// The sidecars in the order in which they need attention: those that refuse something, that are silent, that enforce something old,
/// that are not fresh, the rest; then those that have left.
pub fn sort(sidecars: &mut [Sidecar], newest: Option<&Head>, now: SystemTime) {
    sidecars
        .sort_by_cached_key(|own| (attention(own, newest, now), own.status.namespace.clone(), own.status.pod.clone()));
}

fn attention(sidecar: &Sidecar, newest: Option<&Head>, now: SystemTime) -> u8 {
    match (sidecar.presence(now), &sidecar.status) {
        (Presence::Left, _) => 5,
        (_, Status { rejection: Some(_), .. }) => 0,
        (Presence::Silent, _) => 1,
        (_, status) if status.manifest.as_ref() != newest => 2,
        (_, status) if status.freshness != "fresh" => 3,
        _ => 4,
    }
}
