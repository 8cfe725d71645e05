//! Log lines about following the store. The state makes them as values; here they are written.

use std::time::Duration;

use tracing::{debug, error, info, warn};

use crate::decision::freshness::OnExpired;
use crate::model::Freshness;
use crate::observe::log_throttle::LogThrottle;
use crate::store::Refusal;
use crate::store::statement::{Kind, Version};

/// How often a kind of refusal is logged, and how many kinds at a time.
const REFUSALS: (Duration, u64) = (Duration::from_secs(60), 100);

/// Something that an operator may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Note {
    /// The process did not run for a while.
    Paused,
    /// Something of the store may have been missed, for this reason.
    Gap(String),
    /// The store can be reached.
    Connected,
    /// It cannot be reached.
    Disconnected(String),
    /// It does not allow this sidecar something.
    Denied(String),
    /// A statement is refused.
    Refused(Kind, Refusal),
    /// The newest statement is refused, and whether an older one is trusted.
    HistorySearched(Kind, bool),
    /// Overlays are trusted after they were refused.
    OverlaysTrusted,
    /// Nothing is put in force, because the overlays are refused.
    Withheld(String),
    /// A bundle could not be fetched.
    FetchFailed(String),
    /// A bundle is not put in force, because of these problems.
    Rejected(String),
    /// A manifest is in force.
    InForce {
        /// Its version.
        version: Version,
        /// Who published it.
        publisher: String,
        /// From the signing until it was in force.
        lead_time: Option<Duration>,
    },
    /// Other overlays are in force.
    OverlaysInForce {
        /// Their names.
        overlays: String,
        /// The names of those before.
        before: String,
    },
    /// Whether what is in force is known to be current has changed.
    Freshness(Freshness, OnExpired),
    /// The copy on disk cannot be used.
    CopyUnused(String),
    /// It comes into force: its version and age.
    CopyInForce(Version, Duration),
    /// The store did not take the report.
    ReportFailed(String),
}

/// Writes notes to the log.
pub(super) struct Log {
    refusals: LogThrottle,
}

impl Log {
    pub(super) fn new() -> Self {
        Self { refusals: LogThrottle::new(REFUSALS.0, REFUSALS.1) }
    }

    pub(super) fn write(&self, note: Note) {
        match note {
            Note::Paused => info!("this process was paused; asking the store what is in force"),
            Note::Gap(reason) => info!(reason, "something of the store may have been missed; asking"),
            Note::Connected => info!("connected to the store"),
            Note::Disconnected(reason) => warn!(reason, "not connected to the store; what is in force stays"),
            Note::Denied(reason) => {
                error!(
                    reason,
                    "the store denied this sidecar an operation; check its NATS permissions (docs/store.md)"
                );
            }
            // Someone may be attacking, or have restored an old copy. Once a minute for each kind and reason.
            Note::Refused(kind, refusal) => {
                if self.refusals.lets_pass(&(kind, refusal.as_str())) {
                    error!(
                        statement = kind.as_str(),
                        %refusal,
                        "a statement of the store is refused; what is in force stays"
                    );
                }
            }
            Note::HistorySearched(kind, true) => {
                warn!(statement = kind.as_str(), "the newest statement is refused; the newest that is trusted counts")
            }
            Note::HistorySearched(kind, false) => {
                error!(statement = kind.as_str(), "the newest statement is refused, and none before it is trusted")
            }
            Note::OverlaysTrusted => info!("overlays are trusted again"),
            Note::Withheld(why) => error!(
                why,
                "nothing is put in force: the newest overlays are refused; issue them again with a trusted key"
            ),
            Note::FetchFailed(error) => warn!(error, "a published bundle could not be fetched; trying again"),
            Note::Rejected(problems) => {
                error!(problems, "a published bundle is refused; the last good version stays in force");
            }
            Note::InForce { version, publisher, lead_time } => {
                info!(%version, publisher, ?lead_time, "in force");
            }
            Note::OverlaysInForce { overlays, before } => info!(overlays, before, "other overlays are in force"),
            Note::Freshness(freshness, on_expired) => log_freshness(freshness, on_expired),
            Note::CopyUnused(why) => warn!(why, "the copy on disk is not used"),
            Note::CopyInForce(version, age) => {
                warn!(%version, ?age, "the store cannot be reached or trusted: the copy on disk comes into force");
            }
            Note::ReportFailed(error) => debug!(error, "what is in force could not be reported to the store"),
        }
    }
}

fn log_freshness(freshness: Freshness, on_expired: OnExpired) {
    match freshness {
        Freshness::Fresh => info!("what is in force is proved to be current"),
        Freshness::Stale => warn!("no proof that what is in force is current; it stays"),
        Freshness::Expired => error!(?on_expired, "no proof for too long that what is in force is current"),
    }
}
