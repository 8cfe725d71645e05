//! A sidecar that goes away and comes back on the same socket.

use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use testkit::Stockade;
use testkit::envoy::{Envoy, Places, shipped};
use testkit::http::Request;
use testkit::upstream::Upstream;

#[tokio::test]
async fn a_restarted_sidecar_is_found_again() {
    let (dir, upstream) = (TempDir::new().unwrap(), Upstream::start().await);
    let listen = format!("listen: [\"unix://{}/authz.sock\"]\n", dir.path().display());
    let start = async || Stockade::with_bundle(&testkit::repository("policies/bookstore"), &listen).await;
    let mut stockade = start().await;
    let places = Places { app: upstream.address, etc: Path::new("/nowhere"), stockade: &stockade.addresses[0] };
    let mut envoy = Envoy::start(&shipped("sidecar-uds.yaml", &places)).await;
    let ingress = envoy.listener("ingress");

    // Killed, it leaves its socket behind; told to end, it removes it.
    for signal in ["KILL", "TERM", "KILL"] {
        assert_eq!(Request::get("/books").send(ingress).await.status, 200, "before {signal}");
        assert_eq!(envoy.logged().await["details"], "via_upstream");
        stockade.signal(signal);
        stockade.wait().await;
        assert_eq!(Request::get("/books").send(ingress).await.status, 503, "after {signal}");
        let line = envoy.logged().await;
        assert_eq!((&line["details"], &line["decision"]), (&json!("ext_authz_error"), &json!(null)), "{line}");
        upstream.take();
        stockade = start().await;
    }
    assert_eq!(Request::get("/books").send(ingress).await.status, 200);
}
