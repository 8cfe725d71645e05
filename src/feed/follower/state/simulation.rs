//! A store, the work that the state asks for, and time, all without any: what is asked for waits here until a test lets it end. Whatever
//! is put in force, or claimed to be current, is held against what was published.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::super::super::source::Event;
use super::super::signer::{Signer, version};
use super::*;
use crate::problem::Problem;
use crate::store::{Head, Refusal};
use crate::units::HumanDuration;

/// Compiled bundles and snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) generation: u64,
    pub(super) text: String,
    /// The names of its overlays.
    pub(super) overlays: BTreeSet<String>,
}

/// How work ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// As it should.
    Well,
    /// The store does not answer; a step panics.
    Fails,
    /// Something that runs beside the loop panics, and nobody knows what.
    Crashes,
    /// What arrives is damaged.
    Damaged,
    /// By a server that has not heard of the last so many statements.
    Behind(usize),
}

/// Work that the state asked for.
#[derive(Debug)]
pub(super) enum Work {
    Look,
    Search { kind: Kind, refused: Digest, steps: usize },
    ReadCopy,
    Fetch(Box<Fetch>),
    Step { base: Option<Text>, published: Option<Published>, overlays: Vec<Overlay> },
    Report(Box<statement::Status>),
}

/// A statement as the store has it.
#[derive(Debug, Clone)]
struct Stored {
    kind: Kind,
    bytes: Bytes,
    /// `None` if it is rubbish.
    head: Option<Head>,
}

/// A beacon that was sent: when, and the generations that it names.
type Sent = (SystemTime, u64, u64);

pub(super) struct Simulation {
    pub(super) signer: Signer,
    pub(super) config: Config,
    pub(super) state: State<Text, Text>,
    pub(super) now: Now,
    stored: Vec<Stored>,
    /// What was published, by generation.
    texts: BTreeMap<u64, String>,
    /// What was issued, by generation: names, and when they end.
    issued: BTreeMap<u64, BTreeMap<String, SystemTime>>,
    beacons: Vec<Sent>,
    /// How much the store held when this process began: no server is further behind.
    at_start: usize,
    pub(super) work: Vec<Work>,
    pub(super) in_force: Option<Text>,
    pub(super) status: Status,
    pub(super) notes: Vec<Note>,
    pub(super) reports: Vec<statement::Status>,
    pub(super) disk: BTreeMap<&'static str, Bytes>,
    pub(super) looks: usize,
    /// Work may be begun twice after a panic.
    has_crashed: bool,
}

