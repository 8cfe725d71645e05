//! Who asks, where the token is not where it was looked for; paths to claims; and what claims become on their way to the app.

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use stockade::config::Config;
use stockade::model::{Effect, Outcome, Overlay, Reason};
use stockade::problem::SourceFile;
use stockade::proto::json as shape;
use stockade::proto::wire::CheckRequest;
use stockade::yaml;

use crate::cli::{dir, run};
use crate::fixture::{
    Court, EVERYTHING, by_token, compile, frame, holds, lines, metadata, raw, request, shop, sound, with,
};
use testkit::Stockade;

const GATEWAY: &str = "spiffe://cluster.local/ns/edge/sa/gateway";

/// A request with this metadata, through a gateway that has a certificate.
fn through_gateway(spaces: &Json) -> CheckRequest {
    with(|attributes| {
        attributes.source.as_mut().unwrap().principal = GATEWAY.into();
        attributes.metadata_context = Some(metadata(spaces));
    })
}

/// The same, with this in the namespace of `jwt_authn`.
fn jwt_authn(space: &Json) -> CheckRequest {
    through_gateway(&json!({"envoy.filters.http.jwt_authn": space}))
}

/// The principal and its groups, or the refusal.
fn who(court: &Court, request: &CheckRequest) -> Result<String, String> {
    let query = court.query(request)?;
    let all = [query.principal.uid].into_iter().chain(query.principal.parents);
    Ok(all.map(|uid| uid.to_string()).collect::<Vec<_>>().join(" "))
}

fn everything() -> stockade::policy::Files {
    shop(&[("policies/all.cedar", "permit (principal, action, resource);")])
}

fn config(text: &str) -> Result<Config, Vec<String>> {
    let source = SourceFile::new("stockade.yaml", format!("bundles: [{{directory: .}}]\n{text}"));
    yaml::parse(&source).map_err(|problems| lines(&problems))
}

// === tokens under other names ===

/// Whoever has a token is its bearer or nobody, whatever the token is called.
#[test]
fn a_token_under_another_name_is_read_or_refused() {
    let mallory = || json!({"sub": "mallory", "groups": ["suspended"]});
    let missing = || json!({"code": 1, "message": "Jwt is missing"});
    let expired = || json!({"code": 3, "message": "Jwt is expired"});
    let (user, gateway) = ("User::\"mallory\" Group::\"suspended\"", format!("Workload::\"{GATEWAY}\""));
    let (user, gateway): (Result<&str, &str>, Result<&str, &str>) = (Ok(user), Ok(&gateway));
    let two = "differ";
    let ours = "payload_key: mine, other_keys: [theirs]";
    let both = "payload_key: [mine, yours]";
    for (source, space, expected) in [
        // Envoy, Istio, and both at once.
        ("", json!({"jwt_payload": mallory()}), user),
        ("", json!({"payload": mallory()}), user),
        ("", json!({"payload": mallory(), "jwt_payload": mallory()}), user),
        ("", json!({"payload": mallory(), "jwt_payload": {"sub": "ann"}}), Err(two)),
        ("", json!({"payload": mallory(), "jwt_payload": {"sub": "mallory", "groups": []}}), Err(two)),
        ("", json!({}), gateway),
        // Names that nobody configured: Envoy Gateway's, Istio's before 1.21, a slip.
        ("", json!({"keycloak": mallory()}), Err("has `keycloak`, which no identity source reads")),
        ("", json!({"https://issuer.example": mallory()}), Err("has `https://issuer.example`, which no")),
        ("", json!({"jwt-payload": mallory()}), Err("has `jwt-payload`")),
        ("", json!({"JWT_PAYLOAD": mallory()}), Err("has `JWT_PAYLOAD`")),
        ("", json!({"x": null}), Err("has `x`")),
        ("", json!({"jwt_payload": "eyJ"}), Err("`jwt_payload` in the metadata of")),
        ("", json!({"jwt_payload": null}), Err("`jwt_payload` in the metadata of")),
        // A second token that nobody reads, and one that is the same.
        ("", json!({"jwt_payload": {"sub": "ann"}, "second": mallory()}), Err(two)),
        ("", json!({"jwt_payload": mallory(), "second": mallory()}), user),
        // The token's header says nothing about who asks.
        ("", json!({"jwt_header": {"alg": "RS256"}}), gateway),
        ("", json!({"jwt_payload": mallory(), "jwt_header": {"alg": "RS256"}}), user),
        ("", json!({"jwt_payload": mallory(), "header": {"alg": "RS256"}}), Err(two)),
        // What became of verification.
        ("", json!({"failed": missing()}), gateway),
        (
            "",
            json!({"failed": expired()}),
            Err("a token failed: `failed` of `envoy.filters.http.jwt_authn` has the code 3"),
        ),
        ("", json!({"a": missing(), "b": expired()}), Err("`b`")),
        ("", json!({"failed": {"code": 1.5, "message": "Jwt is missing"}}), Err("has `failed`")),
        ("", json!({"failed": expired(), "jwt_payload": mallory()}), user),
        // Names that somebody configured.
        (ours, json!({"mine": mallory()}), user),
        (ours, json!({"theirs": {"sub": "ann"}, "mine": mallory()}), user),
        (ours, json!({"theirs": {"sub": "ann"}}), gateway),
        (ours, json!({"jwt_payload": mallory()}), Err("has `jwt_payload`")),
        (both, json!({"yours": mallory()}), user),
        (both, json!({"yours": mallory(), "mine": {"sub": "ann"}}), Err(two)),
    ] {
        let config = format!("identity: [{{from: jwt_metadata, {source}}}, {{from: peer}}, {{from: anonymous}}]");
        let court = Court::new(&[everything()], &config.replace(", }", "}"));
        let found = who(&court, &jwt_authn(&space));
        match expected {
            Ok(expected) => assert_eq!(found.as_deref(), Ok(expected), "{source}: {space}"),
            Err(why) => {
                let refused = found.expect_err(&space.to_string());
                assert!(refused.starts_with("identity: ") && refused.contains(why), "{space}: {refused}");
            }
        }
    }
}

