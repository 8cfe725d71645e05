//! How following the central store goes, for `/snapshot` and the human page.

use serde::Serialize;

use super::timestamp;
use crate::feed::StoreStatus;
use crate::model::Freshness;

/// The store at a glance.
#[derive(Debug, Clone, Serialize)]
pub(super) struct StoreSummary {
    /// Whether it can be reached.
    connected: bool,
    /// `fresh`, `stale` or `expired`: how long ago a beacon proved what is in force to be current.
    freshness: Option<&'static str>,
    /// The newest manifest that was accepted, `EPOCH.GENERATION`.
    newest: Option<String>,
    /// The manifest in force.
    enforced: Option<String>,
    /// The statement of overlays in force.
    overlays: Option<String>,
    /// Whether the copy on disk is in force, because the store could not be reached.
    from_disk: bool,
    /// What went wrong; `null` once it is over.
    trouble: Option<String>,
    /// Why nothing was put in force yet: the newest overlays are refused.
    withheld: Option<String>,
    /// What the store does not allow this sidecar.
    refused: Option<String>,
    /// How many statements were not believed since the start.
    refusals: u64,
    /// The last of them, with its time.
    last_refusal: Option<String>,
}

pub(super) fn summary(status: &StoreStatus) -> StoreSummary {
    StoreSummary {
        connected: status.connected,
        freshness: status.freshness.map(Freshness::as_str),
        newest: status.newest.map(|version| version.to_string()),
        enforced: status.enforced.map(|version| version.to_string()),
        overlays: status.overlays.map(|version| version.to_string()),
        from_disk: status.from_disk,
        trouble: status.trouble.clone(),
        withheld: status.withheld.clone(),
        refused: status.refused.clone(),
        refusals: status.refusals.values().sum(),
        last_refusal: status.last_refusal.as_ref().map(|(at, what)| format!("{} {what}", timestamp(*at))),
    }
}

impl StoreSummary {
    /// Name and value of what there is to say, for people.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
        let state = if self.connected { "connected" } else { "not connected" };
        let mut rows = vec![
            ("connection", state.to_owned()),
            ("freshness", self.freshness.unwrap_or("unknown").to_owned()),
            ("newest manifest", text(&self.newest)),
            ("manifest in force", text(&self.enforced)),
            ("overlays in force", text(&self.overlays)),
        ];
        if self.from_disk {
            rows.push(("source", "the copy on disk".to_owned()));
        }
        rows.extend(self.trouble.iter().map(|trouble| ("trouble", trouble.clone())));
        rows.extend(self.withheld.iter().map(|withheld| ("withheld", withheld.clone())));
        rows.extend(self.refused.iter().map(|refused| ("not allowed", refused.clone())));
        rows.extend(self.last_refusal.iter().map(|refusal| ("last refusal", refusal.clone())));
        rows
    }
}