impl Simulation {
    pub(super) fn new() -> Self {
        let signer = Signer::new();
        let mut config = signer.config();
        config.last_good =
            Some(last_good::Config { directory: "unused".to_owned(), max_age: HumanDuration::seconds(3600) });
        let now = Now { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) };
        Self {
            state: State::new(config.clone(), 1, now),
            signer,
            config,
            now,
            stored: Vec::new(),
            texts: BTreeMap::new(),
            issued: BTreeMap::new(),
            beacons: Vec::new(),
            at_start: 0,
            work: Vec::new(),
            in_force: None,
            status: Status::default(),
            notes: Vec::new(),
            reports: Vec::new(),
            disk: BTreeMap::new(),
            looks: 0,
            has_crashed: false,
        }
    }

    /// Another process, which knows what is on disk.
    pub(super) fn restart(&mut self) {
        self.state = State::new(self.config.clone(), 2, self.now);
        self.at_start = self.stored.len();
        (self.work, self.in_force, self.has_crashed) = (Vec::new(), None, false);
        self.status = self.state.status().clone();
    }

    // === the other side ===

    /// Publishes; what is returned may be heard.
    pub(super) fn publish_with(&mut self, text: &str, change: impl FnOnce(&mut Manifest)) -> Bytes {
        let generation = self.texts.keys().max().copied().unwrap_or(0) + 1;
        let mut manifest = self.signer.manifest(generation, text.as_bytes(), self.now.wall);
        change(&mut manifest);
        self.texts.insert(generation, text.to_owned());
        let (head, bytes) = self.signer.seal(Kind::Manifest, generation, &manifest);
        self.store(Kind::Manifest, Some(head), bytes)
    }

    pub(super) fn publish(&mut self, text: &str) -> Bytes {
        self.publish_with(text, |_| ())
    }

    /// Issues these denials, each for so long.
    pub(super) fn issue(&mut self, denials: &[(&str, Duration)]) -> Bytes {
        let generation = self.issued.keys().max().copied().unwrap_or(0) + 1;
        let overlays = self.signer.overlays(generation, denials, self.now.wall);
        let ends = denials.iter().map(|(id, lasting)| ((*id).to_owned(), self.now.wall + *lasting));
        self.issued.insert(generation, ends.collect());
        let (head, bytes) = self.signer.seal(Kind::Overlays, generation, &overlays);
        self.store(Kind::Overlays, Some(head), bytes)
    }

    /// Puts something into the store that nobody trusts.
    pub(super) fn rubbish(&mut self, kind: Kind) -> Bytes {
        let bytes = format!("rubbish {}", self.stored.len()).into();
        self.store(kind, None, bytes)
    }

    fn store(&mut self, kind: Kind, head: Option<Head>, bytes: Bytes) -> Bytes {
        self.stored.push(Stored { kind, bytes: bytes.clone(), head });
        bytes
    }

    /// The newest statement of a kind that can be trusted.
    pub(super) fn newest(&self, kind: Kind) -> Option<Head> {
        self.stored.iter().rev().filter(|stored| stored.kind == kind).find_map(|stored| stored.head)
    }

    /// Whether a bundle does not compile.
    pub(super) fn is_bad(&self, generation: u64) -> bool {
        self.texts.get(&generation).is_some_and(|text| text.starts_with("bad"))
    }

    /// The store loses everything.
    pub(super) fn wipe(&mut self) {
        self.stored.clear();
    }

    /// A beacon that was sent so long ago.
    pub(super) fn beacon(&mut self, age: Duration) -> Bytes {
        let (manifest, overlays) = (self.newest(Kind::Manifest), self.newest(Kind::Overlays));
        let at = self.now.wall - age;
        let named = |head: Option<Head>| head.map_or(0, |head| head.version.generation);
        self.beacons.push((at, named(manifest), named(overlays)));
        let says = self.signer.beacon(manifest, overlays, at);
        let (_, bytes) = self.signer.seal(Kind::Beacon, 0, &says);
        self.store(Kind::Beacon, None, bytes)
    }

    /// A statement that was stored, from long ago.
    pub(super) fn old(&self, at: usize) -> Option<(Kind, Bytes)> {
        let stored = self.stored.get(at % self.stored.len().max(1))?;
        Some((stored.kind, stored.bytes.clone()))
    }

    // === time and work ===

    pub(super) fn on(&mut self, input: Input<Text, Text>) {
        let actions = self.state.on(input, self.now);
        let mut proofs = Vec::new();
        for action in actions {
            match action {
                Action::Look => {
                    assert!(self.has_crashed || !self.work.iter().any(|work| matches!(work, Work::Look)), "two looks");
                    self.looks += 1;
                    self.work.push(Work::Look);
                }
                Action::SearchHistory { kind, refused, steps } => {
                    self.work.push(Work::Search { kind, refused, steps });
                }
                Action::ReadCopy => self.work.push(Work::ReadCopy),
                Action::Fetch(fetch) => {
                    self.work.retain(|work| !matches!(work, Work::Fetch(_)));
                    self.work.push(Work::Fetch(fetch));
                }
                Action::Step { base, published, overlays } => {
                    assert!(!self.work.iter().any(|work| matches!(work, Work::Step { .. })), "two steps at once");
                    self.work.push(Work::Step { base, published, overlays });
                }
                Action::PutInForce(snapshot) => self.put_in_force(snapshot),
                Action::Prove(proof) => proofs.push(proof),
                Action::Save(files) => self.disk.extend(files),
                Action::Report(report) => self.work.push(Work::Report(report)),
                Action::Status(status) => self.status = *status,
                Action::Log(note) => self.notes.push(note),
            }
        }
        proofs.into_iter().for_each(|proof| self.check_proof(proof));
    }

    pub(super) fn hear(&mut self, kind: Kind, bytes: Bytes) {
        self.on(Input::Event(Event::Statement(kind, bytes)));
    }

    /// Time passes, with its ticks.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now.mono + time;
        while self.now.mono < end {
            self.jump(TICK.min(end - self.now.mono));
        }
    }

    /// Time passes without a tick until its end.
    pub(super) fn jump(&mut self, time: Duration) {
        self.now = Now { mono: self.now.mono + time, wall: self.now.wall + time };
        self.on(Input::Tick);
    }

    /// Lets a piece of work end.
    pub(super) fn end(&mut self, at: usize, end: End) {
        let work = self.work.remove(at);
        if end == End::Crashes && !matches!(work, Work::Step { .. }) {
            self.has_crashed = true;
            return self.on(Input::Crashed);
        }
        let fails = matches!(end, End::Fails | End::Crashes);
        let down = || SourceError("down".to_owned());
        let input = match work {
            Work::Look => Input::Looked(if fails { Err(down()) } else { Ok(self.view(end)) }),
            Work::Search { kind, refused, steps } => {
                let found = if fails { Err(down()) } else { Ok(self.search(kind, steps)) };
                Input::HistorySearched(Searched { kind, refused, found })
            }
            Work::ReadCopy => Input::CopyRead(if fails { None } else { self.copy(end) }),
            Work::Fetch(fetch) => Input::Fetched(Box::new(self.fetched(*fetch, end))),
            Work::Step { base, published, overlays } => {
                Input::Stepped((!fails).then(|| (self.step(base, published, &overlays), "revision".to_owned())))
            }
            Work::Report(report) => {
                let leaving = report.leaving;
                self.reports.push(*report);
                Input::Reported(if fails { Err(down()) } else { Ok(leaving) })
            }
        };
        self.on(input);
    }

    /// Lets all work end that this concerns, and all that follows from it.
    pub(super) fn settle(&mut self, concerns: impl Fn(&Work) -> bool, end: End) {
        for _ in 0..200 {
            let Some(at) = self.work.iter().position(&concerns) else { return };
            // What falls over falls over once.
            let is_step = matches!(self.work[at], Work::Step { .. });
            self.end(at, if is_step && end != End::Well { End::Well } else { end });
        }
        panic!("it never comes to rest: {:?}", self.work);
    }

    fn view(&self, end: End) -> Vec<(Kind, Option<Bytes>)> {
        let behind = if let End::Behind(by) = end { by } else { 0 };
        let known = self.stored.len().saturating_sub(behind).max(self.at_start.min(self.stored.len()));
        let newest = |kind| {
            let found = self.stored[..known].iter().rev().find(|stored| stored.kind == kind);
            (kind, found.map(|stored| stored.bytes.clone()))
        };
        [Kind::Overlays, Kind::Manifest, Kind::Beacon].map(newest).into()
    }

    fn search(&self, kind: Kind, steps: usize) -> Option<Bytes> {
        let of_kind = self.stored.iter().rev().filter(|stored| stored.kind == kind).take(steps);
        of_kind.filter(|stored| stored.head.is_some()).map(|stored| stored.bytes.clone()).next()
    }

    fn copy(&self, end: End) -> Option<last_good::Copy> {
        let file = |name: &str| self.disk.get(name).cloned();
        let mut blob = file(last_good::BLOB)?;
        if end == End::Damaged {
            blob = Bytes::from_static(b"damaged");
        }
        let (manifest, beacon) = (file(Kind::Manifest.as_str())?, file(Kind::Beacon.as_str())?);
        Some(last_good::Copy { manifest, overlays: file(Kind::Overlays.as_str()), beacon, blob })
    }

    fn fetched(&self, Fetch { head, manifest, origin, .. }: Fetch, end: End) -> Fetched<Text> {
        let (generation, bundle) = (head.version.generation, manifest.bundle);
        let arrived = match &origin {
            Origin::Store if matches!(end, End::Fails) => Err(Failure::Source(SourceError("down".to_owned()))),
            Origin::Store if end == End::Damaged => Ok(Bytes::from_static(b"damaged")),
            Origin::Store => {
                let text = self.texts.values().find(|text| Digest::of(text.as_bytes()) == bundle.digest);
                Ok(Bytes::from(text.expect("it was published").clone()))
            }
            Origin::Copy(blob, _) => Ok(blob.clone()),
        };
        let result = arrived.and_then(|bytes| {
            if Digest::of(&bytes) != bundle.digest {
                return Err(Failure::Blob(Refusal::Blob("it is another one".to_owned())));
            }
            let text = String::from_utf8(bytes.to_vec()).expect("text");
            if text.starts_with("bad") {
                return Err(Failure::Problems(vec![Problem::error("does not compile")]));
            }
            Ok((Text { generation, text, overlays: BTreeSet::new() }, bytes))
        });
        let copy = if let Origin::Copy(_, proof) = origin { Some(proof) } else { None };
        Fetched { head, manifest, copy, took: Duration::from_millis(1), result }
    }

    fn step(&self, base: Option<Text>, published: Option<Published>, overlays: &[Overlay]) -> Text {
        let overlays = overlays.iter().map(|overlay| overlay.id.clone()).collect();
        let mut snapshot = base.or_else(|| self.in_force.clone()).expect("a bundle, or something in force");
        if let Some(published) = published {
            snapshot.generation = published.number.split_once('.').expect("a version").1.parse().expect("a number");
        }
        Text { overlays, ..snapshot }
    }

    // === what must hold ===

    /// Which of the issued lists a snapshot has; 0 if it has none. Half of one, or of two, is a fault.
    fn issue_of(&self, snapshot: &Text) -> u64 {
        // What has ended may be missing: a snapshot is made a little before it is in force.
        let fits = |ends: &BTreeMap<String, SystemTime>| {
            snapshot.overlays.iter().all(|id| ends.contains_key(id))
                && ends.iter().all(|(id, end)| snapshot.overlays.contains(id) || *end <= self.now.wall)
        };
        match self.issued.iter().rev().find(|(_, ends)| fits(ends)) {
            Some((generation, _)) => *generation,
            None if snapshot.overlays.is_empty() => 0,
            None => panic!("half of what was issued is in force: {snapshot:?}"),
        }
    }

    fn put_in_force(&mut self, snapshot: Text) {
        let generation = snapshot.generation;
        assert_eq!(self.texts.get(&generation), Some(&snapshot.text), "not what was published under its number");
        let issue = self.issue_of(&snapshot);
        match &self.in_force {
            Some(before) => {
                assert!(before.generation <= generation, "it went back: {before:?} -> {snapshot:?}");
                assert!(self.issue_of(before) <= issue, "overlays went back: {before:?} -> {snapshot:?}");
            }
            None => self.check_first(&snapshot, issue),
        }
        self.in_force = Some(snapshot);
    }

    /// What is in force first has the overlays that the store had at the start, unless it comes from the disk.
    fn check_first(&self, snapshot: &Text, issue: u64) {
        if self.notes.last().is_some_and(|note| matches!(note, Note::CopyInForce(..))) {
            return;
        }
        let at_start = &self.stored[..self.at_start.min(self.stored.len())];
        let mut overlays = at_start.iter().rev().filter(|stored| stored.kind == Kind::Overlays).peekable();
        if overlays.peek().is_none() {
            return;
        }
        let newest = overlays.find_map(|stored| stored.head).map(|head| head.version.generation);
        match newest {
            Some(newest) => assert!(newest <= issue, "first in force without the overlays of the store: {snapshot:?}"),
            None => assert!(issue > 0, "first in force without overlays, which are refused: {snapshot:?}"),
        }
    }

    /// What is claimed to be current at an instant is no older than what the store had then.
    fn check_proof(&self, proof: Proof) {
        let at = self.now.wall - proof.age(self.now);
        let own = self.in_force.as_ref().map_or((0, 0), |own| (own.generation, self.issue_of(own)));
        // A manifest whose time has not come is not in force, and what is in force is current all the same.
        let is_later = self.state.ready.as_ref().is_some_and(|ready| !ready.is_due(self.now));
        let mut named = self.beacons.iter().filter(|(sent, ..)| *sent == at);
        let is_true = named.any(|(_, manifest, overlays)| (is_later || own.0 >= *manifest) && own.1 >= *overlays);
        assert!(is_true, "it claims to be current with {own:?} at {at:?}: {:?}", self.beacons);
    }

    /// What is in force, and what the status says, on one line.
    pub(super) fn show(&mut self) -> String {
        let Status { rejection, store, .. } = &self.status;
        let store = store.clone().unwrap_or_default();
        let mut words = vec![match &self.in_force {
            Some(Text { generation, text, overlays }) => {
                let overlays: Vec<&str> = overlays.iter().map(String::as_str).collect();
                format!("{} {text} [{}]", version(*generation), overlays.join(","))
            }
            None => "-".to_owned(),
        }];
        words.extend(store.freshness.map(|freshness| freshness.as_str().to_owned()));
        let refused = self.notes.drain(..).filter_map(|note| match note {
            Note::Refused(kind, refusal) => Some(format!("!{}:{}", kind.as_str(), refusal.as_str())),
            _ => None,
        });
        words.extend(refused);
        let flags = [
            (rejection.is_some(), "rejected"),
            (store.withheld.is_some(), "withheld"),
            (store.trouble.is_some(), "trouble"),
            (store.from_disk, "disk"),
            (store.left, "left"),
        ];
        words.extend(flags.into_iter().filter(|(is, _)| *is).map(|(_, word)| word.to_owned()));
        words.join(" ")
    }
}
