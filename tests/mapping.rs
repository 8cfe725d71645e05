//! From CheckRequest to Query, a table for each thing that a request has.

use bytes::Bytes;
use serde_json::{Value as Json, json};
use stockade::proto::wire::{
    Address, AttributeContext, CheckRequest, HttpRequest, Kind, Peer, Request, Struct, StructValue, Timestamp,
    TlsSession,
};

use crate::fixture::{
    Court, EVERYTHING, by_peer, by_token, context, files, frame, header_map, joined, line, metadata, pairs, peer, post,
    raw, request, shop, shop_with_context, shown, shown_record, sound, with, with_http,
};

/// Runs a table: what the schema declares of the context, the request, and the context that it maps to or the refusal.
#[track_caller]
fn contexts<const N: usize>(table: [(&str, CheckRequest, Result<Json, &str>); N]) {
    for (declared, request, expected) in table {
        assert_eq!(context(declared, &request), expected.map_err(str::to_owned), "{declared}\n{request:?}");
    }
}

/// `{"headers": {"record": fields}}`
fn record(root: &str, fields: Json) -> Json {
    json!({root: {"record": fields}})
}

// === headers ===

#[test]
fn a_header_has_one_value_or_is_refused() {
    let one = "headers: { \"x-role\"?: String }";
    contexts([
        (one, joined(&[("x-role", "user")]), Ok(record("headers", json!({"x-role": "user"})))),
        (one, raw(&[("x-role", b"user")]), Ok(record("headers", json!({"x-role": "user"})))),
        (one, joined(&[]), Ok(record("headers", json!({})))),
        // An empty header is there.
        (one, joined(&[("x-role", "")]), Ok(record("headers", json!({"x-role": ""})))),
        // HTTP/1 names have any case; Envoy lowers it, other proxies may not.
        (one, joined(&[("X-Role", "user")]), Ok(record("headers", json!({"x-role": "user"})))),
        // CVE-2021-32777, CVE-2026-26308: one of two values was looked at.
        (
            one,
            raw(&[("x-role", b"user"), ("x-role", b"admin")]),
            Err("attribute: the header `x-role` is repeated, but declared as one value"),
        ),
        (
            one,
            joined(&[("x-role", "user,admin")]),
            Err("attribute: the header `x-role` has a comma, so it may have been repeated; Envoy's \
                 `encode_raw_headers: true` tells"),
        ),
        // Sent one by one, a comma is a comma.
        (one, raw(&[("x-role", b"user,admin")]), Ok(record("headers", json!({"x-role": "user,admin"})))),
        (one, raw(&[("x-role", b"caf\xe9")]), Err("attribute: the header `x-role` is not UTF-8")),
        // What the schema does not name is nobody's business.
        (one, raw(&[("x-other", b"\xe9"), ("x-other", b"")]), Ok(record("headers", json!({})))),
        (
            "headers: { \"x-role\": String }",
            joined(&[]),
            Err("attribute: `context.headers.x-role` is required by the schema and missing"),
        ),
    ]);
}

#[test]
fn a_header_that_is_a_list_is_the_set_of_all_its_values_in_both_forms() {
    let set = "headers: { \"x-role\"?: Set<String> }";
    let both = Ok(record("headers", json!({"x-role": ["admin", "user"]})));
    contexts([
        (set, joined(&[("x-role", "user,admin")]), both.clone()),
        (set, joined(&[("x-role", "user , admin,user,,")]), both.clone()),
        (set, raw(&[("x-role", b"user"), ("x-role", b"admin")]), both.clone()),
        (set, raw(&[("x-role", b"user,admin")]), both.clone()),
        (set, raw(&[("x-role", b"user, admin"), ("X-Role", b"user")]), both),
        (set, joined(&[]), Ok(record("headers", json!({})))),
        // Required, so policies need not ask whether it is there.
        ("headers: { \"x-role\": Set<String> }", joined(&[]), Ok(record("headers", json!({"x-role": []})))),
        (set, raw(&[("x-role", b"ok"), ("x-role", b"\xff")]), Err("attribute: the header `x-role` is not UTF-8")),
        (
            "headers: { \"x-n\"?: Set<Long> }",
            joined(&[("x-n", "1,x")]),
            Err("attribute: `context.headers.x-n`: expected a `Long`, found a string that is not one"),
        ),
    ]);
}

#[test]
fn header_values_have_the_type_that_the_schema_says() {
    let good: [(&str, &str, Json); 8] = [
        ("Long", "-42", json!(-42)),
        ("Bool", "true", json!(true)),
        ("ipaddr", "::ffff:10.0.0.1", json!({"ipaddr": "10.0.0.1"})),
        ("decimal", "1.5", json!({"decimal": "1.5"})),
        ("datetime", "2026-11-22", json!({"datetime": "2026-11-22"})),
        ("duration", "1h30m", json!({"duration": "1h30m"})),
        ("User", "alice \"the\" 1st", json!({"entity": "User::\"alice \\\"the\\\" 1st\""})),
        ("Set<ipaddr>", "::1,::1", json!([{"ipaddr": "::1"}])),
    ];
    for (ty, text, value) in good {
        let declared = format!("headers: {{ x: {ty} }}");
        assert_eq!(context(&declared, &joined(&[("x", text)])), Ok(record("headers", json!({"x": value}))), "{ty}");
    }
    for (ty, text) in [
        ("Long", "1.0"),
        ("Long", "+1"),
        ("Long", "9223372036854775808"),
        ("Long", ""),
        ("Bool", "TRUE"),
        ("ipaddr", "10.0.0"),
        ("ipaddr", "example"),
        ("decimal", "1.23456"),
        ("datetime", "22 Nov"),
        ("duration", "1"),
    ] {
        let declared = format!("headers: {{ x: {ty} }}");
        let expected = format!("attribute: `context.headers.x`: expected a `{ty}`, found a string that is not one");
        assert_eq!(context(&declared, &joined(&[("x", text)])), Err(expected), "{ty} {text}");
    }
}

#[test]
fn headers_in_two_forms_at_once_are_refused() {
    let both = with_http(|http| {
        http.headers = pairs(&[("x-role", "user")]);
        http.header_map = Some(header_map(&[("x-role", b"admin")]));
    });
    // Envoy sends an empty `header_map` never, and an empty `headers` beside a full `header_map`.
    let empty_map = with_http(|http| {
        http.headers = pairs(&[("x-role", "user")]);
        http.header_map = Some(header_map(&[]));
    });
    contexts([
        ("", both, Err("incomplete: both `headers` and `header_map` are filled")),
        ("headers: { \"x-role\": String }", empty_map, Ok(record("headers", json!({"x-role": "user"})))),
    ]);
}

#[test]
fn pseudo_headers_and_fields_must_not_contradict_each_other() {
    let pseudo = |name: &str, value: &str| joined(&[(name, value)]);
    let told = "method: String, path: String, host: String";
    let plain = json!({"method": "GET", "path": "/", "host": "shop.example"});
    let contradicts = |name: &str| format!("incomplete: `{name}` contradicts the request or is repeated");
    for (request, expected) in [
        (pseudo(":method", "GET"), Ok(plain.clone())),
        (pseudo(":authority", "shop.example"), Ok(plain.clone())),
        (pseudo(":method", "DELETE"), Err(contradicts(":method"))),
        (pseudo(":path", "/admin"), Err(contradicts(":path"))),
        (pseudo(":authority", "evil.example"), Err(contradicts(":authority"))),
        // Not even by case: which of them the upstream gets, nobody knows.
        (pseudo(":authority", "SHOP.example"), Err(contradicts(":authority"))),
        (raw(&[(":path", b"/"), (":path", b"/")]), Err(contradicts(":path"))),
        // CONNECT, and other clients of ext_authz, leave fields out.
        (
            with_http(|http| {
                http.path = Bytes::new();
                http.headers = pairs(&[(":path", "/a")]);
            }),
            Ok(json!({"method": "GET", "path": "/a", "host": "shop.example"})),
        ),
        // What is taken from the header goes through the same contract.
        (
            with_http(|http| {
                http.path = Bytes::new();
                http.headers = pairs(&[(":path", "/a/../b")]);
            }),
            Err("path: the path is in a form that is refused: dot_segments".to_owned()),
        ),
    ] {
        assert_eq!(context(told, &request), expected, "{request:?}");
    }
}

