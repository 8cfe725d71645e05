//! Statements: what is accepted, what is refused, and when the newest are read. A statement that is heard is adopted as it is, since it
//! proves itself; that none was missed is found out by looking: after every gap and reconnection, when a beacon names something else,
//! and from time to time anyway.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::super::source::{Event, SourceError};
use super::super::note::Note;
use super::{AFTER_A_FAILED_LOOK, Action, Now, Proof, Searched, State};
use crate::store::statement::{Beacon, Kind, Version};
use crate::store::{Digest, Refusal};

/// How long a beacon may go on naming what was in force before. Its sender may have looked just before a change.
const OVERLAP: Duration = Duration::from_secs(3);

/// How many older statements are read by a sidecar that has none of the kind: all that a store keeps.
const HISTORY: usize = 1024;

/// How many by one that has. It may have missed some, but not many, and all sidecars look at once.
const RECENT: usize = 64;

/// A newest statement that is refused. Anyone who can write rubbish into the store must not be able to take away what was said before
/// it, an emergency denial above all; so older ones are searched, once for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Older statements are being searched for one that is trusted.
    Searching {
        /// The refused one.
        statement: Digest,
    },
    /// They were, and the newest that is trusted counts. There may be none.
    Searched {
        /// The refused one.
        statement: Digest,
    },
}

impl Refused {
    pub(super) fn was_searched(self) -> bool {
        matches!(self, Self::Searched { .. })
    }
}

/// What is known of the overlays before anything is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OverlaysKnown {
    /// They were not read yet.
    Unknown,
    /// The newest are refused, and none before them are trusted. They may be an emergency denial.
    Refused,
    /// They were read and are trusted, there never were any, or what is in force has some.
    Known,
}

/// A beacon, and how old it was when it was received. From then on it ages by the clock that nobody sets.
#[derive(Debug, Clone)]
pub(super) struct ReceivedBeacon {
    pub(super) says: Beacon,
    pub(super) bytes: Bytes,
    pub(super) proof: Proof,
}

impl<B, S> State<B, S> {
    pub(super) fn hear(&mut self, event: Event, now: Now) {
        match event {
            Event::Statement(kind, bytes) => {
                let is_sound = self.statement(kind, &bytes, now);
                // Overlays may be trusted again; whether they are the newest is for a look to say.
                if is_sound && kind == Kind::Overlays && self.overlays != OverlaysKnown::Known {
                    self.look.by(now.mono);
                }
            }
            Event::Gap(reason) => {
                self.log(Note::Gap(reason));
                self.look.by(now.mono);
            }
            Event::Up => {
                self.log(Note::Connected);
                let store = self.store();
                (store.connected, store.trouble, store.refused) = (true, None, None);
                self.look.by(now.mono);
            }
            Event::Down(reason) => {
                let store = self.store();
                // It comes at every attempt to connect.
                let is_news = store.connected || store.trouble.is_none();
                (store.connected, store.trouble) = (false, Some(reason.clone()));
                if is_news {
                    self.log(Note::Disconnected(reason));
                }
            }
            Event::Refused(reason) => {
                self.store().refused = Some(reason.clone());
                self.log(Note::Denied(reason));
            }
        }
    }

    /// Takes note of a statement. Whether it is one to trust, though there may be a newer one.
    fn statement(&mut self, kind: Kind, bytes: &Bytes, now: Now) -> bool {
        let accepted = match kind {
            Kind::Manifest => self.trusted.manifest(bytes),
            Kind::Overlays => self.trusted.overlays(bytes),
            Kind::Beacon => {
                self.hear_beacon(bytes, now);
                return true;
            }
        };
        match accepted {
            Ok(true) => {
                self.changed = now.mono;
                if kind == Kind::Manifest {
                    self.bundle.forget_failures();
                    // What was to come into force later never will.
                    self.ready.take_if(|ready| !ready.is_due(now));
                }
                self.show_heads();
                true
            }
            Ok(false) => true,
            Err(refusal) => {
                let is_sound = matches!(refusal, Refusal::Older { .. } | Refusal::Forked(_));
                self.refuse(kind, refusal, now);
                is_sound
            }
        }
    }

    fn hear_beacon(&mut self, bytes: &Bytes, now: Now) {
        match self.trusted.beacon(bytes, now.wall) {
            // Two senders, and servers that repeat: the newest counts.
            Ok(says) if self.beacon.as_ref().is_none_or(|newest| newest.says.sent_at < says.sent_at) => {
                self.compare_with_beacon(&says, now);
                let proof = Proof { at: now.mono, age: says.sent_at.age(now.wall) };
                self.beacon = Some(ReceivedBeacon { says, bytes: bytes.clone(), proof });
            }
            Ok(_) => {}
            Err(refusal) => self.refuse(Kind::Beacon, refusal, now),
        }
    }

    /// What a new beacon means for what was accepted.
    fn compare_with_beacon(&mut self, beacon: &Beacon, now: Now) {
        match self.trusted.holds(beacon) {
            Ok(true) => {}
            Ok(false) => self.look.by(now.mono),
            Err(_) if since(self.changed, now) < OVERLAP => {}
            Err(refusal) => self.refuse(Kind::Beacon, refusal, now),
        }
    }

