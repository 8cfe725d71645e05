//! From the newest manifest to what is in force: its bundle is fetched and compiled, and then a step leads from one snapshot to the next.
//! Overlays need the step only, so an emergency denial never waits for a bundle.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::fetch::{Failure, is_at_least, published};
use super::super::note::Note;
use super::statements::{OverlaysKnown, since};
use super::{AFTER_A_PANIC, Action, Fetch, Fetched, Now, Origin, Proof, State};
use crate::backoff::Backoff;
use crate::model::Overlay;
use crate::problem::{Problem, one_line};
use crate::store::Refusal;
use crate::store::statement::{Head, Kind, Manifest};

/// How long a bundle that is on its way is waited for when there is a newer manifest.
const OVERTAKEN: Duration = Duration::from_secs(5);

/// The pauses between attempts to fetch a bundle.
const RETRY: Backoff = Backoff { base: Duration::from_millis(100), longest: Duration::from_secs(10) };

/// How far the bundle of the newest manifest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bundle {
    /// There is nothing to fetch.
    Idle,
    /// The bundle of this manifest is being fetched and compiled.
    Fetching {
        /// The manifest.
        head: Head,
        /// Since when.
        since: Instant,
        /// How many attempts have failed before.
        attempts: u32,
    },
    /// It could not be fetched.
    Backoff {
        /// How many attempts have failed.
        attempts: u32,
        /// The next one is made then.
        until: Instant,
    },
    /// The bundle of this manifest was refused. It is not tried again: nothing about it will change.
    Refused {
        /// The manifest.
        head: Head,
    },
}

impl Bundle {
    /// How many attempts have failed.
    pub(super) fn attempts(self) -> u32 {
        match self {
            Self::Fetching { attempts, .. } | Self::Backoff { attempts, .. } => attempts,
            Self::Idle | Self::Refused { .. } => 0,
        }
    }

    /// There is a newer manifest, or a bundle arrived: whatever could not be had before counts no more.
    pub(super) fn forget_failures(&mut self) {
        match self {
            Self::Fetching { attempts, .. } => *attempts = 0,
            Self::Backoff { .. } => *self = Self::Idle,
            Self::Idle | Self::Refused { .. } => {}
        }
    }
}

/// A bundle that can come into force.
pub(super) struct Ready<B> {
    pub(super) head: Head,
    manifest: Manifest,
    /// `None` if the bundle is the one in force.
    compiled: Option<(B, Bytes)>,
    took: Duration,
    /// If it is from the copy on disk: when that was current.
    copy: Option<Proof>,
}

impl<B> Ready<B> {
    /// Whether it is to be in force by now.
    pub(super) fn is_due(&self, now: Now) -> bool {
        is_due(&self.manifest, now)
    }
}

/// Whether a manifest is to be in force by now.
fn is_due(manifest: &Manifest, now: Now) -> bool {
    manifest.not_before.is_none_or(|not_before| not_before.0 <= now.wall)
}

/// The way from one snapshot to the next.
#[derive(Debug)]
pub(super) enum Step {
    /// None is being taken.
    Idle,
    /// One is being taken.
    Running(Box<Next>),
    /// One panicked; the next one is taken then.
    Panicked { until: Instant },
}

/// What will be in force after a step.
#[derive(Debug)]
pub(super) struct Next {
    /// The manifest, if it is another one.
    manifest: Option<(Head, Manifest)>,
    /// The packed bundle, if it is another one.
    blob: Option<Bytes>,
    overlays: Option<Head>,
    active: Vec<Overlay>,
    later: Vec<Overlay>,
    /// What fetching and compiling the bundle took.
    took: Option<Duration>,
    /// If it is from the copy on disk: when that was current.
    copy: Option<Proof>,
}

impl<B, S> State<B, S> {
    /// Fetches what the newest manifest names, if that is not done.
    pub(super) fn fetch_newest(&mut self, now: Now) {
        let Some(newest) = &self.trusted.manifest else { return };
        let head = newest.head;
        let is_done = self.enforced.head() == Some(head) || self.ready.as_ref().is_some_and(|ready| ready.head == head);
        if is_done || matches!(self.step, Step::Running(_)) {
            return;
        }
        let attempts = match self.bundle {
            // What is on its way is newer than what is in force, so it is worth waiting for: someone who publishes without a pause would
            // otherwise keep it all from being in force.
            Bundle::Fetching { head: other, since: begun, .. } if other == head || since(begun, now) < OVERTAKEN => {
                return;
            }
            Bundle::Backoff { until, .. } if now.mono < until => return,
            Bundle::Refused { head: refused } if refused == head => return,
            bundle => bundle.attempts(),
        };
        let manifest = newest.says.clone();
        if let Some(needed) = &manifest.min_sidecar
            && !is_at_least(env!("CARGO_PKG_VERSION"), needed)
        {
            let refusal = Refusal::MinSidecar(needed.clone());
            self.reject(head, &[Problem::error(format!("manifest {}: {refusal}", head.version))], now);
            return self.refuse(Kind::Manifest, refusal, now);
        }
        if self.enforced.manifest.as_ref().is_some_and(|(_, enforced)| enforced.bundle == manifest.bundle) {
            self.ready = Some(Ready { head, manifest, compiled: None, took: Duration::ZERO, copy: None });
            return;
        }
        self.fetch(
            Fetch { head, manifest, origin: Origin::Store, urgent: self.enforced.manifest.is_none() },
            attempts,
            now,
        );
    }

