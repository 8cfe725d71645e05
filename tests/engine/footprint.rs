//! What policies do not read is not in the key, and what they read is: seen from outside, by what is remembered.

use super::world::{Part, World};
use super::*;

const PARTS: [Part; 8] = [Part::N, Part::M, Part::V, Part::Boss, Part::S, Part::Tags, Part::Dept, Part::Noise];

/// Whether any policy about the action of a request reads a part of it, by what the table of conditions says.
fn reads(world: &World, ask: &Ask, part: Part) -> bool {
    let (action, _) = world.leads(ask);
    world.deciding().any(|(_, rule)| rule.is_about(action, &world.shape) && rule.condition.reads.contains(&part))
}

#[test]
fn what_is_read_is_in_the_key_and_nothing_else() {
    let (mut outside, mut inside) = (0, 0);
    for seed in 0..60 {
        let mut dice = Dice::new(2000 + seed);
        let mut world = World::new(&mut dice, seed.is_multiple_of(3));
        // Where many policies are about an action, nearly all of a request is read.
        (0..dice.roll(8)).for_each(|_| world.forget(&mut dice));
        let (oracle, snapshot) = (Oracle::new(&world), compile(&world));
        for _ in 0..30 {
            let engine = Engine::new(Arc::clone(&snapshot));
            let ask = Ask::new(&mut dice);
            engine.decide(&ask);
            let decision = engine.decide(&ask);
            if !is_hit(&decision) {
                // It errs, or a policy says that it must not be remembered.
                let expected = oracle.expects(&ask);
                assert!(expected.fleeting || expected.answer.errs(), "seed {seed}, {ask:?} was not remembered");
                continue;
            }
            for part in PARTS {
                // Without a token there are no claims.
                let other = ask.with_another(part);
                if part == Part::Dept && ask.user.is_none() {
                    continue;
                }
                let read = reads(&world, &ask, part);
                let found = engine.decide(&other);
                agree(&found, &oracle.expects(&other), &world, || format!("seed {seed}, {other:?}"));
                let (expected, count) = if read { (false, &mut inside) } else { (true, &mut outside) };
                *count += 1;
                assert_eq!(
                    is_hit(&found),
                    expected,
                    "seed {seed}: {part:?} is {}read, of {ask:?}\n{:#?}",
                    if read { "" } else { "not " },
                    world.files()
                );
                if !read {
                    assert_eq!(Answer::from(&found), Answer::from(&decision), "seed {seed}, {part:?} of {ask:?}");
                }
            }
        }
    }
    println!("{outside} changes outside of the footprint were hits, {inside} inside were misses");
    assert!(outside > 500 && inside > 500, "{outside} outside, {inside} inside");
}
