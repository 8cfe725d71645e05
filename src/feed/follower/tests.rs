//! The follower above a source that does whatever a network and a store can do to it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use tempfile::TempDir;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::*;
use crate::decision::freshness::{self, OnExpired};
use crate::feed::Limits;
use crate::store::keys::Trusted;
use crate::store::statement::{Blob, OverlayEffect, OverlayEntry, Overlays, StoreName, Timestamp, Version};
use crate::store::{Role, SecretKey, envelope, pack};
use crate::units::HumanDuration;

/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A store in memory, and what is wrong with it.
struct Fake {
    heads: Mutex<BTreeMap<Kind, Bytes>>,
    /// All that was put there, by its place.
    history: Mutex<Vec<(Kind, Bytes)>>,
    blobs: Mutex<BTreeMap<String, Bytes>>,
    events: mpsc::Sender<Event>,
    told: Mutex<Vec<statement::Status>>,
    /// Every question is answered with an error.
    down: AtomicBool,
    /// Blobs arrive damaged.
    damaged: AtomicBool,
    /// Blobs arrive when told to.
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

    async fn tell(&self, status: &statement::Status) -> Result<(), SourceError> {
        self.answers()?;
        self.told.lock().unwrap().push(status.clone());
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
            told: Mutex::default(),
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
    key: SecretKey,
    fake: Arc<Fake>,
    events: Option<Events>,
    config: Config,
    generation: u64,
    overlays: u64,
    disk: TempDir,
    proof: Arc<LastProof>,
    snapshots: watch::Receiver<Option<Arc<Text>>>,
    status: watch::Receiver<Status>,
    task: Option<JoinHandle<()>>,
}

const EPOCH: u64 = 7;

impl World {
    fn new() -> Self {
        let key = SecretKey::parse(&SecretKey::generate().expect("a key")).expect("a key");
        let roles = vec![Role::Publish, Role::Overlay, Role::Beacon];
        let (sender, events) = mpsc::channel(64);
        let disk = tempfile::tempdir().expect("a directory");
        let config = Config {
            name: StoreName::try_from_text("prod".to_owned()).expect("a name"),
            keys: vec![Trusted { key: key.public(), roles }],
            freshness: freshness::Config {
                stale_after: HumanDuration::millis(400),
                expired_after: HumanDuration::millis(1000),
                on_expired: OnExpired::Undecided,
            },
            max_clock_skew: HumanDuration::seconds(1),
            refresh: HumanDuration::seconds(3600),
            pod: "pod".to_owned(),
            namespace: "default".to_owned(),
            last_good: Some(last_good::Config {
                directory: disk.path().display().to_string(),
                max_age: HumanDuration::seconds(3600),
            }),
            limits: Limits::default(),
        };
        let fake = Arc::new(Fake::new(sender));
        let (snapshots, status) = (watch::channel(None).1, watch::channel(Status::default()).1);
        let proof = Arc::new(LastProof::required(config.freshness));
        let events = Some(events);
        Self { key, fake, events, config, generation: 0, overlays: 0, disk, proof, snapshots, status, task: None }
    }

    /// Starts the follower, or starts it anew, as another process would.
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
        self.proof = Arc::new(LastProof::required(self.config.freshness));
        let source = (Arc::clone(&self.fake), self.events.take().expect("started once"));
        let follower =
            Follower::new(self.config.clone(), source, Texts::default(), Arc::clone(&self.proof), snapshots, status);
        self.task = Some(tokio::spawn(follower.run()));
    }

    // === the other side ===

    fn manifest(&self, version: Version, text: &str) -> (Manifest, Bytes) {
        let files = [("a.cedar".to_owned(), text.to_owned())].into();
        let blob = Bytes::from(pack::pack(&[Files { root: String::new(), files, changed: None }]).expect("packed"));
        let manifest = Manifest {
            store: self.config.name.clone(),
            version,
            bundle: Blob { digest: pack::Digest::of(&blob), size: blob.len() as u64 },
            min_sidecar: None,
            not_before: None,
            published_at: Timestamp::now(),
            publisher: "test".to_owned(),
            message: None,
            commit: None,
            rolls_back_to: None,
        };
        (manifest, blob)
    }