#[test]
fn several_sources_of_tokens_are_one_after_the_other_where_the_first_names_the_second() {
    let two = |others: &str| {
        let config = format!(
            "identity: [{{from: jwt_metadata, payload_key: a, other_keys: [{others}]}}, {{from: jwt_metadata, payload_key: b, \
             type: Workload}}, {{from: anonymous}}]"
        );
        Court::new(&[everything()], &config)
    };
    let (a, b) = (json!({"a": {"sub": "x"}}), json!({"b": {"sub": "y"}}));
    let both = json!({"a": {"sub": "x"}, "b": {"sub": "y"}});
    for court in [two(""), two("b")] {
        assert_eq!(who(&court, &jwt_authn(&a)).as_deref(), Ok("User::\"x\""));
        assert_eq!(who(&court, &jwt_authn(&b)).as_deref(), Ok("Workload::\"y\""));
    }
    assert!(who(&two(""), &jwt_authn(&both)).unwrap_err().contains("differ"));
    assert_eq!(who(&two("b"), &jwt_authn(&both)).as_deref(), Ok("User::\"x\""));
}

/// The filters' own namespaces are looked at even where a source reads another one.
#[test]
fn a_token_in_another_namespace_is_refused() {
    let other = "identity: [{from: jwt_metadata, namespace: my.jwt}, {from: peer}]";
    let peer = "identity: [{from: peer}, {from: anonymous}]";
    let unread = "identity: [{from: peer}, {from: jwt_metadata, other_keys: [jwt_payload]}]";
    let mallory = json!({"sub": "mallory"});
    for (config, spaces, expected) in [
        (other, json!({"my.jwt": {"payload": mallory}}), Ok("User::\"mallory\"")),
        (other, json!({"envoy.filters.http.jwt_authn": {"jwt_payload": mallory}}), Err("envoy.filters.http.jwt_authn")),
        ("", json!({"istio_authn": {"request.auth.principal": "i/mallory"}}), Err("has `request.auth.principal`")),
        ("", json!({"istio_authn": {"source.principal": "cluster.local/ns/a/sa/b"}}), Ok("Workload")),
        ("", json!({"other": {"jwt_payload": mallory}}), Ok("Workload")),
        // Where no source reads tokens, the bearer is not the gateway that passed the token on.
        (
            peer,
            json!({"envoy.filters.http.jwt_authn": {"jwt_payload": mallory}}),
            Err("which no identity source reads"),
        ),
        (
            peer,
            json!({"envoy.filters.http.jwt_authn": {"failed": {"code": 3, "message": "expired"}}}),
            Err("a token failed"),
        ),
        (peer, json!({"envoy.filters.http.jwt_authn": {"failed": {"code": 1, "message": "missing"}}}), Ok("Workload")),
        (peer, json!({"istio_authn": {"request.auth.principal": "i/mallory"}}), Err("has `request.auth.principal`")),
        (peer, json!({"istio_authn": {"source.principal": "cluster.local/ns/a/sa/b"}}), Ok("Workload")),
        (unread, json!({"envoy.filters.http.jwt_authn": {"jwt_payload": mallory}}), Ok("Workload")),
    ] {
        let found = who(&Court::new(&[everything()], config), &through_gateway(&spaces));
        match expected {
            Ok(start) => assert!(found.as_ref().is_ok_and(|found| found.starts_with(start)), "{spaces}: {found:?}"),
            Err(why) => assert!(found.as_ref().is_err_and(|found| found.contains(why)), "{spaces}: {found:?}"),
        }
    }
}

