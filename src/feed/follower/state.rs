//! What following a store decides: a pure state machine. [`State::on`] takes what happened and when, and returns what is to be done.
//! It has no I/O, no clock and no runtime; its only randomness comes from a seed. [`super::Follower`] carries the actions out
//! and feeds their results back.

mod bundle;
mod copy;
#[cfg(test)]
mod properties;
mod report;
#[cfg(test)]
mod simulation;
mod statements;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::mem;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use self::bundle::{Bundle, Ready, Step};
use self::copy::DiskCopy;
use self::statements::{OverlaysKnown, ReceivedBeacon, Refused};
use super::super::source::{Event, SourceError};
use super::super::{Status, StoreStatus, last_good};
use super::config::Config;
use super::fetch::Failure;
use super::note::Note;
use super::{ANSWER, GRACE};
use crate::model::{Overlay, Published};
use crate::store::statement::{Head, Kind, Manifest};
use crate::store::{Digest, Keyring, TrustedStatements, statement};

/// How often [`Input::Tick`] comes: overlays that begin or end, freshness and retries depend on time alone.
pub(super) const TICK: Duration = Duration::from_millis(200);

/// A tick that comes this much too late means that the process was paused: whatever was heard since is old.
const PAUSED: Duration = Duration::from_secs(1);

/// What panicked, by a bug of ours, is tried again after this.
const AFTER_A_PANIC: Duration = Duration::from_secs(2);

/// A look that failed is repeated after this, give or take a fifth.
const AFTER_A_FAILED_LOOK: Duration = Duration::from_secs(2);

/// An instant, by both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// By the clock that nobody sets: ages and pauses.
    pub(super) mono: Instant,
    /// By the clock that statements are written with.
    pub(super) wall: SystemTime,
}

/// What happened. `B` is a compiled bundle, `S` a snapshot: both are only passed through.
#[derive(Debug)]
pub(super) enum Input<B, S> {
    /// The source said something by itself.
    Event(Event),
    /// What came of [`Action::Look`]: the newest statements, in the order in which they were read.
    Looked(Result<Vec<(Kind, Option<Bytes>)>, SourceError>),
    /// What came of [`Action::SearchHistory`].
    HistorySearched(Searched),
    /// What came of [`Action::ReadCopy`]; `None` if there is no complete copy.
    CopyRead(Option<last_good::Copy>),
    /// What came of [`Action::Fetch`].
    Fetched(Box<Fetched<B>>),
    /// What came of [`Action::Step`]: a snapshot with its revision, or nothing if making it panicked.
    Stepped(Option<(S, String)>),
    /// What came of [`Action::Report`]: whether it said that this sidecar is leaving.
    Reported(Result<bool, SourceError>),
    /// Some action panicked. Which one is not known.
    Crashed,
    /// The process is about to end.
    Leave,
    /// Time has passed.
    Tick,
}