    /// Notes that a statement is refused: an attack, or an old copy that was restored.
    pub(super) fn refuse(&mut self, kind: Kind, refusal: Refusal, now: Now) {
        let store = self.store();
        *store.refusals.entry((kind, refusal.as_str())).or_default() += 1;
        store.last_refusal = Some((now.wall, format!("{}: {refusal}", kind.as_str())));
        self.log(Note::Refused(kind, refusal));
    }

    pub(super) fn looked(&mut self, result: Result<Vec<(Kind, Option<Bytes>)>, SourceError>, now: Now) {
        self.look.end();
        match result {
            Ok(statements) => {
                for (kind, bytes) in statements {
                    self.found(kind, bytes.as_ref(), now);
                }
                self.status.last_read = Some(now.wall);
                // Whatever it was, it is over; unless a bundle cannot be had, which is tried apart.
                if self.bundle.attempts() == 0 {
                    self.store().trouble = None;
                }
            }
            Err(error) => self.look_failed(&error, now),
        }
    }

    fn look_failed(&mut self, error: &SourceError, now: Now) {
        self.store().trouble = Some(error.to_string());
        // Soon again, but not all sidecars at once.
        let pause = self.jittered(AFTER_A_FAILED_LOOK);
        self.look.by(now.mono + pause);
    }

    /// The newest statement of a kind was read, or there is none.
    fn found(&mut self, kind: Kind, bytes: Option<&Bytes>, now: Now) {
        let is_sound = match bytes {
            Some(bytes) => self.statement(kind, bytes, now),
            None => {
                self.found_nothing(kind, now);
                true
            }
        };
        if kind == Kind::Overlays {
            if is_sound { self.overlays_are_known() } else { self.overlays_are_refused() }
        }
        if let Some(bytes) = bytes.filter(|_| !is_sound) {
            self.search_history(kind, bytes);
        }
    }

    /// There is no statement of a kind. If one was accepted, the store has lost it.
    fn found_nothing(&mut self, kind: Kind, now: Now) {
        let accepted = match kind {
            Kind::Manifest => self.trusted.manifest.as_ref().map(|newest| newest.head.version),
            Kind::Overlays => self.trusted.overlays.as_ref().map(|newest| newest.head.version),
            Kind::Beacon => None,
        };
        if let Some(accepted) = accepted {
            let offered = Version { epoch: 0, generation: 0 };
            self.refuse(kind, Refusal::Older { offered, accepted }, now);
        }
    }

    /// Searches for an older statement that is trusted, unless that was done for this one.
    fn search_history(&mut self, kind: Kind, refused: &Bytes) {
        let statement = Digest::of(refused);
        match self.refused.get(&kind) {
            Some(Refused::Searching { .. }) => return,
            Some(Refused::Searched { statement: searched }) if *searched == statement => return,
            Some(Refused::Searched { .. }) | None => self.refused.insert(kind, Refused::Searching { statement }),
        };
        let has_one = match kind {
            Kind::Manifest => self.trusted.manifest.is_some(),
            Kind::Overlays | Kind::Beacon => self.trusted.overlays.is_some(),
        };
        let steps = if has_one { RECENT } else { HISTORY };
        self.actions.push(Action::SearchHistory { kind, refused: statement, steps });
    }

    pub(super) fn history_searched(&mut self, Searched { kind, refused, found }: Searched, now: Now) {
        match found {
            Ok(found) => {
                self.refused.insert(kind, Refused::Searched { statement: refused });
                self.log(Note::HistorySearched(kind, found.is_some()));
                if let Some(bytes) = found {
                    self.statement(kind, &bytes, now);
                    if kind == Kind::Overlays {
                        self.overlays_are_known();
                    }
                }
            }
            Err(error) => {
                self.refused.remove(&kind);
                self.look_failed(&error, now);
            }
        }
    }

    /// Overlays were read and are trusted, or there never were any: something may be put in force with them.
    pub(super) fn overlays_are_known(&mut self) {
        self.overlays = OverlaysKnown::Known;
        if self.store().withheld.take().is_some() {
            self.log(Note::OverlaysTrusted);
        }
    }

    /// The newest overlays are refused. What is in force stays; but nothing is put in force first without overlays, since what is refused
    /// may have taken the place of an emergency denial.
    fn overlays_are_refused(&mut self) {
        if self.overlays == OverlaysKnown::Known {
            return;
        }
        self.overlays = OverlaysKnown::Refused;
        let why = self.store_status().and_then(|store| store.last_refusal.clone()).map(|(_, why)| why);
        let why = why.unwrap_or_default();
        let withheld = format!("nothing is put in force without overlays, and the newest are refused ({why})");
        if self.store().withheld.replace(withheld).is_none() {
            self.log(Note::Withheld(why));
        }
    }
}

/// How long ago an instant is.
pub(super) fn since(then: Instant, now: Now) -> Duration {
    now.mono.saturating_duration_since(then)
}