#[test]
fn a_token_that_was_not_verified_is_nobodys() {
    let court = Court::new(&[everything()], "");
    let renamed = "identity: [{from: jwt_metadata, verification_status_header: x-verified}, {from: anonymous}]";
    let renamed = Court::new(&[everything()], renamed);
    let with_header = |lines: &[(&str, &[u8])], token: bool| {
        let mut request = if token { by_token(json!({"sub": "mallory"})) } else { request() };
        let header = raw(lines).attributes.unwrap().request.unwrap().http.unwrap().header_map;
        request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap().header_map = header;
        request
    };
    let name = "x-jwt-signature-verified";
    for (lines, good) in [
        (&[(name, b"true".as_slice())][..], true),
        (&[(name, b"false")], false),
        (&[(name, b"")], false),
        (&[(name, b"\xff")], false),
        (&[(name, b"true"), (name, b"false")], false),
        (&[("X-JWT-Signature-Verified", b"false")], false),
        (&[("x-verified", b"false")], true),
    ] {
        for token in [true, false] {
            let found = who(&court, &with_header(lines, token));
            assert_eq!(found.is_ok(), good, "{lines:?}: {found:?}");
        }
    }
    assert!(who(&renamed, &with_header(&[("x-verified", b"false")], true)).is_err());
    assert!(who(&renamed, &with_header(&[(name, b"false")], true)).is_ok());
}

/// Over arbitrary metadata of the filter: its bearer is somebody else only if it is empty, or says that there is no token.
#[test]
fn whatever_jwt_authn_leaves_nobody_becomes_somebody_else() {
    let court = Court::new(&[everything()], "");
    let payload = prop_oneof![
        Just(json!({"sub": "ann"})),
        Just(json!({"sub": "bob"})),
        Just(json!({"sub": 7})),
        Just(json!({})),
        Just(json!(null)),
        Just(json!("x")),
        Just(json!([1])),
        Just(json!({"code": 1, "message": "m"})),
        Just(json!({"code": 2, "message": "m"})),
        Just(json!({"code": 1, "message": "m", "sub": "ann"})),
    ];
    let key = prop_oneof![
        Just("jwt_payload".to_owned()),
        Just("payload".to_owned()),
        Just("jwt_header".to_owned()),
        "[a-z_.]{1,9}"
    ];
    holds(2000, proptest::collection::btree_map(key, payload, 0..4), |space| {
        let says_nothing =
            space.iter().all(|(key, value)| key == "jwt_header" || *value == json!({"code": 1, "message": "m"}));
        let payloads: Vec<&Json> = ["jwt_payload", "payload"].iter().filter_map(|key| space.get(*key)).collect();
        match who(&court, &jwt_authn(&json!(space))) {
            Ok(who) if who.starts_with("Workload::") => assert!(says_nothing && payloads.is_empty(), "{space:?}"),
            Ok(who) => {
                let id = payloads[0]["sub"].as_str().expect("an id");
                assert_eq!(who, format!("User::\"{id}\""), "{space:?}");
                assert!(payloads.iter().all(|payload| *payload == payloads[0]), "{space:?}");
            }
            Err(refused) => assert!(refused.starts_with("identity: "), "{space:?}: {refused}"),
        }
    });
}

// === paths ===

