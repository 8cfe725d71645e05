//! Overlays begin and end by the clock, and nobody has to notice for decisions to follow: one snapshot is asked while its
//! overlays come and go, and every answer is plain Cedar's under those that were in force when it was asked.

use std::time::{Duration, SystemTime};

use stockade::model::{Effect, MissReason, Overlay, Reason};

use super::world::World;
use super::*;
use crate::fixture::{line, shop};

/// How long the overlays of a run come and go.
const SPAN: Duration = Duration::from_millis(60);

/// A world whose overlays are in force for a while each, and what plain Cedar says with any of them.
struct Timed {
    overlays: Vec<Overlay>,
    /// By which of the overlays are in force.
    oracles: Vec<(Vec<bool>, Oracle)>,
    world: World,
}

impl Timed {
    fn new(dice: &mut Dice) -> Self {
        let mut world = World::new(dice, false);
        while world.overlays.len() < 2 {
            world.change(dice);
        }
        Self { overlays: world.overlays(), oracles: Vec::new(), world }
    }

    /// Lets each overlay begin and end within the span from now; some have begun long before, and some end long after.
    fn begin(&mut self, dice: &mut Dice) {
        let now = SystemTime::now();
        for overlay in &mut self.overlays {
            let mut instants = [dice.roll(60), dice.roll(60)].map(|at| now + Duration::from_millis(at as u64));
            instants.sort();
            [overlay.from, overlay.until] = instants;
            match dice.roll(4) {
                0 => overlay.from = SystemTime::UNIX_EPOCH,
                1 => overlay.until = now + Duration::from_secs(3600),
                _ => {}
            }
        }
    }

    fn in_force(&self, at: SystemTime) -> Vec<bool> {
        self.overlays.iter().map(|own| own.is_in_force(at)).collect()
    }

    fn expects(&mut self, in_force: &[bool], ask: &Ask) -> Arc<Expected> {
        let at = self.oracles.iter().position(|(own, _)| own == in_force).unwrap_or_else(|| {
            let mut world = self.world.clone();
            let ids: Vec<&str> = self.overlays.iter().map(|own| own.id.as_str()).collect();
            world.overlays.retain(|id, _| in_force[ids.iter().position(|own| own == id).unwrap()]);
            self.oracles.push((in_force.to_vec(), Oracle::new(&world)));
            self.oracles.len() - 1
        });
        self.oracles[at].1.expects(ask)
    }
}

/// What was asked, from when to when, and what was answered.
struct Noted {
    ask: usize,
    between: (SystemTime, SystemTime),
    decision: Decision,
}

/// Asks one snapshot, or those that a feed makes of it now and then, until all overlays have come and gone.
fn run(seed: u64) -> (usize, usize, usize) {
    let mut dice = Dice::new(seed);
    let mut timed = Timed::new(&mut dice);
    let asks: Vec<Ask> = (0..8).map(|_| Ask::new(&mut dice)).collect();
    let compiled = Snapshot::compile(&timed.world.files(), None, &mut Default::default()).unwrap();
    timed.begin(&mut dice);
    let start = SystemTime::now();
    let engine = Engine::new(Arc::new(compiled.succeeding(None, &timed.overlays)));
    let mut notes = Vec::new();
    while SystemTime::now() < start + SPAN {
        // A feed that notices in time, or too late, or never.
        if dice.roll(200) == 0 && !seed.is_multiple_of(3) {
            engine.push(Arc::new(engine.current().overlaid(&timed.overlays, None)));
        }
        let ask = dice.roll(asks.len());
        let before = SystemTime::now();
        let decision = engine.decide(&asks[ask]);
        notes.push(Noted { ask, between: (before, SystemTime::now()), decision });
    }
    let (mut hits, mut changed) = (0, 0);
    let first = timed.in_force(start);
    for Noted { ask, between: (before, after), decision } in &notes {
        let mut instants = vec![*before, *after];
        let edges = timed.overlays.iter().flat_map(|own| [own.from, own.until]);
        instants.extend(edges.filter(|edge| before < edge && edge < after));
        let fits = instants.iter().any(|at| {
            let in_force = timed.in_force(*at);
            Answer::from(decision) == timed.expects(&in_force, &asks[*ask]).answer
        });
        let since = before.duration_since(start);
        assert!(fits, "seed {seed}, {since:?} after the start, {:?}\n{decision:?}\n{:#?}", asks[*ask], timed.overlays);
        hits += usize::from(is_hit(decision));
        changed += usize::from(timed.in_force(*before) != first);
    }
    (notes.len(), hits, changed)
}

#[test]
fn answers_are_those_of_the_overlays_in_force_when_they_are_asked_for() {
    let (mut asked, mut hits, mut changed) = (0, 0, 0);
    for seed in 0..24 {
        let (more, more_hits, more_changed) = run(seed);
        (asked, hits, changed) = (asked + more, hits + more_hits, changed + more_changed);
    }
    println!("compared {asked} answers, {hits} of them remembered; {changed} came after an overlay had begun or ended");
    assert!(hits > 0 && changed * 4 > asked, "{hits} and {changed} of {asked}");
}

/// A request that no route names is denied before the cache and the policies are asked, and so counts as neither a hit nor a miss,
/// also where nothing that is remembered may answer.
#[test]
fn an_unrouted_request_is_no_miss_whatever_the_clock_says() {
    let bundle = shop(&[
        ("s.cedarschema", "action list appliesTo { principal: [User, Anonymous], resource: [Service] };"),
        ("list.cedar", "permit (principal, action == Action::\"list\", resource);"),
        ("routes.yaml", "routes: [{match: GET /orders, action: list}]"),
    ]);
    let snapshot = crate::fixture::compile(&[bundle]);
    let until = SystemTime::now() + Duration::from_millis(300);
    let denial = Overlay {
        id: "brief".to_owned(),
        effect: Effect::Deny,
        principal: None,
        action: None,
        resource: None,
        from: SystemTime::UNIX_EPOCH,
        until,
        reason: "test".to_owned(),
    };
    let engine = Engine::new(Arc::new(snapshot.overlaid(&[denial], None)));
    let ask = |path: &str| match engine.pipeline.frame(crate::fixture::frame(&line("GET", path)), "d").outcome {
        Outcome::Decided(decision) => (decision.reason, decision.cache),
        other => panic!("{other:?}"),
    };
    assert_eq!(ask("/other"), (Reason::Unrouted, CacheState::Off));
    while SystemTime::now() <= until {
        std::thread::yield_now();
    }
    assert_eq!(ask("/orders"), (Reason::Policy, CacheState::Miss(MissReason::Changed)));
    assert_eq!(ask("/other"), (Reason::Unrouted, CacheState::Off));
}