    /// Puts a statement where the newest is found.
    fn put(&self, kind: Kind, says: &impl Serialize) -> Bytes {
        let bytes = envelope::seal(kind, &serde_json::to_vec(says).expect("json"), &self.key).expect("sealed");
        self.put_bytes(kind, bytes.into())
    }

    fn put_bytes(&self, kind: Kind, bytes: Bytes) -> Bytes {
        self.fake.heads.lock().unwrap().insert(kind, bytes.clone());
        self.fake.history.lock().unwrap().push((kind, bytes.clone()));
        bytes
    }

    async fn hear(&self, kind: Kind, bytes: Bytes) {
        self.fake.events.send(Event::Statement(kind, bytes)).await.expect("the follower runs");
    }

    /// Publishes; the follower hears of it if it is told.
    fn publish_silently(&mut self, text: &str) -> Bytes {
        self.publish_with(text, |_| ())
    }

    fn publish_with(&mut self, text: &str, change: impl FnOnce(&mut Manifest)) -> Bytes {
        self.generation += 1;
        let (mut manifest, blob) = self.manifest(Version { epoch: EPOCH, generation: self.generation }, text);
        change(&mut manifest);
        self.fake.blobs.lock().unwrap().insert(manifest.bundle.digest.hex(), blob);
        self.put(Kind::Manifest, &manifest)
    }

    async fn publish(&mut self, text: &str) {
        let bytes = self.publish_silently(text);
        self.hear(Kind::Manifest, bytes).await;
    }

    /// Issues these overlays, each in force from now for so long.
    fn issue_silently(&mut self, ids: &[&str], lasting: Duration) -> Bytes {
        self.overlays += 1;
        let now = SystemTime::now();
        let entry = |id: &&str| OverlayEntry {
            id: (*id).to_owned(),
            effect: OverlayEffect::Deny,
            principal: Some("User::\"mallory\"".to_owned()),
            action: None,
            resource: None,
            from: Timestamp(now),
            until: Timestamp(now + lasting),
            reason: "test".to_owned(),
            issuer: "test".to_owned(),
            approved_by: None,
        };
        let says = Overlays {
            store: self.config.name.clone(),
            version: Version { epoch: EPOCH, generation: self.overlays },
            published_at: Timestamp::now(),
            publisher: "test".to_owned(),
            overlays: ids.iter().map(entry).collect(),
        };
        self.put(Kind::Overlays, &says)
    }

    async fn issue(&mut self, ids: &[&str], lasting: Duration) {
        let bytes = self.issue_silently(ids, lasting);
        self.hear(Kind::Overlays, bytes).await;
    }

    fn head(&self, kind: Kind) -> Option<Head> {
        let bytes = self.fake.heads.lock().unwrap().get(&kind).cloned()?;
        let keyring = Keyring::new(self.config.keys.clone());
        let payload = envelope::open(kind, &bytes, &keyring).expect("opened");
        let says: serde_json::Value = serde_json::from_slice(&payload).expect("json");
        let version = serde_json::from_value(says["version"].clone()).expect("a version");
        Some(Head::of(version, &payload))
    }

    /// A beacon about what is there, as if sent so long ago.
    fn beacon(&self, age: Duration) -> Bytes {
        let (manifest, overlays) = (self.head(Kind::Manifest), self.head(Kind::Overlays));
        let sent_at = Timestamp(SystemTime::now() - age);
        self.put(Kind::Beacon, &Beacon { store: self.config.name.clone(), manifest, overlays, sent_at })
    }

