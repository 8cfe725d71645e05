//! Who asks: tokens through `envoy/jwt.yaml`, certificates through `envoy/mtls.yaml`, both as they are shipped.

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

use testkit::Stockade;
use testkit::certificates::Authority;
use testkit::envoy::{Envoy, Places, shipped};
use testkit::http::Request;
use testkit::token::Issuer;
use testkit::upstream::Upstream;

/// The bookstore on a Unix socket in this directory.
async fn bookstore(dir: &TempDir, more: &str) -> Stockade {
    let listen = format!("listen: [\"unix://{}/authz.sock\"]\n{more}", dir.path().display());
    Stockade::with_bundle(&testkit::repository("policies/bookstore"), &listen).await
}

#[tokio::test]
async fn tokens_prove_who_asks() {
    let (dir, upstream, issuer) = (TempDir::new().unwrap(), Upstream::start().await, Issuer::new());
    std::fs::write(dir.path().join("jwks.json"), issuer.jwks()).unwrap();
    let headers = "upstream_headers: {x-stockade-principal: principal, x-stockade-email: 'claim:email'}\n";
    let stockade = bookstore(&dir, headers).await;
    let places = Places { app: upstream.address, etc: dir.path(), stockade: &stockade.addresses[0] };
    let mut envoy = Envoy::start(&shipped("jwt.yaml", &places)).await;

    let reader = || Some(issuer.token("alice", &["readers"], json!({"email": "alice@example.com"})));
    let editor = |mfa: Value| Some(issuer.token("eve", &["editors"], json!({"mfa": mfa})));
    let with = |claims: Value| Some(issuer.token("mallory", &["readers"], claims));
    let forged = Issuer::new().token("mallory", &["readers"], json!({}));
    let parts: Vec<String> = issuer.token("alice", &[], json!({})).split('.').map(str::to_owned).collect();
    let payload =
        json!({"iss": "https://issuer.example", "aud": "bookstore", "sub": "mallory", "exp": 4_000_000_000_u64});
    let unsigned = issuer.sign(&json!({"alg": "none", "typ": "JWT"}), &payload);
    let swapped = format!("{}.{}.{}", parts[0], unsigned.split('.').nth(1).unwrap(), parts[2]);

    let (alice, eve) = (Some("User::\"alice\""), Some("User::\"eve\""));
    // Method, path, token, status, reason, and who the upstream is told that it is.
    let table: Vec<(&str, &str, Option<String>, u16, Option<&str>, Option<&str>)> = vec![
        // No token: anonymous, who may see the list and nothing more.
        ("GET", "/books", None, 200, Some("policy"), Some("Anonymous::\"anonymous\"")),
        ("GET", "/books/1", None, 403, Some("default_deny"), None),
        // Groups of the token are parents, also through the bundle's own hierarchy: editors are readers.
        ("GET", "/books/1", reader(), 200, Some("policy"), alice),
        ("GET", "/books/1", editor(json!(true)), 200, Some("policy"), eve),
        ("GET", "/books/2", reader(), 403, Some("default_deny"), None),
        (
            "GET",
            "/books/2",
            Some(issuer.token("paul", &["press"], json!({}))),
            200,
            Some("policy"),
            Some("User::\"paul\""),
        ),
        ("GET", "/books/3", reader(), 451, Some("policy"), None),
        ("PUT", "/books/1", reader(), 401, Some("policy"), None),
        // Claims of the token.
        ("PUT", "/books/1", editor(json!(true)), 200, Some("policy"), eve),
        ("PUT", "/books/1", editor(json!(false)), 401, Some("policy"), None),
        ("PUT", "/books/1", editor(Value::Null), 401, Some("policy"), None),
        // What is not what the schema says it is proves nothing.
        ("PUT", "/books/1", editor(json!("true")), 400, Some("attribute"), None),
        ("GET", "/books/1", with(json!({"groups": "readers"})), 200, Some("policy"), Some("User::\"mallory\"")),
        ("GET", "/books/1", with(json!({"groups": {"readers": true}})), 400, Some("identity"), None),
        ("GET", "/books/1", with(json!({"groups": ["readers", 1]})), 400, Some("identity"), None),
        ("GET", "/books/1", with(json!({"sub": ""})), 400, Some("identity"), None),
        // It is looked at where policies do: one in shadow mode wants to know where orders are written to.
        ("POST", "/orders", with(json!({"email": 1})), 400, Some("attribute"), None),
        ("GET", "/books/1", with(json!({"email": 1})), 200, Some("policy"), Some("User::\"mallory\"")),
        // Bad tokens are Envoy's 401, or 403 if they are for somebody else, even where no token would do; nobody is asked.
        ("GET", "/books", Some(forged), 401, None, None),
        ("GET", "/books", Some(swapped), 401, None, None),
        ("GET", "/books", Some(unsigned), 401, None, None),
        ("GET", "/books", Some("nonsense".to_owned()), 401, None, None),
        ("GET", "/books", with(json!({"exp": 1_000_000_000})), 401, None, None),
        ("GET", "/books", with(json!({"nbf": 4_000_000_000_u64})), 401, None, None),
        ("GET", "/books", with(json!({"aud": "another"})), 403, None, None),
        ("GET", "/books", with(json!({"iss": "https://another.example"})), 401, None, None),
    ];
    for (method, path, token, status, reason, told) in table {
        let mut request = Request::new(method, path).header("x-stockade-principal", "User::\"forged\"");
        if let Some(token) = &token {
            request = request.bearer(token);
        }
        let answer = request.send(envoy.listener("ingress")).await;
        let line = envoy.logged().await;
        let case = format!("{request:?}: {answer:?} {line}");
        assert_eq!((answer.status, line["reason"].as_str()), (status, reason), "{case}");
        let by_envoy = reason.is_none();
        assert_eq!(line["details"].as_str().unwrap().starts_with("jwt_authn_access_denied"), by_envoy, "{case}");
        let seen = upstream.take();
        let principals: Vec<&str> = seen.iter().flat_map(|seen| seen.header("x-stockade-principal")).collect();
        assert_eq!(principals, told.into_iter().collect::<Vec<_>>(), "{case}");
    }

    // What a denial says to the client, and the claim that the upstream gets.
    let mfa = Request::new("PUT", "/books/1").bearer(&editor(json!(false)).unwrap());
    let mfa = mfa.send(envoy.listener("ingress")).await;
    assert_eq!(mfa.header("www-authenticate"), Some("Bearer error=\"insufficient_user_authentication\""));
    let through = Request::get("/books/1").bearer(&reader().unwrap()).send(envoy.listener("ingress")).await;
    assert_eq!(through.echo().unwrap().header("x-stockade-email"), ["alice@example.com"]);
}

