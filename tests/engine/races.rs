//! Traffic and pushes at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::world::World;
use super::*;

/// Worlds, each a change or two away from the one before, with their snapshots and oracles.
struct Chain {
    worlds: Vec<World>,
    snapshots: Vec<Arc<Snapshot>>,
    oracles: Vec<Oracle>,
    asks: Vec<Ask>,
}

impl Chain {
    fn new(seed: u64, length: usize, asks: usize) -> Self {
        let mut dice = Dice::new(seed);
        let mut world = World::new(&mut dice, seed.is_multiple_of(3));
        let mut own = Self {
            snapshots: vec![compile(&world)],
            oracles: vec![Oracle::new(&world)],
            worlds: vec![world.clone()],
            asks: (0..asks).map(|_| Ask::new(&mut dice)).collect(),
        };
        while own.worlds.len() < length {
            // Back to an earlier one, now and then.
            match dice.roll(6) {
                0 => world = dice.pick(&own.worlds).clone(),
                _ => (0..1 + dice.roll(3)).for_each(|_| _ = world.change(&mut dice)),
            }
            own.snapshots.push(succeed(own.snapshots.last().unwrap(), own.worlds.last().unwrap(), &world));
            own.oracles.push(Oracle::new(&world));
            own.worlds.push(world.clone());
        }
        own
    }

    /// Whether an answer is the one that snapshot number `at` gives.
    fn agrees(&self, at: usize, ask: &Ask, decision: &Decision) -> bool {
        let expected = self.oracles[at].expects(ask);
        decision.revision == self.snapshots[at].revision
            && Answer::from(decision) == expected.answer
            && !(is_hit(decision) && (expected.fleeting || expected.answer.errs()))
    }
}

/// What an asker noted of a call.
struct Noted {
    /// Which request.
    ask: usize,
    /// Which snapshot was in force before the call, and after it.
    between: (usize, usize),
    decision: Decision,
}

/// Threads ask while another one pushes: every answer is that of a snapshot that was in force at some instant of the call.
fn storm(seed: u64, pushes: usize, asked_between: usize) -> (usize, usize, usize) {
    let chain = Chain::new(seed, pushes + 1, 40);
    let engine = Engine::new(Arc::clone(&chain.snapshots[0]));
    let (asked, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let in_force = || usize::try_from(engine.current().generation).unwrap() - 1;
    let mut notes: Vec<Noted> = Vec::new();
    std::thread::scope(|scope| {
        let (chain, engine, asked, over) = (&chain, &engine, &asked, &over);
        let askers: Vec<_> = (0..3)
            .map(|asker| {
                scope.spawn(move || {
                    let mut dice = Dice::new(seed * 31 + asker);
                    let mut notes = Vec::new();
                    while !over.load(Ordering::SeqCst) {
                        let ask = dice.roll(chain.asks.len());
                        let before = in_force();
                        let decision = engine.decide(&chain.asks[ask]);
                        notes.push(Noted { ask, between: (before, in_force()), decision });
                        asked.fetch_add(1, Ordering::SeqCst);
                    }
                    notes
                })
            })
            .collect();
        for next in &chain.snapshots[1..] {
            let target = asked.load(Ordering::SeqCst) + asked_between;
            while asked.load(Ordering::SeqCst) < target {
                std::thread::yield_now();
            }
            engine.push(Arc::clone(next));
        }
        let target = asked.load(Ordering::SeqCst) + asked_between;
        while asked.load(Ordering::SeqCst) < target {
            std::thread::yield_now();
        }
        over.store(true, Ordering::SeqCst);
        askers.into_iter().for_each(|asker| notes.extend(asker.join().unwrap()));
    });
    for Noted { ask, between: (before, after), decision } in &notes {
        let ask = &chain.asks[*ask];
        assert!(
            (*before..=*after).any(|at| chain.agrees(at, ask, decision)),
            "seed {seed}, between {before} and {after}, {ask:?}\n {decision:?}\n {:?}\n{:#?}",
            chain.oracles[*after].expects(ask).answer,
            chain.worlds[*after].files()
        );
    }
    let hits = notes.iter().filter(|noted| is_hit(&noted.decision)).count();
    let overtaken = notes.iter().filter(|noted| noted.between.0 != noted.between.1).count();
    (notes.len(), hits, overtaken)
}

#[test]
fn answers_under_traffic_are_those_of_a_snapshot_in_force() {
    let (mut asked, mut hits, mut overtaken) = (0, 0, 0);
    for seed in 0..6 {
        let (more, more_hits, more_overtaken) = storm(seed, 12, 300);
        (asked, hits, overtaken) = (asked + more, hits + more_hits, overtaken + more_overtaken);
    }
    println!("compared {asked} answers, {hits} of them remembered; during {overtaken} a push came");
    assert!(hits * 5 > asked, "{hits} of {asked}");
}

/// The long form.
#[test]
#[ignore = "a minute with optimisation; `make engine` runs it"]
fn answers_under_traffic_are_those_of_a_snapshot_in_force_for_long() {
    let (mut asked, mut hits, mut overtaken) = (0, 0, 0);
    for seed in 100..200 {
        let (more, more_hits, more_overtaken) = storm(seed, 60, 100);
        (asked, hits, overtaken) = (asked + more, hits + more_hits, overtaken + more_overtaken);
    }
    println!("compared {asked} answers, {hits} of them remembered; during {overtaken} a push came");
    assert!(hits * 10 > asked, "{hits} of {asked}");
    assert!(overtaken > 0, "no push came during a call");
}

/// A check takes its snapshot when it comes. It may look into the memory, evaluate and insert whenever it pleases: before
/// or after newer snapshots are in force, and before or after others have done the same. So all orders are tried in
/// which calls under three snapshots can come to their end, each with a memory that was empty before.
#[test]
fn a_push_between_evaluation_and_insert_leaves_no_wrong_answer() {
    const CALLS: u32 = 4;
    let (mut calls, mut hits) = (0, 0);
    for seed in 0..12 {
        let chain = Chain::new(1000 + seed, 3, 6);
        for order in 0..3_usize.pow(CALLS) {
            let order: Vec<usize> = (0..CALLS).map(|call| order / 3_usize.pow(call) % 3).collect();
            let engine = Engine::new(Arc::clone(&chain.snapshots[0]));
            engine.push(Arc::clone(&chain.snapshots[2]));
            for ask in &chain.asks {
                for (call, at) in order.iter().enumerate() {
                    let decision = engine.decide_under(&chain.snapshots[*at], ask);
                    assert!(
                        chain.agrees(*at, ask, &decision),
                        "seed {seed}, call {call} of {order:?}, {ask:?}\n {decision:?}\n {:?}\n{:#?}",
                        chain.oracles[*at].expects(ask).answer,
                        chain.worlds[*at].files()
                    );
                    calls += 1;
                    hits += usize::from(is_hit(&decision));
                }
            }
        }
    }
    println!("compared {calls} answers, {hits} of them remembered");
    assert!(hits * 5 > calls, "{hits} of {calls}");
}
