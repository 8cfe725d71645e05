//! Policies that read the body: the orders of the bookstore, whole, as bytes, and cut off.

use serde_json::{Value, json};

use super::lab::{Lab, Listener, jwt_authn};
use testkit::Stockade;
use testkit::http::Request;
use testkit::token::Issuer;
use testkit::upstream::{Upstream, latin1};

#[tokio::test]
async fn policies_read_bodies() {
    let stockade = Stockade::with_bundle(&testkit::repository("policies/bookstore"), "").await;
    let (upstream, issuer) = (Upstream::start().await, Issuer::new());
    let with = |body: Value| Listener {
        authz: json!({"with_request_body": body}),
        before: vec![jwt_authn(&issuer)],
        ..Listener::default()
    };
    let mut envoy = Lab::new(&upstream)
        .sidecar("stockade", &stockade.addresses[0])
        .listener("text", "stockade", with(json!({"max_request_bytes": 64})))
        .listener("bytes", "stockade", with(json!({"max_request_bytes": 64, "pack_as_bytes": true})))
        .listener("cut", "stockade", with(json!({"max_request_bytes": 64, "allow_partial_message": true})))
        .listener("none", "stockade", with(Value::Null))
        .listener(
            "joined",
            "stockade",
            Listener {
                authz: json!({"with_request_body": {"max_request_bytes": 64}, "encode_raw_headers": false}),
                before: vec![jwt_authn(&issuer)],
                ..Listener::default()
            },
        )
        .start()
        .await;
    let token = issuer.token("alice", &["readers"], json!({}));

    let json = "application/json";
    let order = r#"{"book_id": 1, "quantity": 3}"#;
    let long = format!(r#"{{"note": "{}", "book_id": 1, "quantity": 3}}"#, "x".repeat(64));
    let all: [&str; 2] = ["text", "bytes"];
    // Listeners, content type, body, status, reason.
    let table: Vec<(&[&str], &str, &[u8], u16, &str)> = vec![
        (&all, json, order.as_bytes(), 200, "policy"),
        (&["cut"], json, order.as_bytes(), 200, "policy"),
        (&all, "application/vnd.order+json; charset=utf-8", order.as_bytes(), 200, "policy"),
        (&all, "application/x-www-form-urlencoded", b"book_id=1&quantity=3", 200, "policy"),
        (&all, "application/x-www-form-urlencoded", b"book_id=1&quantity=30", 403, "default_deny"),
        (&all, json, br#"{"book_id": 1, "quantity": 11}"#, 403, "default_deny"),
        // What is not what it says it is.
        (&all, json, br#"{"book_id": 1, "quantity": "3"}"#, 400, "attribute"),
        (&all, json, br#"{"book_id": 1, "quantity": 1, "quantity": 99}"#, 400, "attribute"),
        (&all, json, br#"{"book_id": 1, "quantity": 3"#, 400, "attribute"),
        (&all, json, br#"{"book_id": 1}"#, 400, "attribute"),
        (&all, json, b"\xef\xbb\xbf{}", 400, "attribute"),
        // Parsers disagree on names that are not UTF-8. As text, Envoy has replaced the bytes: refused where policies read.
        (&["bytes"], json, b"{\"\xff\": 1, \"book_id\": 1, \"quantity\": 3}", 400, "attribute"),
        (&all, json, b"{\"quantity\xff\": 30, \"quantity\": 3}", 400, "attribute"),
        // What others take for the quantity.
        (&all, json, br#"{"book_id": 1, "quantity": 3, "Quantity": 30}"#, 400, "attribute"),
        (&all, json, br#"{"book_id": 1, "quantity": 3.0}"#, 400, "attribute"),
        (&all, "application/x-www-form-urlencoded", b"quantity=3&QUANTITY=30", 400, "attribute"),
        (&all, "application/x-www-form-urlencoded", b"quantity=3&x=1;quantity=30", 400, "attribute"),
        (&["text"], json, b"{\"\xff\": 1, \"book_id\": 1, \"quantity\": 3}", 200, "policy"),
        // There, and not to be read: of another type, not sent along, only its beginning.
        (&all, "text/plain", order.as_bytes(), 400, "attribute"),
        (&all, "text/json", order.as_bytes(), 400, "attribute"),
        (&all, "application/json; charset=utf-7", order.as_bytes(), 400, "attribute"),
        (&["none"], json, order.as_bytes(), 400, "attribute"),
        (&["cut"], json, long.as_bytes(), 400, "attribute"),
    ];
    for (listeners, content_type, body, status, reason) in table {
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

    // No body at all: the policy asks for one, so nothing permits. An empty one that does not say so has a type and no JSON.
    for (request, status) in [
        (Request::new("POST", "/orders"), 403),
        (Request::new("POST", "/orders").body(json, b""), 403),
        (Request::new("POST", "/orders").chunked(json, b""), 400),
    ] {
        for listener in all {
            let request = request.clone().bearer(&token);
            let answer = request.send(envoy.listener(listener)).await;
            let line = envoy.logged().await;
            assert_eq!(answer.status, status, "{listener}: {request:?}: {answer:?} {line}");
        }
    }
    upstream.take();

    // Encoded, it is another body; and a header that apps read as one of the body's is none.
    for (name, value) in [("content-encoding", "gzip"), ("content_type", "text/plain"), ("content_length", "1")] {
        let request = Request::new("POST", "/orders").bearer(&token).header(name, value).body(json, order);
        let answer = request.send(envoy.listener("bytes")).await;
        let line = envoy.logged().await;
        assert_eq!(answer.status, 400, "{name}: {answer:?} {line}");
    }

    // A client cannot hide its body from policies by calling it partial.
    for listener in ["text", "bytes", "joined"] {
        let request = Request::new("POST", "/orders").bearer(&token).header("x-envoy-auth-partial-body", "true");
        let answer = request.body(json, order).send(envoy.listener(listener)).await;
        assert_eq!(answer.status, 200, "{listener}: {answer:?} {}", envoy.logged().await);
        envoy.logged().await;
        upstream.take();
    }

    // Larger than Envoy holds back: nobody is asked.
    let request = Request::new("POST", "/orders").bearer(&token).body(json, &long);
    assert_eq!(request.send(envoy.listener("bytes")).await.status, 413);
    assert_eq!(envoy.logged().await["metadata"], Value::Null);
    assert!(upstream.take().is_empty());
}
