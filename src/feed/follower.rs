//! Follows a store: everything between what a [`Source`] says and what is in force. Whatever the source does, a sidecar enforces only
//! what trusted keys signed, never goes back, keeps the last good version, and knows how current it is.
//!
//! What is decided, and when, is a pure state machine (`state`). [`Follower`] carries its actions out beside the loop, and feeds
//! what came of them back.

mod config;
mod fetch;
mod history;
mod note;
#[cfg(test)]
mod signer;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::{self, AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::error;

pub use self::config::Config;
use self::history::newest_trusted;
use self::note::Log;
use self::state::{Action, Fetch, Fetched, Input, Now, Origin, Searched, State, TICK};
use super::Status;
use super::compiler::retire;
use super::last_good::LastGood;
use super::source::{Events, Source, SourceError};
use crate::decision::freshness::LastProof;
use crate::model::{Overlay, Published};
use crate::policy::Files;
use crate::problem::Problem;
use crate::store::statement::{self, Kind};
use crate::store::{Digest, Keyring};

/// How long a question to the store may take.
const ANSWER: Duration = Duration::from_secs(5);

/// How long to wait for the store at the start before the copy on disk is used.
const GRACE: Duration = Duration::from_secs(2);

/// What is in force is reported within this, not at once: a hundred sidecars on a node would otherwise report while others of them still
/// compile what was published.
const REPORT_WITHIN: Duration = Duration::from_millis(100);

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

    /// The bundle that is in force, with these overlays. `published` is what the store says of it, if that has changed.
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
    state: State<E::Base, Arc<E::Snapshot>>,
    proof: Arc<LastProof>,
    snapshots: watch::Sender<Option<Arc<E::Snapshot>>>,
    status: watch::Sender<Status>,
    last_good: Option<LastGood>,
    log: Log,
    /// Actions that take time. Each ends as an input.
    jobs: JoinSet<In<E>>,
    /// The bundle that is being fetched.
    fetching: Option<AbortHandle>,
    /// Set when the process is about to end.
    leave: watch::Receiver<bool>,
}

