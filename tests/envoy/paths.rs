//! Paths that two parties read in two ways.
//!
//! Policies forbid `/admin*` and permit the rest. Whatever a client writes, through Envoy's normalisation or past it:
//! either the request is refused, or the policies saw the canonical form of what the upstream got.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::lab::{Lab, Listener, bundle};
use testkit::Stockade;
use testkit::http::Request;
use testkit::upstream::{Seen, Upstream};

const POLICIES: &str = r#"
@id("all") permit (principal, action, resource);
@id("admin") forbid (principal, action in [Action::"read", Action::"write"], resource) when {
    context.path like "/admin*"
};
"#;

/// What is written, and the status when Envoy normalises as in `envoy/`, when it unescapes slashes besides, and when it
/// does nothing at all. 403 is the policy's, 400 is Envoy's or ours.
const SPELLINGS: [(&[u8], [u16; 3]); 70] = [
    // Nothing odd.
    (b"/public", [200, 200, 200]),
    (b"/admin", [403, 403, 403]),
    // Slashes and dot segments.
    (b"//admin", [403, 403, 400]),
    (b"/./admin", [403, 403, 400]),
    (b"/public/../admin", [403, 403, 400]),
    (b"/public/../../admin", [403, 403, 400]),
    (b"/public//../admin", [200, 200, 400]),
    // Escapes of what needs none, once and twice.
    (b"/%61dmin", [403, 403, 403]),
    (b"/adm%69n/x", [403, 403, 403]),
    (b"/%61%64%6d%69%6e", [403, 403, 403]),
    (b"/%2561dmin", [400, 400, 400]),
    (b"/%25%36%31dmin", [400, 400, 400]),
    // Escaped dots.
    (b"/public/%2e%2e/admin", [403, 403, 400]),
    (b"/public/.%2e/admin", [403, 403, 400]),
    (b"/public/%2E./admin", [403, 403, 400]),
    (b"/public/%252e%252e/admin", [400, 400, 400]),
    // Escaped slashes (CVE-2021-29492).
    (b"/public%2f..%2fadmin", [400, 403, 400]),
    (b"/public/..%2Fadmin", [400, 403, 400]),
    (b"/%2fadmin", [400, 403, 400]),
    (b"/public%2f%2e%2e%2fadmin", [400, 403, 400]),
    (b"/public%252f..%252fadmin", [400, 400, 400]),
    // Backslashes.
    (b"/public\\..\\admin", [403, 403, 400]),
    (b"/\\admin", [403, 403, 400]),
    (b"\\admin", [400, 400, 400]),
    (b"/public%5c..%5cadmin", [400, 403, 400]),
    (b"/public/..\\admin", [403, 403, 400]),
    // Parameters (CVE-2026-73511, CVE-2026-73551): Envoy resolves `..;`, but not if it is escaped.
    (b"/public/..;/admin", [403, 403, 400]),
    (b"/public/..;x=1/admin", [403, 403, 400]),
    (b"/public/%2e%2e;/admin", [400, 400, 400]),
    (b"/public/;/../admin", [200, 200, 400]),
    (b"/;/admin", [400, 400, 400]),
    (b"/;x/admin", [400, 400, 400]),
    (b"/admin;x=1", [400, 400, 400]),
    (b"/adm;x/in", [400, 400, 400]),
    (b"/public;/../admin", [403, 403, 400]),
    (b"/public/..%3b/admin", [400, 400, 400]),
    (b"/.;/admin", [403, 403, 400]),
    // Control characters. Escaped, they are characters like others, but NUL.
    (b"/%00/admin", [400, 400, 400]),
    (b"/admin%00", [400, 400, 400]),
    (b"/public%00/../admin", [400, 400, 400]),
    (b"/public/%0a/../admin", [200, 200, 400]),
    (b"/%0d%0aadmin", [200, 200, 200]),
    (b"/public%0aadmin", [200, 200, 200]),
    // Fragments (CVE-2021-32779).
    (b"/admin#x", [400, 400, 400]),
    (b"/public#/../admin", [400, 400, 400]),
    (b"/public%23/../admin", [403, 403, 400]),
    (b"/admin%23", [403, 403, 403]),
    // The query is no part of the path.
    (b"/public?/../admin", [200, 200, 200]),
    (b"/admin?/public", [403, 403, 403]),
    (b"/public%3f/../admin", [403, 403, 400]),
    (b"/admin%3f", [403, 403, 403]),
    // A target with a host, and what looks like one.
    (b"http://evil.example/admin", [403, 403, 403]),
    (b"http://evil.example//admin", [403, 403, 400]),
    (b"http://evil.example", [200, 200, 200]),
    (b"//evil.example/admin", [200, 200, 400]),
    // Malformed escapes.
    (b"/%zz/admin", [400, 400, 400]),
    (b"/admin%", [400, 400, 400]),
    (b"/admin%2", [400, 400, 400]),
    (b"/public%u002e%u002e/admin", [400, 400, 400]),
    // Beyond ASCII: overlong forms, lookalikes.
    (b"/caf\xc3\xa9", [400, 400, 400]),
    (b"/caf%C3%A9", [200, 200, 200]),
    (b"/caf%E9", [400, 400, 400]),
    (b"/%c0%ae%c0%ae/admin", [400, 400, 400]),
    (b"/public/%c0%af../admin", [400, 400, 400]),
    (b"/public/%ef%bc%8e%ef%bc%8e/admin", [200, 200, 200]),
    // What policies see as it is: they say whether case matters.
    (b"/ADMIN", [200, 200, 200]),
    (b"/public/.../admin", [200, 200, 200]),
    // No target at all.
    (b"/public /admin", [400, 400, 400]),
    (b"/public\t/admin", [400, 400, 400]),
    (b"admin", [400, 400, 400]),
];

