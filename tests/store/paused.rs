//! A sidecar that was paused while an overlay ended or began: the first thing that it answers goes by the clock, not by what was
//! in force when it was stopped.

use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use stockade::store::statement::{OverlayEffect, OverlayEntry, Timestamp};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::lab::Lab;
use testkit::{PATIENCE, Stockade, request};

/// How many checks wait for the sidecar to go on.
const WAITING: usize = 8;

fn overlay(id: &str, effect: OverlayEffect, action: &str, from: SystemTime, until: SystemTime) -> OverlayEntry {
    OverlayEntry {
        id: id.to_owned(),
        effect,
        principal: None,
        action: Some(format!("Action::\"{action}\"")),
        resource: None,
        from: Timestamp(from),
        until: Timestamp(until),
        reason: "a test".to_owned(),
        issuer: "test".to_owned(),
        approved_by: None,
    }
}

async fn code(sidecar: &Stockade, request: CheckRequest) -> i32 {
    sidecar.check(request).await.unwrap().status.unwrap().code
}

/// Stops a sidecar until an instant has passed, with checks that wait; what they are answered once it goes on.
async fn over_a_pause(sidecar: &Stockade, until: SystemTime, request: CheckRequest) -> Vec<i32> {
    // Connected before, so that the checks are the first thing that it finds.
    let client = sidecar.client().await;
    sidecar.signal("STOP");
    let checks: Vec<_> = (0..WAITING)
        .map(|_| {
            let (mut client, request) = (client.clone(), request.clone());
            tokio::spawn(async move { client.check(request).await.unwrap().into_inner().status.unwrap().code })
        })
        .collect();
    let past = until + Duration::from_millis(20);
    sleep(past.duration_since(SystemTime::now()).unwrap_or_default()).await;
    sidecar.signal("CONT");
    let mut codes = Vec::new();
    for check in checks {
        codes.push(timeout(PATIENCE, check).await.expect("an answer in time").unwrap());
    }
    codes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_ended_during_a_pause_allows_nothing_after_it() {
    let lab = Lab::start().await;
    let mut sidecar = Stockade::start(&lab.sidecar_config(&lab.server.url(), ""), TempDir::new().unwrap()).await;
    sidecar.log_line(|line| line["message"] == "ready").await;
    let post = || request("POST", "/books", &[]);
    assert_ne!(code(&sidecar, post()).await, 0, "nothing permits it yet");
    let now = SystemTime::now();
    let until = now + Duration::from_secs(3);
    lab.issue(vec![overlay("g", OverlayEffect::Grant, "POST", now - Duration::from_secs(1), until)]).await;
    testkit::until("the grant is in force", async || (code(&sidecar, post()).await == 0).then_some(())).await;
    // The next one is remembered.
    assert_eq!(code(&sidecar, post()).await, 0);
    assert!(SystemTime::now() < until, "this machine is too slow for a grant of three seconds");
    assert_eq!(over_a_pause(&sidecar, until, post()).await, [7; WAITING]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_that_began_during_a_pause_is_in_force_after_it() {
    let lab = Lab::start().await;
    let mut sidecar = Stockade::start(&lab.sidecar_config(&lab.server.url(), ""), TempDir::new().unwrap()).await;
    sidecar.log_line(|line| line["message"] == "ready").await;
    let get = || request("GET", "/books", &[]);
    let from = SystemTime::now() + Duration::from_secs(2);
    // The second one shows that the sidecar has heard of both.
    let (begin, hour) = (SystemTime::now() - Duration::from_secs(1), Duration::from_secs(3600));
    lab.issue(vec![
        overlay("later", OverlayEffect::Deny, "GET", from, from + hour),
        overlay("now", OverlayEffect::Deny, "OPTIONS", begin, begin + hour),
    ])
    .await;
    testkit::until("the denials are known", async || {
        let denied = code(&sidecar, request("OPTIONS", "/books", &[])).await != 0;
        (denied && sidecar_lists(&sidecar, "now").await).then_some(())
    })
    .await;
    assert_eq!(code(&sidecar, get()).await, 0);
    assert_eq!(code(&sidecar, get()).await, 0);
    assert!(SystemTime::now() < from, "this machine is too slow for a denial in two seconds");
    assert_eq!(over_a_pause(&sidecar, from, get()).await, [7; WAITING]);
}

async fn sidecar_lists(sidecar: &Stockade, id: &str) -> bool {
    sidecar.admin("/snapshot").await.1.contains(&format!("\"id\": \"{id}\""))
}