    async fn beat(&self) {
        self.hear(Kind::Beacon, self.beacon(Duration::ZERO)).await;
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

    async fn freshness(&mut self, expected: Freshness) {
        let is_it = |status: &Status| status.store.as_ref().is_some_and(|store| store.freshness == Some(expected));
        self.status(expected.as_str(), is_it).await;
    }

    async fn refusal(&mut self, kind: Kind, word: &'static str) {
        let is_it =
            |status: &Status| status.store.as_ref().is_some_and(|store| store.refusals.contains_key(&(kind, word)));
        self.status(word, is_it).await;
    }
}

#[tokio::test]
async fn the_first_thing_in_force_has_its_overlays() {
    let mut world = World::new();
    world.publish_silently("one");
    world.issue_silently(&["deny-1"], PATIENCE);
    world.beacon(Duration::ZERO);
    world.start();
    let found = timeout(PATIENCE, world.snapshots.changed()).await.map(|_| world.snapshots.borrow().clone());
    let expected = Text { number: "7.1".to_owned(), text: "one".to_owned(), overlays: vec!["deny-1".to_owned()] };
    assert_eq!(found.expect("something"), Some(Arc::new(expected)));
    world.freshness(Freshness::Fresh).await;
}

#[tokio::test]
async fn what_is_published_is_in_force_and_told() {
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
    let told = || world.fake.told.lock().unwrap().last().and_then(|told| told.manifest);
    let newest = world.head(Kind::Manifest);
    timeout(PATIENCE, async {
        while told() != newest {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the store is told");
    assert!(world.fake.told.lock().unwrap().last().expect("told").lead_time_ms.is_some());
}

#[tokio::test]
async fn a_denial_does_not_wait_for_a_bundle() {
    let mut world = World::new();
    world.publish_silently("one");
    world.start();
    world.text("one").await;
    world.fake.slow.store(true, Ordering::SeqCst);
    world.publish("two").await;
    world.issue(&["deny-1"], PATIENCE).await;
    let found = world.in_force("the denial", |own| own.overlays == ["deny-1"]).await;
    assert_eq!(found.text, "one", "the bundle is still on its way");
    world.fake.release.notify_one();
    let found = world.text("two").await;
    assert_eq!(found.overlays, ["deny-1"], "and it is in force with it");
}

#[tokio::test]
async fn overlays_end_by_themselves_also_when_cut_off() {
    let mut world = World::new();
    world.publish_silently("one");
    world.issue_silently(&["deny-1"], Duration::from_millis(1500));
    world.start();
    let begun = Instant::now();
    world.in_force("the denial", |own| own.overlays == ["deny-1"]).await;
    world.fake.down.store(true, Ordering::SeqCst);
    world.fake.events.send(Event::Down("cut".to_owned())).await.expect("sent");
    world.in_force("its end", |own| own.overlays.is_empty()).await;
    assert!(begun.elapsed() >= Duration::from_millis(1300), "not before its time");
}

#[tokio::test]
async fn a_bad_bundle_leaves_the_last_good_one_which_is_not_current_then() {
    let mut world = World::new();
    world.publish_silently("one");
    world.beacon(Duration::ZERO);
    world.start();
    world.text("one").await;
    world.publish("bad").await;
    let status = world.status("rejection", |status| status.rejection.is_some()).await;
    assert_eq!(status.rejection.expect("one").problems, ["does not compile"]);
    world.beat().await;
    world.freshness(Freshness::Expired).await;
    assert_eq!(world.proof.expired(Instant::now()), Some(OnExpired::Undecided));
    assert_eq!(world.text("one").await.number, "7.1");
    world.publish("good").await;
    world.text("good").await;
    world.beat().await;
    world.freshness(Freshness::Fresh).await;
    assert!(world.status.borrow().rejection.is_none());
}

#[tokio::test]
async fn a_step_that_falls_over_is_taken_again() {
    let mut world = World::new();
    world.publish_silently("one");
    world.start();
    world.text("one").await;
    world.publish("panic").await;
    world.issue(&["deny-1"], PATIENCE).await;
    let found = world.in_force("the denial", |own| own.overlays == ["deny-1"]).await;
    assert_eq!(found.text, "one", "what fell over is not in force, and holds nothing up");
    world.text("panic").await;
}

#[tokio::test]
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

#[tokio::test]
async fn freshness_is_proved_by_beacons_that_are_new_and_name_what_is_in_force() {
    let mut world = World::new();
    world.publish_silently("one");
    world.start();
    world.text("one").await;
    assert_eq!(world.proof.freshness(Instant::now()), Some(Freshness::Expired), "nothing was proved");
    world.beat().await;
    world.freshness(Freshness::Fresh).await;
    world.freshness(Freshness::Stale).await;
    world.freshness(Freshness::Expired).await;
    // What a paused process finds in its buffers was sent long ago, whenever it is heard.
    world.hear(Kind::Beacon, world.beacon(Duration::from_millis(700))).await;
    world.freshness(Freshness::Stale).await;
    world.freshness(Freshness::Expired).await;
    // Clocks may differ, but not by any amount.
    let ahead = Timestamp(SystemTime::now() + Duration::from_secs(60));
    let says = Beacon {
        store: world.config.name.clone(),
        manifest: world.head(Kind::Manifest),
        overlays: None,
        sent_at: ahead,
    };
    world.hear(Kind::Beacon, world.put(Kind::Beacon, &says)).await;
    world.refusal(Kind::Beacon, "future").await;
    // One that names what does not exist proves nothing, however new it is.
    let liar = Head { version: Version { epoch: EPOCH, generation: 99 }, digest: pack::Digest::of(b"lie") };
    let says =
        Beacon { store: world.config.name.clone(), manifest: Some(liar), overlays: None, sent_at: Timestamp::now() };
    world.hear(Kind::Beacon, world.put(Kind::Beacon, &says)).await;
    assert_eq!(world.proof.freshness(Instant::now()), Some(Freshness::Expired));
    world.beat().await;
    world.freshness(Freshness::Fresh).await;
}

#[tokio::test]
async fn what_was_missed_is_found_when_a_beacon_names_it() {
    let mut world = World::new();
    world.publish_silently("one");
    world.start();
    world.text("one").await;
    world.publish_silently("two");
    world.issue_silently(&["deny-1"], PATIENCE);
    world.beat().await;
    world.in_force("both", |own| own.text == "two" && own.overlays == ["deny-1"]).await;
    world.freshness(Freshness::Fresh).await;
}

#[tokio::test]
async fn what_goes_back_or_differs_is_refused_and_counted() {
    let mut world = World::new();
    let first = world.publish_silently("one");
    world.publish_silently("two");
    world.start();
    world.text("two").await;
    world.hear(Kind::Manifest, first.clone()).await;
    world.refusal(Kind::Manifest, "older").await;
    let (forked, _) = world.manifest(Version { epoch: EPOCH, generation: 2 }, "other");
    let bytes =
        envelope::seal(Kind::Manifest, &serde_json::to_vec(&forked).expect("json"), &world.key).expect("sealed");
    world.hear(Kind::Manifest, bytes.into()).await;
    world.refusal(Kind::Manifest, "forked").await;
    let stranger = SecretKey::parse(&SecretKey::generate().expect("a key")).expect("a key");
    let (forged, _) = world.manifest(Version { epoch: EPOCH, generation: 9 }, "forged");
    let bytes = envelope::seal(Kind::Manifest, &serde_json::to_vec(&forged).expect("json"), &stranger).expect("sealed");
    world.hear(Kind::Manifest, bytes.into()).await;
    world.refusal(Kind::Manifest, "unknown_key").await;
    // The store begins anew, and says nothing any more of what was.
    world.fake.heads.lock().unwrap().clear();
    world.fake.events.send(Event::Gap("test".to_owned())).await.expect("sent");
    world
        .status("the loss", |status| {
            status.store.as_ref().is_some_and(|store| store.refusals.get(&(Kind::Manifest, "older")) > Some(&1))
        })
        .await;
    assert_eq!(world.text("two").await.number, "7.2");
}

#[tokio::test]
async fn what_is_to_come_waits_for_its_time_and_what_is_too_new_is_refused() {
    let mut world = World::new();
    world.publish_silently("one");
    world.start();
    world.text("one").await;
    let at = Timestamp(SystemTime::now() + Duration::from_millis(1200));
    let bytes = world.publish_with("later", |manifest| manifest.not_before = Some(at));
    world.hear(Kind::Manifest, bytes).await;
    world.beat().await;
    world.freshness(Freshness::Fresh).await;
    assert_eq!(world.snapshots.borrow().as_ref().expect("one").text, "one");
    world.text("later").await;
    assert!(SystemTime::now() >= at.0);
    let bytes = world.publish_with("newer", |manifest| manifest.min_sidecar = Some("999.0.0".to_owned()));
    world.hear(Kind::Manifest, bytes).await;
    world.refusal(Kind::Manifest, "min_sidecar").await;
    world.status("rejection", |status| status.rejection.is_some()).await;
    assert_eq!(world.text("later").await.number, "7.2");
}

#[tokio::test]
async fn a_restart_without_the_store_is_in_force_from_disk() {
    let mut world = World::new();
    let first = world.publish_silently("one");
    world.issue_silently(&["deny-1"], PATIENCE);
    world.beacon(Duration::ZERO);
    world.start();
    world.in_force("both", |own| own.text == "one" && own.overlays == ["deny-1"]).await;
    let files = ["manifest", "overlays", "beacon", "bundle.tar"].map(|name| world.disk.path().join(name));
    timeout(PATIENCE, async {
        while !files.iter().all(|file| file.exists()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("all of it is on disk");
    // What is newer than the last beacon that was kept was not out of date when that was said.
    let overlays = std::fs::read(&files[1]).expect("overlays");
    world.issue(&["deny-1", "deny-2"], PATIENCE).await;
    timeout(PATIENCE, async {
        while std::fs::read(&files[1]).expect("overlays") == overlays {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the new overlays are on disk");

    world.fake.down.store(true, Ordering::SeqCst);
    world.start();
    world.in_force("both", |own| own.text == "one" && own.overlays == ["deny-1", "deny-2"]).await;
    let status = world.status("from disk", |status| status.store.as_ref().is_some_and(|store| store.from_disk)).await;
    assert!(status.store.expect("a store").lead_time.is_none());
    // The store is back: what it has is newer, and corrects it.
    let [manifest, blob] = [&files[0], &files[3]].map(|file| std::fs::read(file).expect("a copy"));
    world.fake.down.store(false, Ordering::SeqCst);
    world.publish("two").await;
    world.text("two").await;
    assert!(!world.status.borrow().store.as_ref().expect("a store").from_disk);

    timeout(PATIENCE, async {
        while std::fs::read(&files[0]).expect("a manifest") == manifest
            || std::fs::read(&files[3]).expect("a blob") == blob
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the newer one is on disk");

    // After a restart, a store that serves what is older is no more believed than before.
    world.fake.down.store(true, Ordering::SeqCst);
    world.start();
    world.text("two").await;
    world.hear(Kind::Manifest, first).await;
    world.refusal(Kind::Manifest, "older").await;
    assert_eq!(world.text("two").await.number, "7.2");

    // What was tampered with is not used.
    let mut blob = std::fs::read(&files[3]).expect("a blob");
    blob[600] ^= 1;
    std::fs::write(&files[3], blob).expect("written");
    world.start();
    tokio::time::sleep(GRACE + Duration::from_millis(700)).await;
    assert!(world.snapshots.borrow().is_none(), "nothing that is not verified is in force");
}

#[tokio::test]
async fn a_start_goes_back_to_the_newest_statements_that_are_believed() {
    let mut world = World::new();
    world.publish_silently("one");
    world.issue_silently(&["deny-1"], PATIENCE);
    world.issue_silently(&["deny-1", "deny-2"], PATIENCE);
    for _ in 0..3 {
        world.put_bytes(Kind::Overlays, Bytes::from_static(b"rubbish"));
        world.put_bytes(Kind::Manifest, Bytes::from_static(b"rubbish"));
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
    world.put_bytes(Kind::Overlays, Bytes::from_static(b"other rubbish"));
    world.fake.events.send(Event::Gap("test".to_owned())).await.expect("sent");
    world.publish("two").await;
    assert_eq!(world.text("two").await.overlays, ["deny-1", "deny-2"]);
}

#[tokio::test]
async fn nothing_is_in_force_first_without_overlays_that_are_there_but_refused() {
    let mut world = World::new();
    world.publish_silently("one");
    world.put_bytes(Kind::Overlays, Bytes::from_static(b"rubbish"));
    world.start();
    let withheld = |status: &Status| status.store.as_ref().is_some_and(|store| store.withheld.is_some());
    let status = world.status("the reason", withheld).await;
    let why = status.store.expect("a store").withheld.expect("why");
    assert!(why.contains("the newest are refused (overlays: it cannot be read"), "{why}");
    // It looks once more, and again, and the bundle would be ready by now.
    for _ in 0..2 {
        let before = world.status.borrow().last_read;
        world.fake.events.send(Event::Gap("test".to_owned())).await.expect("sent");
        world.status("a look", |status| status.last_read != before).await;
        tokio::time::sleep(TICK * 2).await;
        assert!(world.snapshots.borrow().is_none());
    }
    // An old list that someone repeats says nothing of the newest.
    let old = world.issue_silently(&["deny-0"], PATIENCE);
    world.put_bytes(Kind::Overlays, Bytes::from_static(b"rubbish"));
    world.fake.history.lock().unwrap().retain(|(_, bytes)| *bytes != old);
    let before = world.status.borrow().last_read;
    world.hear(Kind::Overlays, old).await;
    world.status("a look", |status| status.last_read != before).await;
    tokio::time::sleep(TICK * 2).await;
    assert!(world.snapshots.borrow().is_none());
    // The issuer says it again.
    world.issue(&["deny-1"], PATIENCE).await;
    assert_eq!(world.text("one").await.overlays, ["deny-1"]);
    assert!(world.status.borrow().store.as_ref().expect("a store").withheld.is_none());
}

#[tokio::test]
async fn the_copy_on_disk_does_not_stand_in_for_overlays_that_it_lacks() {
    let mut world = World::new();
    world.publish_silently("one");
    world.beacon(Duration::ZERO);
    world.start();
    world.text("one").await;
    let files = ["manifest", "beacon", "bundle.tar"].map(|name| world.disk.path().join(name));
    timeout(PATIENCE, async {
        while !files.iter().all(|file| file.exists()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("all of it is on disk");
    world.put_bytes(Kind::Overlays, Bytes::from_static(b"rubbish"));
    world.start();
    tokio::time::sleep(GRACE + Duration::from_millis(700)).await;
    assert!(world.snapshots.borrow().is_none());
    world.issue(&["deny-1"], PATIENCE).await;
    assert_eq!(world.text("one").await.overlays, ["deny-1"]);
}

/// Whatever happens on the way, what is in force only moves on, is what was published under its number, and ends at the newest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_macros, reason = "the seed, for whoever looks into a failure")]
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
        let next = (world.generation + 1).to_string();
        match dice.u32(..13) {
            0 | 1 => {
                let bytes = world.publish_silently(&next);
                old.push((Kind::Manifest, bytes.clone()));
                world.hear(Kind::Manifest, bytes).await;
            }
            2 => {
                let id = format!("deny-{}", world.overlays + 1);
                let bytes = world.issue_silently(&[id.as_str()], PATIENCE * 100);
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
                tokio::time::sleep(Duration::from_millis(dice.u64(..5))).await;
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
            _ => tokio::time::sleep(Duration::from_millis(dice.u64(..10))).await,
        }
    }
    // It is over: the store answers again, and its beacon is heard. Nothing more is needed.
    world.fake.down.store(false, Ordering::SeqCst);
    world.fake.damaged.store(false, Ordering::SeqCst);
    world.beat().await;
    let (manifest, overlays) = (world.generation, world.overlays);
    let newest = format!("7.{manifest}");
    let found = world.in_force(&newest, |own| own.number == newest).await;
    if overlays > 0 {
        world.in_force("the newest overlays", |own| own.overlays == [format!("deny-{overlays}")]).await;
    }
    assert_eq!(found.text, manifest.to_string());
    world.beat().await;
    world.freshness(Freshness::Fresh).await;
    world.task.take().expect("it runs").abort();
    let World { snapshots, .. } = world;
    drop(snapshots);
    assert!(watching.await.expect("it only moved on") > 3, "something was in force in between");
}
