//! The numbers that the decision engine must reach, in one command: hits, misses, memory and pushes, each as a ratio in
//! one run.
//!
//! - [`goals`] is the table: what must be reached; and findings, which are held against it,
//! - [`bundle`], [`shop`] and [`growing`] are the bundles and what is asked about them,
//! - [`contest`] measures servers in turn, and [`plain`] the engine against plain Cedar, without a wire,
//! - [`hit`], [`miss`], [`memory`] and [`push`] are the scenarios,
//! - [`figure`] draws, [`page`] tells.

pub(crate) mod bundle;
mod contest;
mod figure;
mod goals;
mod growing;
mod hit;
mod memory;
mod miss;
mod page;
mod plain;
mod push;
pub(crate) mod shop;

use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;

use crate::load::Shape;
use crate::report::Row;
use crate::server::{self, Cores, Server};
use crate::workload::Files;

use figure::Figure;
use goals::{Finding, FindingRow};

/// What is measured, and how thoroughly.
pub(crate) struct Engine {
    pub(crate) stockade: PathBuf,
    /// All, if there is none.
    pub(crate) only: Vec<Scenario>,
    pub(crate) rounds: NonZeroUsize,
    pub(crate) shape: Shape,
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Hits against the floor.
    Hit,
    /// Misses over the number of policies.
    Miss,
    /// Policies that no index can help with.
    Attributes,
    /// Misses over the number of entities.
    Entities,
    /// What remembered decisions take.
    Memory,
    /// A push under load.
    Push,
}

/// What all scenarios share.
pub(crate) struct Stage {
    pub(crate) cores: Cores,
    stockade: PathBuf,
    pub(crate) rounds: NonZeroUsize,
    pub(crate) shape: Shape,
}

/// What was found.
#[derive(Default)]
pub(crate) struct Report {
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

// === impl Engine ===

impl Engine {
    /// Runs the scenarios, one after the other.
    pub(crate) async fn run(self) -> anyhow::Result<Report> {
        server::warn_if_debug();
        server::ensure_built(&self.stockade)?;
        let mut report = Report { command: self.command(), machine: machine(), ..Report::default() };
        let stage = Stage { cores: Cores::claim()?, stockade: self.stockade, rounds: self.rounds, shape: self.shape };
        for scenario in Scenario::value_variants() {
            if self.only.is_empty() || self.only.contains(scenario) {
                // What the others found is not lost by one that breaks off.
                match scenario.run(&stage).await {
                    Ok(found) => report.append(found),
                    Err(error) => report.broken.push(format!("{scenario:?}: {error:#}")),
                }
            }
        }
        Ok(report)
    }

    /// The command that gives this report, without where the programs are.
    fn command(&self) -> String {
        let only = self.only.iter().filter_map(ValueEnum::to_possible_value);
        let only: String = only.map(|scenario| format!(" --only {}", scenario.get_name())).collect();
        format!("loadtest engine{only} --rounds {} --duration {}s", self.rounds, self.shape.duration.as_secs_f64())
    }
}

// === impl Scenario ===

impl Scenario {
    async fn run(self, stage: &Stage) -> anyhow::Result<Report> {
        match self {
            Self::Hit => hit::run(stage).await,
            Self::Miss => miss::policies(stage).await,
            Self::Attributes => miss::attributes(stage).await,
            Self::Entities => miss::entities(stage).await,
            Self::Memory => memory::run(stage).await,
            Self::Push => push::run(stage).await,
        }
    }
}

// === impl Stage ===

impl Stage {
    /// Starts a Stockade with these files.
    pub(crate) async fn stockade(&self, files: &Files) -> anyhow::Result<Server> {
        Server::stockade(&self.cores, &self.stockade, files).await
    }
}

// === impl Report ===

impl Report {
    fn append(&mut self, other: Self) {
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
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, NonZeroUsize::get);
    format!("{} ({cores} cores)", model.map_or("an unknown processor", |(_, model)| model))
}
