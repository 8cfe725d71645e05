//! What the real `jwt_authn` leaves behind for the sidecar, and what the app gets of a token through the real Envoy.

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::lab::{Lab, Listener, bundle, jwt_authn};
use testkit::Stockade;
use testkit::http::Request;
use testkit::token::Issuer;
use testkit::upstream::Upstream;

/// The filter, with a provider that writes this into the metadata, and this requirement.
fn filter(issuer: &Issuer, writes: &Value, requires: Value) -> Value {
    let mut filter = jwt_authn(issuer);
    let config = filter["typed_config"].as_object_mut().unwrap();
    let provider = config["providers"]["issuer"].as_object_mut().unwrap();
    provider.remove("payload_in_metadata");
    provider.extend(writes.as_object().unwrap().clone());
    config["rules"] = json!([{"match": {"prefix": "/"}, "requires": requires}]);
    filter
}

/// Whatever `jwt_authn` says of a token: it is read, or refused, or there is none.
#[tokio::test]
async fn what_jwt_authn_leaves_is_read_or_refused() {
    let bundle = bundle(&[("policies/all.cedar", "permit (principal, action, resource);")]);
    let headers = "upstream_headers: {x-stockade-principal: principal}\n";
    let stockade = Stockade::with_bundle(bundle.path(), headers).await;
    let (upstream, issuer) = (Upstream::start().await, Issuer::new());
    let any = |more: Value| json!({"requires_any": {"requirements": [{"provider_name": "issuer"}, more]}});
    let (missing, failed) = (|| any(json!({"allow_missing": {}})), || any(json!({"allow_missing_or_failed": {}})));
    let full = json!({
        "payload_in_metadata": "payload", "header_in_metadata": "jwt_header", "failed_status_in_metadata": "failed",
    });
    let unverified = json!({"extract_only_without_validation": {}});
    let mut lab = Lab::new(&upstream).sidecar("stockade", &stockade.addresses[0]);
    for (name, filter) in [
        ("istio", filter(&issuer, &full, failed())),
        ("unknown", filter(&issuer, &json!({"payload_in_metadata": "keycloak"}), missing())),
        ("unverified", filter(&issuer, &json!({"payload_in_metadata": "jwt_payload"}), unverified)),
    ] {
        lab = lab.listener(name, "stockade", Listener { before: vec![filter], ..Listener::default() });
    }
    let mut envoy = lab.start().await;

    let alice = issuer.token("alice", &[], json!({}));
    let expired = issuer.token("alice", &[], json!({"exp": 1_000_000_000}));
    let forged = Issuer::new().token("alice", &[], json!({}));
    let (user, nobody) = (Some("User::\"alice\""), Some("Anonymous::\"anonymous\""));
    for (listener, token, principal) in [
        ("istio", Some(&alice), user),
        // `failed_status_in_metadata` also says that there was no token.
        ("istio", None, nobody),
        ("istio", Some(&expired), None),
        ("istio", Some(&forged), None),
        ("istio", Some(&"nonsense".to_owned()), None),
        ("unknown", Some(&alice), None),
        ("unknown", None, nobody),
        ("unverified", Some(&forged), None),
        ("unverified", None, nobody),
    ] {
        let request = Request::get("/");
        let request = if let Some(token) = token { request.bearer(token) } else { request };
        let answer = request.send(envoy.listener(listener)).await;
        let line = envoy.logged().await;
        let seen = upstream.take();
        let case = format!("{listener} {token:?}: {answer:?} {line}");
        match principal {
            Some(principal) => assert_eq!(seen[0].header("x-stockade-principal"), [principal], "{case}"),
            None => {
                assert_eq!((answer.status, &*answer.body), (400, "bad request: identity"), "{case}");
                assert!(seen.is_empty(), "{case}");
            }
        }
    }
}

/// What the app reads back is what the token said, by the rule of docs/context.md.
#[tokio::test]
async fn claims_arrive_as_the_token_said_them() {
    let bundle = bundle(&[("policies/all.cedar", "permit (principal, action, resource);")]);
    let stockade = Stockade::with_bundle(bundle.path(), "upstream_headers: {x-claim: 'claim:realm.roles'}\n").await;
    let (upstream, issuer) = (Upstream::start().await, Issuer::new());
    let listener = Listener { before: vec![jwt_authn(&issuer)], ..Listener::default() };
    let lab = Lab::new(&upstream).sidecar("stockade", &stockade.addresses[0]);
    let envoy = lab.listener("in", "stockade", listener).start().await;
    let strings = |items: &[&str]| Some(items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>());
    for (claim, expected) in [
        (json!(["staff", "admin"]), strings(&["staff", "admin"])),
        (json!(["staff,admin"]), strings(&["staff,admin"])),
        (json!("staff,admin"), strings(&["staff,admin"])),
        (json!(" mallory"), strings(&[" mallory"])),
        (json!(["a ", "\tb", " "]), strings(&["a ", "\tb", " "])),
        (json!("x\r\nx-admin: yes"), strings(&["x\r\nx-admin: yes"])),
        (json!("\u{0}\u{7f}zo\u{eb}%2C\u{85}"), strings(&["\u{0}\u{7f}zo\u{eb}%2C\u{85}"])),
        (json!(""), strings(&[""])),
        (json!([""]), strings(&[""])),
        (json!(["", ""]), strings(&["", ""])),
        (json!(["a", ""]), strings(&["a", ""])),
        (json!([]), None),
        (json!(null), None),
        (json!(9_007_199_254_740_991_i64), strings(&["9007199254740991"])),
        (json!([true, 7]), strings(&["true", "7"])),
    ] {
        let token = issuer.token("alice", &[], json!({"realm": {"roles": claim}}));
        let request = Request::get("/").header("x-claim", "forged").header("X-Claim", "forged").bearer(&token);
        let seen = request.send(envoy.listener("in")).await.echo().expect("through");
        let lines = seen.header("x-claim");
        let decode = |part: &str| percent_decode_str(part).decode_utf8().unwrap().into_owned();
        let read = match lines[..] {
            [] => None,
            [line] => Some(line.split(',').map(decode).collect::<Vec<_>>()),
            _ => panic!("{lines:?}"),
        };
        assert_eq!(read, expected, "{claim}: {lines:?}");
    }
    for claim in [json!(12_345_678_901_234_567_678_u64), json!(0.5), json!({}), json!([[]]), json!([null])] {
        let token = issuer.token("alice", &[], json!({"realm": {"roles": claim}}));
        let answer = Request::get("/").bearer(&token).send(envoy.listener("in")).await;
        assert_eq!((answer.status, &*answer.body), (400, "bad request: attribute"), "{claim}");
    }
}
