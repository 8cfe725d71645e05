//! One after the other: asks and changes in any order, every answer compared.

use std::sync::atomic::{AtomicBool, Ordering};

use super::world::{Touches, World};
use super::*;

/// What happened in a run.
#[derive(Debug, Default)]
struct Tally {
    asked: usize,
    hits: usize,
    pushes: usize,
    /// Asks after a push that cannot have changed their answers, remembered before; all of them still were.
    kept: usize,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.asked += other.asked;
        self.hits += other.hits;
        self.pushes += other.pushes;
        self.kept += other.kept;
    }
}

/// An engine, and the world that it must agree with.
struct Run {
    seed: u64,
    dice: Dice,
    world: World,
    /// Worlds to come back to.
    earlier: Vec<World>,
    oracle: Oracle,
    engine: Engine,
    asks: Vec<Ask>,
    tally: Tally,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let world = World::new(&mut dice, seed.is_multiple_of(3));
        let asks = (0..40).map(|_| Ask::new(&mut dice)).collect();
        let (oracle, engine) = (Oracle::new(&world), Engine::new(compile(&world)));
        Self { seed, dice, world, earlier: Vec::new(), oracle, engine, asks, tally: Tally::default() }
    }

    /// Asks one, and holds the answer against the oracle.
    fn ask(&mut self, ask: &Ask) -> Decision {
        let decision = self.engine.decide(ask);
        let about = || format!("seed {}, push {}, {ask:?}", self.seed, self.tally.pushes);
        agree(&decision, &self.oracle.expects(ask), &self.world, about);
        self.tally.asked += 1;
        self.tally.hits += usize::from(is_hit(&decision));
        decision
    }

    /// Some changes, published at once; or one before them, published again.
    fn change(&mut self) {
        let before = self.world.clone();
        let touches = match self.dice.roll(10) {
            0 if !self.earlier.is_empty() => {
                self.world = self.dice.pick(&self.earlier).clone();
                Touches::Anything
            }
            1 => self.world.restyle(&mut self.dice),
            2 | 3 => {
                (0..1 + self.dice.roll(3)).for_each(|_| _ = self.world.change(&mut self.dice));
                Touches::Anything
            }
            _ => self.world.change(&mut self.dice),
        };
        self.earlier.push(self.world.clone());
        // Known before the push, while the oracle still knows the world before it.
        let remembered: Vec<Ask> = match touches {
            Touches::Anything => Vec::new(),
            _ => (0..4).filter_map(|_| self.remembered(touches)).collect(),
        };
        let next = succeed(&self.engine.current(), &before, &self.world);
        self.engine.push(next);
        self.oracle = Oracle::new(&self.world);
        self.tally.pushes += 1;
        for ask in remembered {
            let decision = self.ask(&ask);
            assert!(is_hit(&decision), "seed {}, {touches:?}: {ask:?} was forgotten: {:?}", self.seed, decision.cache);
            self.tally.kept += 1;
        }
    }

    /// A request whose answer is remembered, and that such a change cannot alter.
    fn remembered(&mut self, touches: Touches) -> Option<Ask> {
        let ask = self.dice.pick(&self.asks).clone();
        self.ask(&ask);
        let decision = self.ask(&ask);
        let spared = match touches {
            Touches::Nothing => true,
            Touches::Path(path) => path != ask.path,
            Touches::Denials => decision.effect == stockade::model::Effect::Allow,
            Touches::User(user) => ask.user != Some(user),
            Touches::Anything => false,
        };
        (is_hit(&decision) && spared).then_some(ask)
    }
}

/// Asks and changes, in any order, until so many answers were compared.
fn run(seed: u64, comparisons: usize) -> Tally {
    let mut run = Run::new(seed);
    while run.tally.asked < comparisons {
        if run.dice.roll(40) == 0 {
            run.change();
            // Most pushes come alone.
            let more = run.dice.maybe(4, |dice| dice.roll(4)).unwrap_or(0);
            (0..more).for_each(|_| run.change());
        }
        let ask = run.dice.pick(&run.asks).clone();
        run.ask(&ask);
    }
    run.tally
}

/// Tells the others when its thread fails, so that they need not go on.
struct Failing<'a>(&'a AtomicBool);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        self.0.fetch_or(std::thread::panicking(), Ordering::Relaxed);
    }
}

