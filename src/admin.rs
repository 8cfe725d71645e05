//! The operator's HTTP endpoint: probes, metrics, what is in force, and the decision cache with its switch, which is all
//! that it can change. `app` binds it, on loopback unless told otherwise. Beside it, a router with nothing but the probes.

use std::fmt::Display;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;

use crate::decision::cache::Cache;
use crate::feed::{Rejection, Status};
use crate::observe::Metrics;
use crate::policy::Summary;

mod cache;
mod config;
pub mod guard;
mod page;
mod readiness;
mod server;
mod store;

pub use config::{Config, Listen, ProbesConfig, ProbesListen};
pub use readiness::{Readiness, readiness, watch_readiness};
pub use server::serve;

/// What there is: path and meaning.
const ROUTES: [(&str, &str); 7] = [
    ("/", "this sidecar at a glance"),
    ("/livez", "200 while the process answers"),
    ("/readyz", "200 if it can decide, else 503 and the reasons"),
    ("/metrics", "for Prometheus"),
    ("/snapshot", "what is in force, and the last rejection"),
    (
        "/cache",
        "the decision cache; POST /cache?enabled=false (or true) switches it, POST /cache/clear empties it, POST \
         /cache/lookup says what it has for a CheckRequest in JSON",
    ),
    ("/config", "the effective configuration, without secrets"),
];

/// Looks a CheckRequest up in the cache.
pub type Lookup = dyn Fn(&str) -> Result<serde_json::Value, String> + Send + Sync;

/// What the endpoint looks at.
#[derive(Clone)]
pub struct Admin {
    /// What the snapshot in force says of itself.
    pub summary: Arc<dyn Fn() -> Option<Summary> + Send + Sync>,
    /// How following the source goes; the feed sends.
    pub status: watch::Receiver<Status>,
    /// Whether Envoy may ask; `app` sends what [`readiness`] finds.
    pub ready: watch::Receiver<Readiness>,
    /// The decision cache, which can be switched and cleared.
    pub cache: Arc<Cache>,
    /// What the cache has for a CheckRequest in protobuf JSON, or why that cannot be told.
    pub lookup: Arc<Lookup>,
    /// The effective configuration, without secrets.
    pub config: Arc<serde_json::Value>,
    /// What requests may call us.
    pub hosts: Arc<guard::Hosts>,
    /// What is counted.
    pub counts: Metrics,
    /// Renders the metrics.
    pub rendered: PrometheusHandle,
    /// Brings metrics up to date that only time changes; runs before each rendering.
    pub refresh: Arc<dyn Fn() + Send + Sync>,
}

/// The routes over what they show. All of them answer GET and HEAD; what changes something is a POST.
pub fn router(state: Admin) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/snapshot", get(snapshot))
        .route("/cache", get(cache::show).post(cache::switch))
        .route("/cache/clear", post(cache::clear))
        .route("/cache/lookup", post(cache::lookup))
        .route("/config", get(config))
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(Arc::clone(&state.hosts), guard::check))
        .with_state(state)
}

/// What a listener for the kubelet's probes has: yes or no, and nothing that should stay in the pod.
pub fn probes(ready: watch::Receiver<Readiness>) -> Router {
    let readyz = move || {
        let is_ready = ready.borrow().ready;
        async move {
            let (status, text) = match is_ready {
                true => (StatusCode::OK, "ready\n"),
                false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            };
            (status, text)
        }
    };
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .fallback(|| async { (StatusCode::NOT_FOUND, "nothing here; there is /livez and /readyz\n") })
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let readiness = admin.ready.borrow().clone();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, pretty(&readiness)).into_response()
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    (admin.refresh)();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], admin.rendered.render())
}

async fn snapshot(State(admin): State<Admin>) -> Response {
    let Status { last_read, rejection, store, .. } = admin.status.borrow().clone();
    let rejection =
        rejection.map(|Rejection { at, problems }| json!({"at": timestamp(at).to_string(), "problems": problems}));
    pretty(&json!({
        "snapshot": summary(&admin).await,
        "last_read": last_read.map(|at| timestamp(at).to_string()),
        "rejection": rejection,
        "store": store.as_ref().map(store::summary),
    }))
}

/// What it takes grows with policies and actions, and the threads of the checks have better things to do.
async fn summary(admin: &Admin) -> Option<Summary> {
    let summary = Arc::clone(&admin.summary);
    tokio::task::spawn_blocking(move || summary()).await.ok().flatten()
}

async fn config(State(admin): State<Admin>) -> Response {
    pretty(&*admin.config)
}

async fn page(State(admin): State<Admin>) -> impl IntoResponse {
    let readiness = admin.ready.borrow().clone();
    let status = admin.status.borrow().clone();
    let html = page::render(&readiness, summary(&admin).await.as_ref(), &status);
    // Nothing on the page needs more than this; should an escape ever be missed, it stays text.
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(html))
}

