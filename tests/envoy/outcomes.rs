//! Every outcome, as the client sees it and as Envoy counts it, with `failure_mode_allow` off and on.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::lab::{Lab, Listener, bundle};
use testkit::Stockade;
use testkit::http::{Answer, Request};
use testkit::upstream::{Seen, Upstream};

const SCHEMA: &str = r#"
action "usersOnly" appliesTo { principal: [User], resource: [Service], context: {} };
action "overflow" appliesTo {
    principal: [Anonymous], resource: [Service], context: { params: { n: Long } }
};
"#;

const ROUTES: &str = "
routes:
  - {match: GET /users-only, action: usersOnly}
  - {match: 'GET /overflow/{n}', action: overflow}
";

const POLICIES: &str = r#"
@id("all")
permit (principal, action, resource) unless {
    action == Action::"GET" && !(context.path like "/open*" || context.path like "/forbidden*")
};

@id("plain")
forbid (principal, action == Action::"GET", resource) when { context.path == "/forbidden" };

@id("shaped")
@status("451")
@message("not before publication day")
@header("x-why: because\nset-cookie: a=1\nset-cookie: b=2")
forbid (principal, action == Action::"GET", resource) when { context.path == "/forbidden/shaped" };

@id("unavailable")
@status("503")
@message("closed today")
forbid (principal, action == Action::"GET", resource) when { context.path == "/forbidden/today" };

@id("redirected")
@location("https://login.example/")
forbid (principal, action == Action::"GET", resource) when { context.path == "/forbidden/login" };

@id("overflows")
forbid (principal, action == Action::"overflow", resource) when {
    context.params.n + 9223372036854775807 < 0
};
"#;

fn lab_bundle() -> TempDir {
    bundle(&[
        ("bundle.yaml", "name: lab\nunrouted: base\ndenial: {status: 403, message: ask the lab}\n"),
        ("schema.cedarschema", SCHEMA),
        ("routes.yaml", ROUTES),
        ("policies/all.cedar", POLICIES),
    ])
}

