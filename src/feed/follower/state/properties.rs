//! Whatever happens, in whatever order: what is in force is never older than before, never half, and in the end the newest.
//!
//! What must hold at each step is in [`Simulation`]: each snapshot is what was published under its number, with exactly one issued list
//! of overlays, neither older than before; the first one has the overlays that the store had; and what is claimed to be current is.

use proptest::prelude::*;

use super::simulation::{End, Simulation, Work};
use super::*;
use crate::model::Freshness;

/// Something that happens.
#[derive(Debug, Clone)]
enum Op {
    /// Published, and heard or not; some bundles do not compile, and some are those of before.
    Publish {
        bundle: u8,
        heard: bool,
    },
    /// Issued, for so many seconds beside a denial that does not end.
    Issue {
        seconds: u8,
        heard: bool,
    },
    /// Put into the store by someone who has no key.
    Rubbish {
        kind: Kind,
        heard: bool,
    },
    /// Heard again, or late.
    Repeat(usize),
    /// Sent so many milliseconds ago.
    Beacon {
        age: u16,
    },
    Event(Event),
    /// Some work ends.
    End {
        at: usize,
        end: End,
    },
    /// Milliseconds.
    Pass(u16),
    Jump(u16),
    Restart,
    Leave,
}

fn op() -> impl Strategy<Value = Op> {
    let kind = || prop::sample::select(Kind::ALL.to_vec());
    let end = prop_oneof![
        6 => Just(End::Well),
        2 => Just(End::Fails),
        1 => Just(End::Crashes),
        1 => Just(End::Damaged),
        2 => (0..6_usize).prop_map(End::Behind),
    ];
    let event = prop_oneof![
        Just(Event::Up),
        Just(Event::Gap("test".to_owned())),
        Just(Event::Down("test".to_owned())),
        Just(Event::Refused("test".to_owned())),
    ];
    prop_oneof![
        4 => (0..8_u8, any::<bool>()).prop_map(|(bundle, heard)| Op::Publish { bundle, heard }),
        3 => (1..20_u8, any::<bool>()).prop_map(|(seconds, heard)| Op::Issue { seconds, heard }),
        1 => (kind(), any::<bool>()).prop_map(|(kind, heard)| Op::Rubbish { kind, heard }),
        2 => any::<usize>().prop_map(Op::Repeat),
        3 => (0..5000_u16).prop_map(|age| Op::Beacon { age }),
        2 => event.prop_map(Op::Event),
        16 => (any::<usize>(), end).prop_map(|(at, end)| Op::End { at, end }),
        4 => (0..3000_u16).prop_map(Op::Pass),
        1 => (0..9000_u16).prop_map(Op::Jump),
        1 => Just(Op::Restart),
        1 => Just(Op::Leave),
    ]
}

fn apply(sim: &mut Simulation, op: Op) {
    match op {
        Op::Publish { bundle, heard } => {
            let text = if bundle == 0 { "bad".to_owned() } else { format!("bundle {}", bundle / 2) };
            let bytes = sim.publish(&text);
            if heard {
                sim.hear(Kind::Manifest, bytes);
            }
        }
        Op::Issue { seconds, heard } => issue(sim, seconds, heard),
        Op::Rubbish { kind, heard } => {
            let bytes = sim.rubbish(kind);
            if heard {
                sim.hear(kind, bytes);
            }
        }
        Op::Repeat(at) => {
            if let Some((kind, bytes)) = sim.old(at) {
                sim.hear(kind, bytes);
            }
        }
        Op::Beacon { age } => {
            let bytes = sim.beacon(Duration::ZERO);
            // It is on its way for so long.
            sim.jump(Duration::from_millis(age.into()));
            sim.hear(Kind::Beacon, bytes);
        }
        Op::Event(event) => sim.on(Input::Event(event)),
        Op::End { at, end } if !sim.work.is_empty() => sim.end(at % sim.work.len(), end),
        Op::End { .. } => {}
        Op::Pass(ms) => sim.pass(Duration::from_millis(ms.into())),
        Op::Jump(ms) => sim.jump(Duration::from_millis(ms.into())),
        Op::Restart => sim.restart(),
        Op::Leave => sim.on(Input::Leave),
    }
}

