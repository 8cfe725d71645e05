//! How fast a Stockade answers, as a ratio to a server that always allows.
//!
//! A request rate means little without the machine it was measured on. So this
//! tool brings its own yardstick, the *floor*: a tonic server that decodes the
//! same `CheckRequest` and always allows. [`compare`] measures floor, Stockade
//! and any peers in turn, on the same core, several times over, and divides.
//!
//! - [`request`] and [`workload`] are what is asked, in which order, and what the right answer is; [`one_policy`] is the simplest,
//! - [`client`] asks once, [`load`] asks at a pace and keeps count,
//! - [`floor`] is the yardstick, [`server`] starts it, and Stockade, as processes,
//! - [`compare`] runs the rounds, [`report`] turns them into a table and JSON,
//! - [`engine`] measures what the decision engine must reach; [`admin`] reads what Stockade says of itself,
//! - [`fanout`] measures what the central store must reach,
//! - [`findings`] holds what was found against what must be reached.
#![allow(clippy::disallowed_macros, clippy::disallowed_methods, reason = "it prints what it made itself")]

mod admin;
mod client;
mod compare;
mod engine;
mod fanout;
mod findings;
mod floor;
mod load;
mod one_policy;
mod report;
mod request;
mod server;
mod workload;

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::client::Address;
use crate::compare::{Comparison, Peer};
use crate::engine::Scenario;
use crate::load::{Pace, Shape};
use crate::report::{Row, Series};
use crate::workload::{Expect, Workload};

/// Measures servers of Envoy's ext_authz `Check` call.
#[derive(Parser)]
#[command(name = "loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the floor: decode every request, allow it, do nothing else.
    Floor {
        /// Where to listen; port 0 takes a free one. The address is printed.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// Drive one server that is already running.
    Run(Run),
    /// Measure the floor, Stockade and any peers, one at a time, in rounds.
    Compare(Compare),
    /// Measure what the decision engine must reach, and hold it against that.
    Engine(Engine),
    /// Measure what the central store must reach, and hold it against that.
    Fanout(Fanout),
}

