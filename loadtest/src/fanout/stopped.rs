//! A server that is stopped, but keeps its connections: nobody is told that nothing comes any more.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::fleet::{FRESH, Fleet, STALE};
use super::goals::{RESUMED, STOPPED};
use super::publish::PAUSE;
use super::site::Site;
use super::{FanOut, Spread, found};
use crate::findings::Finding;

/// How long the server stays stopped after all have noticed: long enough for them to give up their connections.
const LONGER: Duration = Duration::from_secs(5);

pub(super) async fn run(stage: &FanOut) -> anyhow::Result<Vec<Finding>> {
    let sidecars = stage.sidecars.get();
    let site = Site::open(stage, stage.policies.get()).await?;
    let mut fleet = Fleet::start(stage, &site, sidecars).await?;
    sleep(PAUSE).await;
    fleet.forget();
    site.nats.freeze();
    let stopped = Instant::now();
    let stale = since(stopped, fleet.all_say(STALE).await?);
    eprintln!("stopped-server: {}", stale.shown());
    sleep(LONGER).await;
    fleet.forget();
    site.nats.thaw();
    let resumed = Instant::now();
    let fresh = since(resumed, fleet.all_say(FRESH).await?);
    eprintln!("stopped-server: goes on, {}", fresh.shown());
    let seconds = |spread: &Spread| spread.percentile(100).map(|duration| duration.as_secs_f64());
    let evidence = format!(
        "{sidecars} sidecars, {}: from SIGSTOP until a sidecar logs that it is stale, by the default configuration (a beacon each \
         second, stale after 3 s)",
        stale.shown()
    );
    let after = format!(
        "{}: from SIGCONT until a sidecar logs that it is fresh. The server was stopped for {:.0} s, after which sidecars and beacons \
         have given up their connections",
        fresh.shown(),
        (resumed - stopped).as_secs_f64()
    );
    Ok(vec![
        found(&STOPPED, seconds(&stale), evidence, Vec::new()),
        found(&RESUMED, seconds(&fresh), after, Vec::new()),
    ])
}

fn since(start: Instant, instants: Vec<Instant>) -> Spread {
    Spread::of(instants.into_iter().map(|at| at.saturating_duration_since(start)))
}
