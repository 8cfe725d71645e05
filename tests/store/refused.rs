//! A store whose newest statements are rubbish: what was said before them is not lost.

use std::time::{Duration, SystemTime};

use serde_json::{Value as Json, json};
use stockade::publish::Advance;
use stockade::publish::streams::Settings;
use stockade::store::Kind;
use stockade::store::statement::{OverlayEffect, OverlayEntry, Overlays, Timestamp, Version};
use tempfile::TempDir;

use super::lab::{Lab, Pod};
use super::prod;
use testkit::Stockade;

fn dir() -> TempDir {
    TempDir::new().unwrap()
}

/// A denial of everyone.
fn denial() -> OverlayEntry {
    let now = SystemTime::now();
    OverlayEntry {
        id: "deny-everyone".to_owned(),
        effect: OverlayEffect::Deny,
        principal: None,
        action: None,
        resource: None,
        from: Timestamp(now),
        until: Timestamp(now + Duration::from_secs(3600)),
        reason: "test".to_owned(),
        issuer: "test".to_owned(),
        approved_by: None,
    }
}

/// Overwrites the newest statement of a kind.
async fn overwrite(lab: &Lab, kind: Kind, bytes: &[u8]) {
    let after = lab.store.newest(kind).await.unwrap().map_or(0, |stored| stored.sequence);
    assert!(matches!(lab.store.advance(kind, bytes, after).await, Ok(Advance::Stored(_))));
}

/// It decides whatever it has, however old that is: what keeps a denial in force is not that it waits for a beacon.
const SERVE: &str = "  freshness: {stale_after: 1s, expired_after: 2s, on_expired: serve}\n";

async fn denies(pod: &Pod) {
    let answer = pod.answers_with("anything", |_| true).await;
    assert_eq!(answer.version, None, "{answer:?}");
}

async fn snapshot(sidecar: &Stockade, wanted: impl Fn(&Json) -> bool) -> Json {
    testkit::until("/snapshot says so", async || {
        let json: Json = serde_json::from_str(&sidecar.admin("/snapshot").await.1).unwrap();
        wanted(&json["store"]).then(|| json["store"].clone())
    })
    .await
}

#[tokio::test]
async fn an_emergency_denial_outlives_what_is_written_over_it() {
    let lab = Lab::start().await;
    lab.issue(vec![denial()]).await;
    let pod = lab.pod(&lab.server.url(), dir(), SERVE).await;
    denies(&pod).await;
    for rubbish in [b"rubbish".as_slice(), b"", &[b'x'; 10_000]] {
        overwrite(&lab, Kind::Overlays, rubbish).await;
    }
    pod.refuses(Kind::Overlays, "malformed").await;
    denies(&pod).await;
    drop(pod);
    // One that starts now has never heard anything else.
    let pod = lab.pod(&lab.server.url(), dir(), SERVE).await;
    denies(&pod).await;
    overwrite(&lab, Kind::Manifest, b"rubbish").await;
    drop(pod);
    let pod = lab.pod(&lab.server.url(), dir(), SERVE).await;
    denies(&pod).await;
    assert_eq!(pod.metric("stockade_store_withheld").await, 0.0);
}

#[tokio::test]
async fn without_any_overlays_to_believe_a_start_is_not_ready() {
    let lab = Lab::start().await;
    lab.issue(vec![denial()]).await;
    let running = lab.pod(&lab.server.url(), dir(), SERVE).await;
    denies(&running).await;
    let filter = json!({"filter": "stockade.prod.head.overlays"});
    lab.operator().await.request("STREAM.PURGE.STOCKADE_prod", &filter).await.unwrap();
    overwrite(&lab, Kind::Overlays, b"rubbish").await;
    overwrite(&lab, Kind::Overlays, b"more rubbish").await;
    let config = lab.sidecar_config(&lab.server.url(), SERVE);
    let mut starting = Stockade::start(&config, dir()).await;
    let line = starting
        .log_line(|line| line["message"].as_str().is_some_and(|text| text.contains("newest overlays are refused")))
        .await;
    assert_eq!(line["level"], "ERROR", "{line}");
    starting
        .log_line(|line| line["message"].as_str().is_some_and(|text| text.contains("none before it is trusted")))
        .await;
    let store = snapshot(&starting, |store| !store["withheld"].is_null()).await;
    assert!(store["withheld"].as_str().unwrap().contains("overlays: it cannot be read"), "{store}");
    let (status, body) = starting.admin("/readyz").await;
    assert!(status == 503 && body.contains("nothing is put in force without overlays"), "{status} {body}");
    let (_, metrics) = starting.admin("/metrics").await;
    assert!(metrics.contains("\nstockade_store_withheld 1"), "{metrics}");
    // The one that runs has it still.
    denies(&running).await;
    // Whoever may issue overlays says so again.
    let says = Overlays {
        store: prod(),
        version: Version::first(SystemTime::now() + Duration::from_secs(60)),
        published_at: Timestamp::now(),
        publisher: "test".to_owned(),
        overlays: vec![denial()],
    };
    overwrite(&lab, Kind::Overlays, &lab.seal(Kind::Overlays, &says)).await;
    starting.log_line(|line| line["message"] == "ready").await;
    snapshot(&starting, |store| store["withheld"].is_null() && !store["overlays"].is_null()).await;
}

#[tokio::test]
async fn trouble_with_the_store_names_the_address_and_goes_when_it_is_over() {
    let mut lab = Lab::start().await;
    let pod = lab.pod(&lab.server.url(), dir(), "  refresh: 1s\n").await;
    pod.catches_up(&lab).await;
    snapshot(&pod.sidecar, |store| store["trouble"].is_null() && store["freshness"] == "fresh").await;
    lab.server.kill().await;
    let named = |store: &Json| {
        let trouble = store["trouble"].as_str().unwrap_or_default();
        trouble.contains(&lab.server.url()) && trouble.contains("refused")
    };
    let store = snapshot(&pod.sidecar, named).await;
    assert!(!store.to_string().contains("IO error"), "{store}");
    lab.start_server_again().await;
    snapshot(&pod.sidecar, |store| store["trouble"].is_null() && store["freshness"] == "fresh").await;
    lab.operator().await.request("STREAM.DELETE.STOCKADE_prod", &Json::Null).await.unwrap();
    let lost = |store: &Json| store["trouble"].as_str().is_some_and(|text| text.contains("the store is not there"));
    snapshot(&pod.sidecar, lost).await;
    lab.store.ensure(&Settings::default()).await.unwrap();
    lab.publish_as(Version::first(SystemTime::now() + Duration::from_secs(60)), 0).await;
    snapshot(&pod.sidecar, |store| store["trouble"].is_null() && store["freshness"] == "fresh").await;
    let gone = crate::cli::run(dir().path(), &["status", "--store", "nats://127.0.0.1:9"], "");
    assert!(gone.stderr.contains("nats://127.0.0.1:9") && gone.stderr.contains("refused"), "{gone:?}");
    assert!(!gone.stderr.contains("IO error"), "{gone:?}");
}