    /// Fetches a bundle, and gives up one that is still being fetched.
    pub(super) fn fetch(&mut self, fetch: Fetch, attempts: u32, now: Now) {
        self.bundle = Bundle::Fetching { head: fetch.head, since: now.mono, attempts };
        self.actions.push(Action::Fetch(Box::new(fetch)));
    }

    pub(super) fn fetched(&mut self, fetched: Fetched<B>, now: Now) {
        let Fetched { head, manifest, copy, took, result } = fetched;
        let attempts = self.bundle.attempts();
        if matches!(self.bundle, Bundle::Fetching { head: fetching, .. } if fetching == head) {
            self.bundle = Bundle::Idle;
        }
        let is_newest = self.trusted.manifest.as_ref().is_some_and(|newest| newest.head == head);
        match result {
            Ok(compiled) => {
                if attempts > 0 {
                    self.store().trouble = None;
                }
                self.bundle.forget_failures();
                if is_newest {
                    // Whether it comes into force or waits, it is not refused.
                    self.status.rejection = None;
                }
                let is_news = self.enforced.head().is_none_or(|enforced| enforced.version < head.version);
                if is_news && (is_newest || is_due(&manifest, now)) {
                    self.ready = Some(Ready { head, manifest, compiled: Some(compiled), took, copy });
                }
            }
            // The store is asked next.
            Err(failure) if copy.is_some() => self.log(Note::CopyUnused(failure.to_string())),
            // There is something newer to try.
            Err(_) if !is_newest => {}
            Err(Failure::Problems(problems)) => self.reject(head, &problems, now),
            Err(Failure::Blob(refusal)) => {
                let why = refusal.to_string();
                self.refuse(Kind::Manifest, refusal, now);
                self.fetch_failed(attempts, why, now);
            }
            Err(Failure::Source(error)) => self.fetch_failed(attempts, error.to_string(), now),
        }
    }

    fn fetch_failed(&mut self, attempts: u32, why: String, now: Now) {
        let attempts = attempts.saturating_add(1);
        let pause = self.jittered(RETRY.limit(attempts));
        self.bundle = Bundle::Backoff { attempts, until: now.mono + pause };
        self.store().trouble = Some(why.clone());
        if attempts == 1 {
            self.log(Note::FetchFailed(why));
        }
    }

    fn reject(&mut self, head: Head, problems: &[Problem], now: Now) {
        self.bundle = Bundle::Refused { head };
        self.status.rejected(problems, now.wall);
        self.log(Note::Rejected(one_line(problems)));
    }

    /// Whatever is being fetched is fetched again, not at once.
    pub(super) fn retry_bundle_after(&mut self, pause: Duration, now: Now) {
        if !matches!(self.bundle, Bundle::Refused { .. }) {
            self.bundle = Bundle::Backoff { attempts: self.bundle.attempts(), until: now.mono + pause };
        }
    }

    /// Takes the step to the next snapshot, if there is one to take.
    pub(super) fn take_step(&mut self, now: Now) {
        match self.step {
            Step::Running(_) => return,
            Step::Panicked { until } if now.mono < until => return,
            Step::Panicked { .. } | Step::Idle => {}
        }
        // What was overtaken on its way stays out.
        let enforced = self.enforced.head().map(|head| head.version);
        self.ready.take_if(|ready| enforced.is_some_and(|enforced| ready.head.version <= enforced));
        let ready = self.ready_to_step(now);
        if self.enforced.manifest.is_none() && ready.is_none() {
            return;
        }
        let overlays = self.trusted.overlays.as_ref().map(|newest| newest.head);
        if ready.is_none() && !self.overlays_differ(now) {
            // Another statement of the same: nothing that decides has changed.
            if overlays != self.enforced.overlays {
                self.in_force(None, overlays, (self.enforced.active.clone(), self.enforced.later.clone()), now);
            }
            return;
        }
        // A snapshot is made with overlays that begin later too: this machine may be late for the beginning of one and for its end, and
        // decisions are not.
        let active: Vec<Overlay> = self.trusted.active(now.wall).cloned().collect();
        let later: Vec<Overlay> = self.trusted.later(now.wall).cloned().collect();
        let mut next = Next { manifest: None, blob: None, overlays, active, later, took: None, copy: None };
        let mut base = None;
        if let Some(ready) = ready {
            next.took = ready.compiled.is_some().then_some(ready.took).filter(|_| ready.copy.is_none());
            (base, next.blob) = ready.compiled.unzip();
            (next.manifest, next.copy) = (Some((ready.head, ready.manifest)), ready.copy);
        }
        let published = next.manifest.as_ref().map(|(head, manifest)| published(*head, manifest));
        self.actions.push(Action::Step {
            base,
            published,
            overlays: [next.active.clone(), next.later.clone()].concat(),
        });
        self.step = Step::Running(Box::new(next));
    }

