//! What a network and a server can do to a sidecar, while it is asked all the time. Each answer is held against what was published
//! ([`Lab::check`]); what differs is what is done to it.

use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use stockade::publish::Advance;
use stockade::publish::streams::Settings;
use stockade::store::statement::{OverlayEffect, OverlayEntry, Timestamp, Version};
use stockade::store::{Kind, SecretKey, envelope};
use tempfile::TempDir;

use super::lab::{Lab, Pod, Proxy, STALE_AFTER, Weather, eventually};

fn dir() -> TempDir {
    TempDir::new().unwrap()
}

/// A lab with one sidecar that is up to date.
async fn lab() -> (Lab, Pod) {
    let lab = Lab::start().await;
    let pod = lab.pod(&lab.server.url(), dir(), "").await;
    pod.catches_up(&lab).await;
    (lab, pod)
}

/// Waits until the pod says that it is stale, and how long that took, by its answers.
async fn stale(pod: &Pod) -> Duration {
    let begun = Instant::now();
    pod.answers_with("that it is stale", |answer| answer.freshness == "stale").await;
    begun.elapsed()
}

#[tokio::test]
async fn a_server_that_crashes() {
    let (mut lab, pod) = lab().await;
    lab.server.kill().await;
    stale(&pod).await;
    lab.start_server_again().await;
    lab.publish().await;
    pod.catches_up(&lab).await;
    lab.check(&pod);
}

#[tokio::test]
async fn a_server_that_hangs_until_it_is_given_up() {
    let (mut lab, mut pod) = lab().await;
    lab.server.freeze();
    let noticed = stale(&pod).await;
    println!("noticed after {noticed:?}");
    assert!(noticed + Duration::from_millis(50) >= STALE_AFTER - super::lab::BEAT * 4, "too soon: {noticed:?}");
    pod.sidecar.log_line(|line| line["message"] == "not connected to the store; what is in force stays").await;
    lab.server.thaw();
    lab.server_is_back().await;
    lab.publish().await;
    pod.catches_up(&lab).await;
    lab.check(&pod);
}

#[tokio::test]
async fn storage_that_is_wiped_and_a_store_that_begins_anew() {
    let (mut lab, pod) = lab().await;
    lab.publish().await;
    lab.publish().await;
    pod.catches_up(&lab).await;
    lab.server.kill().await;
    lab.server.wipe();
    lab.start_server_again().await;
    lab.store.ensure(&Settings::default()).await.unwrap();
    // An old copy of the store, as a restored backup has it: what was accepted is newer.
    let (old, bytes) = lab.manifest(Version { epoch: 1, generation: 999 }, 1);
    lab.store.upload(&old.bundle, &bytes).await.unwrap();
    let envelope = lab.seal(Kind::Manifest, &old);
    let Ok(Advance::Stored(sequence)) = lab.store.advance(Kind::Manifest, &envelope, 0).await else { panic!() };
    pod.refuses(Kind::Manifest, "older").await;
    stale(&pod).await;
    // The epoch is a time in seconds, so the new one is higher.
    lab.publish_as(Version::first(SystemTime::now() + Duration::from_secs(1)), sequence).await;
    pod.catches_up(&lab).await;
    lab.check(&pod);
}

#[tokio::test]
async fn a_stream_that_is_deleted_and_made_again_while_connected() {
    let (mut lab, pod) = lab().await;
    let operator = lab.operator().await;
    operator.request("STREAM.DELETE.STOCKADE_prod", &Value::Null).await.unwrap();
    lab.store.ensure(&Settings::default()).await.unwrap();
    lab.publish_as(Version::first(SystemTime::now() + Duration::from_secs(1)), 0).await;
    pod.catches_up(&lab).await;
    lab.check(&pod);
}

#[tokio::test]
async fn a_purge() {
    let (mut lab, pod) = lab().await;
    let operator = lab.operator().await;
    operator.request("STREAM.PURGE.STOCKADE_prod", &Value::Null).await.unwrap();
    // The beacon names nothing any more, which is not what is in force.
    pod.refuses(Kind::Beacon, "older").await;
    stale(&pod).await;
    lab.publish_as(Version::first(SystemTime::now() + Duration::from_secs(1)), 0).await;
    pod.catches_up(&lab).await;
    lab.check(&pod);
}