async fn not_found() -> impl IntoResponse {
    let list: String = ROUTES.iter().map(|(path, meaning)| format!("{path:<10} {meaning}\n")).collect();
    (StatusCode::NOT_FOUND, format!("nothing here; there is\n\n{list}"))
}

/// JSON that a person can read.
fn pretty(value: &impl Serialize) -> Response {
    const JSON: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/json")];
    match serde_json::to_string_pretty(value) {
        Ok(text) => (JSON, text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn timestamp(at: SystemTime) -> impl Display {
    humantime::format_rfc3339_millis(at)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tower::ServiceExt;

    use super::*;
    use crate::model::Revision;
    use crate::observe::metrics;
    use crate::policy::{
        BundleSummary, FootprintSummary, Hits, OverlaySummary, PlaceSummary, PolicyRead, PolicySummary, Read,
    };
    use crate::shutdown::Phase;

    fn summary() -> Summary {
        Summary {
            revision: Revision {
                id: "0123456789ab".into(),
                digest: "0123456789abcdef".into(),
                number: Some("2.7".into()),
            },
            generation: 3,
            enforced_at: "2026-01-02T03:04:05Z".into(),
            changed_at: None,
            lead_time_ms: Some(250),
            overlays: vec![OverlaySummary {
                id: "mallory's".into(),
                effect: "deny",
                principal: Some("User::\"mallory\"".into()),
                action: None,
                resource: None,
                until: "2026-01-02T05:04:05Z".into(),
                reason: "stolen <b>laptop</b>".into(),
            }],
            bundles: vec![BundleSummary {
                name: "shop".into(),
                version: Some("1.4".into()),
                owner: Some("team-shop@example.com".into()),
                description: None,
                controls: vec!["PCI-7.1".into()],
                ttl: None,
            }],
            policies: vec![PolicySummary {
                id: "shop/<script>alert('x')</script>".into(),
                effect: "permit",
                mode: "shadow",
                file: "policies/\"a\" & b.cedar".into(),
                template: None,
            }],
            routes: 2,
            entities: 5,
            footprints: vec![FootprintSummary {
                actions: ["GET", "HEAD", "PUT", "<b>"].map(|id| format!("Action::\"{id}\"")).to_vec(),
                hits: Hits::None,
                places: vec![PlaceSummary {
                    place: "context.time".into(),
                    ty: "datetime".into(),
                    read: Read::Value,
                    hits: Hits::None,
                    why: Some("the clock"),
                    advice: None,
                    policies: vec![PolicyRead {
                        id: "shop/<i>".into(),
                        file: "hours.cedar".into(),
                        read: Read::Value,
                        as_part_of: None,
                        all_actions: true,
                        only_for: Vec::new(),
                    }],
                }],
            }],
            warnings: vec!["policy `shop/old` can never apply".into()],
        }
    }

    fn admin(summary: Option<Summary>, status: Status, readiness: Readiness) -> Admin {
        let (counts, rendered) = Metrics::new(&metrics::Config::default()).expect("metrics");
        Admin {
            summary: Arc::new(move || summary.clone()),
            status: watch::channel(status).1,
            ready: watch::channel(readiness).1,
            cache: Arc::new(Cache::new(Default::default())),
            lookup: Arc::new(|text| Err(format!("not JSON: {text}"))),
            config: Arc::new(json!({"log": {"level": "info"}})),
            hosts: Arc::new(guard::Hosts::new(Some([127, 0, 0, 1].into()), &[])),
            counts,
            rendered,
            refresh: Arc::new(|| {}),
        }
    }

    fn in_force() -> Admin {
        let status = Status { last_read: Some(SystemTime::UNIX_EPOCH), ..Status::default() };
        admin(Some(summary()), status, readiness(Phase::Running, true, &Status::default()))
    }

    fn rejected() -> Admin {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let rejection = Rejection { at, problems: vec!["a.cedar:1:2: unexpected `<b>`".into()] };
        let status = Status { rejection: Some(rejection), ..Status::default() };
        let readiness = readiness(Phase::Starting, false, &status);
        admin(None, status, readiness)
    }

    async fn send(admin: Admin, method: &str, path: &str) -> (StatusCode, String, String) {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).expect("request");
        let response = router(admin).oneshot(request).await.expect("infallible");
        let content_type = response.headers().get(header::CONTENT_TYPE).map(|value| value.to_str().expect("text"));
        let (status, content_type) = (response.status(), content_type.unwrap_or_default().to_owned());
        let body = response.into_body().collect().await.expect("body").to_bytes();
        (status, content_type, String::from_utf8(body.to_vec()).expect("text"))
    }

    async fn get_json(admin: Admin, path: &str) -> (StatusCode, serde_json::Value) {
        let (status, content_type, body) = send(admin, "GET", path).await;
        assert_eq!(content_type, "application/json");
        (status, serde_json::from_str(&body).expect("JSON"))
    }

    #[test]
    fn readiness_follows_phase_and_snapshot() {
        let rejection = Rejection { at: SystemTime::UNIX_EPOCH, problems: vec!["one".into(), "two".into()] };
        for (phase, has_snapshot, rejection, reasons) in [
            (Phase::Running, true, None, &[][..]),
            (Phase::Running, true, Some(&rejection), &[]),
            (Phase::Running, false, None, &["no snapshot is in force yet"]),
            (Phase::Starting, true, None, &["starting"]),
            (Phase::Starting, false, None, &["no snapshot is in force yet"]),
            (Phase::Starting, false, Some(&rejection), &["no snapshot is in force yet", "one", "two"]),
            (Phase::Leaving, true, None, &["shutting down"]),
            (Phase::Draining, true, None, &["shutting down"]),
            (Phase::Draining, false, Some(&rejection), &["shutting down"]),
        ] {
            let status = Status { rejection: rejection.cloned(), ..Status::default() };
            let found = readiness(phase, has_snapshot, &status);
            assert_eq!(
                (found.ready, found.reasons),
                (reasons.is_empty(), reasons.iter().map(|r| r.to_string()).collect())
            );
        }
    }

    #[tokio::test]
    async fn probes_answer() {
        assert_eq!(send(rejected(), "GET", "/livez").await.0, StatusCode::OK);
        assert_eq!(get_json(in_force(), "/readyz").await, (StatusCode::OK, json!({"ready": true, "reasons": []})));
        let reasons = json!(["no snapshot is in force yet", "a.cedar:1:2: unexpected `<b>`"]);
        let expected = (StatusCode::SERVICE_UNAVAILABLE, json!({"ready": false, "reasons": reasons}));
        assert_eq!(get_json(rejected(), "/readyz").await, expected);
    }

    #[tokio::test]
    async fn metrics_are_fresh() {
        let refreshed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&refreshed);
        let refresh = Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let (status, content_type, body) = send(Admin { refresh, ..in_force() }, "GET", "/metrics").await;
        assert_eq!((status, content_type.as_str()), (StatusCode::OK, "text/plain; version=0.0.4"));
        assert!(body.contains("stockade_build_info{version="));
        assert_eq!(refreshed.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn the_snapshot_is_shown_or_null() {
        let (status, body) = get_json(in_force(), "/snapshot").await;
        assert_eq!((status, &body["snapshot"]["revision"]["id"]), (StatusCode::OK, &json!("0123456789ab")));
        assert_eq!(body["snapshot"]["footprints"][0]["hits"], "none");
        assert_eq!((&body["last_read"], &body["rejection"]), (&json!("1970-01-01T00:00:00.000Z"), &json!(null)));
        let rejection = json!({"at": "1970-01-01T00:00:01.000Z", "problems": ["a.cedar:1:2: unexpected `<b>`"]});
        let expected = json!({"snapshot": null, "last_read": null, "rejection": rejection, "store": null});
        assert_eq!(get_json(rejected(), "/snapshot").await, (StatusCode::OK, expected));
    }

    #[tokio::test]
    async fn the_configuration_is_shown() {
        assert_eq!(get_json(in_force(), "/config").await, (StatusCode::OK, json!({"log": {"level": "info"}})));
    }

    #[tokio::test]
    async fn the_page_shows_everything_escaped() {
        let (status, content_type, body) = send(in_force(), "GET", "/").await;
        assert_eq!((status, content_type.as_str()), (StatusCode::OK, "text/html; charset=utf-8"));
        for shown in [
            "Stockade is ready",
            "0123456789ab",
            "<td>2.7",
            "<td>mallory&#39;s<td>deny<td>User::&quot;mallory&quot;<td>any<td>any<td>2026-01-02T05:04:05Z<td>stolen &lt;b&gt;",
            "team-shop@example.com",
            "PCI-7.1",
            "shop/&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;",
            "policies/&quot;a&quot; &amp; b.cedar",
            "policy `shop/old` can never apply",
            "<td>Action::&quot;GET&quot;, Action::&quot;HEAD&quot;, Action::&quot;PUT&quot; and 1 more<td>none",
            "<td>context.time<td>the clock<td>shop/&lt;i&gt;",
            "href=\"/snapshot\"",
        ] {
            assert!(body.contains(shown), "no {shown} in {body}");
        }
        assert!(!body.contains("<script"));
        let (_, _, body) = send(rejected(), "GET", "/").await;
        for shown in [
            "Stockade is not ready",
            "no snapshot is in force yet",
            "unexpected `&lt;b&gt;`",
            "1970-01-01T00:00:01.000Z",
        ] {
            assert!(body.contains(shown), "no {shown} in {body}");
        }
    }

    #[tokio::test]
    async fn other_paths_and_methods_are_told_what_there_is() {
        let (status, _, body) = send(in_force(), "GET", "/ready").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        for (path, _) in ROUTES {
            assert!(body.contains(&format!("\n{path} ")), "{body}");
            assert_eq!(send(in_force(), "GET", path).await.0, StatusCode::OK, "{path}");
            let (status, _, body) = send(in_force(), "HEAD", path).await;
            assert_eq!((status, body.as_str()), (StatusCode::OK, ""), "{path}");
            if path != "/cache" {
                assert_eq!(send(in_force(), "POST", path).await.0, StatusCode::METHOD_NOT_ALLOWED, "{path}");
            }
        }
    }
    #[tokio::test]
    async fn the_cache_is_switched_by_post_and_by_nobody_s_page() {
        let admin = in_force();
        for (method, path, status, enabled) in [
            ("GET", "/cache", StatusCode::OK, true),
            ("GET", "/cache?enabled=false", StatusCode::OK, true),
            ("POST", "/cache", StatusCode::BAD_REQUEST, true),
            ("POST", "/cache?enabled=no", StatusCode::BAD_REQUEST, true),
            ("POST", "/cache?enabled=false", StatusCode::OK, false),
            ("POST", "/cache/clear", StatusCode::OK, false),
            ("GET", "/cache/clear", StatusCode::METHOD_NOT_ALLOWED, false),
            ("PUT", "/cache?enabled=true", StatusCode::METHOD_NOT_ALLOWED, false),
            ("POST", "/cache?enabled=true", StatusCode::OK, true),
        ] {
            assert_eq!(send(admin.clone(), method, path).await.0, status, "{method} {path}");
            assert_eq!(admin.cache.is_enabled(), enabled, "{method} {path}");
            let (_, shown) = get_json(admin.clone(), "/cache").await;
            assert_eq!(shown["enabled"], json!(enabled));
            assert_eq!(
                (&shown["hits"], &shown["misses"]["absent"], &shown["entries"]),
                (&json!(0), &json!(0), &json!(0))
            );
        }
        let from_a_page = [("origin", "http://127.0.0.1:9192"), ("origin", "null"), ("sec-fetch-site", "same-origin")];
        for (name, value) in from_a_page {
            for path in ["/cache?enabled=false", "/cache/clear", "/cache/lookup"] {
                let request = Request::post(path).header(name, value).body(Body::empty());
                let response = router(admin.clone()).oneshot(request.expect("request")).await.expect("infallible");
                assert_eq!((response.status(), admin.cache.is_enabled()), (StatusCode::FORBIDDEN, true), "{path}");
            }
        }
    }

    #[tokio::test]
    async fn whoever_asks_for_another_host_is_refused() {
        for (host, expected) in [
            ("127.0.0.1:9192", StatusCode::OK),
            ("localhost", StatusCode::OK),
            ("attacker.example", StatusCode::MISDIRECTED_REQUEST),
            ("127.0.0.1.attacker.example:9192", StatusCode::MISDIRECTED_REQUEST),
        ] {
            for path in ["/config", "/nothing"] {
                let request = Request::get(path).header(header::HOST, host).body(Body::empty()).expect("request");
                let response = router(in_force()).oneshot(request).await.expect("infallible");
                let expected =
                    if path == "/nothing" && expected == StatusCode::OK { StatusCode::NOT_FOUND } else { expected };
                assert_eq!(response.status(), expected, "{host} {path}");
            }
        }
    }

    #[tokio::test]
    async fn the_listener_for_probes_says_yes_or_no() {
        for (ready, status, text) in
            [(true, StatusCode::OK, "ready\n"), (false, StatusCode::SERVICE_UNAVAILABLE, "not ready\n")]
        {
            let readiness = Readiness { ready, reasons: vec!["a secret".to_owned()], freshness: Some("stale") };
            let router = probes(watch::channel(readiness).1);
            for (path, expected) in [
                ("/readyz", (status, text)),
                ("/livez", (StatusCode::OK, "ok\n")),
                ("/config", (StatusCode::NOT_FOUND, "nothing here; there is /livez and /readyz\n")),
            ] {
                let request = Request::get(path).header(header::HOST, "10.0.0.9:9193").body(Body::empty());
                let response = router.clone().oneshot(request.expect("request")).await.expect("infallible");
                let found = response.status();
                let body = response.into_body().collect().await.expect("body").to_bytes();
                assert_eq!((found, &*body), (expected.0, expected.1.as_bytes()), "{path}");
            }
        }
    }
}
