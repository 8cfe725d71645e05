//! Values that enter, in tables: what is there and can be read in two ways, or not at all, is refused and not taken for absent.

use bytes::Bytes;
use serde_json::{Value as Json, json};
use stockade::policy::Files;
use stockade::proto::wire::{CheckRequest, TlsSession};

use crate::fixture::{
    Court, EVERYTHING, by_token, context, frame, header_map, joined, lines, metadata, pairs, post, problems, raw,
    request, shop, shop_with_context, sound, with, with_http,
};

/// Whether a request is mapped under this declaration of a context.
fn is_mapped(declared: &str, request: &CheckRequest) -> bool {
    context(declared, request).is_ok()
}

#[track_caller]
fn refused(declared: &str, request: &CheckRequest, why: &str) {
    match context(declared, request) {
        Ok(context) => panic!("mapped: {context}\n{request:?}"),
        Err(refused) => assert!(refused.contains(why), "{refused}\n{request:?}"),
    }
}

// === entities ===

const ENV: &str = r#"
    entity Env enum ["dev", "prod"];
    entity Tier enum ["gold"];
    entity User in [Group] { tier?: Tier };
    entity Service enum ["shop"];
    action "deploy" appliesTo {
        principal: [User], resource: [Env], context: {
            params: { env: Env }, query: { env?: Env, envs: Set<Env> }, headers: { "x-env"?: Env },
            body?: { env?: Env, envs?: Set<Env>, inner?: { env?: Env } }, claims: { env?: Env },
            metadata: { ns?: { env?: Env } }, extensions: { env?: Env },
        },
    };
    action "GET" appliesTo { principal: [User], resource: [Service], context: {} };
"#;

fn environments(more: &str) -> Files {
    shop(&[
        ("schema.cedarschema", &format!("{ENV}{more}")),
        ("routes.yaml", "routes: [{match: 'POST /envs/{env}', action: deploy, resource: 'Env::\"{env}\"'}]"),
        ("policies/all.cedar", EVERYTHING),
        (
            "policies/tier.cedar",
            "forbid (principal is User, action, resource) when { principal has tier && principal.tier == Tier::\"x\" };",
        ),
    ])
}

/// A POST to `/envs/dev`, with another target, claims, header and body.
fn deploy(target: &str, claims: Json, header: &str, body: &str) -> CheckRequest {
    let mut request = by_token(claims);
    let http = request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
    http.method = "POST".into();
    http.path = Bytes::copy_from_slice(target.as_bytes());
    http.headers = pairs(&[("content-type", "application/json"), ("x-env", header)]);
    http.raw_body = Bytes::copy_from_slice(body.as_bytes());
    request
}

#[test]
fn ids_of_an_enum_are_checked_wherever_they_come_from() {
    let bundle = environments("").files;
    let bundle = Files {
        files: bundle.into_iter().map(|(path, text)| (path, text.replace("Tier::\"x\"", "Tier::\"gold\""))).collect(),
        ..environments("")
    };
    let court = Court::new(&[bundle], "service: shop");
    let user = || json!({"sub": "alice", "env": "dev", "tier": "gold"});
    let good = "{\"env\": \"dev\", \"envs\": [\"prod\"], \"inner\": {\"env\": \"dev\"}}";
    assert!(court.query(&deploy("/envs/dev?env=prod&envs=dev&envs=prod", user(), "prod", good)).is_ok());
    for (request, why) in [
        (
            deploy("/envs/Dev", user(), "dev", good),
            "attribute: the resource is not one of the ids that the schema lists for `Env`",
        ),
        (deploy("/envs/dev?env=Prod", user(), "dev", good), "`context.query.env`: expected a `Env`"),
        (deploy("/envs/dev?envs=dev&envs=x", user(), "dev", good), "`context.query.envs`: expected a `Env`"),
        (deploy("/envs/dev", user(), "PROD", good), "`context.headers.x-env`: expected a `Env`"),
        (deploy("/envs/dev", user(), "dev", "{\"env\": \"Prod\"}"), "`context.body.env`: expected a `Env`"),
        (deploy("/envs/dev", user(), "dev", "{\"envs\": [\"dev\", \"\"]}"), "`context.body.envs`: expected a `Env`"),
        (
            deploy("/envs/dev", user(), "dev", "{\"inner\": {\"env\": \"x\"}}"),
            "`context.body.inner.env`: expected a `Env`",
        ),
        (deploy("/envs/dev", json!({"sub": "a", "env": "Dev"}), "dev", good), "`context.claims.env`: expected a `Env`"),
        (deploy("/envs/dev", json!({"sub": "a", "tier": "Gold"}), "dev", good), "`principal.tier`: expected a `Tier`"),
    ] {
        let refused = court.query(&request).expect_err(why);
        assert!(refused.contains(why), "{refused}");
    }
    let mut outside = deploy("/envs/dev", user(), "dev", good);
    outside.attributes.as_mut().unwrap().context_extensions = pairs(&[("env", "Prod")]);
    assert!(court.query(&outside).unwrap_err().contains("`context.extensions.env`: expected a `Env`"));
    let mut outside = deploy("/envs/dev", user(), "dev", good);
    let spaces = json!({"ns": {"env": "Prod"}, "envoy.filters.http.jwt_authn": {"jwt_payload": user()}});
    outside.attributes.as_mut().unwrap().metadata_context = Some(metadata(&spaces));
    assert!(court.query(&outside).unwrap_err().contains("`context.metadata.ns.env`: expected a `Env`"));
    // The service is a resource as well.
    let court = Court::new(&[shop(&[("schema.cedarschema", ENV), ("all.cedar", EVERYTHING)])], "service: other");
    let refused = court.query(&by_token(user())).unwrap_err();
    assert_eq!(refused, "attribute: the resource is not one of the ids that the schema lists for `Service`");
}

