//! Follows a store: everything between what a [`Source`] says and what is in force. Whatever the source does, a sidecar enforces only
//! what trusted keys signed, never goes back, keeps the last good version, and knows how current it is.
//!
//! A statement that is heard is adopted as it is, since it proves itself; that none was missed is found out by looking: after every
//! gap and reconnection, when a beacon names something else, and now and then anyway. Three kinds of work run beside the loop, at most
//! one of each: looking, making a bundle ready (fetch, verify, compile), and succession (the step from one snapshot to the next). Overlays need
//! succession only, so an emergency denial never waits for a bundle.

mod config;
mod disk;
mod making;
mod telling;
#[cfg(test)]
mod tests;
mod walking;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::{self, AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{error, info, warn};

pub use self::config::Config;
use self::making::{compile, fetch, is_at_least, is_due, published};
use self::walking::Walked;
use super::compiler::retire;
use super::last_good::{self, LastGood};
use super::source::{Event, Events, Source, SourceError};
use super::{Status, StoreStatus};
use crate::decision::freshness::LastProof;
use crate::model::{Freshness, Overlay, Published};
use crate::observe::sparingly::Sparingly;
use crate::policy::Files;
use crate::problem::{Problem, one_line};
use crate::store::statement::{Beacon, Head, Kind, Manifest};
use crate::store::{Digest, Keyring, Refusal, TrustedStatements, statement};

/// How often what only time changes is looked at: overlays that begin or end, freshness, retries.
const TICK: Duration = Duration::from_millis(200);

/// A tick that comes this much too late means that the process was paused: whatever was heard since is old.
const PAUSED: Duration = Duration::from_secs(1);

/// How long a question to the store may take.
const ANSWER: Duration = Duration::from_secs(5);

/// How long a bundle may take to arrive.
const FETCH: Duration = Duration::from_secs(60);

/// How long what is on its way is waited for when there is something newer.
const OVERTAKEN: Duration = Duration::from_secs(5);

/// The pauses between attempts to get a bundle grow up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What fell over, by a bug of ours, is tried again after this.
const AFTER_A_FALL: Duration = Duration::from_secs(2);

/// How long a beacon may go on naming what was in force before. Its sender may have looked just before a change.
const OVERLAP: Duration = Duration::from_secs(3);

/// How often a kind of refusal is complained about, and about how many at a time.
const COMPLAINTS: (Duration, u64) = (Duration::from_secs(60), 100);

/// How long to wait for the store at the start before the copy on disk is used.
const GRACE: Duration = Duration::from_secs(2);

/// What the feed needs of the policies' side.
pub trait Engine: Send + Sync + 'static {
    /// A compiled bundle that follows on nothing yet.
    type Base: Send + 'static;
    /// What is in force: a bundle with overlays.
    type Snapshot: Send + Sync + 'static;

    /// Compiles the files of one or several bundles. Takes long; may panic.
    ///
    /// # Errors
    /// Every problem of every bundle.
    fn compile(&self, files: &[Files], published: Published) -> Result<Self::Base, Vec<Problem>>;

    /// Puts a bundle behind what is in force, or first, with these overlays: those in force now, and those that will be.
    fn succeed(&self, previous: Option<&Self::Snapshot>, base: Self::Base, overlays: &[Overlay]) -> Self::Snapshot;

    /// The bundle that is in force, with these overlays. `published` is what the store says of it, if it says so anew.
    fn overlay(&self, previous: &Self::Snapshot, overlays: &[Overlay], published: Option<Published>) -> Self::Snapshot;

    /// The identity of what is in force.
    fn revision(&self, snapshot: &Self::Snapshot) -> String;
}

/// The task that follows a store.
pub struct Follower<P, E: Engine> {
    config: Config,
    source: Arc<P>,
    events: Events,
    engine: Arc<E>,
    /// What was accepted.
    trusted: TrustedStatements,
    proof: Arc<LastProof>,
    snapshots: watch::Sender<Option<Arc<E::Snapshot>>>,
    status: watch::Sender<Status>,
    last_good: Option<LastGood>,
    jobs: JoinSet<Job<E>>,

