//! The follower above a source that does whatever a network and a store can do to it: what the state decides is carried out. What it
//! decides is held by the tables and properties of [`super::state`]. Time is paused: whatever is waited for takes none.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::signer::Signer;
use super::*;
use crate::feed::last_good;
use crate::feed::source::Event;
use crate::model::Freshness;
use crate::store::statement::{Blob, Manifest};
use crate::store::{Head, pack};
use crate::units::HumanDuration;

/// By the paused clock, which jumps from timer to timer while a thread compiles: longer than any thread takes.
const PATIENCE: Duration = Duration::from_secs(86_400);

/// A store in memory, and what is wrong with it.
struct Fake {
    heads: Mutex<BTreeMap<Kind, Bytes>>,
    /// All that was put there, by its place.
    history: Mutex<Vec<(Kind, Bytes)>>,
    blobs: Mutex<BTreeMap<String, Bytes>>,
    events: mpsc::Sender<Event>,
    reports: Mutex<Vec<statement::Status>>,
    /// Every question is answered with an error.
    down: AtomicBool,
    /// Blobs arrive damaged.
    damaged: AtomicBool,
    /// Blobs arrive when they are released.
    slow: AtomicBool,
    release: Notify,
}

impl Source for Arc<Fake> {
    async fn newest(&self, kind: Kind) -> Result<Option<Bytes>, SourceError> {
        self.answers()?;
        Ok(self.heads.lock().unwrap().get(&kind).cloned())
    }

    async fn before(&self, kind: Kind, place: Option<u64>) -> Result<Option<(u64, Bytes)>, SourceError> {
        self.answers()?;
        let places = self.history.lock().unwrap().clone();
        let found =
            (1_u64..).zip(places).filter(|(at, (own, _))| *own == kind && place.is_none_or(|place| *at < place));
        Ok(found.last().map(|(at, (_, bytes))| (at, bytes)))
    }

    async fn blob(&self, blob: &Blob) -> Result<Bytes, SourceError> {
        if self.slow.load(Ordering::SeqCst) {
            self.release.notified().await;
        }
        self.answers()?;
        let found = self.blobs.lock().unwrap().get(&blob.digest.hex()).cloned();
        let found = found.ok_or_else(|| SourceError("there is no such blob".to_owned()))?;
        if self.damaged.load(Ordering::SeqCst) {
            let mut damaged = found.to_vec();
            damaged[600] ^= 1;
            return Ok(damaged.into());
        }
        Ok(found)
    }

    async fn report(&self, status: &statement::Status) -> Result<(), SourceError> {
        self.answers()?;
        self.reports.lock().unwrap().push(status.clone());
        Ok(())
    }
}

impl Fake {
    fn new(events: mpsc::Sender<Event>) -> Self {
        Self {
            heads: Mutex::default(),
            history: Mutex::default(),
            blobs: Mutex::default(),
            events,
            reports: Mutex::default(),
            down: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            release: Notify::new(),
        }
    }

    fn answers(&self) -> Result<(), SourceError> {
        if self.down.load(Ordering::SeqCst) { Err(SourceError("down".to_owned())) } else { Ok(()) }
    }
}

/// Compiles a bundle to the text of its `a.cedar`; `bad` does not compile, and the first step to `panic` falls over.
#[derive(Default)]
struct Texts(AtomicBool);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Text {
    number: String,
    text: String,
    overlays: Vec<String>,
}

impl Engine for Texts {
    type Base = Text;
    type Snapshot = Text;

    fn compile(&self, files: &[Files], published: Published) -> Result<Text, Vec<Problem>> {
        match files[0].files["a.cedar"].as_str() {
            "bad" => Err(vec![Problem::error("does not compile")]),
            good => Ok(Text { number: published.number, text: good.to_owned(), overlays: Vec::new() }),
        }
    }

    fn succeed(&self, previous: Option<&Text>, base: Text, overlays: &[Overlay]) -> Text {
        let fell_over = self.0.fetch_or(base.text == "panic", Ordering::SeqCst);
        assert!(fell_over || base.text != "panic", "the step to {base:?} from {previous:?}");
        Text { overlays: overlays.iter().map(|own| own.id.clone()).collect(), ..base }
    }

    fn overlay(&self, previous: &Text, overlays: &[Overlay], published: Option<Published>) -> Text {
        let number = published.map_or_else(|| previous.number.clone(), |published| published.number);
        Text { overlays: overlays.iter().map(|own| own.id.clone()).collect(), number, ..previous.clone() }
    }

