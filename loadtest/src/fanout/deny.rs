//! From an emergency denial until every sidecar refuses.

use std::time::Duration;

use tokio::time::sleep;

use super::bundle;
use super::deployment::Deployment;
use super::fleet::{Fleet, StatusWatch};
use super::goals::{DENY_MAX, DENY_P50, DENY_P99};
use super::publish::PAUSE;
use super::{FanOut, Spread, found, millis};
use crate::client::Connection;
use crate::findings::Finding;
use crate::workload::Expect;

pub(super) async fn run(stage: &FanOut) -> anyhow::Result<Vec<Finding>> {
    let (sidecars, rounds, policies) = (stage.sidecars.get(), stage.rounds.get(), stage.policies.get());
    let deployment = Deployment::open(stage, policies).await?;
    let fleet = Fleet::start(stage, &deployment, sidecars).await?;
    sleep(PAUSE).await;
    let mut watch = StatusWatch::open(&deployment).await?;
    let (mut leads, mut faults) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        faults.extend(ask_all(&fleet, round, Expect::Allow).await);
        let issued = deployment.publisher.deny(&format!("round-{round}"), bundle::mallory(round)).await?;
        let enforced = watch.all_report(sidecars, |status| {
            let own = status.overlays.is_some_and(|head| head.version == issued.version);
            // Whole milliseconds, rounded down: at most one more.
            status.overlays_lead_time_ms.filter(|_| own).map(|lead| Duration::from_millis(lead + 1))
        });
        let own = Spread::of(enforced.await?);
        faults.extend(ask_all(&fleet, round, Expect::Deny).await);
        eprintln!("deny: round {round}/{rounds}, {}", own.shown());
        leads.extend(own.into_durations());
        sleep(PAUSE).await;
    }
    faults.extend(deployment.nats.faults());
    let leads = Spread::of(leads);
    let evidence = format!(
        "{} lead times, rounded up to the millisecond: {sidecars} sidecars in {rounds} rounds, each with a denial of another user; each \
         sidecar answered a check of that user before with an allow and after with a denial",
        leads.count()
    );
    let at = |percent| leads.percentile(percent).map(millis);
    Ok(vec![
        found(&DENY_P99, at(99), evidence, faults),
        found(&DENY_P50, at(50), format!("of the same {} lead times", leads.count()), Vec::new()),
        found(&DENY_MAX, at(100), format!("of the same {} lead times", leads.count()), Vec::new()),
    ])
}

/// Asks every sidecar for the user of a round. What is wrong with the answers, once for all of them.
async fn ask_all(fleet: &Fleet, round: usize, expect: Expect) -> Option<String> {
    let ask = bundle::ask(round, expect);
    let (mut wrong, mut first) = (0, None);
    for sidecar in &fleet.sidecars {
        let answer = async {
            let call = Connection::open(&sidecar.address).await?.call(ask.message.clone()).await?;
            call.decision().await
        };
        let said = match answer.await {
            Ok(decision) if expect.admits(decision) => continue,
            Ok(decision) => format!("{decision:?}"),
            Err(failure) => failure.to_string(),
        };
        wrong += 1;
        first.get_or_insert(said);
    }
    first
        .map(|first| format!("round {round}: {wrong} sidecars did not answer with {expect:?}, the first with: {first}"))
}
