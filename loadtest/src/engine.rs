//! The numbers that the decision engine must reach, in one command: hits, misses, memory and pushes, each as a ratio in
//! one run.
//!
//! - [`goals`] is the table: what must be reached,
//! - [`bundle`], [`hit_bundle`] and [`scaling_bundle`] are the bundles and what is asked about them,
//! - [`rounds`] measures servers in turn, and [`cedar_baseline`] the engine against plain Cedar, without a wire,
//! - [`hit`], [`miss`], [`memory`] and [`push`] are the scenarios,
//! - [`figure`] draws.

pub(crate) mod bundle;
mod cedar_baseline;
pub(crate) mod figure;
pub(crate) mod goals;
mod hit;
pub(crate) mod hit_bundle;
mod memory;
mod miss;
mod push;
mod rounds;
pub(crate) mod scaling_bundle;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::findings::{Report, machine};
use crate::load::Shape;
use crate::server::{self, Cores, Server};
use crate::workload::Files;

/// How to read what is found.
const INTRO: &str = "Each number is of one run: the servers it compares took turns on one core, the generator had the other, ratios were \
     taken within each round, and the median of the rounds is what counts.";

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

// === impl Engine ===

impl Engine {
    /// Runs the scenarios, one after the other.
    pub(crate) async fn run(self) -> anyhow::Result<Report> {
        server::warn_if_debug();
        server::ensure_built(&self.stockade)?;
        let mut report = Report {
            title: "Numbers of the decision engine",
            intro: INTRO,
            command: self.command(),
            machine: machine(),
            ..Report::default()
        };
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