/// Each list has a name of its own that never ends, so it is known from a snapshot.
fn issue(sim: &mut Simulation, seconds: u8, heard: bool) {
    let number = sim.newest(Kind::Overlays).map_or(1, |head| head.version.generation + 1);
    let (mark, denial) = (format!("mark-{number}"), format!("deny-{number}"));
    let lasting = Duration::from_secs(seconds.into());
    let bytes = sim.issue(&[(&mark, Duration::from_secs(1_000_000)), (&denial, lasting)]);
    if heard {
        sim.hear(Kind::Overlays, bytes);
    }
}

/// The store answers again and one beacon is heard, and nothing more. What was asked before may be answered by a server that is behind,
/// what is asked from then on is not.
fn calm(sim: &mut Simulation) {
    sim.on(Input::Event(Event::Up));
    beat(sim);
    let is_look = |work: &Work| matches!(work, Work::Look);
    for _ in 0..sim.work.iter().filter(|work| is_look(work)).count() {
        // The first was asked first.
        let at = sim.work.iter().position(is_look).expect("one of those that were counted");
        sim.end(at, End::Behind(3));
    }
    sim.settle(|_| true, End::Well);
    // Pauses after what has failed.
    for _ in 0..300 {
        if what_is_wrong(sim).is_empty() {
            break;
        }
        sim.pass(TICK);
        sim.settle(|_: &Work| true, End::Well);
    }
}

fn beat(sim: &mut Simulation) {
    sim.jump(Duration::from_millis(1));
    let beacon = sim.beacon(Duration::ZERO);
    sim.hear(Kind::Beacon, beacon);
}

/// What is not as the newest statements say.
fn what_is_wrong(sim: &Simulation) -> Vec<&'static str> {
    let version = |kind| sim.newest(kind).map(|head| head.version);
    let (manifest, overlays) = (version(Kind::Manifest), version(Kind::Overlays));
    let store = sim.status.store.clone().unwrap_or_default();
    let is_bad = manifest.is_some_and(|version| sim.is_bad(version.generation));
    let mut wrong = vec![
        (store.newest == manifest, "the newest manifest was not seen"),
        (sim.status.rejection.is_some() == is_bad, "a rejection is not shown, or shown though it is over"),
    ];
    match &sim.in_force {
        Some(own) => {
            let mark = overlays.map(|version| format!("mark-{}", version.generation));
            wrong.extend([
                (!sim.is_bad(own.generation), "what does not compile is in force"),
                (
                    is_bad || Some(own.generation) == manifest.map(|version| version.generation),
                    "the newest is not in force",
                ),
                (mark.is_none_or(|mark| own.overlays.contains(&mark)), "the newest overlays are not in force"),
            ]);
        }
        // Overlays that are refused, and none before them: nothing is put in force first.
        None => wrong.push((manifest.is_none() || is_bad || store.withheld.is_some(), "nothing is in force")),
    }
    wrong.into_iter().filter(|(is_right, _)| !is_right).map(|(_, what)| what).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_in_force_moves_on_to_the_newest(ops in prop::collection::vec(op(), 1..120)) {
        let mut sim = Simulation::new();
        sim.on(Input::Tick);
        ops.into_iter().for_each(|op| apply(&mut sim, op));
        calm(&mut sim);
        prop_assert_eq!(what_is_wrong(&sim), Vec::<&str>::new(), "{:?} {:?}", sim.in_force, sim.status);
        // The next beacon proves that what is in force is current.
        beat(&mut sim);
        sim.settle(|_| true, End::Well);
        let freshness = sim.status.store.as_ref().and_then(|store| store.freshness);
        let is_settled = sim.in_force.is_none() || sim.status.rejection.is_some();
        prop_assert!(is_settled || freshness == Some(Freshness::Fresh), "{:?}", sim.status);
    }
}
