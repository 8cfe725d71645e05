//! The way back from a newest statement that is refused to the newest one that is believed. Whoever can write rubbish into the store
//! must not be able to take away what was said before it: an emergency denial above all.

use std::time::Instant;

use tokio::time::timeout;
use tracing::{error, info, warn};

use super::{ANSWER, Bytes, Duration, Engine, Follower, Job, Source, SourceError, jittered};
use crate::store::statement::Kind;
use crate::store::{Digest, Keyring, StoreName, TrustedStatements};

/// How many older statements are read by a sidecar that has none of the kind: all that a store keeps.
const HISTORY: usize = 1024;

/// How many by one that has. It may have missed some, but not many, and all sidecars look at once.
const RECENT: usize = 64;

/// What came of it.
pub(super) struct Walked {
    kind: Kind,
    /// The statement that was refused.
    from: Digest,
    /// The newest before it that is believed; `None` if there is none.
    found: Result<Option<Bytes>, SourceError>,
}

impl<P: Source, E: Engine> Follower<P, E> {
    /// Looks for an older statement that is believed, unless that was done for this one.
    pub(super) fn walk_back(&mut self, kind: Kind, refused: &Bytes) {
        let from = Digest::of(refused);
        if self.walked.get(&kind) == Some(&from) || !self.walking.insert(kind) {
            return;
        }
        let has_one = match kind {
            Kind::Manifest => self.trusted.manifest.is_some(),
            Kind::Overlays | Kind::Beacon => self.trusted.overlays.is_some(),
        };
        let steps = if has_one { RECENT } else { HISTORY };
        let (source, name) = (self.source.clone(), self.config.name.clone());
        let keyring = Keyring::new(self.config.keys.iter().cloned());
        self.jobs.spawn(async move {
            let found = believed(&*source, kind, &name, &keyring, steps).await;
            Job::WalkedBack(Walked { kind, from, found })
        });
    }

    pub(super) fn after_walk(&mut self, Walked { kind, from, found }: Walked) {
        self.walking.remove(&kind);
        match found {
            Ok(Some(bytes)) => {
                self.walked.insert(kind, from);
                warn!(statement = kind.as_str(), "the newest statement is refused; the newest that is believed counts");
                self.statement(kind, &bytes);
                if kind == Kind::Overlays {
                    self.overlays_are_known();
                }
            }
            Ok(None) => {
                self.walked.insert(kind, from);
                error!(statement = kind.as_str(), "the newest statement is refused, and none before it is believed");
            }
            Err(error) => {
                self.store(|store| store.trouble = Some(error.to_string()));
                self.next_look = self.next_look.min(Instant::now() + jittered(Duration::from_secs(2)));
            }
        }
    }

    /// Overlays were read and believed, or there never were any: something may be put in force with them.
    pub(super) fn overlays_are_known(&mut self) {
        self.looked = true;
        if self.status.borrow().store.as_ref().is_some_and(|store| store.withheld.is_some()) {
            info!("overlays are believed again");
            self.store(|store| store.withheld = None);
        }
    }

    /// The newest overlays are refused. What is in force stays; but nothing is put in force first without overlays, since what is refused
    /// may have taken the place of an emergency denial.
    pub(super) fn overlays_are_unknown(&mut self) {
        if self.looked {
            return;
        }
        let refusal = self.status.borrow().store.as_ref().and_then(|store| store.last_refusal.clone());
        let why = refusal.map(|(_, why)| why).unwrap_or_default();
        let withheld = format!("nothing is put in force without overlays, and the newest are refused ({why})");
        if self.status.borrow().store.as_ref().is_some_and(|store| store.withheld.is_none()) {
            error!(
                why,
                "nothing is put in force: the newest overlays are refused; issue them again with a trusted key"
            );
        }
        self.store(|store| store.withheld = Some(withheld));
    }
}

/// The newest statement that is believed, from the newest on, within so many.
async fn believed(
    source: &impl Source,
    kind: Kind,
    name: &StoreName,
    keyring: &Keyring,
    steps: usize,
) -> Result<Option<Bytes>, SourceError> {
    let mut place = None;
    for _ in 0..steps {
        let found = timeout(ANSWER, source.before(kind, place)).await;
        let found = found.unwrap_or_else(|_| Err(SourceError("no answer in time".to_owned())))?;
        let Some((at, bytes)) = found else { return Ok(None) };
        // One that has accepted nothing yet: whether it is news is for the follower's own to say.
        let mut trusted = TrustedStatements::new(name.clone(), keyring.clone(), Duration::ZERO);
        let is_good = match kind {
            Kind::Manifest => trusted.manifest(&bytes).is_ok(),
            Kind::Overlays => trusted.overlays(&bytes).is_ok(),
            Kind::Beacon => false,
        };
        if is_good {
            return Ok(Some(bytes));
        }
        place = Some(at);
    }
    Ok(None)
}