// === method, path, host ===

#[test]
fn methods_are_methods_and_have_an_action() {
    let method = |method: &'static [u8]| with_http(|http| http.method = Bytes::from_static(method));
    let not_one = "incomplete: the method is missing or not a method";
    contexts([
        ("method: String", method(b"PUT"), Ok(json!({"method": "PUT"}))),
        ("", method(b""), Err(not_one)),
        ("", method(b"G ET"), Err(not_one)),
        ("", method(b"GET\r\n"), Err(not_one)),
        ("", method(b"G\xc3\x89T"), Err(not_one)),
        ("", method(b"\xff"), Err(not_one)),
        // Methods are case-sensitive (RFC 9110, 9.1): `get` is another one.
        ("method: String", method(b"get"), Ok(json!({}))),
        ("method: String", method(b"PROPFIND"), Ok(json!({}))),
    ]);
    let court = Court::new(&[shop_with_context("")], "");
    assert_eq!(sound(&court.pipeline.frame(frame(&method(b"get")), "d")), "unrouted");
    assert_eq!(sound(&court.pipeline.frame(frame(&method(b"PROPFIND")), "d")), "unrouted");
}

#[test]
fn requests_without_a_path_are_those_that_may_have_none() {
    let path = "method: String, path: String";
    let empty = Err("path: the path is in a form that is refused: empty_path");
    let relative = Err("path: the path does not begin with `/`");
    contexts([
        (path, line("CONNECT", ""), Ok(json!({"method": "CONNECT", "path": ""}))),
        // Extended CONNECT has one (RFC 8441).
        (path, line("CONNECT", "/chat"), Ok(json!({"method": "CONNECT", "path": "/chat"}))),
        (path, line("OPTIONS", "*"), Ok(json!({"method": "OPTIONS", "path": "*"}))),
        (path, line("GET", ""), empty.clone()),
        (path, line("GET", "?a=1"), empty),
        (path, line("GET", "*"), relative.clone()),
        (path, line("GET", "http://evil.example/"), relative.clone()),
        (path, line("CONNECT", "evil.example:443"), relative),
    ]);
}

#[test]
fn the_path_is_decoded_once_and_without_the_query() {
    contexts([
        ("path: String", line("GET", "/caf%C3%A9/a%20b?c=/../d"), Ok(json!({"path": "/café/a b"}))),
        ("path: String", line("GET", "/100%25"), Ok(json!({"path": "/100%"}))),
        ("path: String", line("GET", "/a?/../%zz"), Ok(json!({"path": "/a"}))),
    ]);
}

/// The forms that bypassed rules elsewhere, through the whole of mapping: docs/threat-model.md has the CVEs.
#[test]
fn a_path_that_can_be_read_in_two_ways_is_refused_by_name() {
    let court = Court::new(&[shop_with_context("path: String")], "service: shop");
    for (target, form) in [
        ("//admin", "double_slash"),
        ("/public//admin", "double_slash"),
        ("/public/../admin", "dot_segments"),
        ("/public/./admin", "dot_segments"),
        ("/public/%2e%2e/admin", "encoded_dot"),
        ("/public/..;/admin", "path_parameters"),
        ("/admin;jsessionid=1", "path_parameters"),
        ("/adm;x/in", "path_parameters"),
        ("/public/%2fadmin", "encoded_slash"),
        ("/public%5c..%5cadmin", "backslash"),
        ("/public\\..\\admin", "backslash"),
        ("/admin%00.png", "encoded_nul"),
        ("/%252e%252e/admin", "double_encoding"),
        ("/admin%zz", "malformed_escape"),
        ("/caf%e9", "not_utf8"),
        ("/public#/../admin", "fragment"),
    ] {
        let expected = format!("path: the path is in a form that is refused: {form}");
        assert_eq!(court.query(&line("GET", target)).map(|_| ()), Err(expected), "{target}");
        // In a query nobody splits at slashes.
        assert!(court.query(&line("GET", &format!("/?x={}", target.replace('#', "")))).is_ok(), "{target} in a query");
    }
}

/// What the operator lets through reaches policies as it came, and opens nothing else.
#[test]
fn a_form_that_is_let_through_opens_no_other() {
    let court = |form: &str| {
        let config = format!("service: shop\npaths: {{allow: [{form}]}}");
        Court::new(&[shop_with_context("path: String")], &config)
    };
    for (form, target, path) in [
        ("path_parameters", "/a;v=1/b", "/a;v=1/b"),
        ("double_slash", "//a", "//a"),
        ("encoded_slash", "/a%2fb", "/a%2Fb"),
        ("dot_segments", "/a/../b", "/a/../b"),
    ] {
        assert_eq!(court(form).context(&line("GET", target)), Ok(json!({"path": path})), "{form}");
        for other in ["/public/..;/admin", "/public/%2e%2e/admin", "/admin%00"] {
            assert!(court(form).query(&line("GET", other)).is_err(), "{form} lets {other} through");
        }
    }
}

#[test]
fn the_host_has_one_form() {
    let host = |host: &'static str| with_http(|http| http.host = host.into());
    let bad = "host: the host is not a host";
    contexts([
        // CVE-2021-39155: matched by case.
        ("host: String", host("Shop.EXAMPLE"), Ok(json!({"host": "shop.example"}))),
        ("host: String", host("shop.example.:8443"), Ok(json!({"host": "shop.example"}))),
        ("host: String", host("[2001:DB8:0::1]:80"), Ok(json!({"host": "[2001:db8::1]"}))),
        // Two Host headers, joined.
        ("", host("good.example,evil.example"), Err(bad)),
        ("", host("good.example@evil.example"), Err(bad)),
        ("", host("shop example"), Err(bad)),
        ("", host("[[::1]"), Err(bad)),
        ("host?: String", host(""), Ok(json!({}))),
        ("host: String", host(""), Err("attribute: `context.host` is required by the schema and missing")),
    ]);
}

#[test]
fn scheme_and_protocol_are_told() {
    let own = with_http(|http| {
        http.scheme = "HTTPS".into();
        http.protocol = "HTTP/2".into();
    });
    // CVE-2023-35944: checks on the scheme were bypassed by its case.
    contexts([
        ("scheme: String, protocol: String", own, Ok(json!({"scheme": "https", "protocol": "HTTP/2"}))),
        ("scheme?: String", with_http(|http| http.scheme = Bytes::new()), Ok(json!({}))),
        (
            "protocol: String",
            with_http(|http| http.protocol = Bytes::from_static(b"\xff")),
            Err("attribute: `context.protocol` is not UTF-8"),
        ),
    ]);
}

// === query ===