#[test]
fn principals_and_groups_are_checked_and_groups_are_those_that_the_schema_has() {
    let court = |schema: &str, config: &str| {
        let action = "action \"GET\" appliesTo { principal: [User, Anonymous], resource: [Service], context: {} };";
        Court::new(&[shop(&[("schema.cedarschema", &format!("{schema} {action}")), ("all.cedar", EVERYTHING)])], config)
    };
    let token = |groups: Json| by_token(json!({"sub": "alice", "groups": groups}));
    let listed = court("entity User enum [\"alice\"];", "");
    assert!(listed.query(&token(json!([]))).is_ok());
    assert_eq!(
        listed.query(&by_token(json!({"sub": "Alice"}))).unwrap_err(),
        "identity: the principal is not one of the ids that the schema lists for `User`"
    );
    let groups = court("entity Group enum [\"staff\"]; entity User in [Group]; entity Workload;", "");
    assert_eq!(groups.query(&token(json!(["staff"]))).unwrap().principal.parents.len(), 1);
    assert_eq!(
        groups.query(&token(json!(["staff", "Staff"]))).unwrap_err(),
        "identity: the principal's group is not one of the ids that the schema lists for `Group`"
    );
    // Strict checks of entities would refuse a user that is in a group where none can be. It is there for overlays alone.
    let alone = court("entity User;", "");
    assert_eq!(alone.query(&token(json!(["staff"]))).unwrap().principal.parents.len(), 1);
    let anonymous = court("entity Anonymous enum [\"nobody\"];", "");
    assert!(anonymous.query(&request()).unwrap_err().starts_with("identity: the principal is not one of"));
    assert!(court("entity Anonymous enum [\"anonymous\"];", "").query(&request()).is_ok());
}

#[test]
fn parts_of_a_peers_id_have_the_types_that_a_bundle_gives_them() {
    let court = |ty: &str| {
        let schema = format!(
            "entity Namespace enum [\"shop\"]; entity Workload {{ namespace?: {ty} }};
             action \"GET\" appliesTo {{ principal: [Workload], resource: [Service], context: {{}} }};"
        );
        let reads = "permit (principal is Workload, action, resource) when { principal has namespace };";
        Court::new(&[shop(&[("schema.cedarschema", &schema), ("all.cedar", reads)])], "service: shop")
    };
    let peer = |id: &str| crate::fixture::by_peer(id);
    assert!(court("String").query(&peer("spiffe://prod/ns/any/sa/x")).is_ok());
    assert!(court("Namespace").query(&peer("spiffe://prod/ns/shop/sa/x")).is_ok());
    assert!(court("Namespace").query(&peer("spiffe://prod/ns/Shop/sa/x")).is_err());
    assert!(court("Long").query(&peer("spiffe://prod/ns/shop/sa/x")).is_err());
    assert_eq!(sound(&court("String").pipeline.frame(frame(&peer("spiffe://prod/ns/shop/sa/x")), "d")), "allow");
}

