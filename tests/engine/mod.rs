//! Cached = fresh: whatever is asked and whatever changes, an answer of the running engine equals a fresh evaluation of all
//! policies by plain Cedar over all entities, under the snapshot in force.
//!
//! - [`same`]: one after the other, over every kind of change; what cannot have changed must not have been decided anew.
//! - [`races`]: traffic and pushes at once, and the interleavings that matter, forced.
//! - [`footprint`]: what policies do not read is not in the key, and what they read is.
//! - [`clock`]: overlays begin and end by the clock, whether anybody notices or not.
//! - [`bounds`]: memory, and what is hot, under keys that never end.
//!
//! That these tests catch bugs is itself tested: `make mutations` plants bugs in the engine, one after the other, and each
//! must make a test of this module fail. Among them (tests/mutations/README.md has all, with what each shows):
//!
//! - `generation`: a hit of any generation answers, and no Change is held against it;
//! - `added`, `removed`: Changes forget policies that are new, or that determined what is remembered; `overlay`: overlays;
//! - `ancestors`, `groups`, `context`: Changes forget entities that decisions depend on;
//! - `has`, `condition`: the footprint is too small; `key`: the key is;
//! - `ttl`, `ttl-edit`: what must not be remembered is;
//! - `insert`: a push between evaluation and insert goes unnoticed;
//! - `ended`, `ended-hit`: an overlay is in force until somebody notices that it has ended.

mod bounds;
mod clock;
mod footprint;
mod oracle;
mod races;
mod same;
mod world;

use std::cell::RefCell;
use std::sync::Arc;

use prost::Message as _;
use stockade::config::Config;
use stockade::decision::cache::{self, Cache};
use stockade::ext_authz::check::Pipeline;
use stockade::model::{CacheState, Decision, Outcome};
use stockade::observe::Metrics;
use stockade::policy::{Memory, Snapshot};
use stockade::problem::{SourceFile, one_line};
use stockade::proto::view;
use stockade::units::HumanDuration;
use tokio::sync::watch;

use self::oracle::{Answer, Expected, Oracle};
use self::world::{Ask, World};

/// Small and fast, and the same sequence for the same seed (xorshift64*).
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    /// Seeds that are close give sequences that are not.
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len())]
    }

    fn maybe<T>(&mut self, one_in: usize, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.roll(one_in) == 0).then(|| value(self))
    }
}

/// The running engine, without the service around it.
struct Engine {
    pipeline: Pipeline,
    sender: watch::Sender<Option<Arc<Snapshot>>>,
}

impl Engine {
    /// Remembers for an hour: what is looked for is not hidden by time. And does not look twice at hits, which would
    /// hide it as well.
    fn new(first: Arc<Snapshot>) -> Self {
        let hour = HumanDuration::seconds(3600);
        Self::with(
            first,
            cache::Config { self_check: 0.0, allow_ttl: hour, deny_ttl: hour, ..cache::Config::default() },
        )
    }

    fn with(first: Arc<Snapshot>, cache: cache::Config) -> Self {
        let (sender, snapshots) = watch::channel(Some(first));
        let config: Config = stockade::yaml::parse(&SourceFile::new("c", "bundles: [{directory: b}]")).unwrap();
        let (metrics, _) = Metrics::new(&config.metrics).unwrap();
        Self {
            pipeline: Pipeline::new(
                config.pipeline(),
                snapshots,
                Arc::new(config.proof()),
                Arc::new(Cache::new(cache)),
                metrics,
            ),
            sender,
        }
    }

    fn current(&self) -> Arc<Snapshot> {
        self.sender.borrow().clone().unwrap()
    }

    fn push(&self, next: Arc<Snapshot>) {
        self.sender.send_replace(Some(next));
    }

    /// What it answers, under the snapshot that it finds in force.
    fn decide(&self, ask: &Ask) -> Decision {
        match self.pipeline.frame(crate::fixture::frame(&ask.request()), "d").outcome {
            Outcome::Decided(decision) => decision,
            other => panic!("{ask:?}: {other:?}"),
        }
    }

    /// What it answers to a check that took this snapshot when it came, whatever is in force by now.
    fn decide_under(&self, snapshot: &Snapshot, ask: &Ask) -> Decision {
        let frame = ask.request().encode_to_vec();
        let request = view::CheckRequest::decode(&frame).unwrap();
        let mapped = self.pipeline.mapping.map(&request, snapshot).unwrap();
        self.pipeline.authorizer.decide(snapshot, &mapped.query, mapped.token).unwrap()
    }
}

fn is_hit(decision: &Decision) -> bool {
    matches!(decision.cache, CacheState::Hit(_))
}

fn compile(world: &World) -> Arc<Snapshot> {
    good(crate::fixture::succeeding(None, &world.files(), &world.overlays()), world)
}

/// The successor of the snapshot of a world. Where only overlays changed, or only bundles, it is made in the way for that;
/// else as a feed does that compiles beside what is in force.
fn succeed(previous: &Snapshot, before: &World, world: &World) -> Arc<Snapshot> {
    let (files, overlays) = (world.files(), world.overlays());
    if before.files() == files {
        return Arc::new(previous.overlaid(&overlays, None));
    }
    // With what was compiled before, of this world or any other: it must make no difference.
    thread_local!(static MEMORY: RefCell<Memory> = RefCell::default());
    let compiled = MEMORY.with_borrow_mut(|memory| Snapshot::compile(&files, None, memory));
    good(compiled.map(|compiled| compiled.succeeding(Some(previous), &overlays)), world)
}

fn good(compiled: Result<Snapshot, Vec<stockade::problem::Problem>>, world: &World) -> Arc<Snapshot> {
    Arc::new(compiled.unwrap_or_else(|problems| panic!("{}\n{:#?}", one_line(&problems), world.files())))
}

/// Holds an answer against the oracle's: all of it, and whether it may have been remembered.
fn agree(decision: &Decision, expected: &Expected, world: &World, about: impl FnOnce() -> String) {
    let wrong = match (is_hit(decision), expected) {
        _ if Answer::from(decision) != expected.answer => "another answer",
        (true, Expected { fleeting: true, .. }) => "it was remembered against a `@ttl`",
        (true, Expected { answer, .. }) if answer.errs() => "an error was remembered",
        _ => return,
    };
    let (found, expected) = (Answer::from(decision), &expected.answer);
    let (files, overlays) = (world.files(), &world.overlays);
    panic!("{}: {wrong}\n {found:?}, {:?}\n {expected:?}\n{files:#?}\n{overlays:#?}", about(), decision.cache);
}
