//! Headers: what the upstream gets, and what policies see in both forms in which Envoy sends them.

use serde_json::json;

use super::lab::{Lab, Listener, bundle, jwt_authn};
use testkit::Stockade;
use testkit::http::Request;
use testkit::token::Issuer;
use testkit::upstream::Upstream;

const OURS: [&str; 7] = [
    "x-stockade-principal",
    "x-stockade-id",
    "x-stockade-decision",
    "x-stockade-revision",
    "x-stockade-email",
    "x-stockade-scopes",
    "x-internal",
];

#[tokio::test]
async fn our_headers_are_ours_alone() {
    let bundle = bundle(&[("policies/all.cedar", "permit (principal, action, resource);")]);
    let stockade = Stockade::with_bundle(
        bundle.path(),
        "upstream_headers:
  x-stockade-principal: principal
  x-stockade-id: principal_id
  x-stockade-decision: decision_id
  x-stockade-revision: revision
  x-stockade-email: claim:email
  x-stockade-scopes: claim:scopes
remove_headers: [x-internal, authorization]
",
    )
    .await;
    let (upstream, issuer) = (Upstream::start().await, Issuer::new());
    let authz = || json!({"failure_mode_allow": true});
    let mut envoy = Lab::new(&upstream)
        .sidecar("stockade", &stockade.addresses[0])
        .sidecar("down", &format!("unix://{}/nobody.sock", bundle.path().display()))
        .listener(
            "on",
            "stockade",
            Listener { authz: authz(), before: vec![jwt_authn(&issuer)], ..Listener::default() },
        )
        .listener("off", "down", Listener { authz: authz(), ..Listener::default() })
        .start()
        .await;
    let revision: serde_json::Value = serde_json::from_str(&stockade.admin("/snapshot").await.1).unwrap();
    let revision = revision["snapshot"]["revision"]["id"].as_str().unwrap().to_owned();

    let full = issuer.token("alice", &[], json!({"email": "alice@example.com", "scopes": ["read", "write"]}));
    let bare = issuer.token("zoë \"100%\"", &[], json!({}));
    // Token, and what the upstream gets as: principal, id, email, scopes.
    let table: [(Option<&str>, &str, &str, &[&str], &[&str]); 3] = [
        (Some(&full), "User::\"alice\"", "alice", &["alice@example.com"], &["read,write"]),
        (Some(&bare), "User::\"zo%C3%AB \\\"100%25\\\"\"", "zo%C3%AB \"100%25\"", &[], &[]),
        (None, "Anonymous::\"anonymous\"", "anonymous", &[], &[]),
    ];
    for (token, principal, id, email, scopes) in table {
        for copies in 0..3 {
            let mut request = Request::get("/").header("x-other", "stays");
            for name in OURS {
                for copy in 0..copies {
                    // Names as odd as HTTP/1.1 allows.
                    let name = if copy == 0 { name.to_owned() } else { name.to_ascii_uppercase() };
                    request = request.header(&name, "forged");
                }
            }
            if let Some(token) = token {
                request = request.bearer(token);
            }
            let seen = request.send(envoy.listener("on")).await.echo().expect("through");
            let decision = envoy.logged().await["metadata"]["decision_id"].as_str().unwrap().to_owned();
            let expected: [&[&str]; 7] = [&[principal], &[id], &[&decision], &[&revision], email, scopes, &[]];
            for (name, expected) in OURS.iter().zip(expected) {
                assert_eq!(seen.header(name), expected, "{name}, {copies} copies, {principal}");
            }
            assert!(seen.header("authorization").is_empty(), "{principal}");
            assert_eq!(seen.header("x-other"), ["stays"]);
            assert!(!format!("{seen:?}").contains("forged"), "{seen:?}");
        }
    }

    // The trap of failing open: nobody sets, nobody removes. `header_mutation` in envoy/*.yaml is there for this.
    let request = Request::get("/").header("x-stockade-principal", "User::\"forged\"");
    let seen = request.send(envoy.listener("off")).await.echo().expect("through");
    assert_eq!(seen.header("x-stockade-principal"), ["User::\"forged\""]);
}