#[derive(Args)]
struct Run {
    /// `host:port`, `http://host:port` or `unix:///path`.
    #[arg(long)]
    target: Address,
    /// Files with one encoded CheckRequest each, sent in turn, instead of the built-in request.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    requests: Vec<PathBuf>,
    /// Call again as soon as there is an answer, or call on a schedule.
    #[arg(long, value_enum, default_value_t = Mode::Closed)]
    mode: Mode,
    /// Calls per second of the open mode.
    #[arg(long)]
    rate: Option<NonZeroU32>,
    #[command(flatten)]
    load: Load,
    /// The decision that counts as right.
    #[arg(long, value_enum, default_value_t = Expect::Allow)]
    expect: Expect,
    /// The name of the scenario in the report; the mode if not given.
    #[arg(long)]
    scenario: Option<String>,
    /// Write the row to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct Compare {
    /// The Stockade to start, or `none`. Default: `target/release/stockade` of this workspace.
    #[arg(long, default_value = server::STOCKADE, hide_default_value = true)]
    stockade: PathBuf,
    /// A further server, already running, as NAME=ADDRESS[,pid=PID]. With its pid it is moved to
    /// the servers' core and its CPU time and memory are measured.
    #[arg(long = "peer", value_name = "PEER")]
    peers: Vec<Peer>,
    /// How often every target is measured; the report has the medians.
    #[arg(long, default_value = "5")]
    rounds: NonZeroUsize,
    /// Calls per second of the open loop. Default: half of what the target reached in its first
    /// closed loop.
    #[arg(long)]
    rate: Option<NonZeroU32>,
    #[command(flatten)]
    load: Load,
    /// Write the rows to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct Engine {
    /// The Stockade to start. Default: `target/release/stockade` of this workspace.
    #[arg(long, default_value = server::STOCKADE, hide_default_value = true)]
    stockade: PathBuf,
    /// Only this scenario; may be given several times.
    #[arg(long, value_enum, value_name = "SCENARIO")]
    only: Vec<Scenario>,
    /// How often each server is measured; the report has the medians.
    #[arg(long, default_value = "7")]
    rounds: NonZeroUsize,
    #[command(flatten)]
    load: Load,
    /// Write the rows to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report to this file, too.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write the report with its figures to this file: a page that needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Args)]
struct Fanout {
    /// The Stockade to start. Default: `target/release/stockade` of this workspace.
    #[arg(long, default_value = server::STOCKADE, hide_default_value = true)]
    stockade: PathBuf,
    /// Only this scenario; may be given several times.
    #[arg(long, value_enum, value_name = "SCENARIO")]
    only: Vec<fanout::Scenario>,
    /// How many sidecars follow the store.
    #[arg(long, default_value = "100")]
    sidecars: NonZeroUsize,
    /// How many bundles are published, and how many denials issued.
    #[arg(long, default_value = "10")]
    rounds: NonZeroUsize,
    /// How many policies the bundle has.
    #[arg(long, default_value = "10")]
    policies: NonZeroUsize,
    /// How many feeds reconnect.
    #[arg(long, default_value = "1000")]
    feeds: NonZeroUsize,
    /// Write the rows to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report to this file, too.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

#[derive(Args)]
struct Load {
    /// HTTP/2 connections.
    #[arg(long, default_value = "4")]
    connections: NonZeroU32,
    /// Concurrent calls on each connection.
    #[arg(long, default_value = "64")]
    in_flight: NonZeroU32,
    /// How long to measure.
    #[arg(long, default_value = "5s", value_parser = duration)]
    duration: Duration,
    /// How long to drive the target before measuring.
    #[arg(long, default_value = "1s", value_parser = duration)]
    warmup: Duration,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Mode {
    Closed,
    Open,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything runs on one thread: a server or a generator with one core to itself. Only a fan-out shares all cores.
fn run(command: Command) -> anyhow::Result<ExitCode> {
    use tokio::runtime::Builder;
    let mut builder =
        if let Command::Fanout(_) = command { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    let runtime = builder.enable_all().build().context("cannot start the runtime")?;
    match command {
        Command::Floor { listen } => runtime.block_on(floor::run(listen)),
        Command::Run(run) => runtime.block_on(run.execute()),
        Command::Compare(compare) => runtime.block_on(compare.execute()),
        Command::Engine(engine) => runtime.block_on(engine.execute()),
        Command::Fanout(fanout) => runtime.block_on(fanout.execute()),
    }
}

impl Run {
    async fn execute(self) -> anyhow::Result<ExitCode> {
        let pace = match (self.mode, self.rate) {
            (Mode::Open, Some(rate)) => Pace::Open { rate: rate.get().into() },
            (Mode::Open, None) => anyhow::bail!("the open mode needs a `--rate`"),
            (Mode::Closed, _) => Pace::Closed,
        };
        let workload = if self.requests.is_empty() {
            one_policy::workload(self.expect)
        } else {
            Workload::from_files(&self.requests, self.expect)?
        };
        let workload = Rc::new(workload);
        let sample = load::measure(&self.target, None, &workload, pace, self.load.shape()).await?;
        let series = Series {
            target: self.target.to_string(),
            scenario: self.scenario.unwrap_or_else(|| pace.to_string()),
            samples: vec![sample],
        };
        conclude(&[Row::new(&series, None)], self.json)
    }
}

impl Compare {
    async fn execute(self) -> anyhow::Result<ExitCode> {
        let comparison = Comparison {
            stockade: (self.stockade.as_os_str() != "none").then_some(self.stockade),
            peers: self.peers,
            rounds: self.rounds,
            rate: self.rate.map(|rate| rate.get().into()),
            shape: self.load.shape(),
        };
        conclude(&comparison.run().await?, self.json)
    }
}

impl Engine {
    async fn execute(self) -> anyhow::Result<ExitCode> {
        let engine =
            engine::Engine { stockade: self.stockade, only: self.only, rounds: self.rounds, shape: self.load.shape() };
        let report = engine.run().await?;
        print!("{}", report.text());
        let files = [(self.json, report.json()?), (self.markdown, report.markdown()), (self.html, report.html()?)];
        for (path, text) in files {
            path.map_or(Ok(()), |path| write(&path, &text))?;
        }
        Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Fanout {
    async fn execute(self) -> anyhow::Result<ExitCode> {
        let Self { stockade, only, sidecars, rounds, policies, feeds, json, markdown } = self;
        let report = fanout::FanOut { stockade, only, sidecars, rounds, policies, feeds }.run().await?;
        print!("{}", report.text());
        for (path, text) in [(json, report.json()?), (markdown, report.markdown())] {
            path.map_or(Ok(()), |path| write(&path, &text))?;
        }
        Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Load {
    fn shape(&self) -> Shape {
        Shape { connections: self.connections, in_flight: self.in_flight, warmup: self.warmup, duration: self.duration }
    }
}

/// Prints the table and writes the file. Wrong answers fail the command, so that a script cannot
/// take their speed for a result.
fn conclude(rows: &[Row], json: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    print!("{}", report::table(rows));
    if let Some(path) = json {
        let mut text = serde_json::to_string_pretty(rows)?;
        text.push('\n');
        write(&path, &text)?;
    }
    let clean = rows.iter().all(|row| row.errors == 0);
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}

/// Reads `5s`, `0.5s` or `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 0.001),
        None => (text.strip_suffix('s').ok_or("give a unit, `s` or `ms`")?, 1.0),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{number}` is no number"))?;
    match Duration::try_from_secs_f64(number * unit) {
        Ok(Duration::ZERO) => Err("no time is too short".into()),
        duration => duration.map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("0.5s"), Ok(Duration::from_millis(500)));
        assert!(duration("5").is_err());
        assert!(duration("0s").is_err());
        assert!(duration("-1s").is_err());
        assert!(duration("manys").is_err());
    }
}
