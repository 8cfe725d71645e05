//! What a client can send through Envoy to make its check larger, slower or given up; with `failure_mode_allow` on, so that a check
//! that fails lets the request through. docs/limits.md has the table.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::lab::{Lab, Listener, bundle};
use testkit::Stockade;
use testkit::envoy::{Envoy, Places, shipped};
use testkit::http::Request;
use testkit::upstream::Upstream;

const ONLY_OPEN: &str = r#"
@id("all") permit (principal, action, resource);
@id("closed") forbid (principal, action in [Action::"GET", Action::"POST"], resource) when { context.path like "/admin*" };
"#;

fn only_open() -> TempDir {
    bundle(&[("policies/all.cedar", ONLY_OPEN)])
}

fn failing_open(more: Value) -> Value {
    let mut authz = json!({"failure_mode_allow": true});
    authz.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    authz
}

/// A tracer that takes the client's trace on, into the check as well.
fn tracing() -> Value {
    json!({"provider": {"name": "envoy.tracers.opentelemetry", "typed_config": {
        "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
        "service_name": "lab",
        "grpc_service": {"timeout": "1s", "envoy_grpc": {"cluster_name": "collector"}},
    }}})
}

#[tokio::test]
async fn a_trace_of_any_size_fails_no_check() {
    let bundle = only_open();
    let stockade = Stockade::with_bundle(bundle.path(), "").await;
    // As it was once.
    let narrow = Stockade::with_bundle(bundle.path(), "http2: {header_list: 16KiB}").await;
    let upstream = Upstream::start().await;
    let listener = |headers_kb: u32| Listener {
        authz: failing_open(Value::Null),
        manager: json!({"tracing": tracing(), "max_request_headers_kb": headers_kb}),
        ..Listener::default()
    };
    let envoy = Lab::new(&upstream)
        .sidecar("stockade", &stockade.addresses[0])
        .sidecar("narrow", &narrow.addresses[0])
        // Nobody collects.
        .sidecar("collector", "tcp://127.0.0.1:1")
        .listener("default", "stockade", listener(60))
        .listener("wide", "stockade", listener(200))
        .listener("narrow", "narrow", listener(60))
        .start()
        .await;
    let ask = async |listener: &str, path: &str, size: usize| {
        let state = format!("a={}", "x".repeat(size));
        let request = Request::get(path)
            .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            .header("tracestate", state);
        request.send(envoy.listener(listener)).await.status
    };
    // Envoy does pass it on: where it is too much, the door is open.
    assert_eq!(ask("narrow", "/admin/secret", 100).await, 403);
    assert_eq!(ask("narrow", "/admin/secret", 16_500).await, 200, "the trap that this test is about is gone");
    for (listener, size) in [("default", 16_500), ("default", 58_000), ("wide", 128 << 10), ("wide", 190 << 10)] {
        assert_eq!(ask(listener, "/admin/secret", size).await, 403, "{listener} {size}");
        assert_eq!(ask(listener, "/open", size).await, 200, "{listener} {size}");
    }
    assert_eq!(envoy.stat("http.default.ext_authz.default.error").await, 0);
    assert_eq!(envoy.stat("http.wide.ext_authz.wide.error").await, 0);
}

/// The largest request that the shipped configuration lets in.
#[tokio::test]
async fn the_largest_request_of_a_shipped_configuration_is_decided() {
    let (dir, upstream) = (TempDir::new().unwrap(), Upstream::start().await);
    let socket = format!("unix://{}", dir.path().join("authz.sock").display());
    let bundle = only_open();
    let more = format!("listen: [\"{socket}\"]");
    let _stockade = Stockade::with_bundle(bundle.path(), &more).await;
    let places = Places { app: upstream.address, etc: dir.path(), stockade: &socket };
    let text = shipped("request-body.yaml", &places).replace("failure_mode_allow: false", "failure_mode_allow: true");
    let envoy = Envoy::start(&text).await;
    let ask = async |path: &str| {
        let mut request = Request::new("POST", format!("{path}?{}", "q".repeat(30_000)));
        for n in 0..90 {
            request = request.header(&format!("x-{n}"), "v".repeat(300));
        }
        let request = request.body("application/octet-stream", vec![0xff; 65_536]);
        let status = request.send(envoy.listener("ingress")).await.status;
        let stat = envoy.stat("http.ingress.ext_authz.stockade.error").await;
        (status, stat)
    };
    assert_eq!(ask("/orders").await, (200, 0));
    assert_eq!(ask("/admin").await, (403, 0));
}