#[tokio::test]
async fn headers_reach_policies_one_by_one_in_both_forms() {
    let bundle = bundle(&[
        (
            "schema.cedarschema",
            r#"action "GET" appliesTo { principal: [Anonymous], resource: [Service], context: {
                headers: { "x-one"?: String, "x-many"?: Set<String> },
            } };"#,
        ),
        (
            "policies/all.cedar",
            r#"@id("all") permit (principal, action, resource);
            @id("one") @status("470") forbid (principal, action == Action::"GET", resource) when {
                context.headers has "x-one" && context.headers["x-one"] == "admin"
            };
            @id("joined") @status("471") forbid (principal, action == Action::"GET", resource) when {
                context.headers has "x-one" && context.headers["x-one"] == "user,admin"
            };
            @id("many") @status("473") forbid (principal, action == Action::"GET", resource) when {
                context.headers has "x-many" && context.headers["x-many"].contains("admin")
            };"#,
        ),
    ]);
    let stockade = Stockade::with_bundle(bundle.path(), "").await;
    let upstream = Upstream::start().await;
    let form = |raw: bool| Listener { authz: json!({"encode_raw_headers": raw}), ..Listener::default() };
    let mut envoy = Lab::new(&upstream)
        .sidecar("stockade", &stockade.addresses[0])
        .listener("raw", "stockade", form(true))
        .listener("joined", "stockade", form(false))
        .start()
        .await;

    // Header lines, and the answer in the raw and in the joined form.
    let table: [(&[(&str, &[u8])], u16, u16); 20] = [
        (&[], 200, 200),
        (&[("x-one", b"user")], 200, 200),
        (&[("x-one", b"admin")], 470, 470),
        (&[("X-ONE", b"admin")], 470, 470),
        // One value with a comma, or two values? Only the raw form tells; in the other it is refused.
        (&[("x-one", b"user,admin")], 471, 400),
        // Repeated: never one of its values.
        (&[("x-one", b"user"), ("x-one", b"admin")], 400, 400),
        (&[("x-one", b"admin"), ("X-One", b"admin")], 400, 400),
        (&[("x-many", b"user")], 200, 200),
        (&[("x-many", b"user"), ("x-many", b"admin"), ("x-many", b"last")], 473, 473),
        (&[("x-many", b"user, admin ,last")], 473, 473),
        (&[("x-many", b"")], 200, 200),
        // Not UTF-8. In the joined form Envoy writes `!` for it, so no value with a `!` is believed there.
        (&[("x-one", b"caf\xe9")], 400, 400),
        (&[("x-many", b"user"), ("x-many", b"\xff")], 400, 400),
        (&[("x-one", b"caf!")], 200, 400),
        // Apps read it as x-one.
        (&[("x_one", b"admin")], 400, 400),
        (&[("X_Many", b"admin")], 400, 400),
        (&[("x-one", b"user"), ("x_one", b"admin")], 400, 400),
        (&[("x_envoy_peer", b"x")], 400, 400),
        (&[("x_other", b"admin")], 200, 200),
        // What no schema names is nobody's business.
        (&[("x-other", b"caf\xe9"), ("x-other", b"admin")], 200, 200),
    ];
    for (lines, raw, joined) in table {
        for (listener, expected) in [("raw", raw), ("joined", joined)] {
            let request = lines.iter().fold(Request::get("/"), |request, (name, value)| request.header(name, value));
            let answer = request.send(envoy.listener(listener)).await;
            let line = envoy.logged().await;
            assert_eq!(answer.status, expected, "{listener}: {lines:?}: {answer:?}");
            if expected == 400 {
                assert_eq!(line["metadata"]["reason"], "attribute", "{listener}: {lines:?}: {line}");
            }
            assert_eq!(upstream.take().len(), usize::from(expected == 200), "{listener}: {lines:?}");
        }
    }
}

