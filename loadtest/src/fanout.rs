//! How fast and how surely the central store reaches its sidecars, with the real NATS server and real sidecars on one machine.
//!
//! - [`goals`] is the table: what must be reached,
//! - [`nats`] is the server, [`desk`] publishes and issues, [`site`] is both with their beacons,
//! - [`fleet`] is the sidecars, [`bundle`] what they enforce,
//! - [`publish`], [`deny`], [`stopped`], [`reconnect`] and [`idle`] are the scenarios.

mod bundle;
mod deny;
mod desk;
mod fleet;
mod goals;
mod idle;
mod nats;
mod publish;
mod reconnect;
mod site;
mod stopped;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::findings::{Finding, Goal, Report, machine};
use crate::server;

/// How to read what is found.
const INTRO: &str = "One run on one machine: the NATS server, two beacons, all sidecars and this program share all cores, and nothing is \
     pinned. Lead times count from the signature to the instant at which a sidecar says that it enforces, by the one clock of the machine.";

/// What is measured, and how thoroughly.
pub(crate) struct FanOut {
    pub(crate) stockade: PathBuf,
    /// All, if there is none.
    pub(crate) only: Vec<Scenario>,
    pub(crate) sidecars: NonZeroUsize,
    pub(crate) rounds: NonZeroUsize,
    /// Of the bundle that is published.
    pub(crate) policies: NonZeroUsize,
    /// How many reconnect.
    pub(crate) feeds: NonZeroUsize,
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// From a publish until it is enforced.
    Publish,
    /// From an emergency denial until it is enforced.
    Deny,
    /// A server that is stopped, but stays connected.
    StoppedServer,
    /// Very many feeds, after the server was killed.
    Reconnect,
    /// A sidecar with nothing to do.
    Idle,
}

impl FanOut {
    /// Runs the scenarios, one after the other.
    pub(crate) async fn run(self) -> anyhow::Result<Report> {
        server::warn_if_debug();
        server::ensure_built(&self.stockade)?;
        testkit::nats::try_binary().map_err(anyhow::Error::msg)?;
        raise_file_limit()?;
        let mut report = Report {
            title: "Numbers of the central store",
            intro: INTRO,
            command: self.command(),
            machine: machine(),
            ..Report::default()
        };
        for scenario in Scenario::value_variants() {
            if self.only.is_empty() || self.only.contains(scenario) {
                match scenario.run(&self).await {
                    Ok(findings) => report.findings.extend(findings),
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
        let Self { sidecars, rounds, policies, feeds, .. } = self;
        format!("loadtest fanout{only} --sidecars {sidecars} --rounds {rounds} --policies {policies} --feeds {feeds}")
    }
}

impl Scenario {
    async fn run(self, stage: &FanOut) -> anyhow::Result<Vec<Finding>> {
        match self {
            Self::Publish => publish::run(stage).await,
            Self::Deny => deny::run(stage).await,
            Self::StoppedServer => stopped::run(stage).await,
            Self::Reconnect => reconnect::run(stage).await,
            Self::Idle => idle::run(stage).await,
        }
    }
}

/// A thousand connections are more files than a process may have open by default, here and in the server.
fn raise_file_limit() -> anyhow::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("cannot raise the limit of open files")
}

/// Durations, sorted.
pub(crate) struct Spread(Vec<Duration>);

impl Spread {
    pub(crate) fn of(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut sorted: Vec<_> = durations.into_iter().collect();
        sorted.sort_unstable();
        Self(sorted)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The least duration that this share of all are not above; nothing of nothing.
    pub(crate) fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied()
    }

    /// In one line.
    pub(crate) fn shown(&self) -> String {
        let at =
            |percent| self.percentile(percent).map_or_else(|| "-".to_owned(), |at| format!("{:.1} ms", millis(at)));
        format!("p50 {}, p99 {}, max {}", at(50), at(99), at(100))
    }

    pub(crate) fn into_durations(self) -> Vec<Duration> {
        self.0
    }
}

/// A finding of one number, or of none.
fn found(goal: &'static Goal, value: Option<f64>, evidence: String, faults: Vec<String>) -> Finding {
    Finding::new(goal, value.into_iter().collect(), evidence, faults)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_durations() {
        let spread = Spread::of((1..=200).rev().map(Duration::from_millis));
        let at = |percent| spread.percentile(percent).map(millis);
        assert_eq!((at(50), at(99), at(100)), (Some(100.0), Some(198.0), Some(200.0)));
        assert_eq!(Spread::of([]).percentile(99), None);
        assert_eq!(Spread::of([Duration::from_millis(7)]).percentile(1), Some(Duration::from_millis(7)));
    }
}