    fn revision(&self, snapshot: &Text) -> String {
        snapshot.text.clone()
    }
}

/// A publisher, an issuer of overlays and a sender of beacons, and a follower of what they say.
struct World {
    signer: Signer,
    fake: Arc<Fake>,
    events: Option<Events>,
    config: Config,
    manifests: u64,
    overlays: u64,
    newest: BTreeMap<Kind, Head>,
    disk: TempDir,
    leave: watch::Sender<bool>,
    snapshots: watch::Receiver<Option<Arc<Text>>>,
    status: watch::Receiver<Status>,
    task: Option<JoinHandle<()>>,
}

impl World {
    fn new() -> Self {
        let signer = Signer::new();
        let (sender, events) = mpsc::channel(64);
        let disk = tempfile::tempdir().expect("a directory");
        let directory = disk.path().display().to_string();
        let last_good = Some(last_good::Config { directory, max_age: HumanDuration::seconds(3600) });
        Self {
            config: Config { last_good, ..signer.config() },
            signer,
            fake: Arc::new(Fake::new(sender)),
            events: Some(events),
            manifests: 0,
            overlays: 0,
            newest: BTreeMap::new(),
            disk,
            leave: watch::Sender::new(false),
            snapshots: watch::channel(None).1,
            status: watch::channel(Status::default()).1,
            task: None,
        }
    }