#[test]
fn groups_ids_and_attributes_are_found_by_paths() {
    let claims = json!({
        "sub": "ann", "identity": {"id": "ann-1"}, "realm_access": {"roles": ["admin", "audit"]}, "list": [["a"], ["b"]],
        "resource_access": {"my.shop": {"roles": ["clerk"]}}, "https://id.example/roles": ["url"],
        "kubernetes.io": {"namespace": "shop"}, "scope": "openid  orders.read", "scp": "read write", "text": "read write",
        "nested": {"scope": "a b"},
    });
    let groups = |names: &[&str]| names.iter().map(|name| format!(" Group::\"{name}\"")).collect::<String>();
    for (path, expected) in [
        ("realm_access.roles", Ok(groups(&["admin", "audit"]))),
        ("realm_access.roles[1]", Ok(groups(&["audit"]))),
        ("list[1]", Ok(groups(&["b"]))),
        ("resource_access.\"my.shop\".roles", Ok(groups(&["clerk"]))),
        ("\"https://id.example/roles\"", Ok(groups(&["url"]))),
        ("\"kubernetes.io\".namespace", Ok(groups(&["shop"]))),
        ("scope", Ok(groups(&["openid", "orders.read"]))),
        ("scp", Ok(groups(&["read", "write"]))),
        ("nested.scope", Ok(groups(&["a", "b"]))),
        ("text", Ok(groups(&["read write"]))),
        ("realm_access.none", Ok(String::new())),
        ("none.roles", Ok(String::new())),
        // There, and not what was meant: never "no groups".
        ("kubernetes.io", Err("quote it as `\"kubernetes.io\"`")),
        ("sub.roles", Err("`sub` is not what the path leads through")),
        ("realm_access", Err("the claim `realm_access` is not a list of strings")),
        ("list", Err("the claim `list` is not a list of strings")),
    ] {
        let config = format!("identity: [{{from: jwt_metadata, groups_claim: '{path}', id_claim: identity.id}}]");
        let found = who(&Court::new(&[everything()], &config), &by_token(claims.clone()));
        match expected {
            Ok(groups) => assert_eq!(found, Ok(format!("User::\"ann-1\"{groups}")), "{path}"),
            Err(why) => assert!(found.as_ref().is_err_and(|found| found.contains(why)), "{path}: {found:?}"),
        }
    }
    let schema = "entity User in [Group] { roles?: Set<String>, scope?: Set<String>, words?: Set<String>, plain?: Set<String> };";
    let reads = "permit (principal is User, action, resource) when { principal has roles && principal has scope && principal has \
                 words && principal has plain };";
    let config =
        "identity: [{from: jwt_metadata, attributes: {roles: realm_access.roles, words: nested.scope, plain: text}}]";
    let court = Court::new(&[shop(&[("schema.cedarschema", schema), ("policies/all.cedar", reads)])], config);
    let query = court.query(&by_token(claims)).unwrap();
    let attributes = crate::fixture::shown_record(&query.principal.attributes);
    let expected = json!({
        "roles": ["admin", "audit"], "scope": ["openid", "orders.read"], "words": ["a", "b"], "plain": ["read write"],
    });
    assert_eq!(attributes, expected);
    let astray = court.query(&by_token(json!({"sub": "ann", "realm_access": "admin"}))).unwrap_err();
    assert!(astray.starts_with("attribute: `principal.roles` is read from the claim `realm_access.roles`"), "{astray}");
}

#[test]
fn the_words_of_a_scope_are_the_members_of_a_set() {
    for (ty, claims, expected) in [
        ("Set<String>", json!("orders.read"), Ok(json!(["orders.read"]))),
        ("Set<String>", json!("openid orders.read openid"), Ok(json!(["openid", "orders.read"]))),
        ("Set<String>", json!(""), Ok(json!([]))),
        ("Set<String>", json!(["a b", "c"]), Ok(json!(["a b", "c"]))),
        ("Set<Long>", json!("1 2"), Ok(json!([1, 2]))),
        ("Set<Long>", json!("1 x"), Err(())),
        ("String", json!("openid orders.read"), Ok(json!("openid orders.read"))),
    ] {
        for name in ["scope", "scp"] {
            let declared = format!("claims: {{ {name}?: {ty} }}");
            let found = crate::fixture::context(&declared, &by_token(json!({"sub": "a", name: claims})));
            let expected = expected.clone().map(|value| json!({"claims": {"record": {name: value}}}));
            assert_eq!(found.map_err(|_| ()), expected, "{declared} {claims}");
        }
    }
    // Wherever the claim is: below another one, and in metadata.
    let token = by_token(json!({"sub": "a", "access": {"scope": "a b", "aud": "a b"}}));
    let declared = "claims: { access?: { scope?: Set<String>, aud?: Set<String> } }";
    let nested = json!({"record": {"scope": ["a", "b"], "aud": ["a b"]}});
    assert_eq!(crate::fixture::context(declared, &token), Ok(json!({"claims": {"record": {"access": nested}}})));
    let declared =
        "metadata: { \"envoy.filters.http.jwt_authn\"?: { jwt_payload?: { scope?: Set<String>, aud?: Set<String> } } }";
    let token = by_token(json!({"sub": "a", "scope": "a b", "aud": "a b"}));
    let payload = json!({"record": {"jwt_payload": nested}});
    let expected = json!({"metadata": {"record": {"envoy.filters.http.jwt_authn": payload}}});
    assert_eq!(crate::fixture::context(declared, &token), Ok(expected));

    let other = crate::fixture::context("claims: { aud?: Set<String> }", &by_token(json!({"sub": "a", "aud": "a b"})));
    assert_eq!(other, Ok(json!({"claims": {"record": {"aud": ["a b"]}}})));
}

