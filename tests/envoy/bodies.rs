//! Policies that read the body: the orders of the bookstore, whole, as bytes, and cut off.

use serde_json::{Value, json};

use super::lab::{Lab, Listener, jwt_authn};
use testkit::Stockade;
use testkit::envoy::Envoy;
use testkit::http::Request;
use testkit::token::Issuer;
use testkit::upstream::{Upstream, latin1};

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";
const ORDER: &[u8] = br#"{"book_id": 1, "quantity": 3}"#;
/// More than the listeners hold back.
const LONG: &[u8] =
    br#"{"note": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "book_id": 1, "quantity": 3}"#;
/// The listeners that send a whole body along.
const BOTH: &[&str] = &["text", "bytes"];

/// Listeners, content type, body, status, reason.
const BODIES: &[(&[&str], &str, &[u8], u16, &str)] = &[
    (BOTH, JSON, ORDER, 200, "policy"),
    (&["cut"], JSON, ORDER, 200, "policy"),
    (BOTH, "application/vnd.order+json; charset=utf-8", ORDER, 200, "policy"),
    (BOTH, FORM, b"book_id=1&quantity=3", 200, "policy"),
    (BOTH, FORM, b"book_id=1&quantity=30", 403, "default_deny"),
    (BOTH, JSON, br#"{"book_id": 1, "quantity": 11}"#, 403, "default_deny"),
    // What is not what it says it is.
    (BOTH, JSON, br#"{"book_id": 1, "quantity": "3"}"#, 400, "attribute"),
    (BOTH, JSON, br#"{"book_id": 1, "quantity": 1, "quantity": 99}"#, 400, "attribute"),
    (BOTH, JSON, br#"{"book_id": 1, "quantity": 3"#, 400, "attribute"),
    (BOTH, JSON, br#"{"book_id": 1}"#, 400, "attribute"),
    (BOTH, JSON, b"\xef\xbb\xbf{}", 400, "attribute"),
    // Parsers disagree on names that are not UTF-8. As text, Envoy has replaced the bytes: refused where policies read.
    (&["bytes"], JSON, b"{\"\xff\": 1, \"book_id\": 1, \"quantity\": 3}", 400, "attribute"),
    (BOTH, JSON, b"{\"quantity\xff\": 30, \"quantity\": 3}", 400, "attribute"),
    // What others take for the quantity.
    (BOTH, JSON, br#"{"book_id": 1, "quantity": 3, "Quantity": 30}"#, 400, "attribute"),
    (BOTH, JSON, br#"{"book_id": 1, "quantity": 3.0}"#, 400, "attribute"),
    (BOTH, FORM, b"quantity=3&QUANTITY=30", 400, "attribute"),
    (BOTH, FORM, b"quantity=3&x=1;quantity=30", 400, "attribute"),
    (&["text"], JSON, b"{\"\xff\": 1, \"book_id\": 1, \"quantity\": 3}", 200, "policy"),
    // There, and not to be read: of another type, not sent along, only its beginning.
    (BOTH, "text/plain", ORDER, 400, "attribute"),
    (BOTH, "text/json", ORDER, 400, "attribute"),
    (BOTH, "application/json; charset=utf-7", ORDER, 400, "attribute"),
    (&["none"], JSON, ORDER, 400, "attribute"),
    (&["cut"], JSON, LONG, 400, "attribute"),
];

/// An Envoy with a listener for each way to send a body along.
async fn lab(stockade: &str, upstream: &Upstream, issuer: &Issuer) -> Envoy {
    let with = |body: Value| Listener {
        authz: json!({"with_request_body": body}),
        before: vec![jwt_authn(issuer)],
        ..Listener::default()
    };
    Lab::new(upstream)
        .sidecar("stockade", stockade)
        .listener("text", "stockade", with(json!({"max_request_bytes": 64})))
        .listener("bytes", "stockade", with(json!({"max_request_bytes": 64, "pack_as_bytes": true})))
        .listener("cut", "stockade", with(json!({"max_request_bytes": 64, "allow_partial_message": true})))
        .listener("none", "stockade", with(Value::Null))
        .listener(
            "joined",
            "stockade",
            Listener {
                authz: json!({"with_request_body": {"max_request_bytes": 64}, "encode_raw_headers": false}),
                before: vec![jwt_authn(issuer)],
                ..Listener::default()
            },
        )
        .start()
        .await
}

#[tokio::test]
async fn policies_read_bodies() {
    let stockade = Stockade::with_bundle(&testkit::repository("policies/bookstore"), "").await;
    let (upstream, issuer) = (Upstream::start().await, Issuer::new());
    let mut envoy = lab(&stockade.addresses[0], &upstream, &issuer).await;
    let token = issuer.token("alice", &["readers"], json!({}));

    for (listeners, content_type, body, status, reason) in BODIES.iter().copied() {
        for listener in listeners {
            for chunked in [false, true] {
                let request = Request::new("POST", "/orders").bearer(&token);
                let request =
                    if chunked { request.chunked(content_type, body) } else { request.body(content_type, body) };
                let case = format!("{listener}: {request:?}");
                let answer = request.send(envoy.listener(listener)).await;
                let line = envoy.logged().await;
                assert_eq!(
                    (answer.status, &line["metadata"]["reason"]),
                    (status, &json!(reason)),
                    "{case}: {answer:?}"
                );
                let bodies: Vec<String> = upstream.take().into_iter().map(|seen| seen.body).collect();
                let through = latin1(body);
                assert_eq!(bodies, if status == 200 { vec![through] } else { Vec::new() }, "{case}");
            }
        }
    }

    odd_bodies(&mut envoy, &upstream, &token).await;
}

/// What stands out of the table.
async fn odd_bodies(envoy: &mut Envoy, upstream: &Upstream, token: &str) {
    // No body at all: the policy asks for one, so nothing permits. An empty one that does not say so has a type and no JSON.
    for (request, status) in [
        (Request::new("POST", "/orders"), 403),
        (Request::new("POST", "/orders").body(JSON, b""), 403),
        (Request::new("POST", "/orders").chunked(JSON, b""), 400),
    ] {
        for listener in BOTH {
            let request = request.clone().bearer(token);
            let answer = request.send(envoy.listener(listener)).await;
            let line = envoy.logged().await;
            assert_eq!(answer.status, status, "{listener}: {request:?}: {answer:?} {line}");
        }
    }
    upstream.take();

    // Encoded, it is another body; and a header that apps read as one of the body's is none.
    for (name, value) in [("content-encoding", "gzip"), ("content_type", "text/plain"), ("content_length", "1")] {
        let request = Request::new("POST", "/orders").bearer(token).header(name, value).body(JSON, ORDER);
        let answer = request.send(envoy.listener("bytes")).await;
        let line = envoy.logged().await;
        assert_eq!(answer.status, 400, "{name}: {answer:?} {line}");
    }

    // A client cannot hide its body from policies by calling it partial.
    for listener in ["text", "bytes", "joined"] {
        let request = Request::new("POST", "/orders").bearer(token).header("x-envoy-auth-partial-body", "true");
        let answer = request.body(JSON, ORDER).send(envoy.listener(listener)).await;
        assert_eq!(answer.status, 200, "{listener}: {answer:?} {}", envoy.logged().await);
        envoy.logged().await;
        upstream.take();
    }

    // Larger than Envoy holds back: nobody is asked.
    let request = Request::new("POST", "/orders").bearer(token).body(JSON, LONG);
    assert_eq!(request.send(envoy.listener("bytes")).await.status, 413);
    assert_eq!(envoy.logged().await["metadata"], Value::Null);
    assert!(upstream.take().is_empty());
}