/// The status of a request over HTTP/2 in bytes of our own making: clients' libraries do not send such a path. 0 if it was reset.
async fn over_http2(to: std::net::SocketAddr, path: &[u8]) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let short = |bytes: &[u8]| u8::try_from(bytes.len()).expect("short");
    let fields: [(&[u8], &[u8]); 4] =
        [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"bookstore.example"), (b":path", path)];
    // Literal fields without indexing, nothing compressed (RFC 7541, 6.2.2).
    let block: Vec<u8> =
        fields.iter().flat_map(|(name, value)| [&[0, short(name)], *name, &[short(value)], *value].concat()).collect();
    // SETTINGS, and HEADERS that end the stream and the headers (RFC 9113, 6).
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let headers = [0, 0, short(&block), 1, 0x5, 0, 0, 0, 1];
    let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
    let bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &settings, &headers, &block].concat();
    stream.write_all(&bytes).await.unwrap();
    let mut answer = vec![0; 1024];
    // Until a frame of the stream, or the end: HEADERS, RST_STREAM or GOAWAY.
    let mut seen = Vec::new();
    loop {
        let read = stream.read(&mut answer).await.unwrap();
        seen.extend_from_slice(&answer[..read]);
        let mut rest = &seen[..];
        while let [a, b, c, kind, _, _, _, _, _, after @ ..] = rest {
            match (kind, after) {
                // The status comes first, from the static table (RFC 7541, appendix A).
                (1, [0x88, ..]) => return 200,
                (1, [0x8c, ..]) => return 400,
                (1, [other, ..]) => panic!("a status that no case expects: {other:x}"),
                (3 | 7, _) => return 0,
                _ => {}
            }
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            rest = after.get(length..).unwrap_or_default();
        }
        if read == 0 {
            return 0;
        }
    }
}

#[tokio::test]
async fn targets_that_are_not_utf8_are_refused_in_both_forms() {
    let bundle = bundle(&[
        (
            "schema.cedarschema",
            r#"action "GET" appliesTo { principal: [Anonymous], resource: [Service], context: {
                path: String, query: { q?: String },
            } };"#,
        ),
        ("policies/all.cedar", "permit (principal, action, resource) when { [context].contains(context) };"),
    ]);
    let stockade = Stockade::with_bundle(bundle.path(), "").await;
    let upstream = Upstream::start().await;
    let form = |raw: bool, normalize: bool| Listener {
        authz: json!({"encode_raw_headers": raw}),
        manager: json!({"normalize_path": normalize, "merge_slashes": normalize, "path_with_escaped_slashes_action": "KEEP_UNCHANGED"}),
        ..Listener::default()
    };
    let envoy = Lab::new(&upstream)
        .sidecar("stockade", &stockade.addresses[0])
        .listener("raw", "stockade", form(true, true))
        .listener("joined", "stockade", form(false, true))
        .listener("raw-bare", "stockade", form(true, false))
        .listener("joined-bare", "stockade", form(false, false))
        .start()
        .await;
    for listener in ["raw", "joined", "raw-bare", "joined-bare"] {
        let to = envoy.listener(listener);
        let joined = listener.starts_with("joined");
        // HTTP/1.1 refuses them by itself.
        for target in [&b"/caf\xe9"[..], b"/?q=\xff", b"/?q\xff=1"] {
            let case = format!("{listener} {}", String::from_utf8_lossy(target));
            assert_eq!(Request::get(target).send(to).await.status, 400, "{case}");
            assert_eq!(over_http2(to, target).await, 400, "{case}");
            assert!(upstream.take().is_empty(), "{case}");
        }
        // In the joined form nothing tells them from this.
        for target in [&b"/caf!"[..], b"/?q=!", b"/?q!=1"] {
            let case = format!("{listener} {}", String::from_utf8_lossy(target));
            let status = if joined { 400 } else { 200 };
            assert_eq!(Request::get(target).send(to).await.status, status, "{case}");
            assert_eq!(over_http2(to, target).await, status, "{case}");
        }
        for target in [&b"/a?q=b"[..], b"/a%21?q=%21", b"/a?other=!"] {
            let case = format!("{listener} {}", String::from_utf8_lossy(target));
            assert_eq!(Request::get(target).send(to).await.status, 200, "{case}");
            assert_eq!(over_http2(to, target).await, 200, "{case}");
        }
        upstream.take();
    }
}
