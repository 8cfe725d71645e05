//! A store in which everything that is not signed, and what a publisher may write, is hostile to the terminals of those who look.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;
use stockade::nats::{self, ConnectRetry};
use stockade::store::keys::SecretKey;
use stockade::store::layout::Layout;
use stockade::store::statement::Kind;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::{config, prod, store, write};
use crate::cli::{Ran, run};
use crate::terminal::{HOSTILE, is_text};
use testkit::nats::NatsServer;

async fn command(server: &NatsServer, dir: &TempDir, args: &[&str]) -> Ran {
    let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    args.extend(["--store".to_owned(), server.url(), "--name".to_owned(), "prod".to_owned()]);
    let dir = dir.path().to_owned();
    spawn_blocking(move || run(&dir, &args.iter().map(String::as_str).collect::<Vec<_>>(), "")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_store_is_shown_as_text() {
    let server = NatsServer::start().await;
    let store = store(&server).await;
    let layout = Layout::new(prod());
    let (raw, _events) = nats::connect(&config(&server), "operator", ConnectRetry::Never).await.unwrap();
    let dir = TempDir::new().unwrap();
    run(dir.path(), &["keygen", "key"], "");
    let text = format!("{HOSTILE}\nall sidecars are fresh");
    let head = json!({"version": {"epoch": 1, "generation": 1}, "digest": format!("sha256:{}", "0".repeat(64))});
    let status = json!({
        "pod": text, "namespace": text, "sidecar": text, "manifest": head, "overlays": null, "revision": text,
        "enforced_at": null, "lead_time_ms": 1, "overlays_lead_time_ms": null, "freshness": text, "rejection": text,
        "at": "2030-01-01T00:00:00Z",
    });
    raw.store(&layout.status("shop", "evil"), status.to_string().into(), None).await.unwrap();
    let envelope = |kind: Kind, says: serde_json::Value| {
        let payload = BASE64.encode(says.to_string());
        json!({"payload": payload, "payloadType": kind.payload_type(), "signatures": [{"keyid": text, "sig": "AAAA"}]})
            .to_string()
    };
    let manifest = json!({
        "store": "prod", "version": {"epoch": 1, "generation": 1}, "bundle": {"digest": head["digest"], "size": 1},
        "min_sidecar": text, "published_at": "2030-01-01T00:00:00Z", "publisher": text, "message": text, "commit": text,
    });
    write(&store, Kind::Manifest, &envelope(Kind::Manifest, manifest)).await;
    write(&store, Kind::Overlays, &envelope(Kind::Overlays, json!({"store": text}))).await;
    let public = SecretKey::parse(&SecretKey::generate().unwrap()).unwrap().public().to_string();
    std::fs::write(dir.path().join("bundle.yaml"), "name: shop").unwrap();
    std::fs::write(dir.path().join("a.cedar"), "permit (principal, action, resource);").unwrap();
    let mut shown = 0;
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["history"],
        &["history", "--trust", &public],
        &["history", "--json"],
        &["show", "newest"],
        &["pull", "newest", "out", "--trust", &public],
        &["overlays", "--trust", &public],
        &["overlays", "--json"],
        &["publish", ".", "--key", "key", "--wait", "100%", "--timeout", "100ms"],
        &["publish", ".", "--key", "key", "--new-epoch", "--wait", "100%", "--timeout", "100ms"],
        &["rollback", "--key", "key"],
        &["deny", "--everyone", "--for", "1h", "--reason", &text, "--key", "key"],
        &["deny", "--everyone", "--for", "1h", "--reason", &text, "--key", "key", "--new-epoch"],
        &["overlays", "--key", "key"],
        &["prune", "--dry-run"],
    ] {
        let ran = command(&server, &dir, args).await;
        is_text(&ran);
        let all = format!("{}{}", ran.stdout, ran.stderr);
        assert!(
            !all.lines().any(|line| line.trim_start().starts_with("all sidecars")),
            "a line was forged: {args:?} {ran:?}"
        );
        shown += usize::from(all.contains("\\u001b"));
        if args.contains(&"--json") && ran.code == 0 {
            ran.json();
        }
    }
    assert!(shown >= 8, "{shown} of them showed something hostile");
}

/// Those who look find the keys that those who publish go by.
#[tokio::test(flavor = "multi_thread")]
async fn who_looks_believes_whom_who_publishes_believes() {
    let server = NatsServer::start().await;
    let dir = TempDir::new().unwrap();
    let keygen = run(dir.path(), &["keygen", "key"], "");
    let public = keygen.stdout.split_whitespace().nth(2).unwrap().to_owned();
    std::fs::create_dir(dir.path().join("bundle")).unwrap();
    std::fs::write(dir.path().join("bundle/bundle.yaml"), "name: shop").unwrap();
    std::fs::write(dir.path().join("bundle/a.cedar"), "permit (principal, action, resource);").unwrap();
    assert_eq!(command(&server, &dir, &["publish", "bundle", "--key", "key"]).await.code, 0);
    assert_eq!(
        command(&server, &dir, &["deny", "--everyone", "--for", "1h", "--reason", "x", "--key", "key"]).await.code,
        0
    );
    for (at, trust) in [["--key", "key"], ["--trust", &public]].into_iter().enumerate() {
        let out = format!("out{at}");
        let pulled = command(&server, &dir, &["pull", "newest", &out, trust[0], trust[1]]).await;
        assert_eq!(pulled.code, 0, "{pulled:?}");
        let listed = command(&server, &dir, &["overlays", trust[0], trust[1]]).await;
        assert!(listed.stdout.starts_with("deny-"), "{listed:?}");
        let history = command(&server, &dir, &["history", trust[0], trust[1]]).await;
        assert!(history.stdout.contains(" good"), "{history:?}");
    }
    let refused = command(&server, &dir, &["pull", "newest", "out"]).await;
    assert!(refused.code == 1 && refused.stderr.contains("--trust") && refused.stderr.contains("--key"), "{refused:?}");
    let listed = command(&server, &dir, &["overlays"]).await;
    assert!(listed.code == 1 && listed.stderr.contains("which you do not trust"), "{listed:?}");
}