#[tokio::test]
async fn no_spelling_of_a_path_gets_around_the_policies() {
    let bundle = bundle(&[("policies/all.cedar", POLICIES)]);
    let dir = TempDir::new().unwrap();
    let log = dir.path().join("decisions.jsonl");
    let more = format!(
        "decision_log: {{output: 'file://{}', attributes: [context.path]}}\nupstream_headers: {{x-decision: decision_id}}\n",
        log.display()
    );
    let stockade = Stockade::with_bundle(bundle.path(), &more).await;
    let upstream = Upstream::start().await;
    let envoy = Lab::new(&upstream)
        .sidecar("stockade", &stockade.addresses[0])
        .listener("shipped", "stockade", Listener::default())
        .listener(
            "unescaping",
            "stockade",
            Listener {
                manager: json!({"path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD"}),
                ..Listener::default()
            },
        )
        .listener(
            "bare",
            "stockade",
            Listener {
                manager: json!({
                    "normalize_path": false,
                    "merge_slashes": false,
                    "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
                }),
                ..Listener::default()
            },
        )
        .start()
        .await;

    let mut through: Vec<(String, Seen)> = Vec::new();
    for (target, statuses) in SPELLINGS {
        for (listener, status) in ["shipped", "unescaping", "bare"].iter().zip(statuses) {
            let case = format!("{} at {listener}", String::from_utf8_lossy(target));
            let answer = Request::get(target).send(envoy.listener(listener)).await;
            assert_eq!(answer.status, status, "{case}: {answer:?}");
            let seen = upstream.take();
            assert_eq!(seen.len(), usize::from(status == 200), "{case}: {seen:?}");
            through.extend(seen.into_iter().map(|seen| (case.clone(), seen)));
        }
    }
    // About the server as a whole: no route matches, so nobody is asked and nobody answers.
    assert_eq!(Request::new("OPTIONS", "*").send(envoy.listener("bare")).await.status, 404);
    assert!(upstream.take().is_empty());

    assert_eq!(stockade.terminate().await.code(), Some(0));
    judged_as_seen(&std::fs::read_to_string(&log).unwrap(), through);
}

/// What got through was judged by the path that the upstream saw, and is none that leads to what is forbidden.
fn judged_as_seen(log: &str, through: Vec<(String, Seen)>) {
    let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let judged: BTreeMap<String, String> = records
        .filter_map(|record| {
            let path = record["attributes"]["context.path"].as_str()?.to_owned();
            Some((record["decision_id"].as_str()?.to_owned(), path))
        })
        .collect();
    for (case, seen) in through {
        let [decision] = seen.header("x-decision")[..] else { panic!("{case}: nobody decided: {seen:?}") };
        let path = seen.target.split('?').next().unwrap();
        let canonical = percent_decode_str(path).decode_utf8().unwrap();
        assert_eq!(judged[decision], canonical, "{case}: {seen:?}");
        assert!(!lenient(path).starts_with("/admin"), "{case}: {seen:?}");
    }
}

/// A path as the most obliging of servers might read it: decodes as often as it can, takes backslashes for slashes, cuts
/// parameters off, merges slashes, resolves dot segments.
fn lenient(path: &str) -> String {
    let mut path = path.to_owned();
    loop {
        let decoded = percent_decode_str(&path).decode_utf8_lossy().into_owned();
        if decoded == path {
            break;
        }
        path = decoded;
    }
    let path = path.replace('\\', "/");
    let mut resolved: Vec<&str> = Vec::new();
    for segment in path.split('/').map(|segment| segment.split([';', '#', '?', '\0']).next().unwrap_or("")) {
        match segment {
            "" | "." => {}
            ".." => _ = resolved.pop(),
            segment => resolved.push(segment),
        }
    }
    format!("/{}", resolved.join("/"))
}

#[test]
fn the_most_obliging_server_is_obliging() {
    for path in
        ["/admin", "//admin", "/a/..;x/admin", "/%2561dmin", "/a%5c..%2fadmin", "/;/admin;x", "/.\\admin%00.png"]
    {
        assert_eq!(lenient(path), "/admin", "{path}");
    }
    assert_eq!(lenient("/public/%ef%bc%8e%ef%bc%8e/admin"), "/public/．．/admin");
}