#[test]
fn paths_that_are_none_are_errors_of_the_configuration() {
    for (text, why) in [
        ("identity: [{from: jwt_metadata, groups_claim: realm_access..roles}]", "`realm_access..roles` is not a path"),
        (
            "identity: [{from: jwt_metadata, id_claim: 'https://id.example/id'}]",
            "is quoted: `'\"https://id.example/id\"'`",
        ),
        ("identity: [{from: jwt_metadata, attributes: {a: 'b[x]'}}]", "`b[x]` is not a path"),
        ("identity: [{from: jwt_metadata, groups_claim: $.groups}]", "begin with the name of a claim: `groups`"),
        ("identity: [{from: jwt_metadata, payload_key: []}]", "at least one"),
        ("identity: [{from: jwt_metadata, verification_status_header: 'a b'}]", "`a b` is not a header name"),
        ("upstream_headers: {x-a: 'claim:'}", "`` is not a path"),
        ("upstream_headers: {x-a: 'claim:a.'}", "`a.` is not a path"),
        ("decision_log: {attributes: [context.nothing]}", "a context has no `nothing`"),
        ("decision_log: {attributes: [context.source.adress]}", "did you mean `address`?"),
        ("decision_log: {attributes: [context.path.first]}", "`context.path` is one value"),
        ("decision_log: {attributes: ['context.claims.roles[0]']}", "a set has no items with numbers"),
        ("decision_log: {attributes: ['context.claims.https://id.example/roles']}", "is not a path"),
        ("decision_log: {attributes: [principal.address.city]}", "`principal.address`"),
        ("decision_log: {attributes: ['context.headers.\"cookie\"']}", "is a credential"),
        ("errors: {detail: all}", "`errors.detail`"),
    ] {
        let problems = config(text).expect_err(text);
        assert!(problems.iter().any(|problem| problem.contains(why)), "{text}: {problems:?}");
    }
}

// === principals that nobody knows ===

#[test]
fn a_principal_that_no_bundle_knows_is_denied_with_a_reason_of_its_own() {
    let schema = "entity User in [Group] { team: String, level?: Long };";
    let users = r#"[{"uid": {"type": "User", "id": "ann"}, "attrs": {"team": "books"}, "parents": []}]"#;
    let bundle = shop(&[
        ("bundle.yaml", "name: shop\ndenial: {status: 404, message: nothing here}"),
        ("schema.cedarschema", schema),
        ("entities/users.json", users),
        ("policies/a.cedar", "permit (principal is User, action, resource) when { principal.team == \"books\" };"),
        (
            "policies/b.cedar",
            "permit (principal is User, action, resource) when { principal has level && principal.level > 3 };",
        ),
    ]);
    let snapshot = compile(&[bundle]);
    let grant = Overlay {
        id: "grant-1".to_owned(),
        effect: Effect::Allow,
        principal: None,
        action: None,
        resource: None,
        from: std::time::UNIX_EPOCH,
        until: std::time::UNIX_EPOCH + std::time::Duration::from_secs(1 << 40),
        reason: "all for all".to_owned(),
    };
    let overlaid = std::sync::Arc::new(snapshot.overlaid(&[grant], None));
    for snapshot in [snapshot, overlaid] {
        let court = Court::under(snapshot, "errors: {detail: full}");
        let checked = |claims: Json| court.pipeline.frame(frame(&by_token(claims)), "d");
        for claims in [json!({"sub": "newcomer"}), json!({"sub": "newcomer", "team": null})] {
            let checked = checked(claims);
            assert_eq!(sound(&checked), "unknown_principal");
            let query = checked.query.as_ref().expect("it is known who asked for what");
            assert_eq!(query.principal.uid.to_string(), "User::\"newcomer\"");
            let answer = shape::check_response(&checked.response.as_ref().unwrap().response().unwrap());
            assert_eq!(answer["denied_response"]["status"], 404, "as the bundle says: {answer}");
            assert_eq!(answer["denied_response"]["body"], "nothing here");
            let Outcome::Decided(decision) = &checked.outcome else { panic!("{checked:?}") };
            assert_eq!((decision.reason, decision.determining.len()), (Reason::UnknownPrincipal, 0));
        }
        // It is there, and does not fit: that is the token's fault.
        assert_eq!(sound(&checked(json!({"sub": "newcomer", "team": 7}))), "attribute");
        assert_eq!(sound(&checked(json!({"sub": "newcomer", "team": "books"}))), "allow");
        assert_eq!(sound(&checked(json!({"sub": "ann"}))), "allow");
        // Nothing is there to be remembered.
        let said = court.pipeline.explain(&frame(&by_token(json!({"sub": "newcomer"})))).expect_err("no entry");
        assert!(said.contains("`team`"), "{said}");
    }
}

// === what clients learn ===