    /// Whether overlays are known, before anything is in force: read and believed, known to be none, or taken from the disk.
    looked: bool,
    /// Newest statements that are refused, for which older ones were looked for.
    walked: BTreeMap<Kind, Digest>,
    /// For which kinds an older statement is being looked for.
    walking: BTreeSet<Kind>,
    looking: bool,
    look_again: bool,
    next_look: Instant,
    /// The manifest whose bundle is on its way, and when that may begin again after a failure.
    making: Option<Making>,
    failures: u32,
    retry_at: Option<Instant>,
    /// The manifest that was refused. It is not tried again: nothing about it will change.
    refused: Option<Head>,
    /// The bundle that is ready to be in force.
    ready: Option<Ready<E::Base>>,
    succeeding: bool,
    /// After one that fell over, the next one waits until then.
    succeed_at: Instant,
    enforced: Enforced,
    /// The newest beacon.
    beacon: Option<Heard>,
    /// When what is in force, or is to be, last changed.
    changed: Instant,
    /// When the store is to be told what is in force.
    tell_at: Instant,
    telling: bool,
    /// Set by whoever ends the process.
    leave: watch::Receiver<bool>,
    leaving: bool,
    /// When the newest beacon is to be written to the disk.
    save_beacon_at: Instant,
    complaints: Sparingly<(Kind, &'static str)>,
}

/// A beacon, and how old it was when it was heard. From then on it ages by the clock that nobody sets.
struct Heard {
    says: Beacon,
    bytes: Bytes,
    at: Instant,
    age: Duration,
}

/// A bundle that is on its way.
struct Making {
    head: Head,
    job: AbortHandle,
    since: Instant,
}

/// A bundle that is ready to be in force.
struct Ready<B> {
    head: Head,
    says: Manifest,
    /// `None` if the bundle is the one in force.
    base: Option<(B, Bytes)>,
    took: Duration,
}

/// What is in force.
#[derive(Debug, Clone, Default)]
struct Enforced {
    manifest: Option<(Head, Manifest)>,
    overlays: Option<Head>,
    active: Vec<Overlay>,
    /// The overlays that will be in force later.
    later: Vec<Overlay>,
    since: Option<SystemTime>,
    lead_time: Option<Duration>,
    overlays_lead_time: Option<Duration>,
    from_disk: bool,
}

/// What came of work beside the loop.
enum Job<E: Engine> {
    Looked(Result<Vec<(Kind, Option<Bytes>)>, SourceError>),
    WalkedBack(Walked),
    Made(Box<Made<E::Base>>),
    /// The other one is a panic.
    Succeeded(Result<Box<Step<E::Snapshot>>, task::JoinError>),
    /// Whether it was told that this sidecar is leaving.
    Told(Result<bool, SourceError>),
}

/// What came of making a bundle ready.
struct Made<B> {
    head: Head,
    says: Manifest,
    took: Duration,
    result: Result<(B, Bytes), Failure>,
}

/// A step from one snapshot to the next, ready to be taken.
struct Step<S> {
    snapshot: Arc<S>,
    /// The manifest that it puts in force, if it is another one.
    manifest: Option<(Head, Manifest)>,
    /// The bundle of that, if it is another one.
    blob: Option<Bytes>,
    overlays: Option<Head>,
    active: Vec<Overlay>,
    later: Vec<Overlay>,
    /// What making the bundle ready took.
    took: Option<Duration>,
}

/// Why a bundle could not be made ready.
enum Failure {
    /// It could not be had: to be tried again.
    Source(SourceError),
    /// It is not what the manifest names: to be tried again, for another server may have the right one.
    Blob(Refusal),
    /// It is not good, and never will be.
    Problems(Vec<Problem>),
}

impl<P: Source, E: Engine> Follower<P, E> {
    /// Prepares to follow a store.
    pub fn new(
        config: Config,
        (source, events): (P, Events),
        engine: E,
        proof: Arc<LastProof>,
        snapshots: watch::Sender<Option<Arc<E::Snapshot>>>,
        status: watch::Sender<Status>,
    ) -> Self {
        let keyring = Keyring::new(config.keys.iter().cloned());
        let now = Instant::now();
        status.send_modify(|status| status.store = Some(StoreStatus::default()));
        Self {
            trusted: TrustedStatements::new(config.name.clone(), keyring, config.max_clock_skew.0),
            last_good: config.last_good.clone().map(LastGood::start),
            config,
            source: Arc::new(source),
            events,
            engine: Arc::new(engine),
            proof,
            snapshots,
            status,
            jobs: JoinSet::new(),
            looked: false,
            walked: BTreeMap::new(),
            walking: BTreeSet::new(),
            looking: false,
            look_again: true,
            next_look: now,
            making: None,
            failures: 0,
            retry_at: None,
            refused: None,
            ready: None,
            succeeding: false,
            succeed_at: now,
            enforced: Enforced::default(),
            beacon: None,
            changed: now,
            tell_at: now,
            telling: false,
            leave: watch::channel(false).1,
            leaving: false,
            save_beacon_at: now + last_good::BEACON_INTERVAL,
            complaints: Sparingly::new(COMPLAINTS.0, COMPLAINTS.1),
        }
    }

