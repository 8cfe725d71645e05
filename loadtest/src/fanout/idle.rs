//! A sidecar that follows the store and has nothing to do.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::sleep;

use super::deployment::Deployment;
use super::fleet::Fleet;
use super::goals::{IDLE_CPU, IDLE_RSS};
use super::{FanOut, found, mebibytes};
use crate::findings::Finding;

/// What the goal is stated for.
const POLICIES: usize = 1_000;

/// What the start left behind is over by then.
const SETTLE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(20);

pub(super) async fn run(stage: &FanOut) -> anyhow::Result<Vec<Finding>> {
    let deployment = Deployment::open(stage, POLICIES).await?;
    let fleet = Fleet::start(stage, &deployment, 1).await?;
    let pid = fleet.sidecars.first().context("there is no sidecar")?.pid;
    let at_start = mebibytes(pid.rss()?);
    sleep(SETTLE).await;
    let before = pid.cpu_time()?;
    sleep(LOOK).await;
    let share = (pid.cpu_time()? - before).as_secs_f64() / LOOK.as_secs_f64();
    let rss = mebibytes(pid.rss()?);
    eprintln!("idle: {rss:.1} MiB, {:.2} % of a core", share * 100.0);
    let memory = format!(
        "{POLICIES} policies, one worker, {} s after it was ready; {at_start:.1} MiB when it was",
        (SETTLE + LOOK).as_secs()
    );
    let cpu = format!("over {} s, by the clock tick of 10 ms; two beacons a second are verified", LOOK.as_secs());
    Ok(vec![found(&IDLE_RSS, Some(rss), memory, Vec::new()), found(&IDLE_CPU, Some(share * 100.0), cpu, Vec::new())])
}