#[tokio::test]
async fn certificates_prove_who_asks() {
    let (dir, upstream) = (TempDir::new().unwrap(), Upstream::start().await);
    let (mesh, stranger) = (Authority::new(), Authority::new());
    mesh.write_server(&dir.path().join("tls"));
    let stockade = bookstore(&dir, "upstream_headers: {x-stockade-principal: principal}\n").await;
    let places = Places { app: upstream.address, etc: dir.path(), stockade: &stockade.addresses[0] };
    let mut envoy = Envoy::start(&shipped("mtls.yaml", &places)).await;

    let recommender = "spiffe://bookstore.example/ns/shop/sa/recommender";
    // Who signed the client's certificate, its identity, the path, the status, the reason.
    let table = [
        (Some((&mesh, recommender)), "/books/2", 200, Some("policy")),
        (Some((&mesh, "spiffe://bookstore.example/ns/shop/sa/cart")), "/books/2", 403, Some("default_deny")),
        (Some((&mesh, "spiffe://bookstore.example/ns/shop/sa/cart")), "/books", 200, Some("policy")),
        (Some((&mesh, "spiffe://bookstore.example/ns/../sa/recommender")), "/books", 400, Some("identity")),
        // The connection is not made: nobody is asked.
        (Some((&stranger, recommender)), "/books", 0, None),
        (None, "/books", 0, None),
    ];
    for (identity, path, status, reason) in table {
        let stream = TcpStream::connect(envoy.listener("ingress")).await.unwrap();
        let stream = mesh.client(identity).connect("localhost".try_into().unwrap(), stream).await;
        let uri = identity.map(|(_, uri)| uri);
        let case = format!("{uri:?} {path}");
        // With TLS 1.3 the client learns of a refusal only when it reads.
        let answer = match stream {
            Ok(stream) => {
                let forged = format!("By=spiffe://x;URI={recommender}");
                let request = Request::get(path).header("x-forwarded-client-cert", forged);
                request.send_on(stream).await
            }
            Err(_) => continue,
        };
        assert_eq!(answer.status, status, "{case}: {answer:?}");
        let seen = upstream.take();
        assert_eq!(seen.len(), usize::from(status == 200), "{case}");
        if let Some(reason) = reason {
            let line = envoy.logged().await;
            assert_eq!((line["reason"].as_str(), line["peer"].as_str()), (Some(reason), uri), "{case}: {line}");
        }
        if let [seen] = &seen[..] {
            assert_eq!(seen.header("x-stockade-principal"), [format!("Workload::\"{}\"", uri.unwrap())], "{case}");
            let xfcc = seen.header("x-forwarded-client-cert").join(",");
            assert!(xfcc.contains(uri.unwrap()) && !xfcc.contains("By="), "{case}: {xfcc}");
        }
    }
}