    /// Tells the store when this becomes true that the sidecar is about to end; it goes on following until it does.
    #[must_use]
    pub fn leaving(self, leave: watch::Receiver<bool>) -> Self {
        Self { leave, ..self }
    }

    /// Follows the store until it is dropped.
    pub async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let start = Instant::now();
        let mut last_tick = start;
        let mut from_disk = self.last_good.is_some();
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.hear(event),
                    // It goes on for as long as the process does.
                    None => return error!("the store is not followed any more; this is a bug in stockade"),
                },
                Some(job) = self.jobs.join_next() => match job {
                    Ok(job) => self.done(job),
                    Err(error) => self.lost(&error),
                },
                // An error: nobody is there who could say so.
                true = told_to(&mut self.leave), if !self.leaving => self.leave(),
                _ = tick.tick() => {
                    if last_tick.elapsed() > TICK + PAUSED {
                        info!("this process was paused; asking the store what is in force");
                        self.look_again = true;
                    }
                    last_tick = Instant::now();
                    if from_disk && (self.looked || start.elapsed() >= GRACE) {
                        from_disk = false;
                        if !self.looked {
                            self.start_from_disk().await;
                        }
                    }
                }
            }
            self.advance();
        }
    }

    // === what is heard ===

    fn hear(&mut self, event: Event) {
        match event {
            Event::Statement(kind, bytes) => {
                // Overlays may be believed again; whether they are the newest is for a look to say.
                self.look_again |= self.statement(kind, &bytes) && kind == Kind::Overlays && !self.looked;
            }
            Event::Gap(reason) => {
                info!(reason, "something of the store may have been missed; asking");
                self.look_again = true;
            }
            Event::Up => {
                info!("connected to the store");
                self.store(|store| (store.connected, store.trouble, store.refused) = (true, None, None));
                self.look_again = true;
            }
            Event::Down(reason) => {
                self.store(|store| {
                    // It comes at every attempt to connect.
                    if store.connected || store.trouble.is_none() {
                        warn!(reason, "not connected to the store; what is in force stays");
                    }
                    (store.connected, store.trouble) = (false, Some(reason));
                });
            }
            Event::Refused(reason) => {
                error!(reason, "the store refuses this sidecar something; see docs/store.md, permissions");
                self.store(|store| store.refused = Some(reason));
            }
        }
    }

    /// Takes note of a statement. Whether it is one to believe, though there may be a newer one.
    fn statement(&mut self, kind: Kind, bytes: &Bytes) -> bool {
        let heard = match kind {
            Kind::Manifest => self.trusted.manifest(bytes),
            Kind::Overlays => self.trusted.overlays(bytes),
            Kind::Beacon => {
                self.hear_beacon(bytes);
                return true;
            }
        };
        match heard {
            Ok(true) => {
                self.changed = Instant::now();
                if kind == Kind::Manifest {
                    (self.failures, self.retry_at) = (0, None);
                    // What was to come into force later never will.
                    self.ready.take_if(|ready| !is_due(&ready.says, SystemTime::now()));
                }
                self.store_heads();
                true
            }
            Ok(false) => true,
            Err(refusal) => {
                self.refuse(kind, &refusal);
                matches!(refusal, Refusal::Older { .. } | Refusal::Forked(_))
            }
        }
    }

    fn hear_beacon(&mut self, bytes: &Bytes) {
        let now = SystemTime::now();
        match self.trusted.beacon(bytes, now) {
            Ok(says) => {
                // Two senders, and servers that repeat: the newest counts.
                if self.beacon.as_ref().is_none_or(|own| own.says.sent_at < says.sent_at) {
                    self.weigh(&says);
                    let age = says.sent_at.age(now);
                    self.beacon = Some(Heard { says, bytes: bytes.clone(), at: Instant::now(), age });
                }
            }
            Err(refusal) => self.refuse(Kind::Beacon, &refusal),
        }
    }

    /// What the newest beacon means for what was accepted.
    fn weigh(&mut self, beacon: &Beacon) {
        match self.trusted.holds(beacon) {
            Ok(true) => {}
            Ok(false) => self.look_again = true,
            Err(_) if self.changed.elapsed() < OVERLAP => {}
            Err(refusal) => self.refuse(Kind::Beacon, &refusal),
        }
    }

    /// Notes that a statement is not believed. Someone may be attacking, or have restored an old copy: an alarm, once a minute for each
    /// kind and reason.
    fn refuse(&mut self, kind: Kind, refusal: &Refusal) {
        self.store(|store| {
            *store.refusals.entry((kind, refusal.as_str())).or_default() += 1;
            store.last_refusal = Some((SystemTime::now(), format!("{}: {refusal}", kind.as_str())));
        });
        if self.complaints.lets_pass(&(kind, refusal.as_str())) {
            error!(statement = kind.as_str(), %refusal, "a statement of the store is refused; what is in force stays");
        }
    }

    // === what is to be done ===

    /// Starts whatever can be started. Called after everything that may have changed something.
    fn advance(&mut self) {
        if (self.look_again || Instant::now() >= self.next_look) && !self.looking {
            self.look();
        }
        self.make_ready();
        self.succeed();
        self.prove();
        self.tell();
    }

    /// Reads the newest statements.
    fn look(&mut self) {
        (self.looking, self.look_again) = (true, false);
        self.next_look = Instant::now() + jittered(self.config.refresh.0);
        let source = Arc::clone(&self.source);
        self.jobs.spawn(async move {
            let look = async {
                let mut found = Vec::new();
                // Overlays first: whoever has the manifest has the denials that came before it. The beacon last: it names both.
                for kind in [Kind::Overlays, Kind::Manifest, Kind::Beacon] {
                    found.push((kind, source.newest(kind).await?));
                }
                Ok(found)
            };
            Job::Looked(
                timeout(ANSWER, look).await.unwrap_or_else(|_| Err(SourceError("no answer in time".to_owned()))),
            )
        });
    }

    /// Fetches and compiles what the newest manifest names, if that is not done.
    fn make_ready(&mut self) {
        let Some(newest) = &self.trusted.manifest else { return };
        let head = newest.head;
        let is_done = self.enforced.manifest.as_ref().is_some_and(|(own, _)| *own == head)
            || self.ready.as_ref().is_some_and(|ready| ready.head == head)
            // What is on its way is newer than what is in force, so it is worth waiting for: who publishes without a pause would otherwise
            // keep it all from being in force.
            || self.making.as_ref().is_some_and(|own| own.head == head || own.since.elapsed() < OVERTAKEN)
            || self.refused == Some(head);
        if is_done || self.succeeding || self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        if let Some(needed) =
            newest.says.min_sidecar.clone().filter(|needed| !is_at_least(env!("CARGO_PKG_VERSION"), needed))
        {
            let refusal = Refusal::MinSidecar(needed);
            self.refused = Some(head);
            self.reject(&[Problem::error(format!("manifest {}: {refusal}", head.version))]);
            return self.refuse(Kind::Manifest, &refusal);
        }
        let blob = newest.says.bundle;
        if self.enforced.manifest.as_ref().is_some_and(|(_, own)| own.bundle == blob) {
            self.ready = Some(Ready { head, says: newest.says.clone(), base: None, took: Duration::ZERO });
            return;
        }
        let says = newest.says.clone();
        let at_once = self.snapshots.borrow().is_none();
        let (source, engine, limits) = (Arc::clone(&self.source), Arc::clone(&self.engine), self.config.limits.clone());
        let job = self.jobs.spawn(async move {
            let begun = Instant::now();
            let result = match fetch(&*source, &blob, &limits).await {
                Ok(bytes) => compile(engine, bytes, (head, &says), limits, at_once).await,
                Err(failure) => Err(failure),
            };
            Job::Made(Box::new(Made { head, says, took: begun.elapsed(), result }))
        });
        if let Some(older) = self.making.replace(Making { head, job, since: Instant::now() }) {
            older.job.abort();
        }
    }

    /// Takes the step to the next snapshot, if there is one to take.
    fn succeed(&mut self) {
        if self.succeeding || !self.looked || Instant::now() < self.succeed_at {
            return;
        }
        let now = SystemTime::now();
        let previous = self.snapshots.borrow().clone();
        let overlays = self.trusted.overlays.as_ref().map(|own| own.head);
        let is_other =
            !self.trusted.active(now).eq(&self.enforced.active) || !self.trusted.later(now).eq(&self.enforced.later);
        let enforced = self.enforced.manifest.as_ref().map(|(head, _)| head.version);
        // What was overtaken on its way stays out.
        self.ready.take_if(|ready| enforced.is_some_and(|enforced| ready.head.version <= enforced));
        let ready = self.ready.take_if(|ready| is_due(&ready.says, now));
        if previous.is_none() && ready.as_ref().is_none_or(|ready| ready.base.is_none()) {
            return;
        }
        let manifest = ready.as_ref().map(|ready| (ready.head, ready.says.clone()));
        if manifest.is_none() && !is_other {
            // Other words for the same: nothing that decides has changed.
            if overlays != self.enforced.overlays {
                self.in_force(None, overlays, self.enforced.active.clone(), self.enforced.later.clone());
            }
            return;
        }
        let (active, later) = self.standing(now);
        let took = ready.as_ref().filter(|ready| ready.base.is_some()).map(|ready| ready.took);
        let (base, blob) = ready.and_then(|ready| ready.base).unzip();
        let (engine, own) = (Arc::clone(&self.engine), [active.clone(), later.clone()].concat());
        let step: Box<dyn FnOnce() -> E::Snapshot + Send> = match (base, previous) {
            (Some(base), previous) => Box::new(move || engine.succeed(previous.as_deref(), base, &own)),
            (None, Some(previous)) => {
                let published = manifest.as_ref().map(|(head, says)| published(*head, says));
                Box::new(move || engine.overlay(&previous, &own, published))
            }
            (None, None) => return,
        };
        self.succeeding = true;
        self.jobs.spawn(async move {
            // Comparing ten thousand policies takes milliseconds, which the checks shall not wait for.
            let made = task::spawn_blocking(step).await;
            Job::Succeeded(made.map(|snapshot| {
                Box::new(Step { snapshot: Arc::new(snapshot), manifest, blob, overlays, active, later, took })
            }))
        });
    }

    /// Writes down that what is in force is current, if the newest beacon says so.
    fn prove(&mut self) {
        let now = Instant::now();
        if let Some(beacon) = &self.beacon
            && self.trusted.holds(&beacon.says) == Ok(true)
            && self.is_current(SystemTime::now())
        {
            self.proof.prove(beacon.at, beacon.age);
            if let Some(disk) = &self.last_good
                && now >= self.save_beacon_at
            {
                self.save_beacon_at = now + last_good::BEACON_INTERVAL;
                disk.save(vec![(Kind::Beacon.as_str(), beacon.bytes.clone())]);
            }
        }
        let freshness = self.proof.freshness(now);
        let told = self.status.borrow().store.as_ref().and_then(|store| store.freshness);
        if freshness != told && self.snapshots.borrow().is_some() {
            match freshness {
                Some(Freshness::Fresh) => info!("what is in force is proved to be current"),
                Some(Freshness::Stale) => warn!("no proof that what is in force is current; it stays"),
                Some(Freshness::Expired) => {
                    error!(
                        on_expired = ?self.config.freshness.on_expired,
                        "no proof for too long that what is in force is current"
                    );
                }
                None => {}
            }
            self.tell_at = now;
            let expired = self.proof.expired(now);
            self.store(|store| (store.freshness, store.expired) = (freshness, expired));
        }
    }

    /// Whether what is in force is what the newest statements say.
    fn is_current(&self, now: SystemTime) -> bool {
        let newest = self.trusted.manifest.as_ref().map(|own| own.head);
        let manifest = self.enforced.manifest.as_ref().map(|(head, _)| *head) == newest
            // What comes into force later is not in force now.
            || self.ready.as_ref().is_some_and(|ready| Some(ready.head) == newest && !is_due(&ready.says, now));
        manifest && self.enforced.overlays == self.trusted.overlays.as_ref().map(|own| own.head)
    }

    // === what came of it ===

    fn done(&mut self, job: Job<E>) {
        match job {
            Job::Looked(result) => self.after_look(result),
            Job::WalkedBack(walked) => self.after_walk(walked),
            Job::Made(made) => self.after_making(*made),
            Job::Succeeded(result) => {
                self.succeeding = false;
                match result {
                    Ok(step) => self.take(*step),
                    Err(error) => {
                        self.succeed_at = Instant::now() + AFTER_A_FALL;
                        self.lost(&error);
                    }
                }
            }
            Job::Told(result) => {
                self.telling = false;
                match result {
                    Ok(true) => self.store(|store| store.left = true),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::debug!(%error, "the store could not be told what is in force");
                        self.tell_at = Instant::now() + ANSWER;
                    }
                }
            }
        }
    }

    fn take(&mut self, step: Step<E::Snapshot>) {
        let Step { snapshot, manifest, blob, overlays, active, later, took } = step;
        // Before it is in force: a sidecar is not ready for the moment between a first snapshot and the first beacon.
        let expired = self.proof.expired(Instant::now());
        self.store(|store| store.expired = expired);
        retire(self.snapshots.send_replace(Some(snapshot)));
        self.in_force(manifest, overlays, active, later);
        if let Some(took) = took {
            self.status.send_modify(|status| status.loaded(took));
        }
        self.save(blob);
    }

    fn after_look(&mut self, result: Result<Vec<(Kind, Option<Bytes>)>, SourceError>) {
        self.looking = false;
        match result {
            Ok(found) => {
                for (kind, bytes) in found {
                    self.found(kind, bytes.as_ref());
                }
                self.status.send_if_modified(|status| {
                    status.last_read = Some(SystemTime::now());
                    // Whatever it was, it is over; unless a bundle cannot be had, which is tried apart.
                    let store = status.store.as_mut().filter(|_| self.failures == 0);
                    store.is_some_and(|store| store.trouble.take().is_some())
                });
            }
            Err(error) => {
                self.store(|store| store.trouble = Some(error.to_string()));
                // Soon again, but not all sidecars at once.
                self.next_look = self.next_look.min(Instant::now() + jittered(Duration::from_secs(2)));
            }
        }
    }

    /// The newest statement of a kind was read, or there is none.
    fn found(&mut self, kind: Kind, bytes: Option<&Bytes>) {
        let is_sound = match bytes {
            Some(bytes) => self.statement(kind, bytes),
            None => {
                self.weigh_absence(kind);
                true
            }
        };
        match (kind, bytes) {
            (Kind::Overlays, _) if is_sound => self.overlays_are_known(),
            (Kind::Overlays, _) => self.overlays_are_unknown(),
            (Kind::Manifest | Kind::Beacon, _) => {}
        }
        if let Some(bytes) = bytes.filter(|_| !is_sound) {
            self.walk_back(kind, bytes);
        }
    }

    /// There is no statement of a kind, though one was accepted: the store has lost it.
    fn weigh_absence(&mut self, kind: Kind) {
        let accepted = match kind {
            Kind::Manifest => self.trusted.manifest.as_ref().map(|own| own.head.version),
            Kind::Overlays => self.trusted.overlays.as_ref().map(|own| own.head.version),
            Kind::Beacon => None,
        };
        if let Some(accepted) = accepted {
            self.refuse(kind, &Refusal::Older { offered: statement::Version { epoch: 0, generation: 0 }, accepted });
        }
    }

    fn after_making(&mut self, made: Made<E::Base>) {
        let Made { head, says, took, result } = made;
        self.making.take_if(|own| own.head == head);
        let is_newest = self.trusted.manifest.as_ref().is_some_and(|own| own.head == head);
        match result {
            Ok(base) => {
                if self.failures > 0 {
                    self.store(|store| store.trouble = None);
                }
                (self.failures, self.retry_at) = (0, None);
                let is_news = self.enforced.manifest.as_ref().is_none_or(|(own, _)| own.version < head.version);
                if is_news && (is_newest || is_due(&says, SystemTime::now())) {
                    self.ready = Some(Ready { head, says, base: Some(base), took });
                }
            }
            // There is something newer to try.
            Err(_) if !is_newest => {}
            Err(Failure::Problems(problems)) => {
                self.refused = Some(head);
                self.reject(&problems);
            }
            Err(Failure::Blob(refusal)) => {
                self.refuse(Kind::Manifest, &refusal);
                self.again_later(&refusal.to_string());
            }
            Err(Failure::Source(error)) => self.again_later(&error.to_string()),
        }
    }

    fn again_later(&mut self, why: &str) {
        self.failures = self.failures.saturating_add(1);
        let pause = Duration::from_millis(100).saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.retry_at = Some(Instant::now() + jittered(pause));
        if self.failures == 1 {
            warn!(error = why, "a published bundle could not be fetched; trying again");
        }
        self.store(|store| store.trouble = Some(why.to_owned()));
    }

    /// The overlays that are in force at an instant, and those that will be. A snapshot is made with both: this loop may be late
    /// for the beginning of one and for its end, and decisions are not.
    fn standing(&self, now: SystemTime) -> (Vec<Overlay>, Vec<Overlay>) {
        (self.trusted.active(now).cloned().collect(), self.trusted.later(now).cloned().collect())
    }

    fn in_force(
        &mut self,
        manifest: Option<(Head, Manifest)>,
        overlays: Option<Head>,
        active: Vec<Overlay>,
        later: Vec<Overlay>,
    ) {
        let now = SystemTime::now();
        self.changed = Instant::now();
        // What was there at the start was published long before, which says nothing of how fast changes arrive.
        let was_running = self.enforced.manifest.is_some();
        if let Some((head, says)) = manifest {
            let counts_from = says.not_before.map_or(says.published_at, |at| at.max(says.published_at));
            self.enforced.lead_time = was_running.then(|| counts_from.age(now));
            self.enforced.since = Some(now);
            info!(version = %head.version, publisher = says.publisher, lead_time = ?self.enforced.lead_time, "in force");
            self.enforced.manifest = Some((head, says));
            self.status.send_modify(|status| status.rejection = None);
        }
        if overlays != self.enforced.overlays {
            let own = self.trusted.overlays.as_ref().filter(|own| was_running && Some(own.head) == overlays);
            self.enforced.overlays_lead_time = own.map(|own| own.says.published_at.age(now));
            self.enforced.overlays = overlays;
        }
        if active != self.enforced.active {
            let names = |all: &[Overlay]| all.iter().map(|own| own.id.clone()).collect::<Vec<_>>().join(", ");
            info!(overlays = names(&active), before = names(&self.enforced.active), "other overlays are in force");
            self.enforced.active = active;
        }
        self.enforced.later = later;
        self.enforced.from_disk = false;
        self.tell_at = Instant::now();
        self.store_heads();
    }

    fn reject(&self, problems: &[Problem]) {
        error!(problems = one_line(problems), "a published bundle is refused; the last good version stays in force");
        self.status.send_modify(|status| status.rejected(problems));
    }

    /// Work beside the loop panicked.
    fn lost(&mut self, error: &task::JoinError) {
        if error.is_cancelled() {
            return;
        }
        error!(%error, "following the store failed; this is a bug in stockade");
        // Whatever it was is to be done again.
        (self.looking, self.look_again, self.telling) = (false, true, false);
        self.walking.clear();
        self.making = None;
        self.retry_at = Some(Instant::now() + AFTER_A_FALL);
    }
}

/// Waits until it is true; `false` if it never will be.
async fn told_to(leave: &mut watch::Receiver<bool>) -> bool {
    leave.wait_for(|leave| *leave).await.is_ok()
}

/// A duration, give or take a fifth: what many sidecars do shall not come at once.
fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(0.8 + 0.4 * fastrand::f64())
}