#[tokio::test]
async fn a_stream_in_memory_on_a_server_that_is_started_again() {
    let (mut lab, pod) = lab().await;
    let operator = lab.operator().await;
    let info = operator.request("STREAM.INFO.STOCKADE_prod", &Value::Null).await.unwrap();
    let mut config = info["config"].clone();
    config["storage"] = "memory".into();
    operator.request("STREAM.DELETE.STOCKADE_prod", &Value::Null).await.unwrap();
    operator.request("STREAM.CREATE.STOCKADE_prod", &config).await.unwrap();
    lab.publish_as(Version::first(SystemTime::now() + Duration::from_secs(1)), 0).await;
    pod.catches_up(&lab).await;
    lab.server.kill().await;
    lab.start_server_again().await;
    stale(&pod).await;
    lab.store.ensure(&Settings::default()).await.unwrap();
    lab.publish_as(Version::first(SystemTime::now() + Duration::from_secs(2)), 0).await;
    pod.catches_up(&lab).await;
    lab.check(&pod);
}

#[tokio::test]
async fn a_network_that_stalls_cuts_and_delays() {
    let mut lab = Lab::start().await;
    let proxy = Proxy::start(lab.server.port).await;
    let pod = lab.pod(&proxy.url, dir(), "").await;
    pod.catches_up(&lab).await;
    for weather in [Weather::Stalled, Weather::Cut] {
        proxy.set(weather);
        lab.publish().await;
        stale(&pod).await;
        lab.publish().await;
        proxy.set(Weather::Fine);
        pod.catches_up(&lab).await;
    }
    proxy.set(Weather::Slow(Duration::from_millis(300)));
    lab.publish().await;
    pod.catches_up(&lab).await;
    lab.check(&pod);
}

#[tokio::test]
async fn a_sidecar_that_is_paused_while_much_is_published() {
    let (mut lab, pod) = lab().await;
    pod.sidecar.signal("STOP");
    for _ in 0..12 {
        lab.publish().await;
    }
    // What it knew is out of date by the time that it goes on.
    lab.beacon_after(STALE_AFTER + super::lab::BEAT).await;
    pod.sidecar.signal("CONT");
    pod.catches_up(&lab).await;
    lab.check(&pod);
}

#[tokio::test]
async fn what_is_forged_replayed_or_cut_short() {
    let (mut lab, pod) = lab().await;
    let first = lab.store.newest(Kind::Manifest).await.unwrap().unwrap();
    lab.publish().await;
    pod.catches_up(&lab).await;
    let version = Version::first(SystemTime::now() + Duration::from_secs(3600));
    let (manifest, bytes) = lab.manifest(version, 999);
    lab.store.upload(&manifest.bundle, &bytes).await.unwrap();
    let good = serde_json::to_vec(&manifest).unwrap();
    let stranger = SecretKey::parse(&SecretKey::generate().unwrap()).unwrap();
    let forged = envelope::seal(Kind::Manifest, &good, &stranger).unwrap();
    let sealed = lab.seal(Kind::Manifest, &manifest);
    let beacon = lab.store.newest(Kind::Beacon).await.unwrap().unwrap().payload;
    for (bytes, reason) in [
        (forged.as_slice(), "unknown_key"),
        (&sealed[..sealed.len() - 2], "malformed"),
        (&first.payload, "older"),
        // A statement of another kind, signed as it should be.
        (&beacon, "malformed"),
        (b"", "malformed"),
        (vec![b' '; 100 << 10].as_slice(), "oversized"),
    ] {
        let after = lab.store.newest(Kind::Manifest).await.unwrap().map_or(0, |stored| stored.sequence);
        assert!(matches!(lab.store.advance(Kind::Manifest, bytes, after).await, Ok(Advance::Stored(_))), "{reason}");
        pod.refuses(Kind::Manifest, reason).await;
    }
    // A manifest whose bundle is not there, and one whose bundle is something else.
    let epoch = version.epoch;
    let (mut missing, _) = lab.manifest(Version { epoch, generation: 2 }, 999);
    missing.bundle.digest = stockade::store::Digest::of(b"nowhere");
    let after = lab.store.newest(Kind::Manifest).await.unwrap().unwrap().sequence;
    let sealed = lab.seal(Kind::Manifest, &missing);
    let Ok(Advance::Stored(after)) = lab.store.advance(Kind::Manifest, &sealed, after).await else { panic!() };
    lab.publish_as(Version { epoch, generation: 3 }, after).await;
    pod.catches_up(&lab).await;
    lab.check(&pod);
}