    /// The bundle that is ready, if it may come into force: at its time, and with overlays.
    fn ready_to_step(&mut self, now: Now) -> Option<Ready<B>> {
        let has_overlays = match self.overlays {
            OverlaysKnown::Known => true,
            // The copy has its own. One without any does not stand in for those that are refused.
            OverlaysKnown::Unknown => self.ready.as_ref()?.copy.is_some(),
            OverlaysKnown::Refused => self.ready.as_ref()?.copy.is_some() && self.trusted.overlays.is_some(),
        };
        self.ready.take_if(|ready| has_overlays && (ready.copy.is_some() || ready.is_due(now)))
    }

    fn overlays_differ(&self, now: Now) -> bool {
        !self.trusted.active(now.wall).eq(&self.enforced.active)
            || !self.trusted.later(now.wall).eq(&self.enforced.later)
    }

    pub(super) fn stepped(&mut self, snapshot: Option<(S, String)>, now: Now) {
        let Step::Running(next) = std::mem::replace(&mut self.step, Step::Idle) else { return };
        let Some((snapshot, revision)) = snapshot else {
            self.step = Step::Panicked { until: now.mono + AFTER_A_PANIC };
            // It has taken the bundle with it, which is fetched again.
            return self.retry_bundle_after(AFTER_A_PANIC, now);
        };
        let Next { manifest, blob, overlays, active, later, took, copy } = *next;
        // Before anyone can see it in force: what the copy proves, and that a first snapshot is not ready until its first beacon.
        if let (Some(proof), Some((head, _))) = (copy, &manifest) {
            self.log(Note::CopyInForce(head.version, proof.age));
            self.prove_by(proof, now);
        }
        self.store().expired = self.expired(now);
        self.show_status();
        self.actions.push(Action::PutInForce(snapshot));
        self.in_force(manifest, overlays, (active, later), now);
        self.enforced.revision = Some(revision);
        self.enforced.from_disk = copy.is_some();
        if let Some(took) = took {
            self.status.loaded(took);
        }
        match copy {
            Some(_) => self.overlays_are_known(),
            None => self.save(blob, now),
        }
        self.show_heads();
    }

    /// Takes note of what is in force now.
    fn in_force(
        &mut self,
        manifest: Option<(Head, Manifest)>,
        overlays: Option<Head>,
        (active, later): (Vec<Overlay>, Vec<Overlay>),
        now: Now,
    ) {
        self.changed = now.mono;
        // What was there at the start was published long before, which says nothing of how fast changes arrive.
        let was_running = self.enforced.manifest.is_some();
        if let Some((head, manifest)) = manifest {
            let counts_from = manifest.not_before.map_or(manifest.published_at, |at| at.max(manifest.published_at));
            let lead_time = was_running.then(|| counts_from.age(now.wall));
            (self.enforced.lead_time, self.enforced.since) = (lead_time, Some(now.wall));
            let publisher = manifest.publisher.clone();
            self.enforced.manifest = Some((head, manifest));
            // Unless it is a newer one that is refused.
            if !matches!(self.bundle, Bundle::Refused { head: refused } if refused.version > head.version) {
                self.status.rejection = None;
            }
            self.log(Note::InForce { version: head.version, publisher, lead_time });
        }
        if overlays != self.enforced.overlays {
            let newest = self.trusted.overlays.as_ref().filter(|newest| was_running && Some(newest.head) == overlays);
            self.enforced.overlays_lead_time = newest.map(|newest| newest.says.published_at.age(now.wall));
            self.enforced.overlays = overlays;
        }
        if active != self.enforced.active {
            let names = |all: &[Overlay]| all.iter().map(|overlay| overlay.id.clone()).collect::<Vec<_>>().join(", ");
            let (overlays, before) = (names(&active), names(&self.enforced.active));
            self.enforced.active = active;
            self.log(Note::OverlaysInForce { overlays, before });
        }
        self.enforced.later = later;
        self.enforced.from_disk = false;
        self.report.by(now.mono);
        self.show_heads();
    }

    /// Whether what is in force is what the newest statements say.
    pub(super) fn is_current(&self, now: Now) -> bool {
        let newest = self.trusted.manifest.as_ref().map(|newest| newest.head);
        // What comes into force later is not in force now.
        let is_later = |ready: &Ready<B>| Some(ready.head) == newest && !ready.is_due(now);
        let manifest = self.enforced.head() == newest || self.ready.as_ref().is_some_and(is_later);
        manifest && self.enforced.overlays == self.trusted.overlays.as_ref().map(|newest| newest.head)
    }
}
