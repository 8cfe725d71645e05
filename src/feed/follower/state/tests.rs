//! What the state decides, as tables: what happens, and what is in force and said of it then. No clock runs and nothing waits.

use std::time::Duration;

use super::simulation::{End, Simulation, Work};
use super::*;
use crate::store::statement::Timestamp;

/// What happens. All that the state asks for then ends, as far as the store's condition allows.
#[derive(Debug, Clone, Copy)]
enum Do {
    /// The first tick, and what it leads to.
    Start,
    /// Published or issued, and heard.
    Publish(&'static str),
    Issue(&'static [&'static str]),
    /// The same, unheard.
    Publishes(&'static str),
    Issues(&'static [&'static str]),
    /// One denial, for so many milliseconds.
    IssuesFor(&'static str, u64),
    /// To be in force in so many milliseconds.
    PublishLater(&'static str, u64),
    /// For sidecars that are newer than this one.
    PublishNewer(&'static str),
    /// Statements that nobody trusts: in the store, and heard.
    Rubbish(Kind),
    /// A beacon that was sent so many milliseconds ago: heard, or only stored.
    Beacon(u64),
    Beacons(u64),
    /// One from the future, and one that names what does not exist.
    BeaconAhead,
    BeaconLies,
    /// What was stored in this place is heard again.
    Repeat(usize),
    /// Another manifest of a version that was accepted is heard, and one by another key.
    Fork(u64),
    Forge,
    Gap,
    Down,
    Up,
    /// The store answers or not, with damaged bundles, or without any.
    StoreIs(Store),
    /// The store loses everything.
    Wipe,
    /// So many milliseconds pass, with ticks or without.
    Wait(u64),
    Pause(u64),
    /// The step that is being taken panics.
    PanicsAt(&'static str),
    /// Another process, and another one with a damaged copy on disk.
    Restart,
    RestartDamaged,
    Leave,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Store {
    Answers,
    IsSilent,
    IsDamaged,
    /// It answers, and bundles are on their way.
    IsSlow,
}

use Do::*;
use Store::*;

/// A simulation that does what the rows of a table say.
struct Run {
    sim: Simulation,
    store: Store,
    panics: Option<&'static str>,
    copy: End,
}

const FOREVER: Duration = Duration::from_secs(1_000_000);

impl Run {
    fn new() -> Self {
        Self { sim: Simulation::new(), store: Answers, panics: None, copy: End::Well }
    }

    fn step(&mut self, what: Do) {
        let (sim, ms) = (&mut self.sim, Duration::from_millis);
        let denials = |ids: &[&'static str]| ids.iter().map(|id| (*id, FOREVER)).collect::<Vec<_>>();
        match what {
            Start => sim.on(Input::Tick),
            Publish(text) => {
                let bytes = sim.publish(text);
                sim.hear(Kind::Manifest, bytes);
            }
            Publishes(text) => drop(sim.publish(text)),
            Issue(ids) => {
                let bytes = sim.issue(&denials(ids));
                sim.hear(Kind::Overlays, bytes);
            }
            Issues(ids) => drop(sim.issue(&denials(ids))),
            IssuesFor(id, lasting) => drop(sim.issue(&[(id, ms(lasting))])),
            PublishLater(text, after) => {
                let at = Timestamp(sim.now.wall + ms(after));
                let bytes = sim.publish_with(text, |manifest| manifest.not_before = Some(at));
                sim.hear(Kind::Manifest, bytes);
            }
            PublishNewer(text) => {
                let bytes = sim.publish_with(text, |manifest| manifest.min_sidecar = Some("999.0.0".to_owned()));
                sim.hear(Kind::Manifest, bytes);
            }
            Rubbish(kind) => {
                let bytes = sim.rubbish(kind);
                sim.hear(kind, bytes);
            }
            Beacon(age) => {
                let bytes = sim.beacon(ms(age));
                sim.hear(Kind::Beacon, bytes);
            }
            Beacons(age) => drop(sim.beacon(ms(age))),
            BeaconAhead => self.beacon(None, Duration::from_secs(60)),
            BeaconLies => self.beacon(Some(99), Duration::ZERO),
            Repeat(at) => {
                let (kind, bytes) = sim.old(at).expect("it was stored");
                sim.hear(kind, bytes);
            }
            Fork(generation) => {
                let manifest = sim.signer.manifest(generation, b"other", sim.now.wall);
                let (_, bytes) = sim.signer.seal(Kind::Manifest, generation, &manifest);
                sim.hear(Kind::Manifest, bytes);
            }
            Forge => {
                let stranger = super::super::signer::Signer::new();
                let manifest = stranger.manifest(9, b"forged", sim.now.wall);
                let (_, bytes) = stranger.seal(Kind::Manifest, 9, &manifest);
                sim.hear(Kind::Manifest, bytes);
            }
            Gap => sim.on(Input::Event(Event::Gap("test".to_owned()))),
            Down => sim.on(Input::Event(Event::Down("cut".to_owned()))),
            Up => sim.on(Input::Event(Event::Up)),
            StoreIs(store) => self.store = store,
            Wipe => sim.wipe(),
            Wait(time) => return self.wait(ms(time)),
            Pause(time) => sim.jump(ms(time)),
            PanicsAt(text) => self.panics = Some(text),
            Restart => (sim.restart(), self.copy = End::Well).1,
            RestartDamaged => (sim.restart(), self.copy = End::Damaged).1,
            Leave => sim.on(Input::Leave),
        }
        self.settle();
    }

    /// A beacon that is not true.
    fn beacon(&mut self, manifest: Option<u64>, ahead: Duration) {
        let sim = &mut self.sim;
        let manifest = manifest.map(|generation| {
            sim.signer.seal(Kind::Manifest, generation, &sim.signer.manifest(generation, b"lie", sim.now.wall)).0
        });
        let says = sim.signer.beacon(manifest.or(sim.newest(Kind::Manifest)), None, sim.now.wall + ahead);
        let (_, bytes) = sim.signer.seal(Kind::Beacon, 0, &says);
        sim.hear(Kind::Beacon, bytes);
    }

    fn wait(&mut self, time: Duration) {
        let end = self.sim.now.mono + time;
        while self.sim.now.mono < end {
            self.sim.pass(TICK.min(end - self.sim.now.mono));
            self.settle();
        }
    }

    /// Lets all work end that can.
    fn settle(&mut self) {
        let asks = |work: &Work| !matches!(work, Work::Step { .. } | Work::ReadCopy | Work::Fetch(_));
        let end = if self.store == IsSilent { End::Fails } else { End::Well };
        for _ in 0..20 {
            self.sim.settle(asks, end);
            self.sim.settle(|work| matches!(work, Work::ReadCopy), self.copy);
            match self.store {
                Answers => self.sim.settle(|work| matches!(work, Work::Fetch(_)), End::Well),
                IsSilent => self.sim.settle(|work| matches!(work, Work::Fetch(_)), End::Fails),
                IsDamaged => self.sim.settle(|work| matches!(work, Work::Fetch(_)), End::Damaged),
                IsSlow => {}
            }
            self.take_step();
        }
    }

    fn take_step(&mut self) {
        let is_step = |work: &Work| matches!(work, Work::Step { .. });
        let Some(at) = self.sim.work.iter().position(is_step) else { return };
        let panics = match &self.sim.work[at] {
            Work::Step { base: Some(base), .. } => self.panics.take_if(|text| *text == base.text).is_some(),
            _ => false,
        };
        self.sim.end(at, if panics { End::Fails } else { End::Well });
    }
}

/// What a table is about, and its rows: what happens, and what is shown then.
type Table = (&'static str, &'static [(Do, &'static str)]);

const TABLES: &[Table] = &[
    (
        "the first thing in force has its overlays",
        &[(Publishes("one"), "-"), (Issues(&["deny-1"]), "-"), (Beacons(0), "-"), (Start, "7.1 one [deny-1] fresh")],
    ),
    (
        "what is published is in force, also the same bundle again, under its own number",
        &[
            (Publishes("one"), "-"),
            (Start, "7.1 one [] expired"),
            (Publish("two"), "7.2 two [] expired"),
            (Publish("one"), "7.3 one [] expired"),
            (Publish("one"), "7.4 one [] expired"),
            (Beacon(0), "7.4 one [] fresh"),
        ],
    ),
    (
        "a denial does not wait for a bundle",
        &[
            (Publishes("one"), "-"),
            (Start, "7.1 one [] expired"),
            (StoreIs(IsSlow), "7.1 one [] expired"),
            (Publish("two"), "7.1 one [] expired"),
            (Issue(&["deny-1"]), "7.1 one [deny-1] expired"),
            (StoreIs(Answers), "7.2 two [deny-1] expired"),
        ],
    ),
    (
        "overlays end by themselves, also when cut off",
        &[
            (Publishes("one"), "-"),
            (IssuesFor("deny-1", 1500), "-"),
            (Start, "7.1 one [deny-1] expired"),
            (StoreIs(IsSilent), "7.1 one [deny-1] expired"),
            (Down, "7.1 one [deny-1] expired trouble"),
            (Wait(1400), "7.1 one [deny-1] expired trouble"),
            (Wait(200), "7.1 one [] expired trouble"),
        ],
    ),
    (
        "a bad bundle leaves the last good one, which is not current then",
        &[
            (Publishes("one"), "-"),
            (Beacons(0), "-"),
            (Start, "7.1 one [] fresh"),
            (Publish("bad"), "7.1 one [] fresh rejected"),
            (Wait(3000), "7.1 one [] fresh rejected"),
            (Beacon(0), "7.1 one [] fresh rejected"),
            (Wait(200), "7.1 one [] stale rejected"),
            (Wait(8000), "7.1 one [] expired rejected"),
            (Publish("good"), "7.3 good [] expired"),
            (Beacon(0), "7.3 good [] fresh"),
        ],
    ),
    (
        "a step that panics holds nothing up, and is taken again",
        &[
            (Publishes("one"), "-"),
            (Start, "7.1 one [] expired"),
            (PanicsAt("two"), "7.1 one [] expired"),
            (Publish("two"), "7.1 one [] expired"),
            (Issue(&["deny-1"]), "7.1 one [] expired"),
            (Wait(2000), "7.2 two [deny-1] expired"),
        ],
    ),
    (
        "a damaged bundle is asked for again",
        &[
            (Publishes("one"), "-"),
            (StoreIs(IsDamaged), "-"),
            (Start, "- !manifest:blob trouble"),
            (Wait(400), "- !manifest:blob trouble"),
            (StoreIs(Answers), "- trouble"),
            (Wait(2000), "7.1 one [] expired"),
        ],
    ),
    (
        "freshness is proved by beacons that are new and name what is in force",
        &[
            (Publishes("one"), "-"),
            (Start, "7.1 one [] expired"),
            (Beacon(0), "7.1 one [] fresh"),
            (Wait(3000), "7.1 one [] fresh"),
            (Wait(200), "7.1 one [] stale"),
            (Wait(6800), "7.1 one [] stale"),
            (Wait(200), "7.1 one [] expired"),
            // What a paused process finds in its buffers was sent long ago, whenever it is heard.
            (Beacon(7000), "7.1 one [] stale"),
            (Wait(3200), "7.1 one [] expired"),
            // Clocks may differ, but not by any amount.
            (BeaconAhead, "7.1 one [] expired !beacon:future"),
            (BeaconLies, "7.1 one [] expired"),
            (Wait(200), "7.1 one [] expired"),
            (Beacon(0), "7.1 one [] fresh"),
        ],
    ),
    (
        "what was missed is found when a beacon names it",
        &[
            (Publishes("one"), "-"),
            (Start, "7.1 one [] expired"),
            (Publishes("two"), "7.1 one [] expired"),
            (Issues(&["deny-1"]), "7.1 one [] expired"),
            (Beacon(0), "7.2 two [deny-1] fresh"),
        ],
    ),
    (
        "what was missed is found after a gap, a reconnection, a pause and a while",
        &[
            (Publishes("one"), "-"),
            (Start, "7.1 one [] expired"),
            (Publishes("two"), "7.1 one [] expired"),
            (Gap, "7.2 two [] expired"),
            (Publishes("three"), "7.2 two [] expired"),
            (Up, "7.3 three [] expired"),
            (Publishes("four"), "7.3 three [] expired"),
            (Wait(1000), "7.3 three [] expired"),
            (Pause(1300), "7.4 four [] expired"),
            (Publishes("five"), "7.4 four [] expired"),
            (Wait(3_600_000 * 6 / 5), "7.5 five [] expired"),
        ],
    ),
    (
        "what goes back or differs is refused and counted",
        &[
            (Publishes("one"), "-"),
            (Publishes("two"), "-"),
            (Start, "7.2 two [] expired"),
            (Repeat(0), "7.2 two [] expired !manifest:older"),
            (Fork(2), "7.2 two [] expired !manifest:forked"),
            (Forge, "7.2 two [] expired !manifest:unknown_key"),
            // The store begins anew, and says nothing any more of what was.
            (Wipe, "7.2 two [] expired"),
            (Gap, "7.2 two [] expired !manifest:older"),
            // A beacon that looked just before a change is given a moment.
            (Beacon(0), "7.2 two [] expired"),
            (Wait(3000), "7.2 two [] expired"),
            (Beacon(0), "7.2 two [] expired !beacon:older"),
        ],
    ),
    (
        "what is to come waits for its time, and what is too new is refused",
        &[
            (Publishes("one"), "-"),
            (Start, "7.1 one [] expired"),
            (PublishLater("later", 1200), "7.1 one [] expired"),
            (Beacon(0), "7.1 one [] fresh"),
            (Wait(1000), "7.1 one [] fresh"),
            (Wait(200), "7.2 later [] fresh"),
            (PublishLater("never", 1200), "7.2 later [] fresh"),
            (Publish("now"), "7.4 now [] fresh"),
            (Wait(1200), "7.4 now [] fresh"),
            (PublishNewer("newer"), "7.4 now [] fresh !manifest:min_sidecar rejected"),
        ],
    ),
    (
        "a restart without the store is in force from disk",
        &[
            (Publishes("one"), "-"),
            (Issues(&["deny-1"]), "-"),
            (Beacons(0), "-"),
            (Start, "7.1 one [deny-1] fresh"),
            // What is newer than the last beacon that was kept was not out of date when that was sent.
            (Issue(&["deny-1", "deny-2"]), "7.1 one [deny-1,deny-2] fresh"),
            (StoreIs(IsSilent), "7.1 one [deny-1,deny-2] fresh"),
            (Restart, "-"),
            (Wait(1800), "- trouble"),
            (Wait(200), "7.1 one [deny-1,deny-2] fresh trouble disk"),
            (StoreIs(Answers), "7.1 one [deny-1,deny-2] fresh trouble disk"),
            // The store is back: what it has is newer.
            (Publish("two"), "7.2 two [deny-1,deny-2] fresh trouble"),
            (Wait(4000), "7.2 two [deny-1,deny-2] stale"),
            (StoreIs(IsSilent), "7.2 two [deny-1,deny-2] stale"),
            // What was tampered with is not used, nor what is too old.
            (RestartDamaged, "-"),
            (Wait(4000), "- trouble"),
            (Restart, "-"),
            (Wait(4000), "7.2 two [deny-1,deny-2] expired trouble disk"),
            (Wait(3_600_000), "7.2 two [deny-1,deny-2] expired trouble disk"),
            (Restart, "-"),
            (Wait(4000), "- trouble"),
        ],
    ),
    (
        "a start goes back to the newest statements that are trusted",
        &[
            (Publishes("one"), "-"),
            (Issues(&["deny-1"]), "-"),
            (Issues(&["deny-1", "deny-2"]), "-"),
            (StoreIs(IsSilent), "-"),
            (Rubbish(Kind::Overlays), "- !overlays:malformed trouble"),
            (Rubbish(Kind::Manifest), "- !manifest:malformed trouble"),
            (StoreIs(Answers), "- trouble"),
            (Gap, "7.1 one [deny-1,deny-2] expired !overlays:malformed !manifest:malformed"),
            // A running one keeps what it has, whatever is written.
            (Rubbish(Kind::Overlays), "7.1 one [deny-1,deny-2] expired !overlays:malformed"),
            (Gap, "7.1 one [deny-1,deny-2] expired !overlays:malformed !manifest:malformed"),
            (Publish("two"), "7.2 two [deny-1,deny-2] expired"),
        ],
    ),
    (
        "nothing is in force first without overlays that are there but refused",
        &[
            (Publishes("one"), "-"),
            (Rubbish(Kind::Overlays), "- !overlays:malformed !overlays:malformed withheld"),
            (Gap, "- !overlays:malformed withheld"),
            (Wait(10_000), "- withheld"),
            // The issuer issues them again.
            (Issue(&["deny-1"]), "7.1 one [deny-1] expired"),
        ],
    ),
    (
        "the copy on disk does not stand in for overlays that it lacks",
        &[
            (Publishes("one"), "-"),
            (Beacons(0), "-"),
            (Start, "7.1 one [] fresh"),
            (StoreIs(IsSilent), "7.1 one [] fresh"),
            (Rubbish(Kind::Overlays), "7.1 one [] fresh !overlays:malformed"),
            (Restart, "-"),
            (StoreIs(Answers), "-"),
            (Start, "- !overlays:malformed withheld"),
            (Wait(4000), "- withheld"),
            (Issue(&["deny-1"]), "7.1 one [deny-1] expired"),
            (Beacon(0), "7.1 one [deny-1] fresh"),
        ],
    ),
    (
        "a process that ends says so, and one that has said nothing has nothing to say",
        &[(Publishes("one"), "-"), (Start, "7.1 one [] expired"), (Leave, "7.1 one [] expired left")],
    ),
    ("nor has one without anything in force", &[(Start, "-"), (Leave, "- left")]),
];

#[test]
fn what_happens_and_what_is_in_force_then() {
    let mut faults = Vec::new();
    for (name, rows) in TABLES {
        let mut run = Run::new();
        for (number, (what, expected)) in rows.iter().enumerate() {
            run.step(*what);
            let shown = run.sim.show();
            if shown != *expected {
                faults.push(format!("{name}, row {number}, {what:?}: expected `{expected}`, found `{shown}`"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_is_in_force_is_reported_at_every_change_and_from_time_to_time() {
    let mut run = Run::new();
    for what in [Publishes("one"), Issues(&["deny-1"]), Start, Publish("two")] {
        run.step(what);
    }
    let last = run.sim.reports.last().expect("a report").clone();
    assert_eq!((last.manifest, last.overlays), (run.sim.newest(Kind::Manifest), run.sim.newest(Kind::Overlays)));
    assert_eq!((last.lead_time_ms, last.revision.as_deref(), last.leaving), (Some(0), Some("revision"), false));
    let before = run.sim.reports.len();
    run.step(Wait(30_000));
    assert_eq!(run.sim.reports.len(), before + 1, "once in half a minute");
    // A store that does not take it is asked again after a pause.
    run.step(StoreIs(IsSilent));
    run.step(Wait(30_000));
    let failed = run.sim.reports.len() - before - 1;
    assert!((1..=2).contains(&failed), "{failed}");
    run.step(Wait(10_000));
    assert_eq!(run.sim.reports.len(), before + 1 + failed + 2);
}

#[test]
fn an_old_list_of_overlays_that_is_repeated_says_nothing_of_the_newest() {
    let mut run = Run::new();
    let old = run.sim.issue(&[("deny-0", FOREVER)]);
    run.sim.wipe();
    for what in [Publishes("one"), Rubbish(Kind::Overlays)] {
        run.step(what);
    }
    run.sim.hear(Kind::Overlays, old);
    run.step(Wait(10_000));
    assert!(run.sim.show().starts_with("- "), "{}", run.sim.show());
}

/// Whoever publishes without a pause does not keep it all from being in force, and a bundle that does not arrive holds up nothing.
#[test]
fn what_is_overtaken_is_waited_for_but_not_for_ever() {
    let mut run = Run::new();
    for what in [Publishes("one"), Start, StoreIs(IsSlow), Publish("two"), Wait(1000), Publish("three")] {
        run.step(what);
    }
    let fetched = |run: &Run| {
        run.sim.work.iter().find_map(|work| match work {
            Work::Fetch(fetch) => Some(fetch.head.version.generation),
            _ => None,
        })
    };
    assert_eq!(fetched(&run), Some(2), "it is newer than what is in force");
    run.step(Wait(3800));
    assert_eq!(fetched(&run), Some(2));
    run.step(Wait(400));
    assert_eq!(fetched(&run), Some(3), "it took too long");
    run.step(StoreIs(Answers));
    assert_eq!(run.sim.show(), "7.3 three [] expired");
}

/// Pauses between attempts grow, whatever the ticks.
#[test]
fn a_bundle_that_cannot_be_had_is_asked_for_less_and_less_often() {
    let mut run = Run::new();
    for what in [Publishes("one"), StoreIs(IsDamaged), Start, Wait(60_000)] {
        run.step(what);
    }
    let refusals = run.sim.notes.iter().filter(|note| matches!(note, Note::Refused(Kind::Manifest, _))).count();
    assert!((9..=16).contains(&refusals), "0.2, 0.4, 0.8 ... 10 s, give or take a fifth: {refusals}");
    assert_eq!(run.sim.notes.iter().filter(|note| matches!(note, Note::FetchFailed(_))).count(), 1, "and said once");
}