#[tokio::test]
async fn a_sidecar_that_restarts_while_the_store_is_down() {
    let mut lab = Lab::start().await;
    let copy = dir();
    let more = format!("  last_good: {{directory: {}}}\n", copy.path().display());
    let pod = lab.pod(&lab.server.url(), dir(), &more).await;
    pod.catches_up(&lab).await;
    let kept = ["manifest", "beacon", "bundle.tar"].map(|name| copy.path().join(name));
    eventually("the copy on disk", async || kept.iter().all(|file| file.exists())).await;
    lab.check(&pod);
    lab.server.kill().await;
    drop(pod);
    let pod = lab.pod(&lab.server.url(), dir(), &more).await;
    assert_eq!(pod.metric("stockade_store_from_disk").await, 1.0);
    pod.answers_with("by its copy", |answer| answer.version == Some(1)).await;
    lab.start_server_again().await;
    lab.publish().await;
    pod.catches_up(&lab).await;
    assert_eq!(pod.metric("stockade_store_from_disk").await, 0.0);
    lab.check(&pod);
}

#[tokio::test]
async fn what_expired_does_as_the_operator_chose() {
    let mut lab = Lab::start().await;
    let bounds = "  freshness: {stale_after: 1500ms, expired_after: 3s, on_expired: undecided}\n";
    let closed = lab.pod(&lab.server.url(), dir(), bounds).await;
    let open = lab.pod(&lab.server.url(), dir(), &bounds.replace("undecided", "serve")).await;
    lab.server.kill().await;
    open.answers_with("that it expired", |answer| answer.freshness == "expired" && answer.version == Some(1)).await;
    closed.answers_with("undecided", |answer| answer.version.is_none()).await;
    eventually("not ready", async || closed.sidecar.admin("/readyz").await.0 == 503).await;
    // Each sidecar looks at its own freshness in its own time.
    let expired = async || {
        let (status, body) = open.sidecar.admin("/readyz").await;
        assert_eq!(status, 200, "{body}");
        body.contains("\"freshness\": \"expired\"")
    };
    eventually("expired", expired).await;
    lab.start_server_again().await;
    for pod in [&closed, &open] {
        pod.catches_up(&lab).await;
        eventually("ready", async || pod.sidecar.admin("/readyz").await.0 == 200).await;
    }
}

#[tokio::test]
async fn a_hundred_publishes_under_load() {
    let (mut lab, pod) = lab().await;
    for _ in 0..10 {
        // In bursts, faster than they can be compiled; what is in force must keep up all the same.
        for _ in 0..10 {
            lab.publish().await;
        }
        let newest = lab.newest();
        pod.answers_with("one of the burst", |answer| answer.version > Some(newest - 10)).await;
    }
    pod.catches_up(&lab).await;
    let answers = lab.check(&pod);
    let versions = answers.iter().filter_map(|answer| answer.version).collect::<std::collections::BTreeSet<_>>();
    assert!(versions.len() >= 10, "only {} versions were seen", versions.len());
}

#[tokio::test]
async fn a_denial_is_in_force_until_it_ends_also_without_the_store() {
    let (mut lab, pod) = lab().await;
    let now = SystemTime::now();
    let until = now + Duration::from_secs(6);
    lab.issue(vec![OverlayEntry {
        id: "deny-everyone".to_owned(),
        effect: OverlayEffect::Deny,
        principal: None,
        action: None,
        resource: None,
        from: Timestamp(now),
        until: Timestamp(until),
        reason: "test".to_owned(),
        issuer: "test".to_owned(),
        approved_by: None,
    }])
    .await;
    pod.answers_with("a denial", |answer| answer.version.is_none()).await;
    lab.server.kill().await;
    pod.forget();
    pod.answers_with("no denial any more", |answer| answer.version.is_some()).await;
    assert!(SystemTime::now() >= until, "it ended before its time");
    assert!(SystemTime::now() < until + Duration::from_secs(5), "it ended long after its time");
}
