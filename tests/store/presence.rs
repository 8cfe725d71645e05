//! Who is there, who has left, and who has vanished.

use std::time::{Duration, SystemTime};

use stockade::publish::presence::{Presence, Sidecar};
use tempfile::TempDir;

use super::lab::Lab;
use testkit::Stockade;

async fn sidecar(lab: &Lab) -> Stockade {
    let config = lab.sidecar_config(&lab.server.url(), "");
    let mut sidecar = Stockade::start(&config, TempDir::new().unwrap()).await;
    sidecar.log_line(|line| line["message"] == "ready").await;
    sidecar
}

/// Waits until the store has heard of the one sidecar, and returns what.
async fn heard(lab: &Lab, since: SystemTime) -> Sidecar {
    testkit::until("it says what it enforces", async || {
        lab.store.sidecars().await.unwrap().into_iter().find(|own| own.heard >= since)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_ends_in_order_says_so_and_whoever_is_killed_falls_silent() {
    let lab = Lab::start().await;
    let start = SystemTime::now();
    let first = sidecar(&lab).await;
    let own = heard(&lab, start).await;
    assert_eq!(own.presence(SystemTime::now()), Presence::Reporting);
    assert!(first.terminate().await.success());
    // It was told before the process ended.
    let [own] = &lab.store.sidecars().await.unwrap()[..] else { panic!("one sidecar") };
    assert_eq!(own.presence(SystemTime::now()), Presence::Left);

    // A pod of the same name takes its place.
    let start = SystemTime::now();
    let second = sidecar(&lab).await;
    let own = heard(&lab, start).await;
    assert_eq!(own.presence(SystemTime::now()), Presence::Reporting);
    second.signal("KILL");
    let mut second = second;
    assert!(!second.wait().await.success());
    let [own] = &lab.store.sidecars().await.unwrap()[..] else { panic!("it stays in sight") };
    assert_eq!(own.presence(SystemTime::now()), Presence::Reporting);
    assert_eq!(own.presence(own.heard + Duration::from_secs(67)), Presence::Silent, "after two missed reports");
    assert_eq!(own.presence(own.heard + Duration::from_secs(65)), Presence::Reporting, "but not before");
}

/// Nobody waits long for a store that cannot be told.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_does_not_wait_for_a_store_that_is_away() {
    let mut lab = Lab::start().await;
    let mut sidecar = sidecar(&lab).await;
    lab.server.kill().await;
    sidecar.log_line(|line| line["message"].as_str().is_some_and(|text| text.starts_with("not connected"))).await;
    assert!(sidecar.terminate().await.success());
}
