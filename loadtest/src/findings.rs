//! What must be reached, what was found, and the report that holds one against the other. What is to be reached stands beside
//! the scenarios that measure it; [`page`] shows it.

mod page;

use std::fs;
use std::num::NonZeroUsize;

use serde::Serialize;

use crate::engine::figure::Figure;
use crate::report::{Row, median};

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
    /// Anywhere: a number that helps to read the others.
    Anywhere,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Unit {
    /// Of one measurement to another in the same round.
    Ratio,
    /// Of CPU time for one check.
    Micros,
    Mebibytes,
    Percent,
    Millis,
    Seconds,
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

pub(crate) const fn goal(name: &'static str, what: &'static str, bound: Bound, unit: Unit) -> Goal {
    Goal { name, what, bound, unit }
}

/// What was found.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) title: &'static str,
    /// How to read it.
    pub(crate) intro: &'static str,
    pub(crate) findings: Vec<Finding>,
    /// The measurements that they are made of.
    pub(crate) rows: Vec<Row>,
    pub(crate) figures: Vec<Figure>,
    /// The scenarios that broke off, and why.
    pub(crate) broken: Vec<String>,
    /// What was typed.
    pub(crate) command: String,
    pub(crate) machine: String,
}

/// A line of the JSON file.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Measured(&'a Row),
    Found(FindingRow<'a>),
}

// === impl Bound ===

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
            Self::Below(bound) => value < bound,
            Self::Anywhere => true,
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
            Self::Millis => "ms",
            Self::Seconds => "s",
        }
    }

    /// A value as people read it.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{value:.2}"),
            Self::Micros => format!("{value:.1} us"),
            Self::Mebibytes => format!("{value:.1} MiB"),
            Self::Percent => format!("{value:.2} %"),
            Self::Millis => format!("{value:.1} ms"),
            Self::Seconds => format!("{value:.2} s"),
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
            Bound::Anywhere => return "-".to_owned(),
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
        match (self.passed(), self.goal.bound) {
            (false, _) => "FAIL",
            (true, Bound::Anywhere) => "",
            (true, _) => "pass",
        }
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

// === impl Report ===

impl Report {
    pub(crate) fn append(&mut self, other: Self) {
        self.findings.extend(other.findings);
        self.rows.extend(other.rows);
        self.figures.extend(other.figures);
    }

    /// Whether every scenario was finished, every answer was right and every goal was reached.
    pub(crate) fn passed(&self) -> bool {
        self.broken.is_empty()
            && self.findings.iter().all(Finding::passed)
            && self.rows.iter().all(|row| row.errors == 0)
    }

    /// An array: an object for each series that was measured, then one for each goal.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        let rows = self.rows.iter().map(Line::Measured);
        let lines: Vec<_> = rows.chain(self.findings.iter().map(|finding| Line::Found(finding.row()))).collect();
        serde_json::to_string_pretty(&lines).map(|text| text + "\n")
    }
}

/// What a reader must know of the machine to compare: its processor, and how many of them.
pub(crate) fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, NonZeroUsize::get);
    format!("{} ({cores} cores)", model.map_or("an unknown processor", |(_, model)| model))
}
