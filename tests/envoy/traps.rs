//! The traps that envoy/README.md warns of are there. When Envoy closes one, this is where it shows.

use serde_json::json;

use super::lab::{Lab, Listener, bundle};
use testkit::Stockade;
use testkit::envoy::Envoy;
use testkit::http::Request;
use testkit::upstream::Upstream;

#[tokio::test]
async fn the_traps_are_where_they_are_said_to_be() {
    let bundle = bundle(&[(
        "policies/all.cedar",
        r#"@id("all") permit (principal, action == Action::"GET", resource) when { context.path == "/open" };"#,
    )]);
    let more = "upstream_headers: {x-stockade-principal: principal}\n";
    let stockade = Stockade::with_bundle(bundle.path(), more).await;
    let silent = Stockade::with_bundle(bundle.path(), more).await;
    let overreaching = "upstream_headers: {x-envoy-decorator-operation: principal}\n";
    let overreaching = Stockade::with_bundle(bundle.path(), overreaching).await;
    silent.signal("STOP");
    let upstream = Upstream::start().await;
    let envoy = lab(&upstream, [&stockade.addresses[0], &silent.addresses[0], &overreaching.addresses[0]]).await;

    assert_eq!(Request::get("/open").send(envoy.listener("http1")).await.status, 503);
    // Envoy's own headers are not the sidecar's to set: the mutation rules make that an error, not a surprise.
    assert_eq!(Request::get("/open").send(envoy.listener("overreaching")).await.status, 500);
    assert_eq!(envoy.stat("http.overreaching.ext_authz.overreaching.invalid").await, 1);
    // Long before the timeout of ten minutes.
    assert_eq!(Request::get("/open").send(envoy.listener("impatient")).await.status, 503);
    assert_ne!(envoy.stat("cluster.silent.upstream_rq_per_try_timeout").await, 0);
    assert!(upstream.take().is_empty());

    let seen = Request::get("/open").send(envoy.listener("late")).await.echo().unwrap();
    assert!(seen.header("x-stockade-principal").is_empty(), "what the sidecar said is gone: {seen:?}");

    assert_eq!(Request::get("/closed").send(envoy.listener("unrouted")).await.status, 404);
    assert_eq!(envoy.stat("http.unrouted.ext_authz.unrouted.denied").await, 0);

    assert_eq!(Request::get("/closed").send(envoy.listener("exempt")).await.status, 403);
    for path in ["/healthz/../closed", "/healthz-closed"] {
        let seen = Request::get(path).send(envoy.listener("exempt")).await.echo().unwrap();
        assert_eq!((&*seen.target, seen.header("x-stockade-principal").len()), (path, 0), "nobody was asked");
    }
}

/// An Envoy with a listener for each trap.
async fn lab(upstream: &Upstream, [stockade, silent, overreaching]: [&str; 3]) -> Envoy {
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": "app"}});
    let off = json!({"envoy.filters.http.ext_authz": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute", "disabled": true,
    }});
    let routes = |routes: serde_json::Value, more: serde_json::Value| {
        let mut host = json!({"name": "app", "domains": ["*"], "routes": routes});
        host.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"route_config": {"virtual_hosts": [host]}, "normalize_path": false})
    };
    let managed = |manager| Listener { manager, ..Listener::default() };
    Lab::new(upstream)
        .sidecar("stockade", stockade)
        .sidecar("silent", silent)
        .sidecar("overreaching", overreaching)
        .sidecar("http1", stockade)
        .without_http2()
        .listener("http1", "http1", Listener::default())
        .listener("overreaching", "overreaching", Listener::default())
        .listener(
            "impatient",
            "silent",
            Listener {
                authz: json!({"grpc_service": {
                    "timeout": "600s",
                    "envoy_grpc": {"cluster_name": "silent"},
                    "retry_policy": {
                        "num_retries": 1,
                        "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.02s"},
                    },
                }}),
                ..Listener::default()
            },
        )
        .listener(
            "late",
            "stockade",
            managed(routes(json!([route]), json!({"request_headers_to_remove": ["x-stockade-principal"]}))),
        )
        .listener("unrouted", "stockade", managed(routes(json!([]), json!({}))))
        .listener(
            "exempt",
            "stockade",
            managed(routes(
                json!([
                    {"match": {"prefix": "/healthz"}, "route": {"cluster": "app"}, "typed_per_filter_config": off},
                    route,
                ]),
                json!({}),
            )),
        )
        .start()
        .await
}