#[test]
fn the_body_of_a_400_is_one_word_unless_the_operator_wants_more() {
    let schema = "action \"GET\" appliesTo { principal: [User, Anonymous], resource: [Service], context: { headers: { \"x-n\"?: Long } } };";
    let reads = "permit (principal, action == Action::\"GET\", resource) when { context.headers has \"x-n\" && context.headers[\"x-n\"] > 1 };";
    let bundle = || shop(&[("schema.cedarschema", schema), ("policies/all.cedar", reads)]);
    let requests = [
        ("attribute", raw(&[("x-n", b"secret")]), "x-n"),
        ("path", crate::fixture::line("GET", "/a;b"), "path_parameters"),
        ("identity", by_token(json!({"sub": 7})), "sub"),
        ("host", crate::fixture::with_http(|http| http.host = "a b".into()), "host"),
        ("incomplete", CheckRequest { attributes: None }, "attributes"),
    ];
    for (config, full) in [("", false), ("errors: {detail: reason}", false), ("errors: {detail: full}", true)] {
        let court = Court::new(&[bundle()], config);
        for (reason, request, names) in &requests {
            let checked = court.pipeline.frame(frame(request), "d");
            assert_eq!(sound(&checked), *reason);
            let Outcome::Unmapped(unmapped) = &checked.outcome else { panic!("{checked:?}") };
            assert!(unmapped.detail.contains(names), "{unmapped:?}");
            let answer = shape::check_response(&checked.response.unwrap().response().unwrap());
            let body = answer["denied_response"]["body"].as_str().unwrap();
            let expected = if full { format!("bad request: {unmapped}") } else { format!("bad request: {reason}") };
            assert_eq!(body, expected);
        }
    }
}

// === headers ===

/// The header `x-c` that the app gets, from the claim `c`: what it is, or whether it is removed, or the refusal.
fn sent(court: &Court, claim: Option<Json>) -> Result<Option<String>, String> {
    let mut claims = json!({"sub": "ann"});
    if let Some(claim) = claim {
        claims["c"] = claim;
    }
    let checked = court.pipeline.frame(frame(&by_token(claims)), "d");
    if let Outcome::Unmapped(unmapped) = &checked.outcome {
        return Err(unmapped.to_string());
    }
    let answer = shape::check_response(&checked.response.unwrap().response().unwrap());
    let ok = &answer["ok_response"];
    let removed = ok["headers_to_remove"].as_array().unwrap().contains(&json!("x-c"));
    let set = ok["headers"]["x-c"].as_str().map(str::to_owned);
    assert_ne!(set.is_some(), removed, "{answer}");
    Ok(set)
}

#[test]
fn claims_that_cannot_be_told_apart_are_not_sent() {
    let court = Court::new(&[everything()], "upstream_headers: {x-c: 'claim:c'}");
    for (claim, expected) in [
        (json!(["staff,admin"]), Some("staff%2Cadmin")),
        (json!(["staff", "admin"]), Some("staff,admin")),
        (json!(" mallory"), Some("%20mallory")),
        (json!(["a", " b", "c "]), Some("a,%20b,c%20")),
        (json!(["", ""]), Some(",")),
        (json!(""), Some("")),
        (json!([]), None),
        (json!(null), None),
        (json!(7), Some("7")),
        (json!([true, -1, "x"]), Some("true,-1,x")),
    ] {
        assert_eq!(sent(&court, Some(claim.clone())), Ok(expected.map(str::to_owned)), "{claim}");
    }
    assert_eq!(sent(&court, None), Ok(None));
    for claim in [
        json!(12_345_678_901_234_567_678_u64),
        json!(0.5),
        json!({"a": 1}),
        json!([["a"]]),
        json!(["a", null]),
        json!([{"a": 1}]),
        json!([1.5]),
    ] {
        let refused = sent(&court, Some(claim.clone())).expect_err("a refusal");
        assert!(
            refused.starts_with("attribute: the claim `c` cannot be sent as the header `x-c`: it is "),
            "{refused}"
        );
    }
    let nested = Court::new(&[everything()], "upstream_headers: {x-c: 'claim:c.roles[0]'}");
    assert_eq!(sent(&nested, Some(json!({"roles": ["a", "b"]}))), Ok(Some("a".to_owned())));
    assert_eq!(sent(&nested, Some(json!({"roles": []}))), Ok(None));
    assert!(sent(&nested, Some(json!("a"))).unwrap_err().contains("`c` is not what the path leads through"));
}