fn runs(comparisons: usize) {
    let each = 400;
    let seeds: Vec<u64> = (0..(comparisons / each) as u64).collect();
    // Runs are independent, so all cores may have their share.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut total, failed) = (Tally::default(), AtomicBool::new(false));
    let work = |worker| {
        let (mut own, _guard) = (Tally::default(), Failing(&failed));
        let seeds = seeds.iter().skip(worker).step_by(threads);
        seeds.take_while(|_| !failed.load(Ordering::Relaxed)).for_each(|seed| own.add(&run(*seed, each)));
        own
    };
    std::thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = (0..threads).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().for_each(|worker| total.add(&worker.join().expect("a run failed: see above")));
    });
    let Tally { asked, hits, pushes, kept } = total;
    println!(
        "compared {asked} answers, {hits} of them remembered, over {pushes} pushes; {kept} had to be kept and were"
    );
    // A cache that remembers nothing would be right as well.
    assert!(hits * 5 > asked && kept * 100 > asked && pushes * 60 > asked, "too little happened: {total:?}");
}

#[test]
fn what_is_remembered_equals_what_would_be_decided() {
    runs(20_000);
}

/// The long form.
#[test]
#[ignore = "takes minutes with optimisation and an hour without; `make engine` runs it"]
fn what_is_remembered_equals_what_would_be_decided_a_million_times() {
    runs(1_000_000);
}

/// After a push that alters something come more of those that alter nothing than the engine keeps differences of: what was
/// remembered before all of them must not stand, since nobody knows any more what the first one was.
#[test]
fn more_pushes_than_are_kept() {
    for seed in 0..5 {
        let mut run = Run::new(3000 + seed);
        let asks = run.asks.clone();
        asks.iter().for_each(|ask| drop(run.ask(ask)));
        let before = run.world.clone();
        run.world.reverse();
        run.engine.push(succeed(&run.engine.current(), &before, &run.world));
        for _ in 0..66 {
            let before = run.world.clone();
            run.world.restyle(&mut run.dice);
            run.engine.push(succeed(&run.engine.current(), &before, &run.world));
        }
        run.oracle = Oracle::new(&run.world);
        asks.iter().for_each(|ask| drop(run.ask(ask)));
    }
}

/// A denial that no policy shapes looks as the bundle in force says, also where it is remembered, and whether the bundle's
/// silence or an overlay made it.
#[test]
fn another_denial_of_the_bundle_holds_for_what_is_remembered() {
    let mut dice = Dice::new(12);
    let (mut world, ask) = (World::new(&mut dice, false), Ask::new(&mut dice));
    world.rules.clear();
    world.templates.clear();
    world.links.clear();
    world.denial = None;
    for overlaid in [false, true] {
        world.overlays.clear();
        if overlaid {
            world.except_everybody();
        }
        let engine = Engine::new(compile(&world));
        for denial in [Some(1), Some(2), None] {
            engine.decide(&ask);
            assert!(is_hit(&engine.decide(&ask)));
            let before = world.clone();
            world.denial = denial;
            engine.push(succeed(&engine.current(), &before, &world));
            agree(&engine.decide(&ask), &Oracle::new(&world).expects(&ask), &world, || format!("{denial:?}"));
        }
    }
}

/// Whom an action is for is the schema's to say, also where the answer is remembered.
#[test]
fn another_schema_holds_for_what_is_remembered() {
    let mut dice = Dice::new(13);
    let mut world = World::new(&mut dice, false);
    let ask = Ask { user: None, path: 1, ..Ask::new(&mut dice) };
    world.rules.clear();
    world.templates.clear();
    world.links.clear();
    world.overlays.clear();
    world.shape.anonymous = true;
    let engine = Engine::new(compile(&world));
    for anonymous in [false, true] {
        engine.decide(&ask);
        assert!(is_hit(&engine.decide(&ask)));
        let before = world.clone();
        world.shape.anonymous = anonymous;
        engine.push(succeed(&engine.current(), &before, &world));
        agree(&engine.decide(&ask), &Oracle::new(&world).expects(&ask), &world, || format!("{anonymous}"));
    }
}

/// A bundle that lowers its own TTL means what is remembered already as well.
#[test]
fn a_lower_ttl_of_the_bundle_holds_for_what_is_remembered() {
    let mut dice = Dice::new(11);
    let (mut world, ask) = (World::new(&mut dice, false), Ask::new(&mut dice));
    world.rules.clear();
    world.templates.clear();
    world.links.clear();
    let files = |ttl: &str| {
        let mut files = world.files();
        files[1].files.insert(
            "bundle.yaml".to_owned(),
            format!("name: b\nunrouted: base\nttl: {{ allow: {ttl}, deny: {ttl} }}\n"),
        );
        files
    };
    let engine = Engine::new(good(Snapshot::compile(&files("1h"), None, &mut Default::default()), &world));
    engine.decide(&ask);
    assert!(is_hit(&engine.decide(&ask)));
    engine.push(good(crate::fixture::succeeding(Some(&engine.current()), &files("0s"), &world.overlays()), &world));
    assert!(!is_hit(&engine.decide(&ask)), "remembered for an hour, though nothing may be by now");
}