type In<E> = Input<<E as Engine>::Base, Arc<<E as Engine>::Snapshot>>;
type Act<E> = Action<<E as Engine>::Base, Arc<<E as Engine>::Snapshot>>;

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
        let state = State::new(config.clone(), fastrand::u64(..), now());
        status.send_replace(state.status().clone());
        Self {
            last_good: config.last_good.clone().map(LastGood::start),
            config,
            source: Arc::new(source),
            events,
            engine: Arc::new(engine),
            state,
            proof,
            snapshots,
            status,
            log: Log::new(),
            jobs: JoinSet::new(),
            fetching: None,
            leave: watch::channel(false).1,
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
        let mut leaving = false;
        loop {
            let input = tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => Input::Event(event),
                    // It goes on for as long as the process does.
                    None => return error!("the store is not followed any more; this is a bug in stockade"),
                },
                Some(job) = self.jobs.join_next() => match job {
                    Ok(input) => input,
                    // A bundle that was given up.
                    Err(error) if error.is_cancelled() => continue,
                    Err(error) => {
                        error!(%error, "following the store failed; this is a bug in stockade");
                        Input::Crashed
                    }
                },
                // An error: there is nobody who could set it.
                true = is_set(&mut self.leave), if !leaving => {
                    leaving = true;
                    Input::Leave
                }
                _ = tick.tick() => Input::Tick,
            };
            for action in self.state.on(input, now()) {
                self.carry_out(action);
            }
        }
    }

    /// Carries an action out, or begins to.
    fn carry_out(&mut self, action: Act<E>) {
        match action {
            Action::Look => {
                let source = Arc::clone(&self.source);
                self.jobs.spawn(async move { Input::Looked(look(&*source).await) });
            }
            Action::SearchHistory { kind, refused, steps } => self.search_history(kind, refused, steps),
            Action::ReadCopy => {
                let last_good = self.last_good.clone();
                self.jobs.spawn(async move {
                    Input::CopyRead(match last_good {
                        Some(last_good) => last_good.load().await,
                        None => None,
                    })
                });
            }
            Action::Fetch(fetch) => self.fetch(*fetch),
            Action::Step { base, published, overlays } => self.step(base, published, overlays),
            Action::PutInForce(snapshot) => retire(self.snapshots.send_replace(Some(snapshot))),
            Action::Prove(proof) => self.proof.prove(proof.at, proof.age),
            Action::Save(files) => {
                if let Some(last_good) = &self.last_good {
                    last_good.save(files);
                }
            }
            Action::Report(report) => self.report(*report),
            Action::Status(status) => {
                self.status.send_replace(*status);
            }
            Action::Log(note) => self.log.write(note),
        }
    }

    fn search_history(&mut self, kind: Kind, refused: Digest, steps: usize) {
        let (source, name) = (Arc::clone(&self.source), self.config.name.clone());
        let keyring = Keyring::new(self.config.keys.iter().cloned());
        self.jobs.spawn(async move {
            let found = newest_trusted(&*source, kind, &name, &keyring, steps).await;
            Input::HistorySearched(Searched { kind, refused, found })
        });
    }

    fn fetch(&mut self, wanted: Fetch) {
        let (source, engine, limits) = (Arc::clone(&self.source), Arc::clone(&self.engine), self.config.limits.clone());
        let job = self.jobs.spawn(async move {
            let begun = Instant::now();
            let result = fetch::fetch(&*source, engine, &wanted, limits).await;
            let copy = match wanted.origin {
                Origin::Store => None,
                Origin::Copy(_, proof) => Some(proof),
            };
            let Fetch { head, manifest, .. } = wanted;
            Input::Fetched(Box::new(Fetched { head, manifest, copy, took: begun.elapsed(), result }))
        });
        if let Some(given_up) = self.fetching.replace(job) {
            given_up.abort();
        }
    }

    fn step(&mut self, base: Option<E::Base>, published: Option<Published>, overlays: Vec<Overlay>) {
        let (engine, previous) = (Arc::clone(&self.engine), self.snapshots.borrow().clone());
        let make = move || {
            let snapshot = match (base, previous) {
                (Some(base), previous) => engine.succeed(previous.as_deref(), base, &overlays),
                (None, Some(previous)) => engine.overlay(&previous, &overlays, published),
                (None, None) => return None,
            };
            let revision = engine.revision(&snapshot);
            Some((Arc::new(snapshot), revision))
        };
        self.jobs.spawn(async move {
            // Comparing ten thousand policies takes milliseconds, which the checks must not wait for.
            Input::Stepped(task::spawn_blocking(make).await.unwrap_or_else(|error| {
                error!(%error, "the next snapshot could not be made; this is a bug in stockade");
                None
            }))
        });
    }

    fn report(&mut self, status: statement::Status) {
        let source = Arc::clone(&self.source);
        // There may be no time for that before the process ends.
        let within = if status.leaving { Duration::ZERO } else { REPORT_WITHIN };
        self.jobs.spawn(async move {
            sleep(within.mul_f64(fastrand::f64())).await;
            let sent = timeout(ANSWER, source.report(&status)).await.unwrap_or_else(|_| Err(no_answer()));
            Input::Reported(sent.map(|()| status.leaving))
        });
    }
}

/// Reads the newest statements.
async fn look(source: &impl Source) -> Result<Vec<(Kind, Option<Bytes>)>, SourceError> {
    let look = async {
        let mut found = Vec::new();
        // Overlays first: anyone who has the manifest has the denials that came before it. The beacon last: it names both.
        for kind in [Kind::Overlays, Kind::Manifest, Kind::Beacon] {
            found.push((kind, source.newest(kind).await?));
        }
        Ok(found)
    };
    timeout(ANSWER, look).await.unwrap_or_else(|_| Err(no_answer()))
}

fn no_answer() -> SourceError {
    SourceError("no answer in time".to_owned())
}

/// The two clocks.
fn now() -> Now {
    // The monotonic clock of the runtime, which tests pause.
    Now { mono: tokio::time::Instant::now().into_std(), wall: SystemTime::now() }
}

/// Waits until it is true; `false` if it never will be.
async fn is_set(leave: &mut watch::Receiver<bool>) -> bool {
    leave.wait_for(|leave| *leave).await.is_ok()
}