/// What is to be done, in this order. Nothing of it may fail without an [`Input`] that says so.
#[derive(Debug)]
pub(super) enum Action<B, S> {
    /// Read the newest statement of each kind.
    Look,
    /// Read back from the newest statement of a kind, which was refused, to one that is trusted.
    SearchHistory {
        /// The kind.
        kind: Kind,
        /// The statement that was refused.
        refused: Digest,
        /// How many older ones may be read.
        steps: usize,
    },
    /// Read the copy on disk.
    ReadCopy,
    /// Fetch, verify and compile a bundle. One that is still being fetched is given up.
    Fetch(Box<Fetch>),
    /// Make the next snapshot.
    Step {
        /// The bundle; `None` if the one in force stays.
        base: Option<B>,
        /// What the snapshot says of the manifest, if that is another one.
        published: Option<Published>,
        /// The overlays that are in force with it, now or later.
        overlays: Vec<Overlay>,
    },
    /// Let checks be decided by this snapshot.
    PutInForce(S),
    /// Let checks know that what is in force was current then.
    Prove(Proof),
    /// Write these files of the copy on disk.
    Save(Vec<(&'static str, Bytes)>),
    /// Say to the store what is in force.
    Report(Box<statement::Status>),
    /// Show this status.
    Status(Box<Status>),
    /// Tell the operator.
    Log(Note),
}

/// A bundle to fetch.
#[derive(Debug)]
pub(super) struct Fetch {
    /// The manifest that names it.
    pub(super) head: Head,
    /// What that says.
    pub(super) manifest: Manifest,
    /// Where its bytes come from.
    pub(super) origin: Origin,
    /// Whether checks wait for it, because nothing is in force yet.
    pub(super) urgent: bool,
}

/// Where the bytes of a bundle come from.
#[derive(Debug)]
pub(super) enum Origin {
    /// From the store.
    Store,
    /// From the copy on disk, which was current then.
    Copy(Bytes, Proof),
}

/// What came of fetching a bundle.
#[derive(Debug)]
pub(super) struct Fetched<B> {
    /// The manifest that names it.
    pub(super) head: Head,
    /// What that says.
    pub(super) manifest: Manifest,
    /// If it is from the copy on disk: when that was current.
    pub(super) copy: Option<Proof>,
    /// How long it took.
    pub(super) took: Duration,
    /// The compiled bundle, and the packed one.
    pub(super) result: Result<(B, Bytes), Failure>,
}

/// What came of searching the history of a kind.
#[derive(Debug)]
pub(super) struct Searched {
    /// The kind.
    pub(super) kind: Kind,
    /// The statement that was refused.
    pub(super) refused: Digest,
    /// The newest before it that is trusted; `None` if there is none.
    pub(super) found: Result<Option<Bytes>, SourceError>,
}

/// What is in force was current so long before an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) at: Instant,
    pub(super) age: Duration,
}

impl Proof {
    /// How long ago that is.
    fn age(self, now: Now) -> Duration {
        self.age.saturating_add(now.mono.saturating_duration_since(self.at))
    }
}

/// Work that is due from time to time, and that runs once at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recurring {
    /// It begins when it is due.
    Idle { due: Instant },
    /// It runs, and is due again then.
    Running { due: Instant },
}

impl Recurring {
    /// It is due by then at the latest.
    fn by(&mut self, at: Instant) {
        let (Self::Idle { due } | Self::Running { due }) = self;
        *due = (*due).min(at);
    }

    /// Begins it if it is due and does not run; `next` is when it is due again.
    fn begins(&mut self, now: Instant, next: Instant) -> bool {
        match self {
            Self::Idle { due } if *due <= now => {
                *self = Self::Running { due: next };
                true
            }
            _ => false,
        }
    }

    /// It has ended.
    fn end(&mut self) {
        let (Self::Idle { due } | Self::Running { due }) = *self;
        *self = Self::Idle { due };
    }
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
    revision: Option<String>,
    from_disk: bool,
}

impl Enforced {
    fn head(&self) -> Option<Head> {
        self.manifest.as_ref().map(|(head, _)| *head)
    }
}

/// All that a follower knows.
pub(super) struct State<B, S> {
    config: Config,
    random: fastrand::Rng,
    /// The newest statements that were accepted.
    trusted: TrustedStatements,
    /// Reading the newest statements.
    look: Recurring,
    /// Newest statements that are refused.
    refused: BTreeMap<Kind, Refused>,
    /// What is known of the overlays, before anything is in force.
    overlays: OverlaysKnown,
    /// The newest beacon.
    beacon: Option<ReceivedBeacon>,
    /// How far the bundle of the newest manifest is.
    bundle: Bundle,
    /// The bundle that can come into force. Not a state of `bundle`: it may wait for its time or for the overlays while a newer
    /// one is on its way.
    ready: Option<Ready<B>>,
    /// The way from one snapshot to the next.
    step: Step,
    enforced: Enforced,
    /// When what is in force was last known to be current.
    proof: Option<Proof>,
    /// When what is in force, or is to be, last changed.
    changed: Instant,
    /// Saying to the store what is in force.
    report: Recurring,
    leaving: bool,
    copy: DiskCopy,
    /// When the newest beacon is to be written to the disk.
    save_beacon_at: Instant,
    last_tick: Instant,
    status: Status,
    /// The status as it was shown last.
    shown: Status,
    /// What is to be done as a result of the current input.
    actions: Vec<Action<B, S>>,
}