    /// Starts the follower, or starts it again, as another process would.
    fn start(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let (sender, events) = mpsc::channel(64);
            // The old follower's receiver is gone.
            let fake = Fake::new(sender);
            fake.down.store(self.fake.down.load(Ordering::SeqCst), Ordering::SeqCst);
            let old = std::mem::replace(&mut self.fake, Arc::new(fake));
            *self.fake.heads.lock().unwrap() = old.heads.lock().unwrap().clone();
            *self.fake.history.lock().unwrap() = old.history.lock().unwrap().clone();
            *self.fake.blobs.lock().unwrap() = old.blobs.lock().unwrap().clone();
            self.events = Some(events);
        }
        let (snapshots, status) = (watch::Sender::new(None), watch::Sender::new(Status::default()));
        (self.snapshots, self.status) = (snapshots.subscribe(), status.subscribe());
        let proof = Arc::new(LastProof::required(self.config.freshness));
        let source = (Arc::clone(&self.fake), self.events.take().expect("started once"));
        let follower = Follower::new(self.config.clone(), source, Texts::default(), proof, snapshots, status);
        self.task = Some(tokio::spawn(follower.leaving(self.leave.subscribe()).run()));
    }

    // === the other side ===

    /// Puts a statement where the newest is found.
    fn put(&self, kind: Kind, bytes: Bytes) -> Bytes {
        self.fake.heads.lock().unwrap().insert(kind, bytes.clone());
        self.fake.history.lock().unwrap().push((kind, bytes.clone()));
        bytes
    }

    async fn hear(&self, kind: Kind, bytes: Bytes) {
        self.fake.events.send(Event::Statement(kind, bytes)).await.expect("the follower runs");
    }

    fn manifest(&self, generation: u64, text: &str) -> (Manifest, Bytes) {
        let files = [("a.cedar".to_owned(), text.to_owned())].into();
        let blob = Bytes::from(pack::pack(&[Files { root: String::new(), files, changed: None }]).expect("packed"));
        (self.signer.manifest(generation, &blob, SystemTime::now()), blob)
    }

    /// Publishes; the follower hears of it if somebody says so.
    fn publish_silently(&mut self, text: &str) -> Bytes {
        self.manifests += 1;
        let (manifest, blob) = self.manifest(self.manifests, text);
        self.fake.blobs.lock().unwrap().insert(manifest.bundle.digest.hex(), blob);
        let (head, bytes) = self.signer.seal(Kind::Manifest, self.manifests, &manifest);
        self.newest.insert(Kind::Manifest, head);
        self.put(Kind::Manifest, bytes)
    }

    async fn publish(&mut self, text: &str) {
        let bytes = self.publish_silently(text);
        self.hear(Kind::Manifest, bytes).await;
    }

    /// Issues these denials.
    fn issue_silently(&mut self, ids: &[&str]) -> Bytes {
        self.overlays += 1;
        let denials: Vec<_> = ids.iter().map(|id| (*id, PATIENCE * 100)).collect();
        let says = self.signer.overlays(self.overlays, &denials, SystemTime::now());
        let (head, bytes) = self.signer.seal(Kind::Overlays, self.overlays, &says);
        self.newest.insert(Kind::Overlays, head);
        self.put(Kind::Overlays, bytes)
    }

    async fn issue(&mut self, ids: &[&str]) {
        let bytes = self.issue_silently(ids);
        self.hear(Kind::Overlays, bytes).await;
    }

    /// A beacon about what is there.
    fn beacon(&self) -> Bytes {
        let named = |kind| self.newest.get(&kind).copied();
        let says = self.signer.beacon(named(Kind::Manifest), named(Kind::Overlays), SystemTime::now());
        self.put(Kind::Beacon, self.signer.seal(Kind::Beacon, 0, &says).1)
    }

    async fn beat(&self) {
        self.hear(Kind::Beacon, self.beacon()).await;
    }

    // === what is awaited ===

    async fn in_force(&mut self, what: &str, is_it: impl Fn(&Text) -> bool) -> Text {
        let waited = timeout(PATIENCE, self.snapshots.wait_for(|own| own.as_ref().is_some_and(|own| is_it(own)))).await;
        let status = self.status.borrow().clone();
        let found = waited.unwrap_or_else(|_| panic!("never in force: {what}; {status:?}"));
        Text::clone(found.expect("the follower runs").as_ref().expect("a snapshot"))
    }

    async fn text(&mut self, text: &str) -> Text {
        self.in_force(text, |own| own.text == text).await
    }

    async fn status(&mut self, what: &str, is_it: impl FnMut(&Status) -> bool) -> Status {
        let waited = timeout(PATIENCE, self.status.wait_for(is_it)).await;
        waited.unwrap_or_else(|_| panic!("no {what}")).expect("the follower runs").clone()
    }

    async fn refusal(&mut self, kind: Kind, word: &'static str) {
        let is_it =
            |status: &Status| status.store.as_ref().is_some_and(|store| store.refusals.contains_key(&(kind, word)));
        self.status(word, is_it).await;
    }

    /// Waits for something that shows only when it is looked at. The clock is paused, so it takes no longer than the thing itself.
    async fn until(what: &str, mut is_it: impl FnMut() -> bool) {
        let looks = async {
            while !is_it() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, looks).await.unwrap_or_else(|_| panic!("never {what}"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_published_is_in_force_and_reported() {
    let mut world = World::new();
    world.publish_silently("one");
    world.start();
    world.text("one").await;
    world.publish("two").await;
    world.text("two").await;
    // Back to what was: another manifest, the same bundle, under its own number.
    world.publish("one").await;
    world.in_force("the old bundle under a new number", |own| own.text == "one" && own.number == "7.3").await;
    world
        .status("the version", |status| {
            status.store.as_ref().and_then(|store| store.enforced).is_some_and(|version| version.generation == 3)
        })
        .await;
    let last = || world.fake.reports.lock().unwrap().last().cloned();
    let newest = world.newest.get(&Kind::Manifest).copied();
    World::until("reported", || last().is_some_and(|report| report.manifest == newest)).await;
    assert_eq!(last().expect("a report").revision.as_deref(), Some("one"));
    assert!(last().expect("a report").lead_time_ms.is_some());
    world.leave.send_replace(true);
    World::until("said that it leaves", || last().is_some_and(|report| report.leaving)).await;
    world.status("that it was said", |status| status.store.as_ref().is_some_and(|store| store.left)).await;
}

#[tokio::test(start_paused = true)]
async fn a_denial_does_not_wait_for_a_bundle() {
    let mut world = World::new();
    world.publish_silently("one");
    world.start();
    world.text("one").await;
    world.fake.slow.store(true, Ordering::SeqCst);
    world.publish("two").await;
    world.issue(&["deny-1"]).await;
    let found = world.in_force("the denial", |own| own.overlays == ["deny-1"]).await;
    assert_eq!(found.text, "one", "the bundle is still on its way");
    world.fake.release.notify_one();
    let found = world.text("two").await;
    assert_eq!(found.overlays, ["deny-1"], "and it is in force with it");
}

#[tokio::test(start_paused = true)]
async fn a_step_that_panics_is_taken_again() {
    let mut world = World::new();
    world.publish_silently("one");
    world.start();
    world.text("one").await;
    world.publish("panic").await;
    world.issue(&["deny-1"]).await;
    let found = world.in_force("the denial", |own| own.overlays == ["deny-1"]).await;
    assert_eq!(found.text, "one", "what panicked is not in force, and holds nothing up");
    world.text("panic").await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_blob_is_asked_for_again() {
    let mut world = World::new();
    world.publish_silently("one");
    world.fake.damaged.store(true, Ordering::SeqCst);
    world.start();
    world.refusal(Kind::Manifest, "blob").await;
    assert!(world.snapshots.borrow().is_none());
    let troubled = |status: &Status| status.store.as_ref().is_some_and(|store| store.trouble.is_some());
    world.status("trouble", troubled).await;
    world.fake.damaged.store(false, Ordering::SeqCst);
    world.text("one").await;
    world.status("end of trouble", |status| !troubled(status)).await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_without_the_store_is_in_force_from_disk() {
    let mut world = World::new();
    world.publish_silently("one");
    world.issue_silently(&["deny-1"]);
    world.beacon();
    world.start();
    world.in_force("both", |own| own.text == "one" && own.overlays == ["deny-1"]).await;
    let files = ["manifest", "overlays", "beacon", "bundle.tar"].map(|name| world.disk.path().join(name));
    World::until("on disk", || files.iter().all(|file| file.exists())).await;
    // What is newer than the last beacon that was kept was not out of date when that was sent.
    let overlays = std::fs::read(&files[1]).expect("overlays");
    world.issue(&["deny-1", "deny-2"]).await;
    World::until("the new overlays", || std::fs::read(&files[1]).expect("overlays") != overlays).await;

    world.fake.down.store(true, Ordering::SeqCst);
    world.start();
    world.in_force("both", |own| own.text == "one" && own.overlays == ["deny-1", "deny-2"]).await;
    let status = world.status("from disk", |status| status.store.as_ref().is_some_and(|store| store.from_disk)).await;
    assert!(status.store.expect("a store").lead_time.is_none());
    // The store is back: what it has is newer, and corrects it.
    world.fake.down.store(false, Ordering::SeqCst);
    let blob = std::fs::read(&files[3]).expect("a blob");
    world.publish("two").await;
    world.text("two").await;
    world.status("not from disk", |status| status.store.as_ref().is_some_and(|store| !store.from_disk)).await;

    // What was tampered with is not used. Wait until the newer one is there to be tampered with.
    World::until("the new bundle", || std::fs::read(&files[3]).expect("a blob") != blob).await;
    let mut blob = std::fs::read(&files[3]).expect("a blob");
    blob[600] ^= 1;
    std::fs::write(&files[3], blob).expect("written");
    world.fake.down.store(true, Ordering::SeqCst);
    world.start();
    sleep(GRACE * 10).await;
    assert!(world.snapshots.borrow().is_none(), "nothing that is not verified is in force");
}

#[tokio::test(start_paused = true)]
async fn a_start_goes_back_to_the_newest_statements_that_are_trusted() {
    let mut world = World::new();
    world.publish_silently("one");
    world.issue_silently(&["deny-1"]);
    world.issue_silently(&["deny-1", "deny-2"]);
    for _ in 0..3 {
        world.put(Kind::Overlays, Bytes::from_static(b"rubbish"));
        world.put(Kind::Manifest, Bytes::from_static(b"rubbish"));
    }
    world.start();
    let mut first = world.snapshots.clone();
    timeout(PATIENCE, first.changed()).await.expect("in time").expect("the follower runs");
    let found = first.borrow().clone().expect("a snapshot");
    assert_eq!(
        (found.text.as_str(), found.overlays.as_slice()),
        ("one", ["deny-1", "deny-2"].map(String::from).as_slice())
    );
    // A running one keeps what it has, whatever is written.
    world.hear(Kind::Overlays, Bytes::from_static(b"other rubbish")).await;
    world.put(Kind::Overlays, Bytes::from_static(b"other rubbish"));
    world.fake.events.send(Event::Gap("test".to_owned())).await.expect("sent");
    world.publish("two").await;
    assert_eq!(world.text("two").await.overlays, ["deny-1", "deny-2"]);
}

/// Whatever happens on the way, what is in force only moves on, is what was published under its number, and ends at the newest.
#[tokio::test(start_paused = true)]
#[expect(clippy::disallowed_macros, reason = "the seed, for anyone who looks into a failure")]
async fn whatever_the_source_does_what_is_in_force_moves_on_to_the_newest() {
    let seed =
        std::env::var("STOCKADE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("STOCKADE_SEED={seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut world = World::new();
    world.publish_silently("1");
    world.start();
    let mut seen = world.snapshots.clone();
    let watching = tokio::spawn(async move {
        let (mut last, mut count) = (0, 0);
        while seen.changed().await.is_ok() {
            let Some(own) = seen.borrow_and_update().clone() else { continue };
            let generation: u64 = own.number.strip_prefix("7.").expect("the epoch").parse().expect("a number");
            assert!(generation >= last, "it went back from {last} to {generation}");
            assert_eq!(own.text, generation.to_string(), "not what was published under this number");
            (last, count) = (generation, count + 1);
        }
        count
    });
    let mut old: Vec<(Kind, Bytes)> = Vec::new();
    let mut held: Vec<(Kind, Bytes)> = Vec::new();
    for _ in 0..400 {
        let next = (world.manifests + 1).to_string();
        match dice.u32(..13) {
            0 | 1 => {
                let bytes = world.publish_silently(&next);
                old.push((Kind::Manifest, bytes.clone()));
                world.hear(Kind::Manifest, bytes).await;
            }
            2 => {
                let id = format!("deny-{}", world.overlays + 1);
                let bytes = world.issue_silently(&[id.as_str()]);
                old.push((Kind::Overlays, bytes.clone()));
                world.hear(Kind::Overlays, bytes).await;
            }
            // Lost.
            3 => drop(world.publish_silently(&next)),
            // Late, and out of order.
            4 => held.push((Kind::Manifest, world.publish_silently(&next))),
            5 => {
                dice.shuffle(&mut held);
                for (kind, bytes) in held.drain(..) {
                    world.hear(kind, bytes).await;
                }
            }
            // Again, or from long ago.
            6 if !old.is_empty() => {
                let (kind, bytes) = old[dice.usize(..old.len())].clone();
                world.hear(kind, bytes).await;
            }
            // A server with an old copy answers.
            7 if !old.is_empty() => {
                let (kind, bytes) = old[dice.usize(..old.len())].clone();
                let newest = world.fake.heads.lock().unwrap().insert(kind, bytes);
                world.fake.events.send(Event::Gap("test".to_owned())).await.expect("sent");
                sleep(Duration::from_millis(dice.u64(..5))).await;
                world.fake.heads.lock().unwrap().insert(kind, newest.expect("one"));
            }
            // Forged, cut short, damaged.
            8 => {
                let kind = dice.choice(Kind::ALL).expect("one");
                let mut bytes =
                    world.fake.heads.lock().unwrap().get(&kind).map(|bytes| bytes.to_vec()).unwrap_or_default();
                if !bytes.is_empty() {
                    let at = dice.usize(..bytes.len());
                    bytes[at] = bytes[at].wrapping_add(1);
                    bytes.truncate(dice.usize(bytes.len() / 2..bytes.len()));
                }
                world.hear(kind, bytes.into()).await;
            }
            9 => world.fake.down.store(dice.u32(..4) == 0, Ordering::SeqCst),
            10 => world.fake.damaged.store(dice.u32(..4) == 0, Ordering::SeqCst),
            11 => world.beat().await,
            _ => sleep(Duration::from_millis(dice.u64(..10))).await,
        }
    }
    // It is over: the store answers again, and its beacon is heard. Nothing more is needed.
    world.fake.down.store(false, Ordering::SeqCst);
    world.fake.damaged.store(false, Ordering::SeqCst);
    world.beat().await;
    let (manifest, overlays) = (world.manifests, world.overlays);
    let newest = format!("7.{manifest}");
    let found = world.in_force(&newest, |own| own.number == newest).await;
    if overlays > 0 {
        world.in_force("the newest overlays", |own| own.overlays == [format!("deny-{overlays}")]).await;
    }
    assert_eq!(found.text, manifest.to_string());
    // The clock is paused, and jumps: one beacon may be old by the time that it counts.
    let fresh = |status: &Status| status.store.as_ref().and_then(|store| store.freshness) == Some(Freshness::Fresh);
    let mut status = world.status.clone();
    while !fresh(&status.borrow_and_update()) {
        world.beat().await;
        sleep(TICK).await;
    }
    world.task.take().expect("it runs").abort();
    let World { snapshots, .. } = world;
    drop(snapshots);
    assert!(watching.await.expect("it only moved on") > 3, "something was in force in between");
}