/// Cedar validates templates, and not what links put into their slots.
#[test]
fn links_name_entities_that_can_be() {
    let link = |uid: &str| {
        let links = json!([{"template_id": "t", "link_id": "l", "args": {"?resource": uid}}]).to_string();
        shop(&[
            (
                "schema.cedarschema",
                "entity Env enum [\"prod\"]; action \"a\" appliesTo { principal: [User], resource: [Env], context: {} };",
            ),
            ("policies/t.cedar", "@id(\"t\") forbid (principal, action, resource == ?resource);"),
            ("policies/links.json", &links),
        ])
    };
    crate::fixture::compile(&[link("Env::\"prod\"")]);
    let told = problems(&[link("Env::\"Prod\"")]);
    assert_eq!(
        told,
        [
            "shop/policies/links.json: link `shop/l`: `?resource` is Env::\"Prod\", which is not one of the ids that the schema lists"
        ]
    );
    assert!(problems(&[link("Nowhere::\"x\"")])[0].contains("no schema declares `Nowhere`"));
}

// === numbers ===

#[test]
fn a_number_has_one_form_wherever_it_comes_from() {
    // As it is written; whether it is a Long in a JSON body, in a token, in a text.
    for (number, body, token, text) in [
        ("0", true, true, true),
        ("7", true, true, true),
        ("-7", true, true, true),
        ("9007199254740991", true, true, true),
        ("-9007199254740991", true, true, true),
        // As a double, 2^53 + 1 is 2^53. A text is no double to anybody.
        ("9007199254740992", false, false, true),
        ("-9007199254740992", false, false, true),
        ("9007199254740993", false, false, true),
        ("-9007199254740993", false, false, true),
        ("9223372036854775807", false, false, true),
        ("-9223372036854775808", false, false, true),
        ("9223372036854775808", false, false, false),
        ("18446744073709551616", false, false, false),
        ("1.5", false, false, false),
        // JSON's numbers are doubles already when Envoy sends a token, and nothing tells these from 1, 1000 and 10.
        ("1.0", false, true, false),
        ("1e3", false, true, false),
        ("1E1", false, true, false),
        ("-0", false, false, false),
        ("-0.0", false, false, false),
        ("1e400", false, false, false),
        ("01", false, false, false),
        ("+1", false, false, false),
        ("0x10", false, false, false),
        ("1_000", false, false, false),
        ("NaN", false, false, false),
        ("", false, false, false),
        (" 1", true, true, false),
    ] {
        let json = post("application/json", &format!("{{\"n\":{number}}}"));
        assert_eq!(is_mapped("body?: { n: Long }", &json), body, "{number} in a body");
        // As a string it is none.
        refused("body?: { n?: Long }", &post("application/json", &format!("{{\"n\":\"{number}\"}}")), "`context.body");
        // What is no JSON never comes out of a token; `-0` does.
        if let Ok(claim) = serde_json::from_str::<Json>(number) {
            assert_eq!(
                is_mapped("claims: { n: Long }", &by_token(json!({"sub": "a", "n": claim}))),
                token,
                "{number} in a token"
            );
        }
        assert_eq!(is_mapped("headers: { n: Long }", &joined(&[("n", number)])), text, "{number} in a header");
        let form =
            post("application/x-www-form-urlencoded", &format!("n={}", number.replace('+', "%2B").replace(' ', "%20")));
        assert_eq!(is_mapped("body?: { n: Long }", &form), text, "{number} in a form");
    }
}

// === bodies ===