impl<B, S> State<B, S> {
    /// Knows nothing yet.
    pub(super) fn new(config: Config, seed: u64, now: Now) -> Self {
        let keyring = Keyring::new(config.keys.iter().cloned());
        let status = Status { store: Some(StoreStatus::default()), ..Status::default() };
        let copy = match config.last_good {
            Some(_) => DiskCopy::Waiting { until: now.mono + GRACE },
            None => DiskCopy::Unused,
        };
        Self {
            random: fastrand::Rng::with_seed(seed),
            trusted: TrustedStatements::new(config.name.clone(), keyring, config.max_clock_skew.0),
            config,
            look: Recurring::Idle { due: now.mono },
            refused: BTreeMap::new(),
            overlays: OverlaysKnown::Unknown,
            beacon: None,
            bundle: Bundle::Idle,
            ready: None,
            step: Step::Idle,
            enforced: Enforced::default(),
            proof: None,
            changed: now.mono,
            report: Recurring::Idle { due: now.mono },
            leaving: false,
            copy,
            save_beacon_at: now.mono + last_good::BEACON_INTERVAL,
            last_tick: now.mono,
            shown: status.clone(),
            status,
            actions: Vec::new(),
        }
    }

    /// What is to be done because of what happened.
    pub(super) fn on(&mut self, input: Input<B, S>, now: Now) -> Vec<Action<B, S>> {
        match input {
            Input::Event(event) => self.hear(event, now),
            Input::Looked(result) => self.looked(result, now),
            Input::HistorySearched(searched) => self.history_searched(searched, now),
            Input::CopyRead(copy) => self.copy_read(copy, now),
            Input::Fetched(fetched) => self.fetched(*fetched, now),
            Input::Stepped(snapshot) => self.stepped(snapshot, now),
            Input::Reported(result) => self.reported(result, now),
            Input::Crashed => self.crashed(now),
            Input::Leave => self.leave(now),
            Input::Tick => self.tick(now),
        }
        self.advance(now);
        self.show_status();
        mem::take(&mut self.actions)
    }

    /// Starts whatever can be started.
    fn advance(&mut self, now: Now) {
        let next_look = now.mono + self.jittered(self.config.refresh.0);
        if self.look.begins(now.mono, next_look) {
            self.actions.push(Action::Look);
        }
        self.read_copy(now);
        self.fetch_newest(now);
        self.take_step(now);
        self.prove(now);
        self.send_report(now);
    }

    fn tick(&mut self, now: Now) {
        if now.mono.saturating_duration_since(self.last_tick) > TICK + PAUSED {
            self.log(Note::Paused);
            self.look.by(now.mono);
        }
        self.last_tick = now.mono;
    }

    /// Whatever it was that panicked is to be done again.
    fn crashed(&mut self, now: Now) {
        self.look.end();
        self.look.by(now.mono);
        self.report.end();
        self.refused.retain(|_, refused| refused.was_searched());
        if self.copy == DiskCopy::Reading {
            self.copy = DiskCopy::Unused;
        }
        self.retry_bundle_after(AFTER_A_PANIC, now);
    }

    /// The status as it is now.
    pub(super) fn status(&self) -> &Status {
        &self.status
    }

    /// The status of the store, to be changed.
    fn store(&mut self) -> &mut StoreStatus {
        self.status.store.get_or_insert_default()
    }

    /// The status of the store.
    fn store_status(&self) -> Option<&StoreStatus> {
        self.status.store.as_ref()
    }

    fn log(&mut self, note: Note) {
        self.actions.push(Action::Log(note));
    }

    /// A duration, give or take a fifth: what many sidecars do must not come at once.
    fn jittered(&mut self, duration: Duration) -> Duration {
        duration.mul_f64(0.8 + 0.4 * self.random.f64())
    }
}
