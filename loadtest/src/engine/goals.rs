//! What must be reached, as a table, and what was found.

use serde::Serialize;

use crate::report::median;

/// A line of the table.
#[derive(Debug)]
pub(crate) struct Goal {
    /// For scripts.
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) bound: Bound,
    pub(crate) unit: Unit,
}

/// Where a good measurement lies.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Unit {
    /// Of one measurement to another in the same round.
    Ratio,
    /// Of CPU time for one check.
    Micros,
    Mebibytes,
    Percent,
}

/// What was measured, round by round, and how it is known to be that.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) goal: &'static Goal,
    rounds: Vec<f64>,
    /// What a reader needs in order to trust the number.
    pub(crate) evidence: String,
    /// Why the number is not of what it claims, if so. It is not passed then.
    pub(crate) faults: Vec<String>,
}

/// A finding for machines.
#[derive(Debug, Serialize)]
pub(crate) struct FindingRow<'a> {
    goal: &'static str,
    what: &'static str,
    measured: Option<f64>,
    least: Option<f64>,
    most: Option<f64>,
    unit: &'static str,
    must_reach: String,
    passed: bool,
    evidence: &'a str,
    faults: &'a [String],
}

const fn goal(name: &'static str, what: &'static str, bound: Bound, unit: Unit) -> Goal {
    Goal { name, what, bound, unit }
}

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

// === impl Bound ===

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
            Self::Below(bound) => value < bound,
        }
    }
}

// === impl Unit ===

impl Unit {
    fn word(self) -> &'static str {
        match self {
            Self::Ratio => "ratio",
            Self::Micros => "us",
            Self::Mebibytes => "MiB",
            Self::Percent => "%",
        }
    }

    /// A value as people read it.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{value:.2}"),
            Self::Micros => format!("{value:.1} us"),
            Self::Mebibytes => format!("{value:.1} MiB"),
            Self::Percent => format!("{value:.2} %"),
        }
    }
}

// === impl Goal ===

impl Goal {
    /// As the table has it.
    pub(crate) fn must_reach(&self) -> String {
        let (sign, bound) = match self.bound {
            Bound::AtLeast(bound) => (">=", bound),
            Bound::AtMost(bound) => ("<=", bound),
            Bound::Below(bound) => ("<", bound),
        };
        format!("{sign} {}", self.unit.show(bound))
    }
}

// === impl Finding ===

impl Finding {
    /// What the rounds found.
    pub(crate) fn new(goal: &'static Goal, rounds: Vec<f64>, evidence: String, faults: Vec<String>) -> Self {
        Self { goal, rounds, evidence, faults }
    }

    /// The median of the rounds.
    pub(crate) fn measured(&self) -> Option<f64> {
        median(self.rounds.iter().copied())
    }

    pub(crate) fn passed(&self) -> bool {
        self.faults.is_empty() && self.measured().is_some_and(|value| self.goal.bound.holds(value))
    }

    /// The measured value as the table has it.
    pub(crate) fn shown(&self) -> String {
        self.measured().map_or_else(|| "-".into(), |value| self.goal.unit.show(value))
    }

    pub(crate) fn mark(&self) -> &'static str {
        if self.passed() { "pass" } else { "FAIL" }
    }

    /// The least and the greatest of the rounds, where there were several.
    pub(crate) fn spread(&self) -> Option<String> {
        let show = |value| self.goal.unit.show(value);
        let (least, most) = self.extremes()?;
        (self.rounds.len() > 1).then(|| format!("{} to {} in {} rounds", show(least), show(most), self.rounds.len()))
    }

    fn extremes(&self) -> Option<(f64, f64)> {
        let least = self.rounds.iter().copied().reduce(f64::min)?;
        Some((least, self.rounds.iter().copied().reduce(f64::max)?))
    }

    pub(crate) fn row(&self) -> FindingRow<'_> {
        let (least, most) = self.extremes().unzip();
        FindingRow {
            goal: self.goal.name,
            what: self.goal.what,
            measured: self.measured(),
            least,
            most,
            unit: self.goal.unit.word(),
            must_reach: self.goal.must_reach(),
            passed: self.passed(),
            evidence: &self.evidence,
            faults: &self.faults,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