#[test]
fn a_body_that_cannot_be_read_is_not_absent() {
    let declared = "body?: { n?: Long }";
    let unreadable = |content_type: &str| post(content_type, r#"{"n":1}"#);
    for content_type in [
        "",
        "text/json",
        "text/plain",
        "application/jsonp",
        "application/json; charset=utf-7",
        "application/grpc",
        "application/json;",
        "multipart/form-data; boundary=x",
        "application/json, text/plain",
    ] {
        refused(declared, &unreadable(content_type), "`context.body` is there and cannot be read");
        let absent = Court::new(&[shop_with_context(declared)], "service: shop\nbodies: {unreadable: absent}");
        assert_eq!(absent.context(&unreadable(content_type)), Ok(json!({})), "{content_type}");
    }
    let two = with_http(|http| {
        http.method = "POST".into();
        http.headers = pairs(&[("content-type", "application/json")]);
        http.body = "{\"n\":1}".into();
        http.raw_body = "{\"n\":2}".into();
    });
    refused(declared, &two, "different ones");
    // No operator can have wanted a contradiction.
    let absent = Court::new(&[shop_with_context(declared)], "service: shop\nbodies: {unreadable: absent}");
    assert!(absent.query(&two).is_err());
    // Not sent along, though headers say that it is there.
    for headers in
        [&[("content-length", "7")][..], &[("transfer-encoding", "chunked")], &[("content-type", "application/json")]]
    {
        let unsent = with_http(|http| {
            http.method = "POST".into();
            http.headers = pairs(headers);
        });
        refused(declared, &unsent, "`with_request_body`");
        // Nobody reads it, so nobody minds.
        assert!(is_mapped("path: String", &unsent));
    }
    assert_eq!(context(declared, &with_http(|http| http.method = "POST".into())), Ok(json!({})));
}

#[test]
fn a_field_of_a_body_has_one_name() {
    let declared =
        "body?: { amount?: Long, is_admin?: Bool, inner?: { status?: String }, tags?: Set<{ kind?: String }> }";
    let json = |body: &str| post("application/json", body);
    let form = |body: &str| post("application/x-www-form-urlencoded", body);
    for body in [
        r#"{"Amount":9}"#,
        r#"{"amount":1,"AMOUNT":9}"#,
        r#"{"AMOUNT":9,"amount":1}"#,
        r#"{"isAdmin":true}"#,
        r#"{"is-admin":true}"#,
        r#"{"inner":{"\u017ftatus":"x"}}"#,
        r#"{"inner":{"Status":"x"}}"#,
        r#"{"Inner":{"status":"x"}}"#,
        r#"{"tags":[{"kind":"a"},{"Kind":"b"}]}"#,
        r#"{"tags":[{"\u212aind":"b"}]}"#,
        r#"{"amount\u0000":9}"#,
    ] {
        refused(declared, &json(body), "comes under a name that some take for it");
    }
    for body in [
        "Amount=9",
        "amount=1&AMOUNT=9",
        "amount[]=9",
        "Amount%5B0%5D=9",
        "x=1;amount=9",
        "x;amount=9",
        "is.admin=true",
        "isAdmin=true",
    ] {
        refused("body?: { amount?: Long, is_admin?: Bool }", &form(body), "comes under a name that some take for it");
        let query = crate::fixture::line("GET", &format!("/?{body}"));
        refused("query: { amount?: Long, is_admin?: Bool }", &query, "comes under a name that some take for it");
    }
    refused("body?: { amount?: Long }", &form("amount=1;x=2"), "has a `;`");
    refused("body?: { amount?: Long }", &form("%zz=1"), "a name in `context.body` is not validly encoded");
    for body in [r#"{"amounts":9,"mount":1}"#, r#"{"inner":{"amount":1}}"#, r#"{"other":{"Amount":1,"Amount":2}}"#] {
        assert!(is_mapped(declared, &json(body)), "{body}");
    }
    for body in ["amounts=9", "x=a;b", "x[amount]=1", "x=%3Bamount=9"] {
        assert!(is_mapped("body?: { amount?: Long }", &form(body)), "{body}");
    }
    // Two names that differ in case are two names, if the schema has both.
    assert!(is_mapped("body?: { id?: Long, ID?: Long }", &json(r#"{"id":1,"ID":2}"#)));
    assert!(!is_mapped("body?: { id?: Long, ID?: Long }", &json(r#"{"id":1,"Id":2}"#)));
}

#[test]
fn what_comes_twice_is_refused_at_each_depth() {
    let declared = "body?: { n?: Long, inner?: { n?: Long, deep?: { n?: Long } }, list?: Set<{ n?: Long }> }";
    for body in [
        r#"{"n":1,"n":1}"#,
        r#"{"n":null,"n":1}"#,
        r#"{"inner":{"n":1,"n":2}}"#,
        r#"{"inner":{"deep":{"n":1,"n":2}}}"#,
        r#"{"inner":{"n":1},"inner":{}}"#,
        r#"{"list":[{"n":1,"n":2}]}"#,
    ] {
        refused(declared, &post("application/json", body), "comes twice");
    }
    for body in [
        r#"{"n":1}x"#,
        r#"{"n":1},"#,
        r#"[{"n":1}]"#,
        r#"{"n":1}//"#,
        "\u{feff}{}",
        "{\"n\":1}\0",
        "{'n':1}",
        "{n:1}",
        "{\"n\":Infinity}",
    ] {
        assert!(!is_mapped(declared, &post("application/json", body)), "{body}");
    }
}

// === headers ===

#[test]
fn headers_with_underscores_are_refused_where_they_matter() {
    let bundle = || shop_with_context("headers: { \"x-tenant\"?: String, \"X-Role\"?: Set<String> }");
    let config = "service: shop\nupstream_headers: {x-user-id: principal_id}\nremove_headers: [x-internal]\n\
                  identity: [{from: trusted_header, header: X-Edge-User, addresses: [10.0.0.1]}, {from: anonymous}]";
    let court = Court::new(&[bundle()], config);
    for (name, matters) in [
        ("x_tenant", true),
        ("X_TENANT", true),
        ("x_role", true),
        ("x_user_id", true),
        ("x-user_id", true),
        ("X_User-Id", true),
        ("x_internal", true),
        ("x_edge_user", true),
        ("content_type", true),
        ("content_length", true),
        ("transfer_encoding", true),
        ("content_encoding", true),
        ("x_envoy_external_address", true),
        ("x_forwarded_for", true),
        ("x_stockade_anything", true),
        ("x-other", false),
        ("x_other", false),
        ("_", false),
        ("x-tenant-", false),
        ("xtenant", false),
    ] {
        for request in [joined(&[("a", "b"), (name, "x")]), raw(&[("a", b"b"), (name, b"x")])] {
            let mapped = court.query(&request);
            assert_eq!(mapped.is_err(), matters, "{name}: {mapped:?}");
            if let Err(refused) = mapped {
                assert!(refused.contains("by `_` for `-` only"), "{refused}");
            }
        }
    }
    // What no policy reads is nobody's business.
    let court = Court::new(&[shop_with_context("path: String")], "service: shop");
    assert!(court.query(&joined(&[("x_tenant", "x")])).is_ok());
}

#[test]
fn nothing_of_ours_has_a_name_with_an_underscore() {
    let schema = "action \"GET\" appliesTo { principal: [User], resource: [Service], context: { headers: { x_tenant?: String } } };";
    let told = problems(&[shop(&[("schema.cedarschema", schema), ("all.cedar", EVERYTHING)])]);
    assert!(
        told[0].contains("`context.headers.x_tenant` has a `_`, which apps take for `-`; name the header `x-tenant`"),
        "{told:?}"
    );
    for config in [
        "upstream_headers: {x_user: principal}",
        "remove_headers: [x_user]",
        "identity: [{from: trusted_header, header: x_user, addresses: [10.0.0.1]}]",
    ] {
        let source =
            stockade::problem::SourceFile::new("stockade.yaml", format!("bundles: [{{directory: .}}]\n{config}"));
        let problems = stockade::yaml::parse::<stockade::config::Config>(&source).expect_err(config);
        assert!(lines(&problems)[0].contains("has a `_`"), "{problems:?}");
    }
}

// === bytes that are not UTF-8 ===

/// Envoy writes `!` for them where a field is a protobuf string: such a value is not believed, and the outcome is the same.
#[test]
fn bytes_that_are_not_utf8_are_refused_in_every_form() {
    let declared = "headers: { one?: String, many?: Set<String> }";
    for (name, bytes, replaced) in [("one", &b"caf\xe9"[..], "caf!"), ("many", b"a,\xff", "a,!"), ("one", b"\xff", "!")]
    {
        refused(declared, &raw(&[(name, bytes)]), "is not UTF-8");
        refused(declared, &joined(&[(name, replaced)]), "may not have been UTF-8");
    }
    // Sent one by one, `!` is `!`; and what nobody reads may be anything.
    assert!(is_mapped(declared, &raw(&[("one", b"caf!")])));
    assert!(is_mapped(declared, &joined(&[("other", "caf!")])));
    assert!(is_mapped(declared, &raw(&[("other", b"caf\xe9")])));
}

#[test]
fn bytes_of_a_body_that_are_not_utf8_are_refused_in_every_form() {
    let body = |text: Option<&str>, bytes: &[u8]| {
        with_http(|http| {
            http.method = "POST".into();
            http.headers = pairs(&[("content-type", "application/json")]);
            match text {
                Some(text) => http.body = Bytes::copy_from_slice(text.as_bytes()),
                None => http.raw_body = Bytes::copy_from_slice(bytes),
            }
        })
    };
    let declared = "body?: { s?: String, list?: Set<String> }";
    for (text, bytes) in [
        ("{\"s\":\"a!\"}", &b"{\"s\":\"a\xff\"}"[..]),
        ("{\"s!\":\"a\"}", b"{\"s\xff\":\"a\"}"),
        ("{\"!S\":\"a\"}", b"{\"\xffS\":\"a\"}"),
        ("{\"list\":[\"!\"]}", b"{\"list\":[\"\xff\"]}"),
    ] {
        refused(declared, &body(None, bytes), "is not UTF-8");
        refused(declared, &body(Some(text), b""), "may not have been UTF-8");
    }
    assert!(is_mapped(declared, &body(Some("{\"note\":\"hello!\",\"s\":\"a\"}"), b"")));
    assert!(is_mapped(declared, &body(None, b"{\"s\":\"a!\"}")));
}

#[test]
fn a_field_that_may_not_have_been_utf8_is_refused() {
    // `allowed_headers` may leave out the raw line that tells `!` from other bytes; a lone field never tells.
    for (headers, good) in [(&[(":path", &b"/a!b"[..])][..], true), (&[("accept", b"*/*")], false), (&[], false)] {
        let target = |path: &'static str| {
            with_http(|http| {
                http.path = path.into();
                http.header_map = Some(header_map(headers));
            })
        };
        assert_eq!(is_mapped("", &target("/a!b")), good, "{headers:?}");
        assert!(is_mapped("", &target("/a%21b")) || good, "{headers:?}");
    }
    let query = "query: { q?: String }";
    refused(query, &with_http(|http| http.path = "/?q=a!".into()), "may not have been UTF-8");
    refused(query, &with_http(|http| http.path = "/?!q=a".into()), "some take for it");
    refused("source: { principal?: String }", &crate::fixture::by_peer("a!b"), "has a `!`");
    let sni = |sni: &'static str| with(|own| own.tls_session = Some(TlsSession { sni: sni.into() }));
    refused("tls?: { sni?: String }", &sni("a!.example"), "has a `!`");
    assert!(is_mapped("tls?: { sni?: String }", &sni("a.example")));
}

#[test]
fn bytes_that_come_as_they_are_and_are_not_utf8_are_refused() {
    let bad = Bytes::from_static(b"/\xff");
    assert!(!is_mapped("", &with_http(|http| http.path = bad.clone())));
    assert!(!is_mapped("", &with_http(|http| http.method = bad.clone())));
    assert!(!is_mapped("", &with_http(|http| http.host = bad.clone())));
    assert!(!is_mapped("scheme?: String", &with_http(|http| http.scheme = bad.clone())));
    assert!(!is_mapped("query: { q?: String }", &with_http(|http| http.path = Bytes::from_static(b"/?q=\xff"))));
    assert!(!is_mapped("query: { q?: String }", &with_http(|http| http.path = Bytes::from_static(b"/?q\xff=1"))));
    assert!(!is_mapped(
        "extensions: { a?: String }",
        &with(|own| {
            own.context_extensions = pairs(&[("a", "b")]);
            own.context_extensions[0].value = bad.clone();
        })
    ));
    assert!(!is_mapped(
        "source: { address?: ipaddr }",
        &with(|own| {
            let source = own.source.as_mut().unwrap().address.as_mut().unwrap();
            source.socket_address.as_mut().unwrap().address = bad.clone();
        })
    ));
    let both = with_http(|http| {
        http.header_map = Some(header_map(&[(":path", b"/\xff")]));
        http.path = "/!".into();
    });
    refused("", &both, "contradicts");
}

/// How a form writes a field of a field is each framework's own: `user.admin`, `user[admin]`.
#[test]
fn a_form_has_no_fields_within_fields() {
    let court = Court::new(&[shop_with_context("body: { user?: { admin?: Bool } }")], "service: shop");
    for body in ["user.admin=true", "user[admin]=true", "other=1"] {
        let refused = court.query(&post("application/x-www-form-urlencoded", body)).unwrap_err();
        assert!(refused.starts_with("attribute: `context.body`"), "{body}: {refused}");
    }
    assert!(court.query(&post("application/json", r#"{"user": {"admin": true}}"#)).is_ok());
}