/// Claims of any shape: what the app reads back is what the token said.
#[test]
fn an_app_reads_back_what_the_token_said() {
    let court = Court::new(&[everything()], "upstream_headers: {x-c: 'claim:c'}");
    let leaf = prop_oneof![
        "(?s)([ ,%\t\r\n\"]|.){0,5}".prop_map(Json::from),
        any::<bool>().prop_map(Json::from),
        (-(1_i64 << 54)..1 << 54).prop_map(Json::from),
        Just(Json::Null),
        any::<f64>().prop_map(Json::from),
    ];
    let claim = prop_oneof![leaf.clone(), proptest::collection::vec(leaf, 0..4).prop_map(Json::from)];
    let words = |claim: &Json| -> Option<Vec<String>> {
        let word = |value: &Json| match value {
            Json::String(text) => Some(text.clone()),
            Json::Bool(value) => Some(value.to_string()),
            Json::Number(number) => {
                let exact = |n: &i64| n.unsigned_abs() < 1 << 53;
                // All numbers of a token are doubles by the time that anyone sees them.
                #[expect(clippy::cast_possible_truncation)]
                let integer = number
                    .as_f64()
                    .filter(|n| n.fract() == 0.0 && n.abs() < 9e15 && (*n != 0.0 || n.is_sign_positive()))
                    .map(|n| n as i64);
                number.as_i64().or(integer).filter(exact).map(|n| n.to_string())
            }
            _ => None,
        };
        match claim {
            Json::Null => Some(Vec::new()),
            Json::Array(items) => items.iter().map(word).collect(),
            one => word(one).map(|word| vec![word]),
        }
    };
    holds(1000, claim, |claim| {
        let header = sent(&court, Some(claim.clone()));
        let read = header.ok().map(|header| {
            let decode = |part: &str| percent_encoding::percent_decode_str(part).decode_utf8().unwrap().into_owned();
            header.map(|header| header.split(',').map(decode).collect::<Vec<_>>()).unwrap_or_default()
        });
        assert_eq!(read, words(&claim), "{claim}");
    });
}

// === attributes that nobody declares ===

#[test]
fn attributes_that_no_bundle_declares_are_warned_of() {
    let schema = "entity User in [Group] { department?: String };
        action \"view\" appliesTo { principal: [User], resource: [Service],
            context: { params: { book_id: Long }, claims: { \"https://id.example/team\"?: String } } };";
    let court = |attributes: &str| {
        let bundle =
            shop(&[("schema.cedarschema", schema), ("policies/all.cedar", "permit (principal, action, resource);")]);
        Court::new(&[bundle], &format!("decision_log: {{attributes: [{attributes}]}}"))
    };
    let warnings = |attributes: &str| {
        let court = court(attributes);
        lines(&court.pipeline.mapping.undeclared(&court.snapshot))
    };
    let good = "context.source.address, context.path, context.tls.sni, context.params.book_id, principal.department, \
                principal.namespace, 'context.claims.\"https://id.example/team\"', context.claims";
    assert_eq!(warnings(good), Vec::<String>::new());
    for (attribute, hint) in [
        ("context.params.bookid", "did you mean `context.params.book_id`?"),
        ("principal.departement", "did you mean `principal.department`?"),
        ("context.headers.x-tenant", "declare it in the `context` of an action"),
        ("context.destination.labels.app", "declare it in the `context` of an action"),
        ("principal.shoe_size_in_centimetres", "declare it in the entity type of the principal"),
    ] {
        let warnings = warnings(attribute);
        let expected = format!("no bundle declares `{attribute}`, so it is never logged");
        assert!(warnings.len() == 1 && warnings[0].contains(&expected) && warnings[0].contains(hint), "{warnings:?}");
    }
    // The same for attributes that are read from claims of other names.
    let renamed = "identity: [{from: jwt_metadata, attributes: {departement: dept, department: dept}}]";
    let renamed = Court::new(&[shop(&[("schema.cedarschema", schema), ("policies/all.cedar", EVERYTHING)])], renamed);
    let warnings = lines(&renamed.pipeline.mapping.undeclared(&renamed.snapshot));
    let expected = "no principal has an attribute `departement`, so the claim `dept` is not read";
    let hint = "did you mean `department`?";
    assert!(warnings.len() == 1 && warnings[0].contains(expected) && warnings[0].contains(hint), "{warnings:?}");
    // What is the same for all is logged whatever an action declares.
    let mut view = request();
    let http = view.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
    http.path = "/a/b".into();
    let checked = court("context.source.address, context.path").pipeline.frame(frame(&view), "d");
    let logged = crate::fixture::shown_record(&checked.logged);
    let expected =
        json!({"context": {"record": {"path": "/a/b", "source": {"record": {"address": {"ipaddr": "192.0.2.7"}}}}}});
    assert_eq!(logged, expected);
}

// === the command line ===

const GET: &str = r#"{"attributes": {
    "source": {"address": {"socketAddress": {"address": "192.0.2.7", "portValue": 40000}}},
    "request": {"http": {"method": "GET", "path": "/", "host": "h"}},
    "metadataContext": {"filterMetadata": {"envoy.filters.http.jwt_authn": {"jwt_payload": {"sub": "ann", "teams": ["x"]}}}}}}"#;