#[test]
fn query_parameters_are_decoded_strictly_and_come_once() {
    let get = |target: &str| line("GET", target);
    let one = "query: { id?: Long, q?: String }";
    contexts([
        (one, get("/?id=7&q=a+b%26c"), Ok(record("query", json!({"id": 7, "q": "a b&c"})))),
        (one, get("/"), Ok(record("query", json!({})))),
        (one, get("/?q"), Ok(record("query", json!({"q": ""})))),
        (one, get("/?id=1&id=2"), Err("attribute: `context.query.id` is repeated, but declared as one value")),
        // The same name in another spelling is the same name.
        (one, get("/?id=1&%69d=2"), Err("attribute: `context.query.id` is repeated, but declared as one value")),
        (one, get("/?q=%zz"), Err("attribute: `context.query.q` is not validly encoded")),
        (one, get("/?q=%E9"), Err("attribute: `context.query.q` is not validly encoded")),
        (one, get("/?id=x"), Err("attribute: `context.query.id`: expected a `Long`, found a string that is not one")),
        // Only what the schema names is looked at.
        (one, get("/?other=%zz&other=1"), Ok(record("query", json!({})))),
        ("query: { id: Set<Long> }", get("/?id=2&id=1&id=2"), Ok(record("query", json!({"id": [1, 2]})))),
        ("query: { id: Set<Long> }", get("/"), Ok(record("query", json!({"id": []})))),
        ("query: { id: Long }", get("/"), Err("attribute: `context.query.id` is required by the schema and missing")),
    ]);
}

// === bodies ===