/// Larger than `limits.message`, where Envoy allows it: a denial, however many there are, and nobody else notices.
#[tokio::test]
async fn messages_that_are_too_large_are_denied_and_end_no_connection() {
    let bundle = only_open();
    let stockade = Stockade::with_bundle(bundle.path(), "limits: {message: 64KiB}").await;
    let upstream = Upstream::start().await;
    let body = json!({"with_request_body": {"max_request_bytes": 8 << 20, "pack_as_bytes": true}});
    let envoy = Lab::new(&upstream)
        .sidecar("stockade", &stockade.addresses[0])
        .listener("large", "stockade", Listener { authz: failing_open(body), ..Listener::default() })
        .start()
        .await;
    let address = envoy.listener("large");
    let large = Arc::new(Request::new("POST", "/open").body("application/octet-stream", vec![0; 2 << 20]));
    let mut requests = JoinSet::new();
    for n in 0..150 {
        let large = Arc::clone(&large);
        requests.spawn(async move {
            match n % 3 {
                0 => (Request::get("/open").send(address).await.status, 200),
                1 => (Request::get("/admin/secret").send(address).await.status, 403),
                _ => (large.send(address).await.status, 400),
            }
        });
    }
    while let Some(answered) = requests.join_next().await {
        let (status, expected) = answered.unwrap();
        assert_eq!(status, expected);
    }
    assert_eq!(envoy.stat("http.large.ext_authz.large.error").await, 0);
    assert_eq!(envoy.stat("cluster.stockade.upstream_cx_total").await, 1, "one connection served them all");
}

/// Clients that hang up, and checks that Envoy gives up while the sidecar stands still.
#[tokio::test]
async fn what_is_given_up_takes_nobody_along() {
    let bundle = only_open();
    let stockade = Stockade::with_bundle(bundle.path(), "").await;
    let upstream = Upstream::start().await;
    let service = |timeout: &str| {
        failing_open(json!({"grpc_service": {"timeout": timeout, "envoy_grpc": {"cluster_name": "stockade"}}}))
    };
    let envoy = Lab::new(&upstream)
        .sidecar("stockade", &stockade.addresses[0])
        .listener("impatient", "stockade", Listener { authz: service("0.1s"), ..Listener::default() })
        .listener("patient", "stockade", Listener { authz: service("60s"), ..Listener::default() })
        .start()
        .await;
    assert_eq!(Request::get("/admin").send(envoy.listener("patient")).await.status, 403);
    stockade.signal("STOP");
    let mut given_up = JoinSet::new();
    let impatient = envoy.listener("impatient");
    for _ in 0..300 {
        given_up.spawn(async move { Request::get("/open").send(impatient).await.status });
    }
    // Those fail open after a tenth of a second, which is what the operator chose.
    while let Some(status) = given_up.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    // Clients that do not wait for the answer.
    for _ in 0..300 {
        let mut stream = TcpStream::connect(envoy.listener("patient")).await.unwrap();
        stream.write_all(b"GET /open HTTP/1.1\r\nhost: bookstore.example\r\n\r\n").await.unwrap();
    }
    let mut in_time = JoinSet::new();
    let patient = envoy.listener("patient");
    for _ in 0..200 {
        in_time.spawn(async move { Request::get("/admin").send(patient).await.status });
    }
    while envoy.stat("cluster.stockade.upstream_rq_active").await < 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stockade.signal("CONT");
    while let Some(status) = in_time.join_next().await {
        assert_eq!(status.unwrap(), 403, "a check that was in time");
    }
    assert_eq!(envoy.stat("http.patient.ext_authz.patient.error").await, 0);
    assert_eq!(envoy.stat("cluster.stockade.upstream_cx_total").await, 1);
}

/// What `limits.message` and `http2.header_list` are by default holds whatever the shipped configurations let in.
#[test]
fn the_defaults_exceed_what_the_shipped_configurations_let_in() {
    let numbers = |text: &str, key: &str| -> Vec<u64> {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let values = lines.filter_map(|line| line.split_once(key)?.1.strip_prefix(':'));
        values.map(|value| value.trim().trim_end_matches([',', '}', ' ']).parse().expect(value)).collect()
    };
    let limits = stockade::ext_authz::service::Config::default();
    let http2 = stockade::ext_authz::server::Config::default();
    let mut seen = 0;
    for file in std::fs::read_dir(testkit::repository("envoy")).unwrap() {
        let path = file.unwrap().path();
        let Some("yaml") = path.extension().and_then(|extension| extension.to_str()) else { continue };
        let text = std::fs::read_to_string(&path).unwrap();
        let headers = numbers(&text, "max_request_headers_kb").into_iter().max().unwrap_or(60) << 10;
        let body = numbers(&text, "max_request_bytes").into_iter().max().unwrap_or(0);
        // The path twice, and as much again for metadata and certificates.
        let most = 2 * headers + body + (256 << 10);
        assert!(limits.message.0 >= most, "{}: {most}", path.display());
        assert!(http2.header_list.0 >= headers + (64 << 10), "{}: {headers}", path.display());
        seen += usize::from(body > 0);
    }
    assert!(seen > 0, "no configuration with a body");
}