/// What a request comes to.
#[derive(Debug, Clone, Copy)]
enum Comes {
    /// To the upstream.
    Through,
    /// To a denial, whatever `failure_mode_allow` says: status and body.
    Denied(u16, &'static str),
    /// To Envoy's decision, since nobody made one: 503 with this body, or through.
    Undecided(&'static str),
}
use Comes::{Denied, Through, Undecided};

/// The sidecar that is asked, the request, what it comes to, and the decision, reason and policies in Envoy's metadata.
fn outcomes() -> Vec<(&'static str, Request, Comes, Value)> {
    let large = Request::get("/open").header("x-large", "x".repeat(4096));
    let get = |target: &str| Request::get(target);
    vec![
        // The policies decide.
        ("ready", get("/open"), Through, json!(["allow", "policy", ["lab/all"]])),
        ("ready", Request::new("POST", "/x"), Through, json!(["allow", "policy", ["lab/all"]])),
        ("ready", get("/nothing"), Denied(403, "ask the lab"), json!(["deny", "default_deny", []])),
        ("ready", get("/users-only"), Denied(403, "ask the lab"), json!(["deny", "not_applicable", []])),
        ("ready", get("/forbidden"), Denied(403, "ask the lab"), json!(["deny", "policy", ["lab/plain"]])),
        (
            "ready",
            get("/forbidden/shaped"),
            Denied(451, "not before publication day"),
            json!(["deny", "policy", ["lab/shaped"]]),
        ),
        // A 503 of a policy is a denial: it does not fail open.
        ("ready", get("/forbidden/today"), Denied(503, "closed today"), json!(["deny", "policy", ["lab/unavailable"]])),
        ("ready", get("/forbidden/login"), Denied(302, "access denied"), json!(["deny", "policy", ["lab/redirected"]])),
        // A `forbid` that cannot be evaluated.
        ("ready", get("/overflow/-1"), Through, json!(["allow", "policy", ["lab/all"]])),
        ("ready", get("/overflow/1"), Denied(403, "ask the lab"), json!(["deny", "policy_error", ["lab/overflows"]])),
        // What cannot be mapped.
        ("ready", get("/open;v=1"), Denied(400, "bad request: path"), json!(["deny", "path", []])),
        ("ready", Request::new("PURGE", "/open"), Denied(403, "ask the lab"), json!(["deny", "unrouted", []])),
        ("ready", get("/overflow/x"), Denied(400, "bad request: attribute"), json!(["deny", "attribute", []])),
        (
            "ready",
            get("/open").header("host", "evil.example"),
            Denied(400, "bad request: host"),
            json!(["deny", "host", []]),
        ),
        ("small", get("/open"), Through, json!(["allow", "policy", ["lab/all"]])),
        ("small", large, Denied(400, "bad request: too_large"), json!(["deny", "too_large", []])),
        // Nobody decides.
        (
            "undecided",
            get("/open"),
            Undecided("authorization unavailable: not_ready"),
            json!(["undecided", "not_ready", []]),
        ),
        ("by_status", get("/open"), Undecided(""), Value::Null),
        ("down", get("/open"), Undecided(""), Value::Null),
        ("silent", get("/open"), Undecided(""), Value::Null),
    ]
}

/// Envoy with two listeners for each sidecar: one that fails closed, and one that fails open.
fn both_modes(upstream: &Upstream, sidecars: &[(&str, &str)]) -> Lab {
    let mut lab = Lab::new(upstream);
    for (name, address) in sidecars {
        lab = lab.sidecar(name, address);
        for (mode, allow) in [("closed", false), ("open", true)] {
            let mut authz = json!({"failure_mode_allow": allow, "failure_mode_allow_header_add": true});
            if *name == "silent" {
                authz["grpc_service"] = json!({"timeout": "0.2s", "envoy_grpc": {"cluster_name": name}});
            }
            lab = lab.listener(&format!("{name}-{mode}"), name, Listener { authz, ..Listener::default() });
        }
    }
    lab
}

/// Compares an answer, and what the upstream saw, with what it should have come to. What Envoy says of it: details and flags of
/// the access log, and the counters that grew.
fn compared(
    comes: Comes,
    fails_open: bool,
    answer: &Answer,
    seen: &[Seen],
    case: &str,
) -> (&'static str, &'static str, &'static [&'static str]) {
    match (comes, fails_open) {
        (Through, _) => {
            assert_eq!((answer.status, seen.len()), (200, 1), "{case}: {answer:?}");
            assert!(seen[0].header("x-envoy-auth-failure-mode-allowed").is_empty(), "{case}");
            ("via_upstream", "-", &["ok"])
        }
        (Denied(status, body), _) => {
            assert_eq!((answer.status, &*answer.body, seen.len()), (status, body, 0), "{case}");
            ("ext_authz_denied", "UAEX", &["denied"])
        }
        (Undecided(body), false) => {
            assert_eq!((answer.status, &*answer.body, seen.len()), (503, body, 0), "{case}");
            ("ext_authz_error", "UAEX", &["error"])
        }
        (Undecided(_), true) => {
            assert_eq!((answer.status, seen.len()), (200, 1), "{case}: {answer:?}");
            assert_eq!(seen[0].header("x-envoy-auth-failure-mode-allowed"), ["true"], "{case}");
            ("via_upstream", "-", &["error", "failure_mode_allowed"])
        }
    }
}

#[tokio::test]
async fn every_outcome_in_both_failure_modes() {
    let good = lab_bundle();
    let broken = bundle(&[("policies/broken.cedar", "permit (principal, action")]);
    let upstream = Upstream::start().await;

    let ready = Stockade::with_bundle(good.path(), "").await;
    let small = Stockade::with_bundle(good.path(), "limits: {message: 2KiB}\n").await;
    let silent = Stockade::with_bundle(good.path(), "").await;
    let undecided = Stockade::start(&testkit::config(broken.path(), ""), TempDir::new().unwrap()).await;
    let by_status = testkit::config(broken.path(), "undecided: grpc_status\n");
    let by_status = Stockade::start(&by_status, TempDir::new().unwrap()).await;
    // Takes connections and never answers.
    silent.signal("STOP");

    let down = format!("unix://{}", good.path().join("nobody.sock").display());
    let sidecars = [
        ("ready", &*ready.addresses[0]),
        ("small", &small.addresses[0]),
        ("silent", &silent.addresses[0]),
        ("undecided", &undecided.addresses[0]),
        ("by_status", &by_status.addresses[0]),
        ("down", &down),
    ];
    let mut envoy = both_modes(&upstream, &sidecars).start().await;

    let mut expected_stats: BTreeMap<String, u64> = BTreeMap::new();
    for (sidecar, request, comes, metadata) in outcomes() {
        for mode in ["closed", "open"] {
            let listener = format!("{sidecar}-{mode}");
            let case = format!("{listener}: {request:?}");
            let answer = request.send(envoy.listener(&listener)).await;
            let line = envoy.logged().await;
            let seen = upstream.take();
            let (details, flags, stats) = compared(comes, mode == "open", &answer, &seen, &case);
            assert_eq!((&line["details"], &line["flags"]), (&json!(details), &json!(flags)), "{case}: {line}");
            let said = &line["metadata"];
            let said = json!([said["decision"], said["reason"], said["determining_policies"]]);
            let expected = if metadata.is_null() { json!([null, null, null]) } else { metadata.clone() };
            assert_eq!(said, expected, "{case}: {line}");
            for stat in stats {
                *expected_stats.entry(format!("http.{listener}.ext_authz.{listener}.{stat}")).or_default() += 1;
            }
        }
    }
    for (stat, expected) in expected_stats {
        assert_eq!(envoy.stat(&stat).await, expected, "{stat}");
    }

    shapes_of_denials(envoy.listener("ready-closed")).await;
}

/// What a policy says of how its denial looks comes to the client.
async fn shapes_of_denials(listener: SocketAddr) {
    let headers = |answer: &Answer, name: &str| {
        let all = answer.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone());
        all.collect::<Vec<_>>()
    };
    let shaped = Request::get("/forbidden/shaped").send(listener).await;
    assert_eq!(headers(&shaped, "x-why"), ["because"]);
    assert_eq!(headers(&shaped, "set-cookie"), ["a=1", "b=2"]);
    assert_eq!(headers(&shaped, "content-type"), ["text/plain"]);
    let redirected = Request::get("/forbidden/login").send(listener).await;
    assert_eq!(headers(&redirected, "location"), ["https://login.example/"]);
}