#[test]
fn json_bodies_are_read_from_both_fields_and_cut_down() {
    let declared = "body?: { n: Long, name?: String, inner?: { tags: Set<String> } }, body_partial: Bool";
    let json = |body: &str| post("application/json", body);
    let whole = |body: Json| Ok(json!({"body": {"record": body}, "body_partial": false}));
    let none = Ok(json!({"body_partial": false}));
    let packed = with_http(|http| {
        http.method = "POST".into();
        http.headers = pairs(&[("content-type", "application/json")]);
        http.raw_body = Bytes::from_static(b"{\"n\":1}");
    });
    contexts([
        (declared, json(r#"{"n":1,"secret":"x","name":"a"}"#), whole(json!({"n": 1, "name": "a"}))),
        (declared, packed, whole(json!({"n": 1}))),
        (
            declared,
            json(r#"{"n":1,"inner":{"tags":["b","a","b"],"more":{}}}"#),
            whole(json!({"n": 1, "inner": {"record": {"tags": ["a", "b"]}}})),
        ),
        (declared, post("application/problem+json; charset=utf-8", r#"{"n":1}"#), whole(json!({"n": 1}))),
        (declared, post("Application/JSON", r#"{"n":1}"#), whole(json!({"n": 1}))),
        // `null` is as good as absent.
        (declared, json(r#"{"n":1,"name":null}"#), whole(json!({"n": 1}))),
        // values.rs has those that are there and cannot be read.
        (declared, with_http(|http| http.method = "POST".into()), none),
        // What is not declared is not read at all.
        ("", json("not JSON"), Ok(json!({}))),
    ]);
}

#[test]
fn json_bodies_that_can_be_read_in_two_ways_or_do_not_fit_are_refused() {
    let declared = "body?: { n: Long, inner?: { b?: Bool } }";
    for (body, why) in [
        (r#"{"n":1,"n":2}"#, "`context.body.n` comes twice"),
        // The same key, spelt with an escape.
        (r#"{"n":1,"\u006e":2}"#, "`context.body.n` comes twice"),
        (r#"{"n":1,"inner":{"b":true,"b":false}}"#, "`context.body.inner.b` comes twice"),
        (r#"{"n":"1"}"#, "`context.body.n`: expected a `Long`, found a string"),
        (r#"{"n":true}"#, "`context.body.n`: expected a `Long`, found a boolean"),
        (r#"{"n":1.5}"#, "`context.body.n`: expected a `Long`, found a number that is not written as an integer"),
        (r#"{"n":9223372036854775808}"#, "`context.body.n`: expected a `Long`, found a number beyond 2^53"),
        (r#"{"n":[1]}"#, "`context.body.n`: expected a `Long`, found a list"),
        (r#"{"n":{}}"#, "`context.body.n`: expected a `Long`, found an object"),
        (r#"{"n":1,"inner":[]}"#, "`context.body.inner`: expected a `record`, found a list"),
        (r#"{}"#, "`context.body.n` is required by the schema and missing"),
        (r#"{"n":null}"#, "`context.body.n` is required by the schema and missing"),
        (r#"{"n":1}{"n":2}"#, "trailing characters"),
        (r#"{"n":1"#, "EOF while parsing"),
        (r#"{"n":1,}"#, "trailing comma"),
    ] {
        let refused = context(declared, &post("application/json", body)).expect_err(body);
        assert!(refused.starts_with(&format!("attribute: `context.body`: {why}")), "{body}: {refused}");
    }
}

/// The detail of a refusal goes to the decision log and to the client: what a body says does not.
#[test]
fn a_refusal_never_repeats_what_the_request_says() {
    let secret = "hunter2";
    let declared = "body?: { n?: Long, inner?: { b?: Bool } }, headers: { x?: Long }, query: { x?: Long }";
    for request in [
        post("application/json", "\"hunter2\""),
        post("application/json", "[\"hunter2\"]"),
        post("application/json", "{\"n\":\"hunter2\"}"),
        post("application/json", "{\"inner\":\"hunter2\"}"),
        post("application/json", "{\"n\":hunter2}"),
        post("application/x-www-form-urlencoded", "n=hunter2"),
        joined(&[("x", "hunter2")]),
        line("GET", "/?x=hunter2"),
        line("GET", "/../hunter2"),
        with_http(|http| http.host = "hunter2 ".into()),
    ] {
        let refused = context(declared, &request).expect_err(secret);
        assert!(!refused.contains(secret), "{refused}");
    }
}

#[test]
fn form_bodies_are_read_as_query_parameters_are() {
    let declared = "body?: { n?: Long, tags?: Set<String> }";
    let form = |body: &str| post("application/x-www-form-urlencoded; charset=utf-8", body);
    contexts([
        (declared, form("n=1&tags=b&tags=a+c&x=2"), Ok(record("body", json!({"n": 1, "tags": ["a c", "b"]})))),
        (declared, form("n=1&n=2"), Err("attribute: `context.body.n` is repeated, but declared as one value")),
        (declared, form("n=%"), Err("attribute: `context.body.n` is not validly encoded")),
        (
            "body?: { inner?: { n?: Long } }",
            form("inner=1"),
            Err("attribute: `context.body` is there and cannot be read: a form has no fields within fields"),
        ),
    ]);
}

#[test]
fn of_a_partial_body_policies_learn_that_and_nothing_else() {
    let declared = "body_partial: Bool, body_size?: Long";
    let reads_body = "body?: { n?: Long }, body_partial: Bool, body_size?: Long";
    let half = |change: fn(&mut HttpRequest)| {
        with_http(|http| {
            http.method = "POST".into();
            http.headers = pairs(&[("content-type", "application/json"), ("x-envoy-auth-partial-body", "true")]);
            http.size = 89;
            http.body = Bytes::from_static(b"{\"n\":1}");
            change(http);
        })
    };
    // How much more there is, nobody knows: Envoy's `size` is what it has received so far.
    let partial = Ok(json!({"body_partial": true}));
    let whole = Ok(json!({"body": {"record": {"n": 1}}, "body_partial": false, "body_size": 7}));
    contexts([
        (declared, half(|_| {}), partial.clone()),
        // Without the header, the sizes tell.
        (declared, half(|http| drop(http.headers.pop())), partial.clone()),
        (
            declared,
            half(|http| {
                http.headers.pop();
                http.raw_body = std::mem::take(&mut http.body);
            }),
            partial,
        ),
        (
            reads_body,
            half(|http| {
                http.headers[1].value = "false".into();
                http.size = 7;
            }),
            whole,
        ),
        // Half a document is none, and no absent one.
        (
            reads_body,
            half(|_| {}),
            Err(
                "attribute: `context.body` is there and cannot be read: only its beginning is here; it is larger than \
                 Envoy's `max_request_bytes`",
            ),
        ),
    ]);
    let absent = |context: &str| Court::new(&[shop_with_context(context)], "bodies: {unreadable: absent}");
    assert_eq!(absent(reads_body).context(&half(|_| {})), Ok(json!({"body_partial": true})));
    let refused = absent("body: { n?: Long }").context(&half(|_| {}));
    assert_eq!(refused, Err("attribute: `context.body` is required by the schema and missing".to_owned()));
}

#[test]
fn the_size_of_a_body_is_told_if_it_is_known() {
    let declared = "body_size?: Long, body_partial: Bool";
    let size = |size| with_http(|http| http.size = size);
    let told = |size: i64, partial: bool| Ok(json!({"body_size": size, "body_partial": partial}));
    let unknown = |partial: bool| Ok(json!({"body_partial": partial}));
    let with_headers = |headers: &[(&str, &str)], size: i64, body: &'static [u8]| {
        with_http(|http| {
            http.headers = pairs(headers);
            http.size = size;
            http.raw_body = Bytes::from_static(body);
        })
    };
    let (typed, length) = (("content-type", "text/plain"), ("content-length", "9007199254740993"));
    let chunked = ("transfer-encoding", "chunked");
    contexts([
        (declared, size(0), told(0, false)),
        (declared, size(-1), unknown(false)),
        (declared, size(i64::MIN), unknown(false)),
        // Some of it has come, and nothing of it is here.
        (declared, size(i64::MAX), unknown(true)),
        ("body_size: Long", size(-1), Err("attribute: `context.body_size` is required by the schema and missing")),
        // Not sent along: what the client promises is what the app will read.
        (declared, with_headers(&[length], 0, b""), told(9_007_199_254_740_993, true)),
        (declared, with_headers(&[("content-length", "0")], 0, b""), told(0, false)),
        (declared, with_headers(&[typed], 0, b""), unknown(true)),
        (declared, with_headers(&[chunked], 0, b""), unknown(true)),
        // Here, and unreadable or not.
        (declared, with_headers(&[typed], 3, b"abc"), told(3, false)),
        (declared, with_headers(&[typed, chunked], 3, b"abc"), told(3, false)),
        (declared, with_headers(&[chunked], 4, b"abc"), unknown(true)),
        (
            declared,
            with_headers(&[("content-length", "9"), ("x-envoy-auth-partial-body", "true")], 3, b"abc"),
            told(9, true),
        ),
        // What contradicts itself says nothing.
        (declared, with_headers(&[("content-length", "9")], 3, b"abc"), unknown(false)),
        (declared, with_headers(&[("content-length", "3"), chunked], 3, b"abc"), unknown(false)),
        (declared, with_headers(&[("content-length", "18446744073709551615")], 0, b""), unknown(true)),
    ]);
}

// === what is missing ===

#[test]
fn requests_without_their_parts_are_refused_or_have_less_to_tell() {
    let nothing = CheckRequest { attributes: None };
    let no_request = with(|attributes| attributes.request = None);
    let no_http = with(|attributes| attributes.request = Some(Request::default()));
    let bare = with(|attributes| {
        let http = attributes.request.take().unwrap().http;
        *attributes = AttributeContext { request: Some(Request { time: None, http }), ..AttributeContext::default() };
    });
    let optional = "source?: { address?: ipaddr, port?: Long }, destination?: { labels?: { app?: String } }, \
                    time?: datetime, tls?: { sni?: String }, claims?: { a?: Long }, extensions?: { a?: String }, \
                    metadata?: { ns?: { a?: Long } }, route_metadata?: { ns?: { a?: Long } }, \
                    grpc?: { service: String }, body?: { a?: Long }, headers?: { a?: String }, query?: { a?: String }";
    contexts([
        ("", nothing, Err("incomplete: there are no attributes")),
        ("", no_request, Err("incomplete: there is no HTTP request")),
        ("", no_http, Err("incomplete: there is no HTTP request")),
        (
            optional,
            bare.clone(),
            Ok(json!({
                "extensions": {"record": {}}, "metadata": {"record": {}}, "route_metadata": {"record": {}},
                "headers": {"record": {}}, "query": {"record": {}},
            })),
        ),
        (
            "source: { address?: ipaddr }",
            bare.clone(),
            Err("attribute: `context.source` is required by the schema and missing"),
        ),
        ("time: datetime", bare.clone(), Err("attribute: `context.time` is required by the schema and missing")),
        (
            "metadata: { ns: { a?: Long } }",
            bare.clone(),
            Err("attribute: `context.metadata.ns` is required by the schema and missing"),
        ),
        (
            "extensions: { a: String }",
            bare,
            Err("attribute: `context.extensions.a` is required by the schema and missing"),
        ),
        (
            "source: { address: ipaddr }",
            with(|attributes| attributes.source = Some(Peer::default())),
            Err("attribute: `context.source.address` is required by the schema and missing"),
        ),
    ]);
}

// === connection ===

#[test]
fn both_sides_of_the_connection_are_told() {
    let declared = "source: { address?: ipaddr, port?: Long, principal?: String, certificate?: String }, \
                    destination: { address?: ipaddr, port?: Long, labels: { app?: String, tier?: Set<String> } }";
    let pem = "-----BEGIN CERTIFICATE-----\nMIIB+/==\n-----END CERTIFICATE-----\n";
    let full = with(|attributes| {
        let source = attributes.source.insert(peer("2001:db8::7", 40_000));
        source.principal = "spiffe://cluster.local/ns/shop/sa/cart".into();
        source.certificate = "-----BEGIN%20CERTIFICATE-----%0AMIIB%2B%2F%3D%3D%0A-----END%20CERTIFICATE-----%0A".into();
        let destination = attributes.destination.insert(peer("10.0.0.1", 8080));
        destination.labels = pairs(&[("app", "shop"), ("tier", "web"), ("other", "x")]);
    });
    let expected = json!({
        "source": {"record": {
            "address": {"ipaddr": "2001:db8::7"}, "port": 40_000,
            "principal": "spiffe://cluster.local/ns/shop/sa/cart", "certificate": pem,
        }},
        "destination": {"record": {
            "address": {"ipaddr": "10.0.0.1"}, "port": 8080, "labels": {"record": {"app": "shop", "tier": ["web"]}},
        }},
    });
    assert_eq!(context(declared, &full), Ok(expected));
}

#[test]
fn addresses_are_addresses_absent_or_refused() {
    let address = |address: &'static str| with(|attributes| attributes.source = Some(peer(address, 1)));
    let told = |text: &str| Ok(record("source", json!({"address": {"ipaddr": text}})));
    let declared = "source: { address?: ipaddr }";
    contexts([
        (declared, address("192.0.2.7"), told("192.0.2.7")),
        // Policies write ranges of IPv4 for it.
        (declared, address("::ffff:192.0.2.7"), told("192.0.2.7")),
        (declared, address("2001:DB8:0:0::1"), told("2001:db8::1")),
        // Cedar does not read the mixed form, so it must not be written.
        (declared, address("64:ff9b::192.0.2.7"), told("64:ff9b::c000:207")),
        (declared, address(""), Ok(record("source", json!({})))),
        (declared, address("not an address"), Err("attribute: `context.source.address` is not an IP address")),
        (
            declared,
            with(|attributes| attributes.source = Some(Peer { address: Some(Address::default()), ..Peer::default() })),
            Ok(record("source", json!({}))),
        ),
    ]);
}

#[test]
fn certificates_and_labels_that_are_not_text_are_refused_by_name() {
    contexts([
        (
            "source: { certificate?: String }",
            with(|attributes| attributes.source.as_mut().unwrap().certificate = "%ff".into()),
            Err("attribute: `context.source.certificate` is not UTF-8"),
        ),
        (
            "destination: { labels: { app: Long } }",
            with(|attributes| attributes.destination.as_mut().unwrap().labels = pairs(&[("app", "x")])),
            Err("attribute: `context.destination.labels.app`: expected a `Long`, found a string that is not one"),
        ),
    ]);
}

#[test]
fn the_server_name_of_the_tls_session_is_told() {
    let sni = |sni: &'static str| with(|attributes| attributes.tls_session = Some(TlsSession { sni: sni.into() }));
    contexts([
        ("tls?: { sni: String }", sni("shop.example"), Ok(record("tls", json!({"sni": "shop.example"})))),
        ("tls?: { sni: String }", sni(""), Ok(json!({}))),
        ("tls: { sni: String }", sni(""), Err("attribute: `context.tls` is required by the schema and missing")),
    ]);
}

#[test]
fn the_time_is_told_to_the_millisecond_where_cedar_has_it() {
    let time = |seconds, nanos| {
        with(|attributes| attributes.request.as_mut().unwrap().time = Some(Timestamp { seconds, nanos }))
    };
    let told = |text: &str| Ok(json!({"time": {"datetime": text}}));
    let refused = Err("attribute: `context.time` is not a time that Cedar has");
    let absent = with(|attributes| attributes.request.as_mut().unwrap().time = None);
    contexts([
        ("time?: datetime", absent.clone(), Ok(json!({}))),
        ("time: datetime", request(), told("2026-11-22T05:44:45.840Z")),
        ("time?: datetime", time(0, 0), told("1970-01-01T00:00:00.000Z")),
        ("time?: datetime", time(253_402_300_799, 999_999_999), told("9999-12-31T23:59:59.999Z")),
        ("time?: datetime", time(253_402_300_799, 1_000_000_000), refused.clone()),
        ("time?: datetime", time(253_402_300_800, 0), refused.clone()),
        ("time?: datetime", time(-1, 0), refused.clone()),
        ("time?: datetime", time(0, -1), refused.clone()),
        ("time?: datetime", time(i64::MAX, i32::MAX), refused.clone()),
        ("time?: datetime", time(i64::MIN, i32::MIN), refused),
        ("time: datetime", absent, Err("attribute: `context.time` is required by the schema and missing")),
    ]);
}

// === gRPC ===

#[test]
fn grpc_calls_tell_service_and_method() {
    let grpc = |content_type: &'static str, path: &'static str| {
        with_http(|http| {
            http.method = "POST".into();
            http.path = path.into();
            http.headers = pairs(&[("content-type", content_type)]);
        })
    };
    let declared = "grpc?: { service: String, method: String }";
    let told = Ok(record("grpc", json!({"service": "shop.v1.Cart", "method": "Add"})));
    contexts([
        (declared, grpc("application/grpc", "/shop.v1.Cart/Add"), told.clone()),
        (declared, grpc("application/grpc+proto", "/shop.v1.Cart/Add"), told.clone()),
        (declared, grpc("Application/gRPC", "/shop.v1.Cart/Add"), told),
        (declared, grpc("application/json", "/shop.v1.Cart/Add"), Ok(json!({}))),
        (declared, grpc("application/grpc", "/shop.v1.Cart/Add/more"), Ok(json!({}))),
        (
            "grpc?: { service: String }",
            grpc("application/grpc", "/shop.v1.Cart/Add"),
            Ok(record("grpc", json!({"service": "shop.v1.Cart"}))),
        ),
        (
            "grpc: { service: String }",
            grpc("application/json", "/shop.v1.Cart/Add"),
            Err("attribute: `context.grpc` is required by the schema and missing"),
        ),
    ]);
}

// === metadata and extensions ===

#[test]
fn context_extensions_are_texts_by_name() {
    let own = with(|attributes| {
        attributes.context_extensions = pairs(&[("tier", "gold"), ("limit", "7"), ("other", "x")]);
    });
    let declared = "extensions: { tier: String, limit: Long }";
    assert_eq!(context(declared, &own), Ok(record("extensions", json!({"tier": "gold", "limit": 7}))));
    // On the wire a map is a list, and the last of two entries counts (protobuf.dev, encoding).
    let twice = with(|attributes| attributes.context_extensions = pairs(&[("tier", "silver"), ("tier", "gold")]));
    assert_eq!(context("extensions: { tier: String }", &twice), Ok(record("extensions", json!({"tier": "gold"}))));
}

#[test]
fn metadata_is_read_by_namespace_and_type() {
    let own = |space: Json| with(|attributes| attributes.metadata_context = Some(metadata(&json!({"my.ns": space}))));
    let told = |fields: Json| Ok(json!({"metadata": {"record": {"my.ns": {"record": fields}}}}));
    let declared = "metadata: { \"my.ns\": { n?: Long, s?: String, b?: Bool, who?: User, ip?: ipaddr, \
                    tags?: Set<String>, inner?: { n?: Long } } }";
    let misfit =
        |ty: &str, found: &str| format!("attribute: `context.metadata.my.ns.n`: expected a `{ty}`, found {found}");
    let route = with(|attributes| attributes.route_metadata_context = Some(metadata(&json!({"ns": {"n": 1}}))));
    contexts([
        (
            declared,
            own(json!({
                "n": 7, "s": "x", "b": true, "who": "alice", "ip": "::1", "tags": ["b", "a", "b"], "inner": {"n": 1},
                "other": [{}],
            })),
            told(json!({
                "n": 7, "s": "x", "b": true, "who": {"entity": "User::\"alice\""}, "ip": {"ipaddr": "::1"},
                "tags": ["a", "b"], "inner": {"record": {"n": 1}},
            })),
        ),
        // `aud` of a token is a string or a list of strings (RFC 7519, 4.1.3).
        (declared, own(json!({"tags": "a"})), told(json!({"tags": ["a"]}))),
        (declared, own(json!({"n": null, "tags": [null]})), told(json!({"tags": []}))),
        // All numbers are doubles: from 2^53 on it may have been another number.
        (declared, own(json!({"n": 9_007_199_254_740_991_i64})), told(json!({"n": 9_007_199_254_740_991_i64}))),
        (declared, own(json!({"n": -9_007_199_254_740_991_i64})), told(json!({"n": -9_007_199_254_740_991_i64}))),
        (
            declared,
            own(json!({"n": 9_007_199_254_740_993_i64})),
            Err(&misfit("Long", "a number that is not an exact integer")),
        ),
        (
            declared,
            own(json!({"n": 9_007_199_254_740_994_i64})),
            Err(&misfit("Long", "a number that is not an exact integer")),
        ),
        (declared, own(json!({"n": 1.5})), Err(&misfit("Long", "a number that is not an exact integer"))),
        (declared, own(json!({"n": "7"})), Err(&misfit("Long", "a string"))),
        (declared, own(json!({"n": true})), Err(&misfit("Long", "a boolean"))),
        (declared, own(json!({"n": [7]})), Err(&misfit("Long", "a list"))),
        (declared, own(json!({"n": {}})), Err(&misfit("Long", "a struct"))),
        (
            "route_metadata: { ns: { n: Long } }",
            route,
            Ok(json!({"route_metadata": {"record": {"ns": {"record": {"n": 1}}}}})),
        ),
    ]);
    // A value of no kind is none.
    let empty = with(|attributes| {
        let fields = [("n".to_owned(), StructValue { kind: None })].into();
        let space = Struct { fields };
        attributes.metadata_context = Some(metadata(&json!({})));
        attributes.metadata_context.as_mut().unwrap().filter_metadata.insert("my.ns".to_owned(), space);
    });
    assert_eq!(context(declared, &empty), told(json!({})).map_err(str::to_owned));
}

#[test]
fn numbers_that_are_none_are_refused() {
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let request = with(|attributes| {
            let n = StructValue { kind: Some(Kind::Number(number)) };
            let space = Struct { fields: [("n".to_owned(), n)].into() };
            let mut all = metadata(&json!({}));
            all.filter_metadata.insert("ns".to_owned(), space);
            attributes.metadata_context = Some(all);
        });
        let refused = context("metadata: { ns: { n?: Long } }", &request).expect_err("not a number");
        assert!(refused.contains("`context.metadata.ns.n`: expected a `Long`"), "{refused}");
    }
}

// === identity ===

/// The principal of a request: `[uid, attributes, parents, proof]`, or the refusal.
fn principal(court: &Court, request: &CheckRequest) -> Result<Json, String> {
    let query = court.query(request)?;
    let parents: Vec<String> = query.principal.parents.iter().map(ToString::to_string).collect();
    let attributes = shown_record(&query.principal.attributes);
    Ok(json!([query.principal.uid.to_string(), attributes, parents, query.principal.proof.as_str()]))
}

/// A bundle with this schema, beside the base schema and a permit for everything.
fn with_schema(schema: &str) -> stockade::policy::Files {
    shop(&[("schema.cedarschema", schema), ("policies/all.cedar", EVERYTHING)])
}

/// That, and a policy on these principals, so that what its condition reads of them is mapped.
fn with_reader(schema: &str, principals: &str, condition: &str) -> stockade::policy::Files {
    let reads = format!("forbid (principal is {principals}, action, resource) when {{ {condition} }};");
    shop(&[("schema.cedarschema", schema), ("policies/all.cedar", EVERYTHING), ("policies/reads.cedar", &reads)])
}

#[test]
fn a_token_proves_the_user_and_its_groups() {
    let court = Court::new(&[with_schema("")], "");
    let user = |parents: Json| Ok(json!(["User::\"alice\"", {}, parents, "jwt"]));
    let bad_groups = || Err("identity: the claim `groups` is not a list of strings".to_owned());
    let no_sub = || Err("identity: the token has no claim `sub` that is a string".to_owned());
    for (claims, expected) in [
        (json!({"sub": "alice"}), user(json!([]))),
        (json!({"sub": "alice", "groups": []}), user(json!([]))),
        (json!({"sub": "alice", "groups": null}), user(json!([]))),
        (json!({"sub": "alice", "groups": ["b", "a", "b"]}), user(json!(["Group::\"a\"", "Group::\"b\""]))),
        (json!({"sub": "alice", "groups": "a"}), user(json!(["Group::\"a\""]))),
        // One group, whatever it looks like.
        (json!({"sub": "alice", "groups": "a,b"}), user(json!(["Group::\"a,b\""]))),
        (json!({"sub": "alice", "groups": [["a"]]}), bad_groups()),
        (json!({"sub": "alice", "groups": ["a", 7]}), bad_groups()),
        (json!({"sub": "alice", "groups": {"a": true}}), bad_groups()),
        (json!({"sub": "alice", "groups": 7}), bad_groups()),
        (json!({}), no_sub()),
        (json!({"sub": ""}), no_sub()),
        (json!({"sub": 7}), no_sub()),
        (json!({"sub": ["alice"]}), no_sub()),
    ] {
        assert_eq!(principal(&court, &by_token(claims.clone())), expected, "{claims}");
    }
}

/// A proof that is there but not usable must not make the request anonymous, or another principal.
#[test]
fn a_proof_that_is_not_usable_is_not_passed_over() {
    let court = Court::new(&[with_schema("")], "");
    let mut both = by_token(json!({"sub": 7}));
    both.attributes.as_mut().unwrap().source.as_mut().unwrap().principal = "spiffe://cluster.local/x".into();
    assert_eq!(
        principal(&court, &both),
        Err("identity: the token has no claim `sub` that is a string".to_owned()),
        "a peer would have been next"
    );
    // A good token comes before the peer.
    let mut both = by_token(json!({"sub": "alice"}));
    both.attributes.as_mut().unwrap().source.as_mut().unwrap().principal = "spiffe://cluster.local/x".into();
    assert_eq!(principal(&court, &both), Ok(json!(["User::\"alice\"", {}, [], "jwt"])));
}

#[test]
fn claims_become_attributes_by_the_schema_of_the_type() {
    let schema = "entity User in [Group] { department?: String, level?: Long, tags?: Set<String> };";
    let reads = "principal has department && principal has level && principal has tags";
    let court = Court::new(&[with_reader(schema, "User", reads)], "");
    let claims = json!({
        "sub": "alice", "department": "books", "level": 3, "tags": ["x"], "iss": "https://issuer.example", "groups": ["g"],
    });
    let attributes = json!({"department": "books", "level": 3, "tags": ["x"]});
    let expected = json!(["User::\"alice\"", attributes, ["Group::\"g\""], "jwt"]);
    assert_eq!(principal(&court, &by_token(claims)), Ok(expected));
    let wrong = by_token(json!({"sub": "alice", "level": "3"}));
    let refused = "attribute: `principal.level`: expected a `Long`, found a string";
    assert_eq!(principal(&court, &wrong), Err(refused.to_owned()));
    // No policy reads the level: it is neither mapped nor refused.
    let court = Court::new(&[with_reader(schema, "User", "principal has department")], "");
    let wrong = by_token(json!({"sub": "alice", "department": "books", "level": "3"}));
    assert_eq!(principal(&court, &wrong), Ok(json!(["User::\"alice\"", {"department": "books"}, [], "jwt"])));
}

#[test]
fn claims_can_have_other_names() {
    let schema = "entity Staff in [Team] { department: String }; entity Team;
                  action \"GET\" appliesTo { principal: [Staff], resource: [Service], context: {} };";
    let config = "identity: [{from: jwt_metadata, namespace: my.jwt, payload_key: token, id_claim: email, \
                  groups_claim: teams, type: Staff, group_type: Team, attributes: {department: '\"https://x/dept\"'}}]";
    let court = Court::new(&[with_reader(schema, "Staff", "principal.department == \"x\"")], config);
    let token = |claims: Json| {
        with(|attributes| attributes.metadata_context = Some(metadata(&json!({"my.jwt": {"token": claims}}))))
    };
    let good = token(json!({"email": "a@x", "sub": "no", "teams": ["t"], "https://x/dept": "d", "department": "no"}));
    let expected = json!(["Staff::\"a@x\"", {"department": "d"}, ["Team::\"t\""], "jwt"]);
    assert_eq!(principal(&court, &good), Ok(expected));
    let missing = token(json!({"email": "a@x", "department": "no"}));
    // Nobody says the department, so nothing is evaluated.
    assert_eq!(sound(&court.pipeline.frame(frame(&missing), "d")), "unknown_principal");
    // Without `anonymous` in the list, and without a token, there is no identity.
    assert_eq!(principal(&court, &request()), Err("identity: the request proves no identity".to_owned()));
    let other = by_token(json!({"sub": "alice"}));
    assert!(principal(&court, &other).unwrap_err().contains("`jwt_payload`, which no identity source reads"));
}

#[test]
fn what_a_bundle_knows_of_a_user_a_token_need_not_say() {
    let schema = "entity User in [Group] { department: String };";
    let users = r#"[{"uid": {"type": "User", "id": "alice"}, "attrs": {"department": "books"}, "parents": []}]"#;
    let mut bundle = with_reader(schema, "User", "principal.department == \"x\"");
    bundle.files.insert("entities/users.json".to_owned(), users.to_owned());
    let court = Court::new(&[bundle], "");
    assert_eq!(
        principal(&court, &by_token(json!({"sub": "alice"}))),
        Ok(json!(["User::\"alice\"", {}, [], "jwt"])),
        "the bundle says which department"
    );
    assert_eq!(sound(&court.pipeline.frame(frame(&by_token(json!({"sub": "bob"}))), "d")), "unknown_principal");
}

#[test]
fn a_peer_is_a_workload() {
    let reads = "principal has trust_domain && principal has namespace && principal has service_account";
    let court = Court::new(&[with_reader("", "Workload", reads)], "");
    let workload = |id: &str, attributes: Json| Ok(json!([format!("Workload::\"{id}\""), attributes, [], "peer"]));
    for (peer, expected) in [
        (
            "spiffe://cluster.local/ns/shop/sa/cart",
            workload(
                "spiffe://cluster.local/ns/shop/sa/cart",
                json!({"trust_domain": "cluster.local", "namespace": "shop", "service_account": "cart"}),
            ),
        ),
        ("spiffe://prod/other", workload("spiffe://prod/other", json!({"trust_domain": "prod"}))),
        ("cart.shop.svc", workload("cart.shop.svc", json!({}))),
        ("CN=cart,O=Shop", workload("CN=cart,O=Shop", json!({}))),
        ("", Ok(json!(["Anonymous::\"anonymous\"", {}, [], "none"]))),
        ("spiffe://", Err("identity: the peer's SPIFFE id is malformed".to_owned())),
        ("spiffe://a b/ns/x/sa/y", Err("identity: the peer's SPIFFE id is malformed".to_owned())),
        ("spiffe://prod/ns/../sa/y", Err("identity: the peer's SPIFFE id is malformed".to_owned())),
        ("spiffe://prod/ns//sa/y", Err("identity: the peer's SPIFFE id is malformed".to_owned())),
    ] {
        assert_eq!(principal(&court, &by_peer(peer)), expected, "{peer}");
    }
    let bytes = with(|attributes| attributes.source.as_mut().unwrap().principal = Bytes::from_static(b"\xff"));
    assert_eq!(principal(&court, &bytes), Err("identity: `source.principal` is not UTF-8".to_owned()));
    let replaced = principal(&court, &by_peer("spiffe://prod/ns/shop/sa/c!"));
    assert!(
        replaced.as_ref().is_err_and(|why| why.starts_with("identity: `source.principal` has a `!`")),
        "{replaced:?}"
    );
    // Only what the bundle's own Workload has.
    let schema = "entity Workload in [Group] { namespace?: String };";
    let court = Court::new(&[with_reader(schema, "Workload", "principal has namespace")], "");
    let own = principal(&court, &by_peer("spiffe://prod/ns/shop/sa/cart"));
    assert_eq!(own, workload("spiffe://prod/ns/shop/sa/cart", json!({"namespace": "shop"})));
}

#[test]
fn a_header_is_trusted_from_whom_the_operator_names_and_from_nobody_else() {
    let config = "identity: [{from: trusted_header, header: X-User, peers: ['spiffe://prod/edge'], \
                  addresses: [10.1.0.0/16, '::1']}, {from: peer}, {from: anonymous}]";
    let court = Court::new(&[shop_with_context("")], config);
    let user = Ok(json!(["User::\"alice\"", {}, [], "trusted_header"]));
    let anonymous = Ok(json!(["Anonymous::\"anonymous\"", {}, [], "none"]));
    let from = |address: &str, principal: &'static str, values: &[&str]| {
        with(|attributes| {
            let mut source = peer(address, 1);
            source.principal = principal.into();
            attributes.source = Some(source);
            let http = attributes.request.as_mut().unwrap().http.as_mut().unwrap();
            let lines: Vec<(&str, &[u8])> = values.iter().map(|value| ("x-user", value.as_bytes())).collect();
            http.header_map = Some(header_map(&lines));
        })
    };
    for (address, peer, values, expected) in [
        ("10.1.2.3", "", &["alice"][..], user.clone()),
        ("::ffff:10.1.2.3", "", &["alice"], user.clone()),
        ("::1", "", &["alice"], user.clone()),
        ("192.0.2.7", "spiffe://prod/edge", &["alice"], user),
        ("10.2.0.1", "", &["alice"], anonymous.clone()),
        (
            "192.0.2.7",
            "spiffe://prod/edge/more",
            &["alice"],
            Ok(json!(["Workload::\"spiffe://prod/edge/more\"", {}, [], "peer"])),
        ),
        // Nobody claims anything: the next proof counts.
        ("10.1.2.3", "", &[], anonymous.clone()),
        ("not an address", "", &["alice"], anonymous),
        ("10.1.2.3", "", &[""], Err("identity: the trusted header `X-User` is empty".to_owned())),
        (
            "10.1.2.3",
            "",
            &["alice", "bob"],
            Err("attribute: the header `x-user` is repeated, but declared as one value".to_owned()),
        ),
    ] {
        assert_eq!(principal(&court, &from(address, peer, values)), expected, "{address} {peer} {values:?}");
    }
    let mut no_source = from("10.1.2.3", "", &["alice"]);
    no_source.attributes.as_mut().unwrap().source = None;
    assert_eq!(principal(&court, &no_source), Ok(json!(["Anonymous::\"anonymous\"", {}, [], "none"])));
}

#[test]
fn how_it_was_proved_and_the_claims_are_told() {
    let declared = "identity: String, claims?: { mfa?: Bool, n?: Long }";
    contexts([
        (
            declared,
            by_token(json!({"sub": "a", "mfa": true, "iss": "x"})),
            Ok(json!({"identity": "jwt", "claims": {"record": {"mfa": true}}})),
        ),
        (declared, by_peer("cart.shop"), Ok(json!({"identity": "peer"}))),
        (declared, request(), Ok(json!({"identity": "none"}))),
        (
            declared,
            by_token(json!({"sub": "a", "n": 1.5})),
            Err("attribute: `context.claims.n`: expected a `Long`, found a number that is not an exact integer"),
        ),
        ("claims: { mfa?: Bool }", request(), Err("attribute: `context.claims` is required by the schema and missing")),
    ]);
}

#[test]
fn a_principal_that_the_action_does_not_take_is_denied_as_not_applicable() {
    let schema = "action \"GET\" appliesTo { principal: [User], resource: [Service], context: {} };";
    let court = Court::new(&[with_schema(schema)], "");
    assert_eq!(sound(&court.pipeline.frame(frame(&by_token(json!({"sub": "a"}))), "d")), "allow");
    assert_eq!(sound(&court.pipeline.frame(frame(&by_peer("cart")), "d")), "not_applicable");
    assert_eq!(sound(&court.pipeline.frame(frame(&request()), "d")), "not_applicable");
}

// === routes ===

const ROUTES: &str = r#"
routes:
  - match: GET /books/{id}
    action: viewBook
    resource: 'Book::"{id}"'
  - match: GET /books/new
    action: newBook
  - match: GET /books/{id}/pages/{page}
    action: viewPage
    resource: 'Page::"{id}/{page}"'
  - match: GET /files/{*rest}
    action: viewFile
    resource: 'Book::"file {rest}"'
  - match: grpc shop.v1.Cart/Add
    action: addToCart
  - match: POST /shop.v1.Cart/{method}
    action: anyCart
"#;

const ROUTED: &str = r#"
    entity Book; entity Page;
    action "viewBook" appliesTo {
        principal: [Anonymous], resource: [Book], context: { params: { id: Long } },
    };
    action "newBook", "addToCart" appliesTo { principal: [Anonymous], resource: [Service], context: {} };
    action "viewPage" appliesTo {
        principal: [Anonymous], resource: [Page], context: { params: { id: String, page?: Set<Long> } },
    };
    action "viewFile" appliesTo { principal: [Anonymous], resource: [Book], context: { params: { rest: String } } };
    action "anyCart" appliesTo { principal: [Anonymous], resource: [Service], context: {} };
    action "GET", "POST" appliesTo { principal: [Anonymous], resource: [Service], context: { path: String } };
"#;

#[test]
fn routes_lead_to_actions_and_resources() {
    let mut bundle = with_schema(ROUTED);
    bundle.files.insert("routes.yaml".to_owned(), ROUTES.to_owned());
    bundle.files.insert("bundle.yaml".to_owned(), "name: shop\nunrouted: base".to_owned());
    let court = Court::new(&[bundle], "service: shop\npaths: {allow: [encoded_slash]}");
    let grpc = |content_type: &'static str, path: &'static str| {
        with_http(|http| {
            http.method = "POST".into();
            http.path = path.into();
            http.headers = pairs(&[("content-type", content_type)]);
        })
    };
    let params = |fields: Json| record("params", fields);
    for (request, action, resource, context) in [
        (line("GET", "/books/7"), "viewBook", "Book::\"7\"", params(json!({"id": 7}))),
        (line("GET", "/books/7?x=1"), "viewBook", "Book::\"7\"", params(json!({"id": 7}))),
        // A literal wins over a parameter.
        (line("GET", "/books/new"), "newBook", "Service::\"shop\"", json!({})),
        (line("GET", "/books/7/pages/9"), "viewPage", "Page::\"7/9\"", params(json!({"id": "7", "page": [9]}))),
        // An escape that was let through stays in the path, and stands for itself in a parameter; but in an id of several
        // parameters it must not look like what is between them.
        (
            line("GET", "/books/a%2Fb/pages/1"),
            "viewPage",
            "Page::\"a%2Fb/1\"",
            params(json!({"id": "a/b", "page": [1]})),
        ),
        (line("GET", "/files/a/b.txt"), "viewFile", "Book::\"file a/b.txt\"", params(json!({"rest": "a/b.txt"}))),
        // No route: the method on the service.
        (line("GET", "/files/"), "GET", "Service::\"shop\"", json!({"path": "/files/"})),
        (line("GET", "/books"), "GET", "Service::\"shop\"", json!({"path": "/books"})),
        (line("GET", "/books/"), "GET", "Service::\"shop\"", json!({"path": "/books/"})),
        (line("GET", "/Books/7"), "GET", "Service::\"shop\"", json!({"path": "/Books/7"})),
        (line("POST", "/books/7"), "POST", "Service::\"shop\"", json!({"path": "/books/7"})),
        // A gRPC route counts whatever the content type: Connect and others serve the same path.
        (grpc("application/grpc", "/shop.v1.Cart/Add"), "addToCart", "Service::\"shop\"", json!({})),
        (grpc("application/json", "/shop.v1.Cart/Add"), "addToCart", "Service::\"shop\"", json!({})),
        (grpc("application/grpc", "/shop.v1.Cart/Drop"), "anyCart", "Service::\"shop\"", json!({})),
        // gRPC is POST.
        (line("GET", "/shop.v1.Cart/Add"), "GET", "Service::\"shop\"", json!({"path": "/shop.v1.Cart/Add"})),
    ] {
        let query = court.query(&request).unwrap_or_else(|refused| panic!("{action} {resource}: {refused}"));
        let shown = shown(&query);
        let expected = (json!(format!("Action::\"{action}\"")), json!(resource), context);
        assert_eq!((shown["action"].clone(), shown["resource"].clone(), shown["context"].clone()), expected);
    }
    let refused = "attribute: `context.params.id`: expected a `Long`, found a string that is not one";
    assert_eq!(court.query(&line("GET", "/books/seven")), Err(refused.to_owned()));
    // The client chooses the method's name, and HTTP/2 lets it be anything.
    assert_eq!(sound(&court.pipeline.frame(frame(&line("newBook", "/anything")), "d")), "unrouted");
}

#[test]
fn without_routes_every_method_is_an_action_on_the_service() {
    let court =
        Court::new(&[files("plain", &[("bundle.yaml", "name: plain"), ("all.cedar", EVERYTHING)])], "service: shop");
    for method in ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE"] {
        let query = court.query(&line(method, "/a/b")).expect(method);
        // HEAD is GET without the body, where no bundle speaks of HEAD.
        let action = if method == "HEAD" { "GET" } else { method };
        assert_eq!(
            (query.action.to_string(), query.resource.to_string()),
            (format!("Action::\"{action}\""), "Service::\"shop\"".to_owned())
        );
        assert_eq!(shown_record(&query.context)["path"], json!("/a/b"));
    }
}

/// The context holds what the schema names, and of a request that has everything nothing else.
#[test]
fn what_the_schema_does_not_name_is_not_in_the_query() {
    let full = with(|attributes| {
        attributes.context_extensions = pairs(&[("a", "b")]);
        attributes.metadata_context = Some(metadata(&json!({"ns": {"a": 1}})));
        let http = attributes.request.as_mut().unwrap().http.as_mut().unwrap();
        http.headers = pairs(&[("authorization", "Bearer x"), ("cookie", "y")]);
    });
    assert_eq!(context("", &full), Ok(json!({})));
    assert_eq!(context("headers: {}", &full), Ok(record("headers", json!({}))));
    let court = Court::new(&[shop_with_context("")], "service: shop");
    let (one, two) = (court.query(&full).expect("maps"), court.query(&request()).expect("maps"));
    assert_eq!(one, two, "equal for policies, so equal");
}

/// Nor is what no policy of the action reads: it is not mapped, so it cannot misfit either.
#[test]
fn what_no_policy_reads_is_not_looked_at() {
    let schema = r#"action "GET", "PUT" appliesTo {
        principal: [Anonymous], resource: [Service], context: { path: String, query: { n: Long, m: Long } },
    };"#;
    let policy = r#"permit (principal, action == Action::"GET", resource) when { context.query.n > 0 };"#;
    let court = Court::new(&[shop(&[("schema.cedarschema", schema), ("a.cedar", policy)])], "service: shop");
    let refused = "attribute: `context.query.n`: expected a `Long`, found a string that is not one";
    for (request, expected) in [
        (line("GET", "/?n=1&m=2"), Ok(record("query", json!({"n": 1})))),
        (line("GET", "/?n=1&m=x&m=%zz"), Ok(record("query", json!({"n": 1})))),
        (line("GET", "/?n=x"), Err(refused.to_owned())),
        (line("PUT", "/?n=x"), Ok(json!({}))),
    ] {
        assert_eq!(court.context(&request), expected, "{request:?}");
    }
}
