//! From a publish until every sidecar enforces it.

use std::time::Duration;

use tokio::time::sleep;

use super::bundle;
use super::fleet::{Ear, Fleet};
use super::goals::{PUBLISH_CPU, PUBLISH_MAX, PUBLISH_P50, PUBLISH_P99, SERVER_CPU, SERVER_RSS};
use super::site::Site;
use super::{FanOut, Spread, found, mebibytes, millis};
use crate::findings::Finding;

/// Between rounds: a publish is to meet sidecars that have nothing else to do, at another distance from the beacons each time.
pub(super) const PAUSE: Duration = Duration::from_millis(1_130);

/// How long the idle server is looked at.
const LOOK: Duration = Duration::from_secs(5);

pub(super) async fn run(stage: &FanOut) -> anyhow::Result<Vec<Finding>> {
    let (sidecars, rounds, policies) = (stage.sidecars.get(), stage.rounds.get(), stage.policies.get());
    let mut site = Site::open(stage, policies).await?;
    let fleet = Fleet::start(stage, &site, sidecars).await?;
    sleep(PAUSE).await;
    let before = site.nats.pid.cpu_time()?;
    sleep(LOOK).await;
    let server_cpu = (site.nats.pid.cpu_time()? - before).as_secs_f64() / LOOK.as_secs_f64();

    let mut ear = Ear::open(&site).await?;
    let (mut leads, mut slowest, mut cpu) = (Vec::new(), Vec::new(), Duration::ZERO);
    for round in 1..=rounds {
        let before = fleet.cpu_time()?;
        let issued = site.desk.publish(bundle::files(policies, round)).await?;
        let enforced = ear.all_tell(sidecars, |status| {
            let own = status.manifest.is_some_and(|head| head.version == issued.version);
            status.enforced_at.filter(|_| own).map(|at| at.0.duration_since(issued.at).unwrap_or_default())
        });
        let own = Spread::of(enforced.await?);
        cpu += fleet.cpu_time()?.saturating_sub(before);
        eprintln!("publish: round {round}/{rounds}, {}", own.shown());
        slowest.extend(own.percentile(100));
        leads.extend(own.into_durations());
        sleep(PAUSE).await;
    }
    let each = cpu.as_secs_f64() * 1e3 / leads.len() as f64;
    let mut findings = lead_times(Spread::of(leads), Spread::of(slowest), stage, site.nats.faults());
    let rss = mebibytes(site.nats.pid.rss()?);
    let sidecar_rss: Vec<_> = fleet.sidecars.iter().map(|own| own.pid.rss()).collect::<anyhow::Result<_>>()?;
    let sidecar_rss = mebibytes(sidecar_rss.iter().sum::<u64>()) / sidecars as f64;
    findings.extend([
        found(
            &PUBLISH_CPU,
            Some(each),
            "user and system time of all threads from the upload until the last sidecar has told, by the clock tick of 10 ms, \
             averaged over all of them"
                .to_owned(),
            Vec::new(),
        ),
        found(
            &SERVER_RSS,
            Some(rss),
            format!("{sidecars} sidecars, after {rounds} rounds; a sidecar has {sidecar_rss:.1} MiB in the mean"),
            Vec::new(),
        ),
        found(
            &SERVER_CPU,
            Some(server_cpu * 100.0),
            format!("over {} s: two beacons a second to {sidecars} sidecars, written to disk at once", LOOK.as_secs()),
            Vec::new(),
        ),
    ]);
    Ok(findings)
}

fn lead_times(leads: Spread, slowest: Spread, stage: &FanOut, faults: Vec<String>) -> Vec<Finding> {
    let FanOut { sidecars, rounds, policies, .. } = stage;
    let evidence = format!(
        "{} lead times: {sidecars} sidecars in {rounds} rounds, each with a changed bundle of {policies} policies that is uploaded \
         before the clock starts; the slowest sidecar of each round: {}",
        leads.count(),
        slowest.shown(),
    );
    let at = |percent| leads.percentile(percent).map(millis);
    vec![
        found(&PUBLISH_P99, at(99), evidence, faults),
        found(&PUBLISH_P50, at(50), format!("of the same {} lead times", leads.count()), Vec::new()),
        found(&PUBLISH_MAX, at(100), format!("of the same {} lead times", leads.count()), Vec::new()),
    ]
}
