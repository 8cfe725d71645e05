//! What the decision engine must reach, as a table.

use crate::findings::{Bound, Goal, Unit, goal};

pub(crate) const HIT: Goal = goal("hit", "hits, requests/s against the floor", Bound::AtLeast(1.0), Unit::Ratio);
pub(crate) const HIT_LOGGED: Goal =
    goal("hit-logged", "the same with every decision logged", Bound::AtLeast(0.85), Unit::Ratio);
pub(crate) const MISS_GROWTH: Goal =
    goal("miss-growth", "CPU of a miss, 10,000 scoped policies against 10", Bound::Below(2.0), Unit::Ratio);
pub(crate) const MISS_COST: Goal =
    goal("miss-cost", "CPU of a check that misses, 10,000 scoped policies", Bound::AtMost(25.0), Unit::Micros);
/// "Unchanged" is what this tool can tell apart: two floors differ by some hundredths.
pub(crate) const ATTRIBUTES_HIT: Goal = goal(
    "attributes-hit",
    "hits with 1,000 attribute-only policies, requests/s against scoped ones",
    Bound::AtLeast(0.95),
    Unit::Ratio,
);
pub(crate) const ATTRIBUTES_MISS: Goal = goal(
    "attributes-miss",
    "evaluation of 1,000 attribute-only policies, CPU against plain Cedar",
    Bound::AtMost(1.1),
    Unit::Ratio,
);
pub(crate) const ENTITIES_GROWTH: Goal =
    goal("entities-growth", "CPU of a miss, 100,000 entities kept against 10", Bound::Below(1.5), Unit::Ratio);
pub(crate) const MEMORY: Goal =
    goal("memory", "RSS of the process with 100,000 cached decisions", Bound::AtMost(64.0), Unit::Mebibytes);
pub(crate) const KEPT: Goal = goal("kept", "entries kept after an unrelated push", Bound::AtLeast(99.0), Unit::Percent);
pub(crate) const PUSH_P99: Goal =
    goal("push-p99", "p99 during a push under load, against without", Bound::Below(1.5), Unit::Ratio);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::Finding;

    #[test]
    fn a_goal_is_met_on_the_right_side_of_its_bound() {
        for (goal, value, passed) in [
            (&HIT, 1.0, true),
            (&HIT, 0.999, false),
            (&MISS_COST, 25.0, true),
            (&MISS_COST, 25.1, false),
            (&MISS_GROWTH, 1.99, true),
            (&MISS_GROWTH, 2.0, false),
            (&KEPT, 99.0, true),
            (&KEPT, f64::NAN, false),
        ] {
            let finding = Finding::new(goal, vec![value], String::new(), Vec::new());
            assert_eq!(finding.passed(), passed, "{} {value}", goal.name);
        }
    }

    #[test]
    fn the_median_counts_and_a_fault_fails() {
        let finding = Finding::new(&HIT, vec![0.9, 1.1, 1.2], String::new(), Vec::new());
        assert_eq!((finding.shown().as_str(), finding.mark()), ("1.10", "pass"));
        assert_eq!(finding.spread().as_deref(), Some("0.90 to 1.20 in 3 rounds"));
        let faulty = Finding::new(&HIT, vec![1.1], String::new(), vec!["not a hit".into()]);
        assert_eq!((faulty.mark(), faulty.spread()), ("FAIL", None));
        assert!(!Finding::new(&HIT, Vec::new(), String::new(), Vec::new()).passed());
    }

    #[test]
    fn the_table_says_what_must_be_reached() {
        assert_eq!(HIT.must_reach(), ">= 1.00");
        assert_eq!(MISS_COST.must_reach(), "<= 25.0 us");
        assert_eq!(PUSH_P99.must_reach(), "< 1.50");
        assert_eq!(MEMORY.must_reach(), "<= 64.0 MiB");
    }
}