#[test]
fn tests_of_a_bundle_know_the_identity_of_their_sidecar() {
    let files = [
        ("b/bundle.yaml", "name: b"),
        (
            "b/schema.cedarschema",
            "entity Clerk in [Team]; entity Team; action \"GET\" appliesTo { principal: [Clerk], resource: [Service] };",
        ),
        ("b/policies/p.cedar", "permit (principal in Team::\"x\", action, resource == Service::\"desk\");"),
        ("b/tests/get.json", GET),
        (
            "good.yaml",
            "bundles: [{directory: none}]\nservice: desk\nidentity: [{from: jwt_metadata, type: Clerk, group_type: Team, groups_claim: teams}]\n",
        ),
        ("bad.yaml", "servce: desk\n"),
    ];
    let identity = "identity: [{from: jwt_metadata, type: Clerk, group_type: Team, groups_claim: teams}]\n";
    let tests = "tests: [{name: one, request: get.json, expect: allow}]\n";
    let ran = |head: &str, args: &[&str]| {
        let dir = dir(&files);
        std::fs::write(dir.path().join("b/tests/t.yaml"), format!("{head}{tests}")).unwrap();
        run(dir.path(), &[&["test", "b"], args].concat(), "")
    };
    let given = ran("", &["--config", "good.yaml"]);
    assert_eq!((given.code, given.stderr.as_str()), (0, ""), "{given:?}");
    let inline = ran(&format!("service: desk\n{identity}"), &[]);
    assert_eq!((inline.code, inline.stderr.as_str()), (0, ""), "{inline:?}");
    let same = ran(identity, &["--config", "good.yaml"]);
    assert_eq!((same.code, same.stderr.as_str()), (0, ""), "{same:?}");
    let assumed = ran("service: desk\n", &[]);
    let said =
        "tests/t.yaml: assumed service `desk`, identity jwt_metadata (User), peer (Workload), anonymous (Anonymous)";
    assert!(assumed.code == 1 && assumed.stderr.contains(said), "{assumed:?}");
    let differs = ran("service: counter\n", &["--config", "good.yaml"]);
    assert!(differs.code == 1 && differs.stderr.contains("`service` is not the one of `--config`"), "{differs:?}");
    let differs = ran("identity: [{from: anonymous}]\n", &["--config", "good.yaml"]);
    assert!(differs.code == 1 && differs.stderr.contains("`identity` is not the one of `--config`"), "{differs:?}");
    let bad = ran("", &["--config", "bad.yaml"]);
    assert!(bad.code == 1 && bad.stderr.contains("unknown key `servce`"), "{bad:?}");
}

#[test]
fn what_a_command_assumed_and_what_nobody_declares_is_said() {
    let dir = dir(&[
        ("b/bundle.yaml", "name: b"),
        ("b/policies/p.cedar", "permit (principal, action, resource);"),
        ("c.yaml", "bundles: [{directory: b}]\ndecision_log: {attributes: [principal.departement]}\n"),
        ("s.yaml", "bundles: [{directory: gone}]\n"),
    ]);
    let decided = run(dir.path(), &["decide", "--bundle", "b"], GET);
    assert_eq!(decided.code, 0, "{decided:?}");
    assert!(decided.stderr.starts_with("assumed service `default`, identity jwt_metadata (User), "), "{decided:?}");
    let warning = "no bundle declares `principal.departement`, so it is never logged";
    let decided = run(dir.path(), &["decide", "--bundle", "b", "--config", "c.yaml", "--json"], GET);
    assert!(decided.code == 0 && decided.stderr.contains(warning), "{decided:?}");
    assert_eq!(decided.json()["decision"], "allow");
    let checked = run(dir.path(), &["check-config", "c.yaml", "--bundles"], "");
    assert!(checked.code == 0 && checked.stderr.contains(warning), "{checked:?}");
    let checked = run(dir.path(), &["check-config", "c.yaml"], "");
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""), "{checked:?}");
    let gone = run(dir.path(), &["check-config", "s.yaml", "--bundles"], "");
    assert!(gone.code == 2 && gone.stderr.contains("gone"), "{gone:?}");
}

#[tokio::test]
async fn a_sidecar_says_which_attributes_it_will_never_log() {
    let bundle = dir(&[("bundle.yaml", "name: b"), ("p.cedar", "permit (principal, action, resource);")]);
    let config = "decision_log: {attributes: [context.source.address, principal.departement]}\n";
    let mut stockade = Stockade::with_bundle(bundle.path(), config).await;
    let warning = "no bundle declares `principal.departement`, so it is never logged";
    let shown: Json = serde_json::from_str(&stockade.admin("/snapshot").await.1).unwrap();
    let warnings = shown["snapshot"]["warnings"].as_array().unwrap();
    assert!(warnings.iter().any(|line| line.as_str().unwrap().contains(warning)), "{warnings:?}");
    assert!(!shown.to_string().contains("declares `context.source.address`"), "{warnings:?}");
    let said = |line: &Json| line["message"].as_str().is_some_and(|message| message.contains(warning));
    while !stockade.seen.iter().any(said) {
        assert!(stockade.next_line().await.is_some(), "stockade ended: {:#?}", stockade.seen);
    }
}
